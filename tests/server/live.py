"""The probes of every server of these tests, and whether they say the same live and later.

Each server has probes of its model, so every mode of the engine that is tried tries them, too.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from activation_logging import Entry
from activation_logging.detectors.saved_probe import SavedProbe
from activation_logging.errors import InputMissing, RowsMissing

logger = logging.getLogger(__name__)

NEAR = 1e-3
"""Of a probability of states that were not logged: the reference's rounding is another."""


class Shape(NamedTuple):
    """Of a model: its depth and width, a layer that is logged, and one that only probes read."""

    depth: int
    width: int
    logged: int
    unlogged: int


SHAPES = {"smol": Shape(30, 576, 15, 8), "tiny": Shape(4, 128, 2, 3)}


def make_probes(model: str) -> dict[str, SavedProbe]:
    """Probes of random numbers: of tokens, of all states together, of their mean, of the prompt."""
    shape = SHAPES[model]
    chance = np.random.default_rng(0)
    kinds: dict[str, tuple[str, str, tuple[int, ...], str | None]] = {
        "token": ("token", "linear", (shape.logged,), None),
        "unlogged": ("token", "linear", (shape.unlogged,), None),
        "pool": ("answer", "attention", (shape.logged, shape.depth), None),
        "mean": ("answer", "multimax", (shape.depth,), "response_mean"),
        "prompt": ("answer", "linear", (shape.depth,), "prompt_last"),
    }
    found = {}
    for name, (kind, form, sources, position) in kinds.items():
        size: Any = (2, shape.width * len(sources))
        tensors = {"weight": chance.normal(size=size[1:] if form == "linear" else size) / 100}
        if form == "attention":
            tensors["query"] = chance.normal(size=size) / 100
        found[name] = SavedProbe(
            kind=kind,
            form=form,
            tensors={**tensors, "bias": np.zeros(1)},
            sources=sources,
            position=position,
            threshold=0.5,
            model=model,
            num_layers=shape.depth,
            label="refusal",
            positive="hallucinated",
            negative="correct",
        )
    return found


def save_probes(model: str, folder: Path) -> str:
    """Write the probes of a model, and return their list as ``ACTIVATION_PROBES`` has it."""
    found = make_probes(model)
    for name, probe in found.items():
        probe.save(folder / name)
    return ",".join(f"{name}={folder / name}" for name in found)


class LiveScores:
    """Compares the scores of entries.

    Args:
        states: the states of every layer that a model has at tokens, by the model's name.
    """

    def __init__(self, states: Callable[[str, tuple[int, ...]], Any]) -> None:
        self._states = states
        self.counts: Counter[str] = Counter()

    def check(self, entry: Entry) -> None:
        """Hold the live scores of an entry against what its rows say.

        Raises:
            AssertionError: one differs by more than the last digit of float32.
        """
        probes = make_probes(entry.model)
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
        (layer,) = probe.sources
        states = self._states(entry.model, ids)[layer][entry.positions]
        there = np.isfinite(found)
        assert there.any(), (probe.sources, entry)
        off = np.abs(found[there] - probe.of_tokens(states[there])).max()
        assert off < NEAR, (probe.sources, off, entry)
        self.counts["compared with the reference"] += int(there.sum())
