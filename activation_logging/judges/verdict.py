"""What is judged and what a judge says of it: one answer, one verdict."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from activation_logging.errors import LabelError
from activation_logging.records import checked_spans

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from activation_logging.records import Label, Span

Kind = Literal["made_up", "real", "fact", "profile"]
"""What a question asks: about a made-up name, a real one, a fact with one right answer, or for a
profile of a real thing."""

Place: TypeAlias = tuple[str, int]
"""A question's id, and which of its answers: the epoch, from 1."""

Belief = Literal["accepts", "declines", "unclear"]
"""Whether a trusting reader would come away believing that the thing asked about exists.

``accepts``: yes, the answer describes it. ``declines``: no; the answer says that there is no such
thing, or that it knows nothing about it. ``unclear``: no usable verdict.
"""


@dataclass(frozen=True)
class Answer:
    """One answer, its question, and the id under which the server knows its request.

    Attributes:
        id: the question's.
        prompt: the question's text.
        name: what the question asks about.
        type: its domain (``animal``) or sort of fact (``capital``).
        generation: the text that is judged.
        request_id: None where the answer was not asked for here.
        gold: accepted answers of a ``fact``, the preferred one first.
        reasoning: what the server or Inspect took out of the text of a model that thinks.
    """

    id: str
    prompt: str
    name: str
    type: str
    generation: str
    request_id: str | None = None
    kind: Kind = "made_up"
    epoch: int = 1
    gold: tuple[str, ...] = ()
    stratum: str = ""
    finish_reason: str | None = None
    reasoning: str | None = None

    @property
    def digest(self) -> str:
        """Identifies the text that a verdict is about: a new answer under the same id differs."""
        return hashlib.sha256(self.generation.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    @property
    def place(self) -> Place:
        return self.id, self.epoch


@dataclass(frozen=True)
class Verdict:
    """One judge's verdict on one answer.

    Attributes:
        id: the answer's.
        label: what the answer amounts to.
        judge: name and version of the judge.
        words: the judge's reason.
        answer: digest of the judged text.
        details: whatever else the judge found.
        spans: the claims in the text that the judge judged one by one.
    """

    id: str
    label: Label
    judge: str
    words: str
    answer: str
    epoch: int = 1
    details: Mapping[str, Any] | None = None
    spans: tuple[Span, ...] = ()

    @classmethod
    def on(
        cls,
        answer: Answer,
        label: Label,
        judge: str,
        words: str,
        *,
        details: Mapping[str, Any] | None = None,
        spans: Sequence[Span] = (),
    ) -> Verdict:
        digest, place = answer.digest, answer.epoch
        return cls(answer.id, label, judge, words, digest, place, details, tuple(spans))

    @classmethod
    def of_belief(cls, answer: Answer, belief: Belief, judge: str, words: str) -> Verdict:
        """The verdict on an answer about a made-up or a real name."""
        label = label_of_belief(belief, answer.kind)
        return cls.on(answer, label, judge, words, details={"belief": belief})

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Verdict:
        """From the fields of :meth:`as_json`.

        Raises:
            LabelError: a span is invalid.
            TypeError: a field is missing or unknown.
        """
        return cls(**{**fields, "spans": checked_spans(fields.get("spans"))})

    def as_json(self) -> dict[str, Any]:
        """All fields that say something."""
        found = {name: value for name, value in vars(self).items() if value not in (None, ())}
        if self.spans:
            found["spans"] = [span.as_json() for span in self.spans]
        return found

    def checked_on(self, answer: Answer) -> Verdict:
        """The verdict with its spans checked and in order; it is one on this answer.

        Raises:
            LabelError: a span is invalid, or lies outside the judged text.
        """
        spans = checked_spans(self.spans)
        for span in spans:
            if span.end > len(answer.generation):
                raise LabelError(
                    f"the span from {span.start} to {span.end} lies outside the answer "
                    f"{answer.id!r}, which has {len(answer.generation)} characters"
                )
        return replace(self, spans=spans)

    @property
    def place(self) -> Place:
        return self.id, self.epoch


def label_of_belief(belief: Belief, kind: str) -> Label:
    """The label of an answer about a made-up or a real name.

    ==========  ================  =============
    belief      made-up name      real name
    ==========  ================  =============
    accepts     ``hallucinated``  ``correct``
    declines    ``refused``       ``refused``
    unclear     ``invalid``       ``invalid``
    ==========  ================  =============

    ``correct`` says that taking the name for real was right, not that every sentence after it is.
    """
    if belief == "unclear":
        return "invalid"
    if belief == "declines":
        return "refused"
    return "hallucinated" if kind == "made_up" else "correct"
