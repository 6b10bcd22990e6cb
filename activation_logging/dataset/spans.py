"""The claims of answers and their tokens, as arrays without states; see :mod:`.tokens`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from activation_logging.dataset.examples import listing
from activation_logging.dataset.positions import Place
from activation_logging.errors import DatasetError, InputMissing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from activation_logging.arrays import Ints
    from activation_logging.records import Evaluation, Span
    from activation_logging.store import Entry


_CLASSES = {"contradicted": 1, "supported": 0}


class Spans(NamedTuple):
    """Judged claims, ``[m]`` each.

    ``answer`` is the number of the answer, ``y`` the class, ``type`` what is claimed, such as
    ``birth year``; ``start`` and ``end`` are characters of the response, ``first`` and ``stop`` the
    first token that has a state and the one after the last.
    """

    answer: Ints
    y: Ints
    type: npt.NDArray[np.str_]
    start: Ints
    end: Ints
    first: Ints
    stop: Ints

    def wrong_answers(self) -> Ints:
        """1 for each answer that has a contradicted claim, else 0, ``[answers]``."""
        return (np.bincount(self.answer, self.y) > 0).astype(np.int64)


@dataclass
class Judged:
    """What one answer has: its usable claims and their tokens, before they are joined.

    ``tokens`` are pairs of the claim's number in ``spans`` (all of them, also those of no use) and
    the token. ``free`` are tokens with a state that no claim touches. ``skip`` is the row of token
    0.
    """

    spans: Sequence[Span]
    skip: int
    y: list[int] = field(default_factory=list)
    claims: list[Span] = field(default_factory=list)
    tokens: list[Ints] = field(default_factory=list)
    free: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    left_out: Counter[str] = field(default_factory=Counter)


def collect(entry: Entry, verdict: Evaluation) -> Judged:
    """The judged claims of one answer, with the tokens that have a state of their own."""
    place = Place.of(entry, span=False)
    found = Judged(verdict.spans, place.num_prompt - place.first)
    rows = np.arange(place.num_response) + found.skip
    there = (rows >= 0) & (rows < place.num_rows)
    free = there.copy()
    for span in verdict.spans:
        if span.label not in _CLASSES:
            found.left_out[f"claims that are {span.label}"] += 1
        try:
            index = entry.span_tokens(span)
        except InputMissing as missing:
            found.left_out[f"claims without tokens ({str(missing).partition(': ')[2]})"] += 1
            free[:] = False
            continue
        free[index] = False
        if span.label not in _CLASSES:
            continue
        used = index[there[index]]
        if len(used) < len(index):
            last = place.num_response - 1
            lost = index[~there[index]]
            found.left_out["tokens sampled last, which have no state"] += int(last in lost)
            found.left_out["tokens whose rows were not logged"] += int((lost != last).sum())
        if not len(used):
            found.left_out["claims of which no token has a state"] += 1
            continue
        found.y.append(_CLASSES[span.label])
        found.claims.append(span)
        found.tokens.append(used)
    found.left_out = +found.left_out
    found.free = np.flatnonzero(free)
    return found


@dataclass(frozen=True)
class TokenRows:
    """Tokens by answer and then by claim, ``[n]`` each.

    ``answer`` and ``span`` are numbers of the answer and the claim (-1: of none), ``token`` the
    place among the answer's tokens, ``row`` that among the entry's rows, ``y`` the class,
    ``weight`` what the token counts for.
    """

    answer: Ints
    span: Ints
    token: Ints
    row: Ints
    y: Ints
    weight: npt.NDArray[np.float64]

    @classmethod
    def joined(cls, answers: Sequence[Judged], unlabelled: float = 0.0) -> tuple[TokenRows, Spans]:
        """The tokens and the claims of all answers."""
        parts: list[tuple[int, int, int, Ints, int, float]] = []
        claims: list[tuple[int, int, str, int, int, int, int]] = []
        for number, judged in enumerate(answers):
            for y, claim, index in zip(judged.y, judged.claims, judged.tokens, strict=True):
                parts.append((number, len(claims), judged.skip, index, y, 1 / len(index)))
                claims.append(
                    (number, y, claim.claim or "", claim.start, claim.end, index[0], index[-1] + 1)
                )
            if unlabelled:
                parts.append((number, -1, judged.skip, judged.free, 0, unlabelled))
        counts = [len(part[3]) for part in parts]

        def spread(column: int, dtype: type = np.int64) -> npt.NDArray[Any]:
            return np.repeat(np.array([part[column] for part in parts], dtype), counts)

        index = np.concatenate([part[3] for part in parts])
        rows = cls(
            answer=spread(0),
            span=spread(1),
            token=index,
            row=index + spread(2),
            y=spread(4),
            weight=spread(5, np.float64),
        )
        answers_of, classes, kinds, *places = zip(*claims, strict=True)
        return rows, Spans(
            np.array(answers_of, np.int64),
            np.array(classes, np.int64),
            np.array(kinds, np.str_),
            *(np.array(place, np.int64) for place in places),
        )

    def without(self, bad: npt.NDArray[np.bool_], spans: Spans) -> tuple[TokenRows, Spans, Ints]:
        """All but some tokens, the claims that are left, and the numbers of the answers left."""
        keep = np.flatnonzero(~bad)
        part = TokenRows(*(getattr(self, name)[keep] for name in self.__dataclass_fields__))
        judged = part.span >= 0
        claims, span = np.unique(part.span[judged], return_inverse=True)
        answers = np.unique(spans.answer[claims])
        of_kept = np.isin(part.answer, answers)
        number = np.searchsorted(answers, part.answer)
        new_span = np.full(len(keep), -1)
        new_span[judged] = span
        length = np.bincount(span, minlength=len(claims))
        weight = part.weight.copy()
        weight[judged] = 1 / length[span]
        first, stop = np.full(len(claims), np.iinfo(np.int64).max), np.zeros(len(claims), np.int64)
        np.minimum.at(first, span, part.token[judged])
        np.maximum.at(stop, span, part.token[judged] + 1)
        changed = replace(part, answer=number, span=new_span, weight=weight)
        rows = TokenRows(*(getattr(changed, name)[of_kept] for name in self.__dataclass_fields__))
        left = Spans._make(each[claims] for each in spans)
        return (
            rows,
            left._replace(answer=np.searchsorted(answers, left.answer), first=first, stop=stop),
            answers,
        )


def refuse_nothing(
    label: str, answers: int, found: Mapping[str, Judged], left_out: Mapping[str, int]
) -> None:
    """Raise DatasetError where no answer has a usable claim; says why."""
    if any(len(judged.y) for judged in found.values()):
        return
    if not any(judged.spans for judged in found.values()):
        raise DatasetError(
            f"none of the {answers} answers labelled by {label} has spans; a token's label comes "
            "from one: run a benchmark that judges claims (`activation-logging eval "
            "wiki_profiles`), or put them with store.put_evaluation(..., spans=[...])"
        )
    raise DatasetError(
        f"no token of the claims judged by {label} can be used{listing(left_out)}; serve with "
        "ACTIVATION_TOKENS=all or response, with a tokenizer, and ask again"
    )


def refuse_one_class(spans: Spans, left_out: Mapping[str, int]) -> None:
    """Raise DatasetError unless both classes are there."""
    wrong, total = int(spans.y.sum()), len(spans.y)
    for name, count in (("contradicted", wrong), ("supported", total - wrong)):
        if not count:
            raise DatasetError(
                f"none of the {total} judged claims is {name}: one class cannot be told from "
                f"nothing; label more answers{listing(left_out)}"
            )
