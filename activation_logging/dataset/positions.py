"""Where in an answer a state is taken: named positions, and the place of a text in an answer.

With ``P`` prompt and ``R`` response tokens, response token ``i`` stands at position ``P + i``.
The model computed states at the positions ``0`` to ``P + R - 2``: the last sampled token was
never fed to it. (Where a probe has ended the answer all were fed, and the last state is at
``P + R - 1``.) A named position is therefore one row, or a pool of rows:

============== =================================================================================
prompt_last    ``P - 1``: the state that starts the answer; it has read no token of it
response_first ``P``: the state that has read the answer's first token
response_last  ``P + R - 2``: the last state there is
response_mean  mean over the states that have read a token of the answer, ``P`` to ``P + R - 2``
response_max   elementwise maximum over the same rows
answer_span    the state at the last token of the answer given ("exact answer token", Orgad et al.
               2024, arXiv:2410.02707), see below
an integer     that position in prompt + response; negative from the last state
============== =================================================================================

The judges of short answers say which characters the answer given is, in right and in wrong answers
(``answer_start`` and ``answer_end`` in the details of an evaluation). Where no evaluation says so,
it is the text of a tag: the gold answer, which most wrong answers do not hold, or else the name
asked about.
"""

from __future__ import annotations

import json
import operator
import unicodedata
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from activation_logging.errors import DatasetError, InputMissing
from activation_logging.store.offsets import NO_TEXTS, OFFSETS_DIFFER, token_offsets, touching
from activation_logging.tags import ANSWER, GOLD, SPAN_TAGS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from activation_logging.records import Evaluation
    from activation_logging.store import Entry

NAMED_POSITIONS = (
    "prompt_last",
    "response_first",
    "response_last",
    "response_mean",
    "response_max",
    "answer_span",
)
Pool = Literal["one", "mean", "max"]

JUDGE_AGAIN = (
    "the judges of short answers name it since gold/3 and typed/2, those of descriptions never; a "
    "run of ours is judged again by its script with --do_eval --eval_overwrite"
)
"""What to do about labels that do not say where the answer is."""


class Place(NamedTuple):
    """What one answer offers: its lengths in tokens, its rows, and the span if there is one.

    ``first`` is the position of row 0. ``span`` counts response tokens, end not included; where it
    is None, ``span_missing`` says why. ``judged`` says that it is the answer given as a judge has
    found it, and not the text of a tag. ``num_unread`` is how many of the response's tokens the
    model has not read.
    """

    num_prompt: int
    num_response: int
    first: int
    num_rows: int
    span: tuple[int, int] | None = None
    span_missing: str = "not looked for"
    judged: bool = False
    num_unread: int = 1

    @classmethod
    def of(
        cls,
        entry: Entry,
        *,
        span: bool = True,
        evaluations: Iterable[Evaluation] | None = None,
    ) -> Place:
        """What an entry offers.

        Args:
            entry: an entry with a record of rows, though perhaps with none.
            span: also look for the answer that ``answer_span`` means, which takes time.
            evaluations: those whose word on where the answer is counts; all unless given.

        Raises:
            RowsMissing: the entry has no record of rows.
        """
        positions = entry.positions
        first = int(positions[0]) if len(positions) else 0
        place = cls(*entry.num_tokens, first, len(positions), num_unread=entry.num_unread)
        if not span:
            return place
        tokens, shared, response = entry.response_tokens, entry.shared_characters, entry.response
        judged = judged_answer(
            response, entry.evaluations.values() if evaluations is None else evaluations
        )
        try:
            if judged is None:
                found = locate_span(response, tokens, entry.tags, shared)
            else:
                found = _tokens_at(response, tokens, judged, shared)
        except InputMissing as missing:
            return place._replace(span_missing=str(missing))
        return place._replace(span=found, judged=judged is not None)


class Rows(NamedTuple):
    """Rows ``start`` to ``stop`` (not included) of an entry, pooled into one vector."""

    start: int
    stop: int
    pool: Pool


def parse_position(text: str | int) -> str | int:
    """A named position, or an integer; ``"-1"`` counts as one.

    Raises:
        DatasetError: it is neither.
    """
    if text in NAMED_POSITIONS:
        return text
    try:
        # Not int(): a fraction is no position.
        return int(text) if isinstance(text, str) else operator.index(text)
    except (TypeError, ValueError):
        raise DatasetError(
            f"position {text!r} is not one of {', '.join(NAMED_POSITIONS)} or an integer"
        ) from None


def find_rows(position: str | int, place: Place) -> Rows:
    """The rows of one position.

    Raises:
        InputMissing: this answer has no state there; the text says why.
    """
    start, stop = place.num_prompt, place.num_prompt + place.num_response - place.num_unread
    if position == "prompt_last":
        start, stop = start - 1, start
    elif position == "response_first":
        stop = min(stop, start + 1)
    elif position == "response_last":
        start = stop - 1
    elif position == "answer_span":
        if place.span is None:
            raise InputMissing(f"answer_span: {place.span_missing}")
        stop = min(stop, start + place.span[1])
        start = max(start + place.span[0], stop - 1)
    elif isinstance(position, int):
        start = stop + position if position < 0 else position
        start, stop = (start, start + 1) if 0 <= start < stop else (stop, stop)
    if start >= stop:
        raise InputMissing(f"{position}: the answer is too short to have a state there")
    if start < place.first or stop > place.first + place.num_rows:
        raise InputMissing(f"{position}: rows of that position were not logged")
    return Rows(start - place.first, stop - place.first, pool_of(position))


