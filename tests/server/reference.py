"""The independent reference: the same token ids through Hugging Face transformers, in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from activation_logging import Entry
from activation_logging.sites import SITES, Site
from tests.server.live import SHAPES, LiveScores, make_probes

TOLERANCE = 2e-5
SITE_TOLERANCE = 5e-5
"""Of what an MLP gives, which is small beside the states that it is computed from: 3.3e-5 of the
default model's; of the residual stream, 2e-5."""
EVERYTHING = "resid@all,resid_prenorm,attn_out@all,heads@all,mlp_out@all"

SiteTable = dict[str, dict[str, float]]
"""The worst error of each kind of site, by model."""
SiteTables = dict[str, SiteTable]
"""Such tables by the name of the test module's."""


class Reference:
    """``hidden_states`` of one model, a whole sequence at a time."""

    def __init__(self, model: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._torch = torch
        self._model: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self.states = lru_cache(maxsize=64)(self._states)

    def _states(self, ids: tuple[int, ...]) -> list[npt.NDArray[np.float32]]:
        with self._torch.inference_mode():
            output = self._model(self._torch.tensor([ids]), output_hidden_states=True)
        return [state[0].numpy() for state in output.hidden_states]

    def worst_error(self, entry: Entry, layer: int) -> float:
        """Largest ``|row - reference| / |reference|`` over the rows of one layer."""
        ids = (*entry.prompt_token_ids, *entry.response_token_ids)
        expected = self.states(ids)[layer][entry.positions].astype(np.float64)
        difference = entry.layer(layer).astype(np.float64) - expected
        relative = np.linalg.norm(difference, axis=1) / np.linalg.norm(expected, axis=1)
        return float(relative.max())

    def worst_errors(self, entry: Entry) -> dict[int, float]:
        """The same for each layer of the entry."""
        return {layer: self.worst_error(entry, layer) for layer in entry.layers}


class Fidelity:
    """Compares entries with the reference of their model, and keeps the worst errors by mode."""

    def __init__(self, reference_of: Callable[[str], Reference]) -> None:
        self._reference_of = reference_of
        self._rows: dict[str, int] = {}
        self._worst: dict[str, dict[int, float]] = {}
        self.live = LiveScores(lambda model, ids: reference_of(model).states(ids))

    def __call__(self, mode: str, entries: Iterable[Entry]) -> None:
        """Hold whole entries against the reference.

        Raises:
            AssertionError: one is not complete, or a row is not its token's.
        """
        compared = 0
        for entry in entries:
            assert entry.status == "complete", entry.status_reason
            expected = sum(entry.num_tokens) - entry.num_unread
            if entry.finish_reason != "abort":
                assert list(entry.positions) == list(range(expected))
            compared += len(entry.positions)
            for layer, error in self.note(mode, entry).items():
                assert error <= TOLERANCE, f"{mode}, layer {layer}: {error:.1e} in {entry}"
        assert compared, "nothing was compared"

    def note(self, mode: str, entry: Entry) -> dict[int, float]:
        """The worst errors of one entry, noted but not judged. Its live scores are judged."""
        if entry.model in SHAPES:
            self.live.check(entry, make_probes(entry.model, SHAPES[entry.model]))
        errors = self._reference_of(entry.model).worst_errors(entry)
        worst = self._worst.setdefault(mode, errors)
        assert worst.keys() == errors.keys(), f"{mode}: other layers than before in {entry}"
        self._worst[mode] = {layer: max(worst[layer], errors[layer]) for layer in errors}
        self._rows[mode] = self._rows.get(mode, 0) + len(entry.positions)
        return errors

    def tables(self) -> Iterator[tuple[list[str], list[list[str]]]]:
        """Header and rows of a table for each choice of layers."""
        for layers in dict.fromkeys(map(tuple, self._worst.values())):
            header = ["mode", "rows", *(f"layer {layer}" for layer in layers)]
            rows = [
                [mode, str(self._rows[mode]), *(f"{error:.1e}" for error in worst.values())]
                for mode, worst in self._worst.items()
                if tuple(worst) == layers
            ]
            yield header, rows


def load(model: Path) -> Any:
    """A model of transformers, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, attn_implementation="eager"
    ).eval()


class SiteReference:
    """What a model of transformers computes at every site, a whole sequence at a time."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._found: dict[Site, Any] = {}
        inner = model.base_model
        layers = _part(inner, "layers", "h")
        for layer, block in enumerate(layers, 1):
            attention = _part(block, "self_attn", "attn", "self_attention")
            projection = _part(attention, "o_proj", "out_proj", "dense")
            self._keep(projection, Site("attn_out", layer), lambda args, output: output)
            self._keep(projection, Site("heads", layer), lambda args, output: args[0])
            self._keep(block.mlp, Site("mlp_out", layer), lambda args, output: output)
            if hasattr(block.mlp, "gate"):
                weight = block.mlp.gate.weight
                self._keep(
                    block.mlp.gate,
                    Site("router", layer),
                    lambda args, output, weight=weight: args[0] @ weight.T,
                )
        norm = _part(inner, "norm", "ln_f")
        self._keep(norm, Site("resid_prenorm", len(layers)), lambda args, output: args[0])

    def _keep(self, module: Any, site: Site, pick: Any) -> None:
        def hook(_: Any, args: Any, output: Any) -> None:
            value = pick(args, output)
            # What comes next may write into it.
            self._found[site] = (value[0] if isinstance(value, tuple) else value).clone()

        module.register_forward_hook(hook)

    def __call__(self, ids: Sequence[int]) -> dict[Site, npt.NDArray[np.float32]]:
        """The rows of every site, ``[tokens, width]``."""
        import torch

        with torch.inference_mode():
            states = self._model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        found = {**self._found, **{Site("resid", n): state for n, state in enumerate(states)}}
        return {site: value.reshape(len(ids), -1).numpy() for site, value in found.items()}

    def errors(self, entries: Iterable[Entry]) -> dict[Site, npt.NDArray[np.float64]]:
        """``|row - reference| / |reference|`` of every row of entries, by site.

        Raises:
            AssertionError: an entry is not complete.
        """
        found: dict[Site, list[npt.NDArray[np.float64]]] = {}
        for entry in entries:
            assert entry.status == "complete", entry.status_reason
            ids = [*entry.prompt_token_ids, *entry.response_token_ids]
            if entry.finish_reason != "abort":
                assert list(entry.positions) == list(range(len(ids) - 1))
            expected = self(ids)
            for site in entry.sites:
                layer = None if site.name == "resid_prenorm" else site.layer
                rows = entry.site(site.name, layer).reshape(len(entry.positions), -1)
                known = expected[site][: len(rows)]
                error = np.linalg.norm(rows.astype(np.float64) - known, axis=1)
                # The embedding of a padding token is zero.
                sizes = np.maximum(np.linalg.norm(known, axis=1), np.finfo(np.float32).tiny)
                found.setdefault(site, []).append(error / sizes)
        assert found, "nothing was compared"
        return {site: np.concatenate(errors) for site, errors in found.items()}

    def worst(self, entries: Iterable[Entry]) -> dict[str, float]:
        """The largest of :meth:`errors` by kind of site."""
        worst: dict[str, float] = {}
        for site, errors in self.errors(entries).items():
            worst[site.name] = max(worst.get(site.name, 0.0), float(errors.max()))
        return worst


def _part(module: Any, *names: str) -> Any:
    """The part that an architecture calls by one of these names."""
    return next(getattr(module, name) for name in names if hasattr(module, name))


def check_sites(entries: Iterable[Entry], model: Path) -> dict[str, float]:
    """Compare every row of every site of entries; the worst error by kind of site.

    Raises:
        AssertionError: an entry is not complete, or a row is not its token's.
    """
    worst = SiteReference(load(model)).worst(entries)
    assert max(worst.values()) <= SITE_TOLERANCE, worst
    return worst


def site_rows(table: SiteTable) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table of the docs."""
    rows = [
        [model, *(f"{worst[site]:.1e}" if site in worst else "" for site in SITES)]
        for model, worst in table.items()
    ]
    return ["", *SITES], rows
