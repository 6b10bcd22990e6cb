"""A model of transformers that runs over given tokens once and hands out each layer.

Hooks on the decoder layers give the residual stream and, one layer at a time, the attention
weights. Every architecture is looked at by what it does with a few tokens, not by names: which
modules are its layers, which gives attention weights, and which is its final norm.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from activation_logging.errors import ReplayError
from activation_logging.extras import require
from activation_logging.files import sha256
from activation_logging.memory import available
from activation_logging.replay.registry import LayerPass
from activation_logging.sites import RESID, Site
from activation_logging.text import brief
from activation_logging.verify.lm_head import model_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    Rows = npt.NDArray[np.float32]

DTYPES = ("float32", "float16", "bfloat16")
TRIAL = (1, 2, 3, 4)
"""The tokens that an architecture is looked at with."""
LENS_ERROR = 1e-3
"""Relative difference of logits from which the head is not all that makes them."""
_NO_MEMORY = re.compile("out of memory|can't allocate memory")
"""What torch says, of a GPU and of the host."""
_NOT_TEXT = re.compile("(image|video|audio|vision|speech).*_token_(id|index)")


def decoder_layers(model: Any) -> str:
    """The name of the longest list of modules in the part of a model that handles text."""
    import torch

    depth = model.config.get_text_config().num_hidden_layers
    head = model.get_output_embeddings()
    found = [
        (sum(weights.numel() for weights in module.parameters()), name)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == depth and module is not head
    ]
    if not found:
        raise ReplayError(f"{type(model).__name__} has no list of {depth} decoder layers")
    return str(max(found)[1])


def model_digest(folder: Path) -> str:
    """Hex SHA-256 of a model's configuration and weights.

    Raises:
        ReplayError: the folder has no safetensors files, or one cannot be read.
    """
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ReplayError(
            f"{folder} holds no safetensors files; give the folder of a model that was saved so"
        )
    try:
        sums = [f"{file.name} {sha256(file)}" for file in (folder / "config.json", *weights)]
    except (OSError, ValueError) as error:
        raise ReplayError(f"{folder} cannot be read: {brief(error)}") from None
    return hashlib.sha256("\n".join(sums).encode()).hexdigest()


def _same(output: Any, states: Any) -> bool:
    """Whether a module gave exactly these states ``[n, hidden]``."""
    import torch

    if not torch.is_tensor(output) or output.numel() != states.numel():
        return False
    return bool(torch.equal(output.reshape(states.shape), states))


@dataclass
class _Pass:
    """What the hooks fill in while a model runs."""

    take: Callable[[LayerPass], None] | None
    keep: Collection[int]
    states: dict[int, Any]
    before: Any = None
    attention: Any = None


class ReplayModel:
    """One model of transformers, ready to run over tokens.

    Args:
        model: a folder, or a name on the Hugging Face hub.
        dtype: one of :data:`DTYPES`, which it computes in.
        device: as torch names it; None for a GPU if there is one.
        attention: whether attention weights are wanted. They need the plain implementation, which
            takes memory that grows with the square of the tokens.
        trust_remote_code: run code that the model brings.

    Raises:
        ReplayError: it cannot be loaded, or is of no kind that can be replayed.
        ExtraMissing: torch or transformers is not installed.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        dtype: str = "float32",
        device: str | None = None,
        attention: bool = True,
        trust_remote_code: bool = False,
    ) -> None:
        require("replay", "torch", "transformers")
        import torch

        if dtype not in DTYPES:
            raise ReplayError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
        self.folder = model_folder(model, more=("*.py",) if trust_remote_code else ())
        if (self.folder / "adapter_config.json").exists():
            raise ReplayError(
                f"{model} is an adapter; merge it into its base model, and give that folder"
            )
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise ReplayError(f"there is no device {device!r} here; leave it out (--device)")
        self.dtype = dtype
        self.digest = model_digest(self.folder)
        self._options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
        if attention:
            self._options["attn_implementation"] = "eager"
        self.config = self._configuration()
        text = self.config.get_text_config()
        self.num_layers = int(text.num_hidden_layers)
        self.hidden_size = int(text.hidden_size)
        self.vocabulary = int(text.vocab_size)
        self.num_heads = int(text.num_attention_heads)
        self.not_text = {
            value: name.partition("_")[0]
            for name, value in self.config.to_dict().items()
            if _NOT_TEXT.fullmatch(name) and isinstance(value, int)
        }
        """Token ids that stand for what is no text, with what that is."""
        self.attends: frozenset[int] = frozenset()
        """The layers that give attention weights."""
        self.no_lens: str | None = None
        """Why the output head cannot be applied to inner layers; None where it can."""
        self._attention = attention
        self._pass: _Pass | None = None
        self._norm: Any = None

    def _configuration(self) -> Any:
        import transformers

        try:
            return transformers.AutoConfig.from_pretrained(
                self.folder, trust_remote_code=self._options["trust_remote_code"]
            )
        except (OSError, ValueError, LookupError, ImportError) as error:
            raise ReplayError(f"{self.folder} cannot be read: {brief(error)}") from None

    def load(self) -> None:
        """Load the weights, and find out what the architecture offers.

        Raises:
            ReplayError: transformers cannot load or run it.
        """
        import torch
        import transformers
        from safetensors import SafetensorError

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        try:
            made = transformers.AutoModelForCausalLM.from_pretrained(
                self.folder,
                dtype=getattr(torch, self.dtype),
                use_safetensors=True,
                **self._options,
            )
            self._model: Any = made.eval().to(self.device)
        except (
            OSError,
            ValueError,
            LookupError,
            ImportError,
            RuntimeError,
            SafetensorError,
        ) as error:
            raise ReplayError(f"{self.folder} cannot be loaded: {brief(error)}") from None
        name = decoder_layers(self._model)
        self._layers: Any = self._model.get_submodule(name)
        self._body: Any = self._model.get_submodule(name.rpartition(".")[0])
        self._hook()
        self._look()

    def _hook(self) -> None:
        for number, layer in enumerate(self._layers, start=1):
            layer.register_forward_pre_hook(self._entering, with_kwargs=True)
            layer.register_forward_hook(self._leaving(number))
            for child in layer.children() if self._attention else ():
                child.register_forward_hook(self._attending)

    def _entering(self, _: Any, args: Any, kwargs: Any) -> None:
        if self._pass is not None:
            self._pass.before = args[0] if args else kwargs["hidden_states"]
            self._pass.attention = None

    def _attending(self, _: Any, args: Any, output: Any) -> None:
        """Keep the weights ``[1, heads, n, n]`` that the attention module gives besides."""
        del args
        if self._pass is None or self._pass.before is None or not isinstance(output, tuple):
            return
        tokens = self._pass.before.shape[1]
        for given in output[1:]:
            if getattr(given, "ndim", 0) == 4 and given.shape[2:] == (tokens, tokens):
                self._pass.attention = given

    def _leaving(self, number: int) -> Callable[[Any, Any, Any], None]:
        def hook(_: Any, args: Any, output: Any) -> None:
            del args
            at = self._pass
            if at is None:
                return
            after = output[0] if isinstance(output, tuple) else output
            if after.ndim != 3 or len(after) != 1:
                raise ReplayError(f"layer {number} of {self.folder} has several streams")
            if number - 1 in at.keep:
                at.states[number - 1] = at.before[0]
            if number == self.num_layers:
                at.states[number] = after[0]
            if at.take is not None:
                weights = None if at.attention is None else at.attention[0]
                at.take(LayerPass(number, at.before[0], after[0], weights, self._log_probs))
            at.before = at.attention = None

        return hook

    def _look(self) -> None:
        """Find out, with a few tokens, which layers attend, and what makes logits of a state."""
        import torch

        attends = set()
        after: list[Any] = []

        def take(layer: LayerPass) -> None:
            if layer.attention is not None:
                attends.add(layer.number)
            after.append(layer.after)

        norms: list[tuple[Any, Any]] = []
        watched = [
            child.register_forward_hook(lambda module, _, output: norms.append((module, output)))
            for child in self._body.children()
        ]
        last = self._run(TRIAL, take, ())[0]
        for hook in watched:
            hook.remove()
        self.attends = frozenset(attends)
        if len(after) != self.num_layers or last.shape != (len(TRIAL), self.hidden_size):
            raise ReplayError(f"{self.folder} does not run as a stack of decoder layers")
        self._norm = next((m for m, o in norms if _same(o, last) and not _same(o, after[-1])), None)
        if self._norm is None:
            self.no_lens = "its final norm was not found"
            return
        with torch.inference_mode():
            ids = torch.tensor([TRIAL], device=self.device)
            wanted = self._model(input_ids=ids, use_cache=False).logits[0].float()
            got = self._head(after[-1])
        if float((wanted - got).norm() / wanted.norm()) > LENS_ERROR:
            self.no_lens = "its logits are not only its output head's of the last state"

    def _head(self, states: Any) -> Any:
        """Logits of states of the stream, float32."""
        return self._model.get_output_embeddings()(self._norm(states[None]))[0].float()

    def _log_probs(self, states: Any) -> Any:
        return self._head(states).log_softmax(-1)

    def _run(
        self, ids: Sequence[int], take: Callable[[LayerPass], None] | None, keep: Collection[int]
    ) -> tuple[Any, dict[int, Any]]:
        import torch

        self._pass = _Pass(take, keep, {})
        try:
            with torch.inference_mode():
                tokens = torch.tensor([list(ids)], device=self.device)
                last = self._body(input_ids=tokens, use_cache=False).last_hidden_state[0]
            return last, self._pass.states
        finally:
            self._pass = None

    def run(
        self, ids: Sequence[int], take: Callable[[LayerPass], None] | None, sites: Collection[Site]
    ) -> dict[Site, Rows]:
        """Run over tokens, and hand out each layer as it is done.

        Args:
            ids: the tokens.
            take: called with every layer in turn.
            sites: layers of the residual stream, and ``resid_prenorm``, to return.

        Returns:
            The rows of each of the sites, float32 ``[tokens, hidden]``.

        Raises:
            MemoryError: memory ran out.
        """
        try:
            last, states = self._run(ids, take, {site.layer for site in sites})
        except RuntimeError as error:
            if _NO_MEMORY.search(str(error)):
                raise MemoryError(f"memory ran out ({brief(error, 80)})") from None
            raise
        found = {}
        for site in sites:
            is_last = site == Site(RESID, self.num_layers)
            rows = last if is_last else states[site.layer]
            found[site] = rows.float().cpu().numpy()
        return found

    def bytes_needed(self, tokens: int) -> int:
        """Memory that a run over so many tokens takes besides the weights, roughly."""
        text = self.config.get_text_config()
        inner = getattr(text, "intermediate_size", None) or 4 * self.hidden_size
        rows = 4 * tokens * (8 * self.hidden_size + 3 * int(inner))
        # Scores and softmax of one layer are there at once, and a mask.
        return rows + (4 * tokens**2 * (2 * self.num_heads + 1) if self._attention else 0)

    def bytes_free(self) -> int | None:
        """Memory of the device that a run may take; None where nobody can say."""
        import torch

        if not self.device.startswith("cuda"):
            return available()
        reserved, used = (
            torch.cuda.memory_reserved(self.device),
            torch.cuda.memory_allocated(self.device),
        )
        return int(torch.cuda.mem_get_info(self.device)[0] + reserved - used)
