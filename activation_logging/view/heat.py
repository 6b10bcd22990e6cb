"""Heat maps of an answer: a number for each layer and token."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from activation_logging.dataset.layers import Source
from activation_logging.detectors.forms import form_of
from activation_logging.errors import ViewError
from activation_logging.report.colours import own_states
from activation_logging.report.marking import LEVELS
from activation_logging.store.derived import REPLAY
from activation_logging.view.tokens import Choice

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from activation_logging.detectors.saved_probe import SavedProbe
    from activation_logging.store import Entry

MOST_TOKENS = 120
"""So many tokens are in one map."""
_LENS = f"{REPLAY}logit_lens"
_WANTED = {"lens": "logit lens: log-probability", "lens-entropy": "logit lens: entropy"}


class Cell(NamedTuple):
    """One number, and the classes that colour it; an empty text where there is none."""

    text: str
    shade: str


class HeatMap(NamedTuple):
    """Rows from the deepest layer to the first.

    ``tokens`` are the texts of the columns, of which the first is token ``start`` of the answer.
    ``note`` says how to read it.
    """

    tokens: Sequence[str]
    start: int
    rows: Sequence[tuple[str, Sequence[Cell]]]
    note: str
    next: int | None


def maps(entry: Entry, probes: Mapping[str, SavedProbe]) -> list[Choice]:
    """What this answer has maps of."""
    found = []
    if entry.status == "complete" and entry.layers:
        found = [
            Choice(f"probe/{name}", f"probe {name}, at every layer")
            for name, probe in probes.items()
            if probe.model == entry.model and _layer_of(probe) is not None
        ]
        found.append(Choice("norm", "norm of the residual stream"))
    if _LENS in entry.derived_names:
        found += [Choice(name, title) for name, title in _WANTED.items()]
    return found


def make_map(entry: Entry, of: str, probes: Mapping[str, SavedProbe], start: int = 0) -> HeatMap:
    """A heat map of some tokens of an answer.

    Raises:
        ViewError: this answer has no such map.
    """
    if of not in {choice.name for choice in maps(entry, probes)}:
        raise ViewError(f"this answer has no map of {of[:80]!r}")
    if of in _WANTED:
        names, values, note = _lens(entry, of)
        kind, shares = "unlikely", _from_least(values)
    elif of == "norm":
        values = np.stack([_norm(entry, layer) for layer in entry.layers])
        names = [f"layer {layer}" for layer in entry.layers]
        note = "Each layer has a scale of its own, since norms grow with the depth."
        kind, shares = "unlikely", np.stack([_from_least(row) for row in values])
    else:
        names, values, note = _by_probe(entry, probes[of.partition("/")[2]])
        kind, shares = "", 2 * values - 1
    stop = min(start + MOST_TOKENS, values.shape[1])
    texts = entry.response_tokens or [f"#{token}" for token in entry.response_token_ids]
    rows = [
        (
            name,
            [_cell(*each, kind) for each in zip(row[start:stop], share[start:stop], strict=True)],
        )
        for name, row, share in zip(names, values, shares, strict=True)
    ]
    following = stop if stop < values.shape[1] else None
    return HeatMap(texts[start:stop], start, rows[::-1], note, following)


def _norm(entry: Entry, layer: int) -> npt.NDArray[np.float64]:
    return own_states(entry, np.linalg.norm(entry.layer(layer).astype(np.float64), axis=1))


def _layer_of(probe: SavedProbe) -> int | None:
    """The only layer that a probe reads, if what it reads is one layer of the residual stream."""
    source = Source.of(probe.sources[0], probe.num_layers)
    is_layer = len(probe.sources) == 1 and source.site.name == "resid" and source.head is None
    return source.site.layer if is_layer else None


def _by_probe(entry: Entry, probe: SavedProbe) -> tuple[list[str], npt.NDArray[np.float64], str]:
    width = form_of(probe.form).width(probe.tensors)
    if entry.hidden_size != width or entry.num_layers != probe.num_layers:
        raise ViewError("the probe was fitted on a model of another size")
    values = [own_states(entry, probe.of_tokens(entry.layer(layer))) for layer in entry.layers]
    own = _layer_of(probe)
    names = [f"layer {k}{' (its own)' if k == own else ''}" for k in entry.layers]
    note = (
        f"The probe was fitted at layer {own}. Elsewhere the same direction is read, which was not "
        "fitted there: compare tokens within a layer."
    )
    return names, np.stack(values), note


def _lens(entry: Entry, of: str) -> tuple[list[str], npt.NDArray[np.float64], str]:
    found = entry.derived(_LENS)
    lens = np.asarray(found.values, np.float64)
    if lens.ndim != 3 or lens.shape[2] != 2:
        raise ViewError("the logit lens of this answer has a form that is not known here")
    entropy, logprob = lens[:, :, 0].T, lens[:, :, 1].T
    layers = found.details.get("layers")
    numbers = layers if isinstance(layers, list) and len(layers) == len(entropy) else None
    names = [f"layer {k}" for k in numbers or range(1, len(entropy) + 1)]
    note = (
        "What the output head would make of each layer's state, before the token: replayed, "
        "not logged."
    )
    return (names, entropy, note) if of == "lens-entropy" else (names, logprob, note)


def _from_least(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """From 0 to 1 between the least and the greatest of those that are finite."""
    known = values[np.isfinite(values)]
    low, high = (known.min(), known.max()) if len(known) else (0.0, 1.0)
    return np.asarray((values - low) / max(high - low, 1e-9))


def _cell(value: float, share: float, kind: str) -> Cell:
    """A number's cell; without a kind its sign chooses one of two colours."""
    if not np.isfinite(value):
        return Cell("", "")
    level = round(LEVELS * abs(share))
    colour = kind or ("positive" if share >= 0 else "negative")
    return Cell(f"{value:.4g}", f"{colour} level-{level}" if level else "")
