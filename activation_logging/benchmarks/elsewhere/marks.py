"""What a reader finds in a file: marks that others gave to answers, and what is wrong with some."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from activation_logging.records import Label, Span


@dataclass(frozen=True)
class Mark:
    """One evaluator's mark for one answer, and all that says which answer it is.

    Attributes:
        place: where it stands, such as ``line 12``.
        value: as the tool wrote it: a label, a grade, a number.
        name: the evaluator's.
        request_id: the id of the OpenAI answer.
        key: the entry's. With a ``response``, one without ``#`` stands for all answers to its
            prompt.
        prompt: the text that the model read or, of a chat, the user's last message.
        response: the judged text, where it must be the entry's.
        choice: its index among the choices of the OpenAI answer.
        score: as in :class:`.Evaluation`; None leaves it to the label.
        judge: who judged.
        details: whatever else is known.
        spans: labels of claims in the text.
    """

    place: str
    value: Any
    name: str
    request_id: str | None = None
    key: str | None = None
    prompt: str | None = None
    response: str | None = None
    choice: int | None = None
    score: float | None = None
    judge: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    spans: tuple[Span, ...] = ()


class Problem(NamedTuple):
    """A mark that could not become a label, and why. ``about`` names the answer where one can."""

    place: str
    reason: str
    about: str | None = None


Reading: TypeAlias = Iterator[Mark | Problem]


@dataclass(frozen=True)
class Source:
    """A file of a known format.

    Attributes:
        format: as users know it.
        usual: which labels the tool's values stand for, unless a user says otherwise.
        scored: whether a label's score follows from the label, as in our own benchmarks.
        read: everything in the file, once.
    """

    format: str
    usual: Mapping[str, Label]
    scored: bool
    read: Reading
