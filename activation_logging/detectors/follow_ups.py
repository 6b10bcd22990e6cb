"""What a model said when it was asked about answers in the store.

``activation-logging follow-up`` asks, each time for one word out of True and False, and the server
logs the question like any other. Its tags say what it is about:

=========== ======================================================================================
kind        ``p_true``: is this answer right? ``entails``: does it say what another one says?
about       the key of the answer; ``beside`` the key of the other one
digests     SHA-256 of the answer's text, and of the other one's, 16 digits of each
true, false ids of the tokens that stand for the two words
=========== ======================================================================================

So an entry tells by itself how probable True was, and a text that was answered twice is asked about
once. Follow-up questions have no label, so data sets and studies leave them out.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import numpy as np

from activation_logging.detectors.registry import Detector
from activation_logging.errors import InputMissing
from activation_logging.store.query import readable, select
from activation_logging.tags import ABOUT, BESIDE, KIND

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from activation_logging.store import Entry, Store

Asks = Literal["p_true", "entails"]
ASKS: tuple[Asks, ...] = get_args(Asks)
DIGESTS, TRUE, FALSE = "digests", "true", "false"

_HALF = 0.5
_MAX_TEXT = 4000  # characters of a question and of an answer that are shown
_ONE_WORD = "(A) True\n(B) False\n"
_TEXTS: dict[Asks, str] = {
    "p_true": (
        "Question: {question}\nProposed answer: {answer}\n\nIs the proposed answer right?\n"
        + _ONE_WORD
    ),
    "entails": (
        "Two answers to one question follow.\nQuestion: {question}\nFirst answer: {answer}\n"
        "Second answer: {other}\n\nWhoever believes the first answer must believe the second.\n"
        + _ONE_WORD
    ),
}
CHAT_END = "Reply with one word, True or False."
COMPLETION_END = "Reply in one word, True or False:"

TRUE_FORMS, FALSE_FORMS = (
    tuple(f"{before}{word}" for word in words for before in ("", " ", "(", " ("))
    for words in (("True", "true", "TRUE", "A"), ("False", "false", "FALSE", "B"))
)
"""What counts as True and as False, where a tokenizer has it as one token; A and B are how the
question numbers them."""


class Subject(NamedTuple):
    """What a follow-up is about: the answered prompt, and the digests of one or two texts."""

    prompt: str
    texts: tuple[str, ...]

    @classmethod
    def of(cls, entry: Entry, *others: Entry) -> Subject:
        """An answer, and perhaps another answer to the same prompt."""
        texts = tuple(text_digest(each.response) for each in (entry, *others))
        return cls(entry.prompt_key, texts)


class FollowUps:
    """All follow-up questions in a store; read when they are first needed."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @cached_property
    def _found(self) -> dict[tuple[str, Subject], dict[str, float | None]]:
        """The probability of True by kind and subject, and by model, the last asked last."""
        found: dict[tuple[str, Subject], dict[str, float | None]] = {}
        for kind in ASKS:
            for entry in readable(select(self._store, tags={KIND: kind}, newest_first=False)):
                subject = _subject(entry)
                if subject is not None:
                    by_model = found.setdefault((kind, subject), {})
                    by_model.pop(entry.model, None)
                    by_model[entry.model] = probability_of_true(entry)
        return found

    def asked(self, kind: Asks, subject: Subject, model: str | None = None) -> bool:
        """Whether a model, or any, has been asked."""
        found = self._found.get((kind, subject), {})
        return bool(found) if model is None else model in found

    def probability(self, kind: Asks, subject: Subject, model: str | None = None) -> float | None:
        """How probable True was; of several models the last that was asked.

        None where it was not asked, or where neither word was among the likeliest.
        """
        found = self._found.get((kind, subject), {})
        return found.get(model) if model is not None else next(reversed(found.values()), None)


def is_follow_up(tags: Mapping[str, str]) -> bool:
    """Whether an entry with these tags is such a question."""
    return tags.get(KIND) in ASKS and ABOUT in tags


def text_digest(text: str) -> str:
    """Identifies the text of an answer."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def question_about(kind: Asks, entries: Sequence[Entry]) -> str:
    """The words of a question, but for its last line."""
    first, *others = (entry.response.strip()[:_MAX_TEXT] for entry in entries)
    texts = {"question": entries[0].question.strip()[-_MAX_TEXT:], "answer": first}
    return _TEXTS[kind].format(**texts, other=others[0] if others else "")


def tags_of(
    kind: Asks, entries: Sequence[Entry], true: Sequence[int], false: Sequence[int]
) -> dict[str, str]:
    """The tags of a question about one answer, or about two to the same prompt."""
    found = {
        KIND: kind,
        ABOUT: entries[0].stored_key,
        DIGESTS: " ".join(Subject.of(*entries).texts),
        TRUE: json.dumps(list(true)),
        FALSE: json.dumps(list(false)),
    }
    return found | ({BESIDE: entries[1].stored_key} if len(entries) > 1 else {})


def _subject(entry: Entry) -> Subject | None:
    tags = entry.tags
    if not is_follow_up(tags) or not entry.top_logprobs:
        return None
    return Subject(tags[ABOUT].partition("#")[0], tuple(tags.get(DIGESTS, "").split()))


def probability_of_true(entry: Entry) -> float | None:
    """P(True) among True and False in the first token of a follow-up's answer.

    None where neither is among the tokens whose log-probabilities were logged, or where the entry
    does not say which tokens they are.
    """
    tops = entry.top_logprobs
    try:
        true, false = (
            {int(token) for token in json.loads(entry.tags[name])} for name in (TRUE, FALSE)
        )
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
        return None
    return share_of_true(tops[0], true, false) if tops else None


def share_of_true(
    top: Mapping[int, float], true: AbstractSet[int], false: AbstractSet[int]
) -> float | None:
    """The probability of the tokens of True among those of both words; None if none is there."""
    yes, no = (sum(np.exp(top[token]) for token in ids if token in top) for ids in (true, false))
    return float(yes / (yes + no)) if yes + no > 0 else None


def is_true(share: float | None) -> bool:
    """Whether a reply says True; one in which neither word was likely does not."""
    return share is not None and share > _HALF


def grouping(count: int) -> Generator[tuple[int, int], bool, list[list[int]]]:
    """Group texts by meaning: each joins the first group whose first text means the same.

    As in Farquhar et al. 2024, Nature 630. Yields the pairs to compare, as indices below
    ``count``, and is sent whether they mean the same.
    """
    groups: list[list[int]] = []
    for index in range(count):
        for group in groups:
            if (yield group[0], index):
                group.append(index)
                break
        else:
            groups.append([index])
    return groups


def p_true(entry: Entry, follow_ups: FollowUps) -> float:
    """The probability that the model gives to its own answer being right."""
    subject = Subject.of(entry)
    found = follow_ups.probability("p_true", subject, entry.model)
    if found is not None:
        return found
    if follow_ups.asked("p_true", subject, entry.model):
        raise InputMissing(
            "no True or False among the likeliest words of the reply to their follow-up question"
        )
    raise InputMissing(
        "no follow-up question; ask for it: activation-logging follow-up PATH --ask p_true"
    )


P_TRUE = Detector(
    "p_true",
    "P(True)",
    "Kadavath et al. 2022, arXiv:2207.05221",
    "follow_up",
    of_follow_up=p_true,
    role="signal",
    in_curves=True,
)
