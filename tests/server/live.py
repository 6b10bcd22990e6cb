"""The probes of the servers of these tests, and whether they say the same live and later.

Each server has probes of its model, so every mode of the engine that is tried tries them, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from activation_logging import Entry
from activation_logging.detectors.saved_probe import SavedProbe
from activation_logging.errors import InputMissing, RowsMissing

NEAR = 1e-3
"""Of a probability of states that were not logged: the reference's rounding is another."""


class Shape(NamedTuple):
    """Of a model: its depth and width, and what probes of tokens and of answers read."""

    depth: int
    width: int
    token: int | str
    answer: int


SHAPES = {"smol": Shape(30, 576, 15, 8), "tiny": Shape(4, 128, 2, 3)}
"""Of the models that servers have; the layer of answers is not logged there."""


def make_probes(model: str, shape: Shape, head: int = 0) -> dict[str, SavedProbe]:
    """Probes of random numbers: of tokens, of answers by all, the mean and the first of its states.

    Args:
        model: the served name.
        shape: what they read.
        head: the width of what is read of tokens, if it is a head.
    """
    chance = np.random.default_rng(0)
    width, token = shape.width, head or shape.width
    kinds: dict[str, tuple[str, str, dict[int | str, int], str | None]] = {
        "token": ("token", "linear", {shape.token: token}, None),
        "layer": ("token", "linear", {shape.answer: width}, None),
        "pool": ("answer", "attention", {shape.token: token, shape.depth: width}, None),
        "mean": ("answer", "multimax", {shape.depth: width}, "response_mean"),
        "prompt": ("answer", "linear", {shape.depth: width}, "prompt_last"),
    }
    found = {}
    for name, (kind, form, sources, position) in kinds.items():
        size: Any = (2, sum(sources.values()))
        tensors = {"weight": chance.normal(size=size[1:] if form == "linear" else size) / 100}
        if form == "attention":
            tensors["query"] = chance.normal(size=size) / 100
        found[name] = SavedProbe(
            kind=kind,
            form=form,
            tensors={**tensors, "bias": np.zeros(1)},
            sources=tuple(sources),
            position=position,
            threshold=0.5,
            model=model,
            num_layers=shape.depth,
            label="refusal",
            positive="hallucinated",
            negative="correct",
        )
    return found


def save(probes: Mapping[str, SavedProbe], folder: Path) -> str:
    """Write probes, and return their list as ``ACTIVATION_PROBES`` has it."""
    for name, probe in probes.items():
        probe.save(folder / name)
    return ",".join(f"{name}={folder / name}" for name in probes)


class LiveScores:
    """Compares the scores of entries with what their rows say, or with a reference.

    Args:
        states: the states of every layer that a model has at tokens, by the model's name.

    Attributes:
        counts: how many were compared.
    """

    def __init__(self, states: Callable[[str, tuple[int, ...]], Any]) -> None:
        self._states = states
        self.counts: Counter[str] = Counter()

    def check(self, entry: Entry, probes: Mapping[str, SavedProbe]) -> None:
        """Hold the live scores of an entry against what its rows say.

        Raises:
            AssertionError: one differs by more than the last digit of float32.
        """
        if not entry.num_tokens[1]:
            return  # it was aborted before it had an answer
        assert entry.score_digests == {name: probe.digest for name, probe in probes.items()}
        for name, found in entry.scores.items():
            try:
                expected = probes[name].score_rows(entry)
            except RowsMissing:
                self._near(entry, probes[name], found)
                continue
            except InputMissing:
                # Of an answer of one token, or one that was aborted before its last state was.
                continue
            assert np.array_equal(np.isfinite(found), np.isfinite(expected)), (name, entry)
            there = np.isfinite(found)
            steps = np.abs(found[there].view(np.int32).astype(int) - expected[there].view(np.int32))
            self.counts["scores"] += len(steps)
            self.counts["last digit"] += int((steps == 1).sum())
            assert steps.max(initial=0) <= 1, (name, entry)

    def _near(self, entry: Entry, probe: SavedProbe, found: Any) -> None:
        ids = (*entry.prompt_token_ids, *entry.response_token_ids)
        layer, *others = probe.sources
        if probe.kind != "token" or others or not isinstance(layer, int):
            return  # the reference has the residual stream, and this a request that logs a part
        states = self._states(entry.model, ids)[layer][entry.positions]
        there = np.isfinite(found)
        assert there.any(), (probe.sources, entry)
        off = np.abs(found[there] - probe.of_tokens(states[there])).max()
        assert off < NEAR, (probe.sources, off, entry)
        self.counts["compared with the reference"] += int(there.sum())