def rows_at(position: str | int, entry: Entry) -> Rows:
    """The rows of one position of an entry, which looks for the answer's span only if it must.

    Raises:
        InputMissing: this answer has no state there; the text says why.
        DatasetError: there is no such position.
        RowsMissing: the entry has no record of rows.
    """
    return find_rows(parse_position(position), Place.of(entry, span=position == "answer_span"))


def pool_of(position: str | int) -> Pool:
    """How the rows of a position become one vector."""
    if position == "response_mean":
        return "mean"
    return "max" if position == "response_max" else "one"


def pool_rows(rows: npt.NDArray[np.float32], pool: Pool) -> npt.NDArray[np.float32]:
    """Pool ``[count, hidden]`` into ``[hidden]``; a mean is accumulated in float64."""
    if pool == "mean":
        return np.asarray(rows.mean(axis=0, dtype=np.float64), np.float32)
    return np.asarray(rows.max(axis=0) if pool == "max" else rows[0])


def judged_answer(response: str, evaluations: Iterable[Evaluation]) -> tuple[int, int] | None:
    """The characters ``[start, end)`` that the first of the evaluations to do so calls the answer.

    Details are anybody's: what is no place in the response is passed over.
    """
    for evaluation in evaluations:
        start, end = (evaluation.details.get(f"answer_{side}") for side in ("start", "end"))
        if type(start) is type(end) is int and 0 <= start < end <= len(response):
            return start, end
    return None


def locate_span(
    response: str,
    tokens: Sequence[str] | None,
    tags: Mapping[str, str],
    shared: Sequence[tuple[int, int, int]] | None = None,
) -> tuple[int, int]:
    """Find the tokens of the answer that hold the tagged text.

    Case, accents and compatibility forms are folded, and the text must stand by itself: "Os" is
    not found in "Those". A tag may hold several accepted texts as a JSON list.

    Args:
        response: the answer's text.
        tokens: the text of every response token, or None.
        tags: the entry's tags; the first of :data:`SPAN_TAGS` that is there is looked for.
        shared: as for :func:`.token_offsets`.

    Returns:
        First and end (not included) index among the response tokens.

    Raises:
        InputMissing: the text is not there; the error's text says why.
    """
    name = next((name for name in SPAN_TAGS if tags.get(name, "").strip()), None)
    if name is None:
        raise InputMissing(f"no tag of {', '.join(SPAN_TAGS)}")
    folded, origin = _fold(response)
    found = [span for text in _alternatives(tags[name]) if (span := _find(folded, _fold(text)[0]))]
    if not found:
        hint = f"; {JUDGE_AGAIN}" if name in {ANSWER, GOLD} else ""
        raise InputMissing(f"the text of the tag {name!r} does not occur in the answer{hint}")
    start, stop = min(found)
    return _tokens_at(response, tokens, (origin[start], origin[stop - 1] + 1), shared)


def _tokens_at(
    response: str,
    tokens: Sequence[str] | None,
    characters: tuple[int, int],
    shared: Sequence[tuple[int, int, int]] | None,
) -> tuple[int, int]:
    """First and end (not included) index of the response tokens that hold these characters."""
    if not tokens:
        raise InputMissing(NO_TEXTS)
    touched = touching(token_offsets(response, tokens, shared), *characters)
    if not len(touched):
        raise InputMissing(OFFSETS_DIFFER)
    return int(touched[0]), int(touched[-1]) + 1


def _alternatives(value: str) -> list[str]:
    if value.lstrip().startswith("["):
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            return [value]
        return [text for text in parsed if isinstance(text, str)]
    return [value]


def _fold(text: str) -> tuple[str, list[int]]:
    """Case and accents folded, with the index in ``text`` that each character came from."""
    folded: list[str] = []
    origin: list[int] = []
    for index, character in enumerate(text):
        for part in unicodedata.normalize("NFKD", character):
            if not unicodedata.combining(part):
                lowered = part.casefold()
                folded.append(lowered)
                origin.extend([index] * len(lowered))
    return "".join(folded), origin


def _find(text: str, wanted: str) -> tuple[int, int] | None:
    wanted = wanted.strip()
    start = text.find(wanted) if wanted else -1
    while start >= 0:
        stop = start + len(wanted)
        before, after = text[start - 1 : start], text[stop : stop + 1]
        if not (before.isalnum() and wanted[0].isalnum()) and not (
            after.isalnum() and wanted[-1].isalnum()
        ):
            return start, stop
        start = text.find(wanted, start + 1)
    return None
