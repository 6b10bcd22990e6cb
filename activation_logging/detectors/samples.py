"""Signals of several answers to the same prompt: do they agree with each other?"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from activation_logging.dataset.features import read_vector
from activation_logging.dataset.positions import judged_answer, rows_at
from activation_logging.detectors.follow_ups import (
    FollowUps,
    Subject,
    grouping,
    is_follow_up,
    is_true,
)
from activation_logging.detectors.registry import Detector
from activation_logging.errors import InputMissing, RowsMissing
from activation_logging.store.query import readable
from activation_logging.text import fold

if TYPE_CHECKING:
    from collections.abc import Sequence

    from activation_logging.store import Entry, Store

EIGENSCORE_ALPHA = 1e-3
"""Regularisation of the covariance, as in Chen et al. 2024."""

_ARTICLES = frozenset({"a", "an", "the"})


@dataclass(frozen=True)
class Samples:
    """All complete answers of one model to one prompt, labelled or not.

    ``layer`` is the layer nearest to the middle of those that all labelled answers have. ``label``
    is the evaluator whose word on what an answer means counts.
    """

    entries: Sequence[Entry]
    layer: int | str
    label: str | None = None
    follow_ups: FollowUps | None = None

    @cached_property
    def meanings(self) -> list[str]:
        """What the answers say: those with equal meanings say the same. See :func:`meaning`."""
        return [meaning(entry, self.label) for entry in self.entries]

    @cached_property
    def groups(self) -> list[list[int]]:
        """Indices of the answers that mean the same, where a model was asked whether they do.

        Two mean the same if each says what the other says, by P(True) above one half. Equal texts
        are not asked about.

        Raises:
            InputMissing: it was not asked about two of them.
        """
        texts = same_texts(self.entries)
        firsts = [self.entries[places[0]] for places in texts]
        steps = grouping(len(firsts))
        same: bool | None = None
        while True:
            try:
                one, other = steps.send(same)  # type: ignore[arg-type]
            except StopIteration as end:
                return [[place for text in group for place in texts[text]] for group in end.value]
            same = self._same(firsts[one], firsts[other])

    def _same(self, one: Entry, other: Entry) -> bool:
        for subject in (Subject.of(one, other), Subject.of(other, one)):
            if self.follow_ups is None or not self.follow_ups.asked("entails", subject):
                raise InputMissing(
                    "nobody was asked whether the answers mean the same; ask: activation-logging "
                    "follow-up PATH --ask entails"
                )
            if not is_true(self.follow_ups.probability("entails", subject)):
                return False
        return True

    @cached_property
    def states(self) -> npt.NDArray[np.float32]:
        """The last state of each answer at ``layer``, ``[samples, hidden]``.

        Raises:
            InputMissing: an answer has none.
        """
        try:
            return np.stack([_last_state(entry, self.layer) for entry in self.entries])
        except (InputMissing, RowsMissing):
            raise InputMissing(f"layer {self.layer} is not there for every sample") from None


def samples_to(store: Store, prompt: str, model: str) -> list[Entry]:
    """All complete answers of one model to one prompt, oldest first.

    What a client's time-out cut off is no sample, nor is a reply to a follow-up question.
    """
    return [
        entry
        for entry in readable(store.for_prompt(prompt))
        if entry.model == model
        and entry.status == "complete"
        and entry.finish_reason not in {"abort", "error"}
        and not is_follow_up(entry.tags)
    ]


def _last_state(entry: Entry, layer: int | str) -> npt.NDArray[np.float32]:
    return read_vector(entry, layer, rows_at("response_last", entry))


def meaning(entry: Entry, label: str | None = None) -> str:
    """What an answer says: the value that its judge found, else its text, normalised.

    The judges of short answers find one value for "Lagos." and "It is Lagos". Refusals all say the
    same.

    Args:
        entry: the answer.
        label: the evaluator whose word counts; without one it is the text.
    """
    verdict = entry.evaluations.get(label) if label is not None else None
    if verdict is None:
        return normalise_answer(entry.response)
    if verdict.label == "refused":
        return "refused"
    place = judged_answer(entry.response, [verdict])
    if place is None:
        return normalise_answer(entry.response)
    value = verdict.details.get("value")
    if value is not None and not isinstance(value, str):
        return str(value)  # -40 is not 40
    return normalise_answer(entry.response[slice(*place)] if value is None else value)


def same_texts(entries: Sequence[Entry]) -> list[list[int]]:
    """Indices of the answers with equal texts, normalised, in order of the first of each."""
    found: dict[str, list[int]] = {}
    for place, entry in enumerate(entries):
        found.setdefault(normalise_answer(entry.response), []).append(place)
    return list(found.values())


def normalise_answer(text: str) -> str:
    """Case, accents, punctuation, articles and spacing folded, as SQuAD's metric does it.

    A text of which nothing is left by that, such as a sign or the choice A, stays as it is.
    """
    return " ".join(word for word in fold(text).split() if word not in _ARTICLES) or text.strip()


def semantic_entropy(_entry: Entry, samples: Samples) -> float:
    """Entropy over the meanings of the samples, in nats (Farquhar et al. 2024, Nature 630).

    The discrete variant, with equality of :func:`meaning` for equality of meaning: right for short
    answers; for long ones every text is a meaning of its own.
    """
    return _entropy(list(Counter(samples.meanings).values()))


def semantic_entropy_asked(_entry: Entry, samples: Samples) -> float:
    """The same, where a model was asked which samples mean the same: entailment both ways."""
    return _entropy([len(group) for group in samples.groups])


def _entropy(counts: Sequence[int]) -> float:
    p = np.array(counts, dtype=np.float64) / sum(counts)
    return float(-(p * np.log(p)).sum())


def disagreement(entry: Entry, samples: Samples) -> float:
    """Share of the samples that say something else than this answer.

    One less the self-consistency of Wang et al. 2022, arXiv:2203.11171.
    """
    own = meaning(entry, samples.label)
    return float(np.mean([meaning != own for meaning in samples.meanings]))


def eigenscore(_entry: Entry, samples: Samples) -> float:
    """Mean log-eigenvalue of the samples' covariance (INSIDE; Chen et al. 2024, arXiv:2402.03744).

    Of each sample it takes the last token's state at the middle layer.
    """
    covariance = np.cov(np.asarray(samples.states, np.float64))
    eigenvalues = np.linalg.eigvalsh(covariance + EIGENSCORE_ALPHA * np.eye(len(covariance)))
    return float(np.log(eigenvalues).mean())


SEMANTIC_ENTROPY = Detector(
    "semantic_entropy",
    "Semantic entropy, by the judge's values",
    "Farquhar et al. 2024, Nature 630",
    "samples",
    of_samples=semantic_entropy,
    role="signal",
)
SEMANTIC_ENTROPY_ASKED = Detector(
    "semantic_entropy_asked",
    "Semantic entropy, by entailment",
    "Farquhar et al. 2024, Nature 630",
    "samples",
    of_samples=semantic_entropy_asked,
    role="signal",
)
SELF_CONSISTENCY = Detector(
    "self_consistency",
    "Self-consistency",
    "Wang et al. 2022, arXiv:2203.11171",
    "samples",
    of_samples=disagreement,
    role="signal",
)
EIGENSCORE = Detector(
    "eigenscore",
    "EigenScore",
    "Chen et al. 2024, arXiv:2402.03744",
    "samples",
    of_samples=eigenscore,
    role="signal",
)
