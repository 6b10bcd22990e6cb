"""What clients are told of scores while they are answered, and what the store has of them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from activation_logging.score_options import STOP_REASON
from activation_logging.vllm_plugin.scored_answers import join
from activation_logging.vllm_plugin.scored_outputs import scores_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from activation_logging import Entry


class Told:
    """Collects the scores that outputs carry, by request and choice.

    Attributes:
        counts: numbers that were compared, those that differ in the last digit of float32, and
            answers that probes ended.
    """

    def __init__(self) -> None:
        self._told: dict[tuple[str, int], dict[str, Any]] = {}
        self._parts: set[str] = set()
        self.counts: Counter[str] = Counter()

    def ask(self, request: str, *, in_parts: bool) -> None:
        """Note that a request asks for scores."""
        if in_parts:
            self._parts.add(request)

    def take(self, outputs: Iterable[Any]) -> None:
        """Note what some outputs of vLLM carry."""
        for output in outputs:
            for one in output.outputs:
                place, told = (output.request_id, one.index), scores_of(one)
                if output.request_id in self._parts:
                    told = join(self._told.get(place, {}), told)
                if told:
                    self._told[place] = told

    def problem(self, entry: Entry) -> str | None:
        """What is wrong with what the client was told of an answer; None if nothing is."""
        told = self._told.get((entry.request_id, entry.choice or 0))
        if told is None or entry.finish_reason == "abort":
            return None
        self.counts["stopped"] += (entry.stop_reason or "").startswith(STOP_REASON)
        prompt, response = entry.num_tokens
        for name, scores in told.items():
            # An entry without rows has scores of those that it would have.
            first = int((entry.capture_record() or {})["first"])
            at = dict(enumerate(entry.scores[name], first))
            if len(scores["tokens"]) != response:
                return f"{len(scores['tokens'])} scores of {response} tokens by {name}"
            expected = [at.get(prompt + i, np.nan) for i in range(response)]
            own = np.array(scores["tokens"], np.float32)
            if problem := self._compare(own, np.array(expected, np.float32)):
                return f"tokens by {name}: {problem}"
            before = np.array([scores["prompt"]], np.float32)
            there = (
                [at.get(prompt - 1, np.nan)] if name in {"token", "pair", "prompt"} else [np.nan]
            )
            if problem := self._compare(before, np.array(there, np.float32)):
                return f"before the first token by {name}: {problem}"
        return None

    def _compare(self, told: np.ndarray, stored: np.ndarray) -> str | None:
        if not np.array_equal(np.isnan(told), np.isnan(stored)):
            return f"told {told}, stored {stored}"
        there = ~np.isnan(told)
        steps = np.abs(told[there].view(np.int32).astype(int) - stored[there].view(np.int32))
        if steps.size and steps.max() > 1:
            return f"told {told}, stored {stored}"
        self.counts["told"] += steps.size
        self.counts["told otherwise"] += int((steps == 1).sum())
        return None
