"""What transformers computes inside a model, for any architecture, and how far rows are from it.

Hooks keep what every module takes and gives. Of all these tensors, the one nearest to a site's rows
is the site's counterpart, if it is of the right kind: of a module of the same layer, and an input
for ``heads``, an output for ``attn_out`` and ``mlp_out``. So no architecture needs a list of names.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from activation_logging import open_store
from activation_logging.replay.model import decoder_layers
from activation_logging.replay.proof import relative_errors
from activation_logging.sites import PRENORM, RESID, Site
from bench.architectures import image_prompt

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from activation_logging import Entry

    Rows = npt.NDArray[np.float32]


class Tensor(NamedTuple):
    """Where a tensor was seen: a module's name, and ``in``, ``out`` or ``logits``."""

    module: str
    side: str


class Reference:
    """One model of transformers in float32.

    Args:
        model: its folder.
        kind: its class in transformers.
    """

    def __init__(self, model: Path, kind: str) -> None:
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        loader = getattr(transformers, kind)
        try:
            made = loader.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")
        except ValueError:  # it has only its own way
            made = loader.from_pretrained(model, dtype=torch.float32)
        self._model: Any = made.eval()
        self._folder = model
        config = made.config
        names = ("image_token_id", "image_token_index")
        self.image_token = next((getattr(config, n) for n in names if hasattr(config, n)), None)
        self.layers = decoder_layers(self._model)
        self.head: Any = self._model.get_output_embeddings()
        self._seen: dict[Tensor, torch.Tensor] = {}
        for name, module in self._model.named_modules():
            module.register_forward_hook(_keeper(self._seen, name, module), with_kwargs=True)

    def __call__(self, ids: Sequence[int], prompt_len: int) -> dict[Tensor, Rows]:
        """Every tensor with a row for each of these tokens, as ``[tokens, width]``.

        Args:
            ids: of the prompt and the answer.
            prompt_len: how many are the prompt's.
        """
        self._seen.clear()
        more = self._image(ids, prompt_len) if self.image_token in ids else {}
        with torch.inference_mode():
            self._model(input_ids=torch.tensor([ids]), use_cache=False, **more)
        found = {}
        for at, tensor in self._seen.items():
            rows = _rows(tensor, len(ids))
            if rows is not None:
                found[at] = rows.float().numpy()
        return found

    def _image(self, ids: Sequence[int], prompt_len: int) -> dict[str, torch.Tensor]:
        """What the processor makes of the prompt's image."""
        from transformers import AutoProcessor

        text, image = image_prompt()
        found = AutoProcessor.from_pretrained(self._folder)(
            text=[text], images=[image], return_tensors="pt"
        )
        if found.pop("input_ids")[0].tolist() != list(ids[:prompt_len]):
            raise AssertionError("vLLM puts other tokens in the image's place")
        found.pop("attention_mask")
        answer = torch.zeros((1, len(ids) - prompt_len), dtype=torch.long)
        return {
            name: torch.cat([values, answer], dim=1) if values.shape == (1, prompt_len) else values
            for name, values in found.items()
        }

    def candidates(self, site: Site, depth: int, found: dict[Tensor, Rows]) -> Iterator[Tensor]:
        """The tensors that a site may be."""
        head = next(n for n, module in self._model.named_modules() if module is self.head)
        if site == Site(RESID, depth):
            yield Tensor(head, "in")
        elif site.name in (RESID, PRENORM):
            # Between two layers, Qwen3-VL adds an image's features to its stream.
            if site.layer < depth:
                yield Tensor(f"{self.layers}.{site.layer}", "in")
            if site.layer:
                yield Tensor(f"{self.layers}.{site.layer - 1}", "out")
            if site.name == PRENORM:  # gemma3n joins its streams before the norm
                yield from (at for at in found if at.module.endswith("norm") and at.side == "in")
        else:
            sides = {"heads": ("in",), "router": ("out", "logits")}.get(site.name, ("out",))
            inside = f"{self.layers}.{site.layer - 1}."
            yield from (at for at in found if at.module.startswith(inside) and at.side in sides)


