"""Alignment: checks that the tokens of an answer follow from its stored rows.

In a greedy answer, the model's output head applied to row ``p`` of the last layer must rank token
``p + 1`` first. Rows of another token, request or layer fail this test for most tokens. A share of
aligned tokens near 1 therefore proves the whole chain without a reference model.

Rows and logits are rounded (bfloat16 keeps 8 bits), so two tokens can tie or change places. A token
counts as aligned if its logit is the greatest, or equals it within rounding
(:data:`~activation_logging.verify.lm_head.ROUNDING`). The tolerance is that of the stored type or
of the model's weights, whichever is coarser.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from activation_logging.errors import RowsMissing, SettingsError
from activation_logging.store.statistics import counts
from activation_logging.text import last_part
from activation_logging.verify.lm_head import ROUNDING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import numpy.typing as npt

    from activation_logging.store import Entry, Store
    from activation_logging.verify.lm_head import LMHead

Kind = Literal["greedy", "sampled"]
"""How an answer's tokens were chosen."""
KINDS: tuple[Kind, ...] = get_args(Kind)

# These change the logits before sampling, so the answer does not follow from the head alone.
_SHAPING = frozenset(
    {
        *("logit_bias", "allowed_token_ids", "bad_words", "min_tokens", "logits_processors"),
        *("repetition_penalty", "presence_penalty", "frequency_penalty"),
        *("structured_outputs", "thinking_token_budget", "trace_decode_token_ids", "watermarking"),
    }
)
_GREEDY_BELOW = 1e-5
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Alignment:
    """The alignment of one answer.

    ``aligned`` of ``tokens`` rank first, or tie within rounding. ``median_rank`` counts from 0.
    ``first_off`` is the index of the first response token that is not aligned. For a ``sampled``
    answer, or one with changed logits, these numbers are information and not a test.
    """

    key: str
    kind: Kind
    tokens: int
    aligned: int
    median_rank: float
    first_off: int | None

    @property
    def share(self) -> float:
        """Share of aligned tokens."""
        return self.aligned / self.tokens


class Aligner:
    """Checks answers in batches of about a thousand rows, so that the head is read once per batch.

    ``found`` and ``unchecked`` (key and reason) are complete after :meth:`finish`.
    """

    def __init__(self, head: LMHead) -> None:
        self.found: list[Alignment] = []
        self.unchecked: list[tuple[str, str]] = []
        self._head = head
        self._entries: list[Entry] = []
        self._rows: list[npt.NDArray[Any]] = []
        self._tokens: list[list[int]] = []

    def add(self, entry: Entry) -> None:
        """Add an entry to the batch, and check the batch if it is full."""
        reason = self._take(entry)
        if reason:
            self.unchecked.append((entry.key, reason))
        if sum(map(len, self._tokens)) >= _ROWS_AT_ONCE:
            self.finish()

    def finish(self) -> None:
        """Check the current batch."""
        if not self._entries:
            return
        ids = [token for tokens in self._tokens for token in tokens]
        pieces = [
            self._head.score(rows, ids[start : start + len(rows)])
            for start, rows in _batches(np.concatenate(self._rows))
        ]
        logits, best, ranks = (np.concatenate(column) for column in zip(*pieces, strict=True))
        start = 0
        for entry, tokens in zip(self._entries, self._tokens, strict=True):
            part = slice(start, start + len(tokens))
            self.found.append(self._judge(entry, logits[part], best[part], ranks[part]))
            start += len(tokens)
        self._entries, self._rows, self._tokens = [], [], []

    def _take(self, entry: Entry) -> str | None:
        """Add an entry's rows and the tokens after them to the batch; else return the reason."""
        try:
            rows = entry.layer("last")
        except RowsMissing:
            return "its last layer was not logged"
        if entry.hidden_size != self._head.hidden_size:
            return (
                f"its rows have {entry.hidden_size} elements, the model's head takes "
                f"{self._head.hidden_size}: another model wrote it"
            )
        ids = entry.prompt_token_ids + entry.response_token_ids
        following = entry.positions + 1
        wanted = (following >= len(entry.prompt_token_ids)) & (following < len(ids))
        tokens = [ids[position] for position in following[wanted]]
        if not tokens:
            return "none of its rows precedes a token of the answer"
        if not 0 <= min(tokens) <= max(tokens) < self._head.vocabulary:
            return f"it has token ids outside the model's {self._head.vocabulary}"
        self._entries.append(entry)
        self._rows.append(np.asarray(rows[wanted], np.float32))
        self._tokens.append(tokens)
        return None

    def _judge(
        self,
        entry: Entry,
        logits: npt.NDArray[np.float32],
        best: npt.NDArray[np.float32],
        ranks: npt.NDArray[np.int64],
    ) -> Alignment:
        rounding = max(ROUNDING[entry.dtype], ROUNDING[self._head.dtype])
        aligned = (ranks == 0) | (best - logits <= rounding * np.abs(best))
        off = np.flatnonzero(~aligned)
        return Alignment(
            entry.key,
            "greedy" if is_greedy(entry.sampling) else "sampled",
            tokens=len(ranks),
            aligned=int(aligned.sum()),
            median_rank=float(np.median(ranks)),
            first_off=int(off[0]) if len(off) else None,
        )


def is_greedy(sampling: Mapping[str, Any]) -> bool:
    """Whether each token was chosen as the greatest logit of the unchanged head.

    Args:
        sampling: the parameters that differ from vLLM's defaults (default temperature: 1).
    """
    return sampling.get("temperature", 1.0) < _GREEDY_BELOW and not _SHAPING & sampling.keys()


def match_model(store: Store, model: str, served_as: str | None) -> Callable[[Entry], bool]:
    """A test for the entries of a store that ``model`` answered.

    The entry's model must be ``served_as``, if given; else the model's name or the last part of it.
    If no name matches and the store has entries of one model only, these are taken.

    Raises:
        SettingsError: no entry matches.
    """
    served = set(counts(store).models)
    own = {model, last_part(model)}
    names = {served_as} if served_as else {name for name in served if {name, last_part(name)} & own}
    if not names and len(served) == 1:
        names = served
    if served and not names & served:
        raise SettingsError(
            f"the store has no entry of {served_as or model}; it has entries of "
            f"{', '.join(sorted(served))} (choose one with --served-as NAME)"
        )
    return lambda entry: entry.model in names


def _batches(rows: npt.NDArray[Any]) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        yield start, rows[start : start + _ROWS_AT_ONCE]
