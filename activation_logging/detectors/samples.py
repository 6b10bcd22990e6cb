"""Detectors that need several answers to the same prompt: do they agree with each other?

The same prompt asked again is ``<sha256>#1``, ``#2``, ... in the store, labelled or not: all
complete answers of the same model to a prompt count as its samples. What a client's time-out cut
off is no answer.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from activation_logging.dataset.features import read_vector
from activation_logging.dataset.positions import Place, find_rows
from activation_logging.progress import Progress, silent, track

if TYPE_CHECKING:
    from collections.abc import Sequence

    from activation_logging.dataset import Examples
    from activation_logging.detectors.signals import Signals
    from activation_logging.store import Entry

EIGENSCORE_ALPHA = 1e-3
"""Regularisation of the covariance, as in Chen et al. 2024."""

NAMES = ("semantic_entropy", "self_consistency", "eigenscore")


def add_samples(signals: Signals, examples: Examples, *, progress: Progress = silent) -> None:
    """Add the sample-based numbers to ``signals``, or the reason why they cannot be had."""
    bases = [key.partition("#")[0] for key in examples.keys]
    prompts = dict(zip(bases, signals.prompts, strict=True))
    answers: dict[str, list[Entry]] = {}
    for base, prompt in track(prompts.items(), "finding samples", len(prompts), progress):
        found = [
            entry
            for entry in examples.store.for_prompt(prompt)
            if entry.model == examples.model and _is_sample(entry)
        ]
        answers[base] = found
    alone = sum(len(found) < 2 for found in answers.values())
    if alone:
        reason = (
            f"{alone} of {len(prompts)} prompts have one answer only; ask each several times "
            "(n or epochs, with a temperature above 0)"
        )
        signals.missing.update(dict.fromkeys(NAMES, reason))
        return
    responses = signals.responses
    texts = {base: [entry.response for entry in found] for base, found in answers.items()}
    entropy = {base: semantic_entropy(found) for base, found in texts.items()}
    signals.values["semantic_entropy"] = np.array([entropy[base] for base in bases])
    signals.values["self_consistency"] = np.array(
        [disagreement(own, texts[base]) for own, base in zip(responses, bases, strict=True)]
    )
    layer = min(examples.layers, key=lambda number: abs(number - examples.num_layers / 2))
    scores: dict[str, float] = {}
    for base, found in track(answers.items(), "EigenScore", len(answers), progress):
        states = [_last_state(entry, layer) for entry in found]
        if any(state is None for state in states):
            signals.missing["eigenscore"] = f"layer {layer} is not there for every sample"
            return
        scores[base] = eigenscore(np.stack([state for state in states if state is not None]))
    signals.values["eigenscore"] = np.array([scores[base] for base in bases])


def _is_sample(entry: Entry) -> bool:
    return entry.status == "complete" and entry.finish_reason not in {"abort", "error"}


def normalise_answer(text: str) -> str:
    """Case, accents, punctuation, articles and spacing folded, as SQuAD's metric does it."""
    plain = "".join(
        part for part in unicodedata.normalize("NFKD", text) if not unicodedata.combining(part)
    )
    words = re.sub(r"[^\w\s]|_", " ", plain.casefold()).split()
    return " ".join(word for word in words if word not in {"a", "an", "the"})


def semantic_entropy(answers: Sequence[str]) -> float:
    """Entropy over the meanings of the samples, in nats (Farquhar et al. 2024, Nature 630).

    The discrete variant, with equality of the normalised text for equality of meaning: right for
    short answers; for long ones every text is a meaning of its own.
    """
    counts = np.array(list(Counter(map(normalise_answer, answers)).values()), dtype=np.float64)
    p = counts / counts.sum()
    return float(-(p * np.log(p)).sum())


def disagreement(answer: str, answers: Sequence[str]) -> float:
    """Share of the samples that say something else than ``answer``.

    One less the self-consistency of Wang et al. 2022, arXiv:2203.11171.
    """
    own = normalise_answer(answer)
    return float(np.mean([normalise_answer(other) != own for other in answers]))


def eigenscore(states: npt.NDArray[np.float32]) -> float:
    """Mean log-eigenvalue of the samples' covariance (INSIDE; Chen et al. 2024, arXiv:2402.03744).

    Args:
        states: one state per sample, ``[samples, hidden]``: the last token's, middle layer.
    """
    covariance = np.cov(np.asarray(states, np.float64))
    eigenvalues = np.linalg.eigvalsh(covariance + EIGENSCORE_ALPHA * np.eye(len(states)))
    return float(np.log(eigenvalues).mean())


def _last_state(entry: Entry, layer: int) -> npt.NDArray[np.float32] | None:
    positions = entry.positions
    if layer not in entry.layers or not len(positions):
        return None
    place = Place(
        len(entry.prompt_token_ids),
        len(entry.response_token_ids),
        int(positions[0]),
        len(positions),
    )
    rows = find_rows("response_last", place)
    return None if isinstance(rows, str) else read_vector(entry, layer, rows)