def _keeper(seen: dict[Tensor, torch.Tensor], name: str, module: Any) -> Any:
    weight = getattr(module, "weight", None)

    def hook(_: Any, args: Any, kwargs: Any, output: Any) -> None:
        given = _first([*args, *(kwargs.get(key) for key in ("hidden_states", "x", "input"))])
        made = _first(output if isinstance(output, (tuple, list)) else [output])
        if given is not None:
            seen[Tensor(name, "in")] = given
            if weight is not None and weight.ndim == 2 and weight.shape[-1] == given.shape[-1]:
                seen[Tensor(name, "logits")] = given.float() @ weight.T
        if made is not None:
            seen[Tensor(name, "out")] = made

    return hook


def _first(values: Sequence[Any]) -> torch.Tensor | None:
    for value in values:
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return value.clone()  # what follows may write into it
    return None


def _rows(tensor: torch.Tensor, tokens: int) -> torch.Tensor | None:
    """As ``[tokens, width]``; of several streams the first; None if it has other rows."""
    shape = list(tensor.shape)
    if len(shape) >= 2 and shape[0] == tokens:
        return tensor.reshape(tokens, -1)
    if len(shape) >= 3 and shape[:2] == [1, tokens]:
        return tensor.reshape(tokens, -1)
    if len(shape) == 4 and shape[1:3] == [1, tokens]:
        return tensor[0].reshape(tokens, -1)
    return None


def compare(store: Path, model: Path, kind: str) -> dict[str, Any]:
    """Hold every row of a store against transformers.

    Returns:
        ``rows``, ``tokens`` (that transformers gives too), ``own`` (that the head makes of the
        rows), and for each kind of site in ``sites`` its ``worst`` relative error, its number of
        ``layers`` and its ``module`` in transformers.
    """
    reference = Reference(model, kind)
    found = _Found()
    with open_store(store) as opened:
        for entry in opened.entries():
            found.add(entry, reference)
    return found.summary(reference)


@dataclass
class _Found:
    """What comparing came to, so far."""

    depth: int = 0
    rows: int = 0
    total: int = 0
    same: int = 0
    own: int = 0
    worst: dict[Site, dict[Tensor, float]] = field(default_factory=lambda: defaultdict(dict))

    def add(self, entry: Entry, reference: Reference) -> None:
        if entry.status != "complete":
            raise AssertionError(f"{entry.status}: {entry.status_reason}")
        given = list(entry.response_token_ids)
        found = reference([*entry.prompt_token_ids, *given], len(entry.prompt_token_ids))
        self.depth = entry.num_layers
        self.rows += len(entry.positions)
        self.total += len(given)
        answers = entry.positions >= len(entry.prompt_token_ids) - 1
        last = next(reference.candidates(Site(RESID, self.depth), self.depth, found))
        expected = found[last][entry.positions][answers]
        self.same += _agree(reference.head, expected, given)
        self.own += _agree(reference.head, entry.layer("last")[answers], given)
        for site in entry.sites:
            kept, errors = _of(entry, site), self.worst[site]
            for at in set(reference.candidates(site, self.depth, found)):
                if found[at].shape[1] == kept.shape[1]:
                    error = float(relative_errors(kept, found[at][entry.positions]).max())
                    errors[at] = max(errors.get(at, 0.0), error)

    def summary(self, reference: Reference) -> dict[str, Any]:
        if not self.rows:
            raise AssertionError("nothing was logged")
        sites: dict[str, dict[str, Any]] = {}
        for site, errors in self.worst.items():
            if not errors:
                raise AssertionError(f"transformers has nothing of the width of {site}")
            at = min(errors, key=errors.__getitem__)
            known = sites.setdefault(site.name, {"worst": 0.0, "layers": 0, "module": ""})
            known["worst"] = max(known["worst"], errors[at])
            known["layers"] += 1
            known["module"] = f"{at.module.removeprefix(reference.layers)} {at.side}"
        return {
            "rows": self.rows,
            "tokens": f"{self.same}/{self.total}",
            "own": f"{self.own}/{self.total}",
            "sites": sites,
        }


def _of(entry: Entry, site: Site) -> Rows:
    layer = None if site.name == PRENORM else site.layer
    kept = entry.site(site.name, layer)
    return np.asarray(kept, dtype=np.float32).reshape(len(kept), -1)


def _agree(head: Any, rows: Rows, tokens: Sequence[int]) -> int:
    with torch.inference_mode():
        best = head(torch.tensor(np.asarray(rows, dtype=np.float32))).argmax(-1)
    return int((best == torch.tensor(tokens)).sum())
