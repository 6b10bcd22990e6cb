"""Probes of the model that :mod:`.worker` pretends: of every form, at every place of an answer.

What they must say is worked out from an entry's tokens alone, and, where the entry has the rows
that they read, by :meth:`.SavedProbe.score_rows`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from activation_logging import Entry
from activation_logging.default_model import demo_model_path
from activation_logging.detectors.forms import form_of
from activation_logging.detectors.saved_probe import Calibration, SavedProbe
from activation_logging.errors import InputMissing, RowsMissing
from tests.schedules.worker import WIDTH, fingerprints, rows_of

DEPTH = 30
INNER, UNLOGGED = 7, 5
KINDS = {
    "token": ("token", "linear", (INNER,), None),
    "pair": ("token", "attention", (INNER, DEPTH), None),
    "pool": ("answer", "attention", (UNLOGGED, DEPTH), None),
    "highest": ("answer", "multimax", (DEPTH,), None),
    "prompt": ("answer", "linear", (UNLOGGED,), "prompt_last"),
    "first": ("answer", "multimax", (INNER,), "response_first"),
    "last": ("answer", "attention", (DEPTH,), "response_last"),
    "mean": ("answer", "linear", (INNER, DEPTH), "response_mean"),
}
"""By name: kind, form, sources, and position. The layer ``UNLOGGED`` is read for probes alone."""


def make_probe(name: str, seed: int, width: int = WIDTH) -> SavedProbe:
    """A probe whose probabilities of these rows are all over the place."""
    kind, form, sources, position = KINDS[name]
    chance = np.random.default_rng([seed, len(name), *name.encode()])
    tensors = {
        one: chance.normal(size=(1 if dims == 1 else 3, width * len(sources))) / 65536
        for one, dims in form_of(form).dims.items()
    }
    tensors = {one: each[0] if form == "linear" else each for one, each in tensors.items()}
    return SavedProbe(
        kind=kind,
        form=form,
        tensors={**tensors, "bias": chance.normal(size=1)},
        sources=sources,
        position=position,
        threshold=0.5,
        model=str(demo_model_path()),
        num_layers=DEPTH,
        label="refusal",
        positive="hallucinated",
        negative="correct",
        calibration=Calibration(1.5, -0.25),
    )


def save_probes(folder: Path, seed: int) -> str:
    """Write one of each, and return their list as ``ACTIVATION_PROBES`` has it."""
    for name in KINDS:
        make_probe(name, seed).save(folder / name)
    return ",".join(f"{name}={folder / name}" for name in KINDS)


class Scores:
    """Compares the scores of entries with what the probes must have said.

    Args:
        probes: all that were served at any time, by their digests.

    Attributes:
        counts: numbers that were compared, those that differ in the last digit of float32, and
            those that are unknown because their probe came later than their token.
    """

    def __init__(self, probes: Mapping[str, SavedProbe]) -> None:
        self._probes = probes
        self.counts: Counter[str] = Counter()

    def problem(self, entry: Entry) -> str | None:
        """What is wrong with an entry's scores, in a sentence; None if nothing is."""
        scores, digests = entry.scores, entry.score_digests
        if not entry.num_tokens[1]:
            return None  # it was aborted before it had an answer
        if not scores:
            return None if entry.status != "complete" else "it has no scores"
        if scores.keys() != KINDS.keys():
            return f"it has scores by {sorted(scores)}"
        for name, found in scores.items():
            probe = self._probes[str(digests[name])]
            if problem := self._compare(found, self._expected(entry, probe)):
                return f"scores by {name}: {problem}"
        return None

    def _compare(self, found: np.ndarray, expected: np.ndarray) -> str | None:
        if found.shape != expected.shape:
            return f"there are {found.shape}, not {expected.shape}"
        there = np.isfinite(found)
        if (there & ~np.isfinite(expected)).any():
            return f"{found} where nothing is known, which is {expected}"
        steps = np.abs(found[there].view(np.int32).astype(int) - expected[there].view(np.int32))
        if steps.size and steps.max() > 1:
            return f"they differ by {steps.max()} of the last digit"
        self.counts["scores"] += int(there.sum())
        self.counts["last digit"] += int((steps == 1).sum())
        self.counts["unknown"] += int((np.isfinite(expected) & ~there).sum())
        return None

    def _expected(self, entry: Entry, probe: SavedProbe) -> np.ndarray:
        if entry.status != "complete":
            return self._from_tokens(entry, probe, entry.num_rows_expected)
        count = len(entry.positions)
        try:
            return probe.score_rows(entry)
        except InputMissing:
            # What it reads is not there, or the request was aborted before its last state was.
            whole = count == entry.num_rows_expected or entry.document["tokens"] == "prompt"
            nothing = np.full(count, np.nan, np.float32)
            return nothing if whole else self._from_tokens(entry, probe, count)
        except RowsMissing:
            return self._from_tokens(entry, probe, count)

    def _from_tokens(self, entry: Entry, probe: SavedProbe, count: int) -> np.ndarray:
        """What a probe must say of ``count`` rows of an entry."""
        prompt = entry.num_tokens[0]
        first = int((entry.capture_record() or {})["first"])
        tokens = [*entry.prompt_token_ids, *entry.response_token_ids]
        tokens = tokens[: len(tokens) - entry.num_unread]
        if entry.document["tokens"] != "prompt":
            tokens = tokens[: first + count]
        prints = fingerprints(tokens)
        parts = [rows_of(prints, layer=0 if k == DEPTH else int(k)) for k in probe.sources]
        states = np.concatenate(parts, axis=1, dtype=np.float64)
        after, last = states[prompt:], len(states) - 1
        found = np.full(max(len(states), first + count), np.nan, np.float32)
        if len(states) < prompt:
            pass  # it was aborted before that
        elif probe.kind == "token":
            found[prompt - 1 : len(states)] = probe.of_tokens(states[prompt - 1 :])
        elif probe.position == "prompt_last":
            found[prompt - 1] = probe.of_answer(states[prompt - 1 : prompt])
        elif probe.position == "response_last":
            found[last] = probe.of_answer(states[-1:])
        elif len(after):
            run = {
                None: (last, after),
                "response_first": (prompt, after[:1]),
                "response_mean": (last, after.mean(axis=0, keepdims=True)),
            }
            place, rows = run[probe.position]
            found[place] = probe.of_answer(rows)
        return found[first : first + count]
