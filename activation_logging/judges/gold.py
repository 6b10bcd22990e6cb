"""The ``gold`` judge of short answers: does the answer settle on the right one?

The answer's first sentence that names a possible answer counts. A possible answer is any that a
question of the same sort could have (every country, every capital, every element), found as whole
words in text without case, accents and punctuation; the longest name wins, so that "Niger" is not
found in "Nigeria" and "Guinea" not in "Papua New Guinea".

A name that is negated or taken back ("not in Germany but", "Germany? No,") does not count
(:mod:`.negation`).

1. Without a letter: ``invalid``.
2. The first one named is right, and no other one is offered beside it by "or": ``correct``.
3. The first one named is wrong, or several are offered: ``hallucinated``.
4. None is named, and the answer says that it does not know: ``refused``. That there is no such
   place ("a fictional city") is a claim, and a wrong one: ``hallucinated``.
5. None is named where all there are are known (countries): ``invalid``, the answer evades the
   question ("in the Middle East"). Where they are not (a capital may be given as any city, an
   element as any word): ``hallucinated``.

The verdict's details say which characters are the answer that counted (``answer_start``,
``answer_end``), in wrong answers too: where no possible answer is named, it is what the first
sentence gives (:mod:`.given`), or the sentence that denies. ``value`` is what these characters
mean, the same for every name of one thing.

Chemical symbols are one or two letters long and some are English words, so they are looked for as
written: as the whole answer (then in any case), or with the capital that they have.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from activation_logging.judges.given import given_answer, given_denial
from activation_logging.judges.negation import settled
from activation_logging.judges.registry import Judge
from activation_logging.judges.rules import denies, says_ignorance
from activation_logging.judges.values import Found, find_names
from activation_logging.judges.verdict import Answer, Verdict
from activation_logging.text import fold

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from activation_logging.records import Label

VERSION = "gold/5"

DENIAL = "no such thing"
"""The ``value`` of an answer that denies what was asked about."""
_RIGHT = "the right answer"
_SYMBOL = re.compile(r"(?<![\w-])[A-Z][a-z]?(?![\w'-])")
_NO_SYMBOLS = frozenset(
    {"A", "Ah", "An", "By", "Do", "Go", "Hi", "Hm", "If", "Is", "It", "Me", "My", "Oh", "Ok"}
    | {"On", "Or", "So", "To", "Um", "Up", "Us", "We"}
)
"""Words that open sentences, and are no element's."""
_WORDS_LIKE_SYMBOLS = frozenset({"I", "As", "In", "No", "He", "At", "Be", "Am"})


class Finding(NamedTuple):
    """What a short answer amounts to, why, which characters are the answer, and what they mean."""

    label: Label
    words: str
    place: tuple[int, int] | None = None
    value: str | None = None

    @property
    def details(self) -> dict[str, Any]:
        """The characters and their meaning, for a verdict's details."""
        if self.place is None:
            return {}
        start, end = self.place
        return {"answer_start": start, "answer_end": end, "value": self.value}


def gold_judge(candidates: Callable[[str], Mapping[str, str]]) -> Judge:
    """A judge for questions with one right answer.

    Args:
        candidates: from the sort of a question to folded name -> what it means, for every answer
            that a question of this sort could have.
    """

    def decide(answer: Answer) -> Verdict:
        table = candidates(answer.type)
        found = judge_short_answer(
            answer.generation, answer.gold, answer.type, table, question=answer.prompt
        )
        return Verdict.on(answer, found.label, VERSION, found.words, details=found.details or None)

    return Judge(VERSION, decide, kinds=("fact",))


GOLD = gold_judge(lambda sort: {})  # noqa: ARG005 - knows the right answers and no wrong one


def judge_short_answer(
    answer: str,
    gold: Sequence[str],
    sort: str,
    candidates: Mapping[str, str],
    *,
    question: str = "",
) -> Finding:
    """Label one short answer.

    Args:
        answer: what the model said.
        gold: the names that are right.
        sort: ``symbol`` for chemical symbols, anything else for names.
        candidates: folded name -> what it means, for every answer of this sort.
        question: what was asked, to tell an answer that no list knows from its repetition.
    """
    if not re.search(r"[^\W\d_]", answer):
        return Finding("invalid", "the answer has no words")
    if sort == "symbol":
        return _judge_symbol(answer, gold[0], question)
    found = judge_name(answer, gold, candidates)
    return found or _without_answer(answer, question, closed=sort == "city")


