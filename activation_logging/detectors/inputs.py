"""What detectors read besides states: texts, the signals' numbers, and what a replay has kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from activation_logging.dataset.layers import Source
from activation_logging.dataset.positions import JUDGE_AGAIN
from activation_logging.detectors.follow_ups import FollowUps
from activation_logging.detectors.samples import Samples, samples_to
from activation_logging.errors import InputMissing
from activation_logging.progress import Progress, silent, track

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from activation_logging.dataset import Examples
    from activation_logging.dataset.positions import Place
    from activation_logging.detectors.registry import Detector
    from activation_logging.store import Entry


@dataclass
class Signals:
    """What there is of each answer, and the reasons for the detectors that are left out.

    ``values`` has the number of each answer, ``[n]``, by detector; ``features`` a vector of each,
    ``[n, width]``, by the detector of a replay.
    """

    values: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    features: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    prompts: list[str] = field(default_factory=list)
    responses: list[str] = field(default_factory=list)

    @property
    def texts(self) -> npt.NDArray[np.object_]:
        """Prompt and answer of each example, ``[n, 2]``."""
        return np.array(list(zip(self.prompts, self.responses, strict=True)), dtype=object)


def read_signals(
    examples: Examples, detectors: Iterable[Detector], *, progress: Progress = silent
) -> Signals:
    """Read the texts, and what every detector needs besides.

    Args:
        examples: the labelled answers.
        detectors: those that read states or texts are passed over.
        progress: told how far it is.
    """
    detectors = list(detectors)
    signals, follow_ups = Signals(), FollowUps(examples.store)
    of_one = [d for d in detectors if d.of_answer or d.of_given or d.of_follow_up]
    replays = _Replays([d for d in detectors if d.of_replay])
    _read_answers(signals, examples, of_one, follow_ups, replays, progress=progress)
    replays.give(signals, len(examples))
    if of_samples := [d for d in detectors if d.of_samples]:
        _read_samples(signals, examples, of_samples, follow_ups, progress)
    return signals


def _read_answers(
    signals: Signals,
    examples: Examples,
    detectors: Sequence[Detector],
    follow_ups: FollowUps,
    replays: _Replays,
    *,
    progress: Progress,
) -> None:
    """The texts and all numbers of each answer by itself, in one pass over the entries."""
    numbers = {detector.name: np.full(len(examples), np.nan) for detector in detectors}
    reasons: dict[str, list[str]] = {detector.name: [] for detector in detectors}
    answers = track(examples.entries(), "reading answers", len(examples), progress)
    for row, entry in enumerate(answers):
        signals.prompts.append(entry.prompt)
        signals.responses.append(entry.response)
        for detector in detectors:
            number, reason = _number_or_reason(
                partial(_number, detector, entry, examples.places[row], follow_ups)
            )
            numbers[detector.name][row] = number
            if reason:
                reasons[detector.name].append(reason)
        replays.read(entry)
    for name, found in reasons.items():
        if found:
            signals.missing[name] = f"{len(found)} of {len(examples)} answers have {found[0]}"
        else:
            signals.values[name] = numbers[name]


def _number(detector: Detector, entry: Entry, place: Place, follow_ups: FollowUps) -> float:
    """The number of one answer by itself."""
    if detector.of_given is not None:
        if not place.judged or place.span is None:
            raise InputMissing(f"no word by the judge on where the answer given is; {JUDGE_AGAIN}")
        return detector.of_given(entry, np.arange(*place.span))
    if detector.of_follow_up is not None:
        return detector.of_follow_up(entry, follow_ups)
    assert detector.of_answer is not None
    return detector.of_answer(entry)


class _Replays:
    """What replays have kept for some detectors, gathered entry by entry."""

    def __init__(self, detectors: Sequence[Detector]) -> None:
        self._detectors = detectors
        names = [detector.name for detector in detectors]
        self._found: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in names}
        self._made_by: dict[str, set[Any]] = {name: set() for name in names}
        self._reasons: dict[str, list[str]] = {name: [] for name in names}

    def read(self, entry: Entry) -> None:
        """One more answer, or why it has nothing."""
        for detector in self._detectors:
            name = detector.name
            try:
                kept = entry.derived(f"replay/{detector.replays}")
                vector = _finite_vector(detector, kept.values)
            except KeyError:
                self._refuse(name, f"no {detector.replays}; run `activation-logging replay`")
            except InputMissing as missing:
                self._refuse(name, str(missing))
            else:
                # Details are anybody's.
                self._made_by[name].add((str(kept.details.get("digest")), vector.shape))
                if not self._reasons[name]:
                    self._found[name].append(vector)

    def _refuse(self, name: str, reason: str) -> None:
        self._reasons[name].append(reason)
        self._found[name].clear()  # one such answer leaves the detector out

    def give(self, signals: Signals, answers: int) -> None:
        """The vectors of all ``answers``, and the reasons of those left out."""
        for name, why in self._reasons.items():
            if why:
                signals.missing[name] = f"{len(why)} of {answers} answers have {why[0]}"
            elif len(self._made_by[name]) > 1:
                signals.missing[name] = (
                    f"the answers were replayed with {len(self._made_by[name])} models or "
                    "settings; run `activation-logging replay --overwrite`"
                )
            else:
                signals.features[name] = np.stack(self._found[name])


def _finite_vector(detector: Detector, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    assert detector.of_replay is not None
    vector = detector.of_replay(values)
    if not np.isfinite(vector).all():
        raise InputMissing(f"{detector.replays} with numbers that are not finite")
    return vector


def _read_samples(
    signals: Signals,
    examples: Examples,
    detectors: Sequence[Detector],
    follow_ups: FollowUps,
    progress: Progress,
) -> None:
    rows_of: dict[str, list[int]] = {}
    for row, prompt in enumerate(signals.prompts):
        rows_of.setdefault(prompt, []).append(row)
    layer = min(
        examples.layers or examples.labels_of(),
        key=lambda label: abs(
            Source.of(label, examples.num_layers).site.layer - examples.num_layers / 2
        ),
    )
    found: dict[str, list[Entry]] = {}
    for prompt in track(rows_of, "finding samples", len(rows_of), progress):
        found[prompt] = samples_to(examples.store, prompt, examples.model)
    alone = sum(len(entries) < 2 for entries in found.values())
    if alone:
        reason = (
            f"{alone} of {len(found)} prompts have one answer only; ask each several times "
            "(n or epochs, with a temperature above 0)"
        )
        signals.missing.update({detector.name: reason for detector in detectors})
        return
    numbers = {detector.name: np.full(len(examples), np.nan) for detector in detectors}
    for prompt, rows in track(rows_of.items(), "comparing samples", len(rows_of), progress):
        samples = Samples(found[prompt], layer, examples.label, follow_ups)
        for row in rows:
            entry = examples.store[examples.keys[row]]
            for detector in detectors:
                assert detector.of_samples is not None
                if detector.name not in signals.missing:
                    number, reason = _number_or_reason(partial(detector.of_samples, entry, samples))
                    numbers[detector.name][row] = number
                    if reason:
                        signals.missing[detector.name] = reason
    signals.values.update(
        {name: each for name, each in numbers.items() if name not in signals.missing}
    )


def _number_or_reason(function: Callable[[], float]) -> tuple[float, str]:
    try:
        return function(), ""
    except InputMissing as missing:
        return np.nan, str(missing)
