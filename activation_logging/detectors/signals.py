"""What the answer says about itself, without activations: log-probabilities, entropy, length.

One number per answer. Where an answer lacks the input, the whole detector is left out and the
reason is kept: figures over different answers could not be compared.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from activation_logging.progress import Progress, silent, track

if TYPE_CHECKING:
    from collections.abc import Mapping

    from activation_logging.dataset import Examples
    from activation_logging.store import Entry

FLOOR = -100.0
"""Log-probabilities are cut off here, natural logarithm: minus infinity is not a number to
average."""

_ASK_LOGPROBS = "ask for them (logprobs in the request)"


@dataclass
class Signals:
    """Per-answer numbers ``[n]`` by name, the reasons for those that cannot be had, and texts."""

    values: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    prompts: list[str] = field(default_factory=list)
    responses: list[str] = field(default_factory=list)

    @property
    def texts(self) -> npt.NDArray[np.object_]:
        """Prompt and answer of each example, ``[n, 2]``."""
        return np.array(list(zip(self.prompts, self.responses, strict=True)), dtype=object)


def read_signals(examples: Examples, *, progress: Progress = silent) -> Signals:
    """One pass over the entries' texts and log-probabilities; no activations are read."""
    signals = Signals()
    rows: list[Mapping[str, float | str]] = []
    for entry in track(examples.entries(), "reading answers", len(examples), progress):
        signals.prompts.append(entry.prompt)
        signals.responses.append(entry.response)
        rows.append(_numbers(entry))
    for name in ("mean_logprob", "min_logprob", "token_entropy", "length"):
        column = [row[name] for row in rows]
        reasons = [cell for cell in column if isinstance(cell, str)]
        if reasons:
            signals.missing[name] = f"{len(reasons)} of {len(rows)} answers have {reasons[0]}"
        else:
            signals.values[name] = np.array(column, dtype=np.float64)
    return signals


def _numbers(entry: Entry) -> dict[str, float | str]:
    logprobs = [max(value, FLOOR) for value in entry.logprobs or () if value is not None]
    if logprobs:
        mean: float | str = float(np.mean(logprobs))
        lowest: float | str = float(np.min(logprobs))
    else:
        mean = lowest = f"no log-probabilities; {_ASK_LOGPROBS}"
    return {
        "mean_logprob": mean,
        "min_logprob": lowest,
        "token_entropy": mean_token_entropy(entry.top_logprobs),
        "length": float(len(entry.response_token_ids)),
    }


def mean_token_entropy(tops: list[dict[int, float]] | None) -> float | str:
    """Mean over the tokens of the entropy of the next-token distribution, in nats.

    Only the top k are logged. What they leave over counts as one more outcome, which makes this a
    lower bound of the whole distribution's entropy.
    """
    if not tops or max(len(top) for top in tops) < 2:
        return "no alternatives to the chosen tokens; ask for some (top_logprobs of 5 or more)"
    total = 0.0
    for top in tops:
        p = np.exp(np.array([value for value in top.values() if value > FLOOR], dtype=np.float64))
        rest = max(0.0, 1.0 - float(p.sum()))
        outcomes = np.append(p, rest) if rest > 0 else p
        outcomes = outcomes[outcomes > 0]
        total -= float((outcomes * np.log(outcomes)).sum())
    return total / len(tops)