def judge_name(answer: str, gold: Sequence[str], candidates: Mapping[str, str]) -> Finding | None:
    """Label an answer by the first possible name in it; None if it has none.

    Args:
        answer: what the model said.
        gold: the names that are right.
        candidates: folded name -> what it means; "" for what only looks like an answer.
    """
    right = {fold(name) for name in gold}
    table = {**candidates, **dict.fromkeys(right, _RIGHT)}
    if "usa" in right:
        table.pop("georgia", None)  # then it is the state
    for start, _, names in settled(
        answer,
        lambda sentence: [
            name for name in find_names(sentence, table) if name.value and _is_name(sentence, name)
        ],
    ):
        if names:
            label, words = _judge_names(answer[start:], names)
            first = names[0]
            # All names of the right answer mean one thing, on whatever lists they are.
            meaning = fold(gold[0]) if first.value == _RIGHT else first.value
            return Finding(label, words, (start + first.start, start + first.end), meaning)
    return None


def _judge_names(text: str, names: Sequence[Found[str]]) -> tuple[Label, str]:
    first = names[0]
    said = fold(first.text_in(text))
    if first.value != _RIGHT:
        return "hallucinated", f"answers {said!r}"
    for other in names[1:]:
        between = fold(text[first.end : other.start]).split()
        if other.value != _RIGHT and between in (["or"], ["or", "in"], ["or", "the"]):
            return "hallucinated", f"does not settle on {said!r}"
    return "correct", f"answers {said!r}"


def _judge_symbol(answer: str, gold: str, question: str) -> Finding:
    bare = answer.strip().strip("\"'.*`()[] \n")
    if bare.casefold() == gold.casefold():
        start = answer.index(bare)
        return Finding("correct", f"answers {bare!r}", (start, start + len(bare)), gold)
    for start, _, found in settled(answer, _find_symbols):
        if found:
            said = found[0].value
            label: Label = "correct" if said == gold else "hallucinated"
            place = (start + found[0].start, start + found[0].end)
            return Finding(label, f"answers {said!r}", place, said)
    return _without_answer(answer, question)


def _find_symbols(sentence: str) -> list[Found[str]]:
    return [
        Found(match.group(), *match.span())
        for match in _SYMBOL.finditer(sentence)
        if match.group() not in _NO_SYMBOLS
        and not (match.group() in _WORDS_LIKE_SYMBOLS and _is_a_word(sentence, match))
    ]


def _is_a_word(sentence: str, match: re.Match[str]) -> bool:
    """Whether "In", "As" and the like open a clause here, or "No" answers, and are no symbol."""
    after = sentence[match.end() :]
    if match.group() == "No" and re.match(r"\s*[.,;:!]", after):
        return True
    return bool(re.match(r"(?:'\w+)?(?:,? \w|, )", after))


def _is_name(sentence: str, name: Found[str]) -> bool:
    """Whether a name that is also a word is meant as one: "the us", and not "let us say"."""
    said = name.text_in(sentence)
    before = sentence[: name.start].lower()
    if said == "us":
        return not before.strip() or re.search(r"\b(?:the|in|is)\s+$", before) is not None
    return said != "male" or re.search(r"\b(?:the|a|or|and)\s+$", before) is None


def _without_answer(answer: str, question: str, *, closed: bool = False) -> Finding:
    if says_ignorance(answer):
        return Finding("refused", "names no answer and says that it does not know")
    if denies(answer):
        place = given_denial(answer)
        return Finding("hallucinated", "denies that there is such a thing", place, DENIAL)
    if closed:
        return Finding("invalid", "names no possible answer, right or wrong")
    start, end = given_answer(answer, question)
    said = fold(answer[start:end])
    return Finding("hallucinated", "names none of the right answers", (start, end), said)
