"""The ``gold`` judge of short answers: does the answer settle on the right one?

The answer's first sentence that names a possible answer counts. A possible answer is any that a
question of the same sort could have (every country, every capital, every element), found as whole
words in text without case, accents and punctuation; the longest name wins, so that "Niger" is not
found in "Nigeria" and "Guinea" not in "Papua New Guinea".

1. Without a letter: ``invalid``.
2. The first one named is right, and no other one is offered beside it by "or": ``correct``.
3. The first one named is wrong, or several are offered: ``hallucinated``.
4. None is named, and the answer says that it does not know: ``refused``. That there is no such
   place ("a fictional city") is a claim, and a wrong one: ``hallucinated``.
5. None is named where all there are are known (countries): ``invalid``, the answer evades the
   question ("in the Middle East"). Where they are not (a capital may be given as any city, an
   element as any word): ``hallucinated``.

Chemical symbols are one or two letters long and some are English words, so they are looked for as
written: as the whole answer (then in any case), or with the capital that they have.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from activation_logging.judges.registry import Judge
from activation_logging.judges.rules import denies, says_ignorance
from activation_logging.judges.verdict import Answer, Verdict
from activation_logging.text import fold

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from activation_logging.records import Label

VERSION = "gold/1"

_MAX_WORDS = 9
_RIGHT = "the right answer"
_SYMBOL = re.compile(r"(?<![\w-])[A-Z][a-z]?(?![\w'-])")
_WORDS_LIKE_SYMBOLS = frozenset({"I", "As", "In", "No", "He", "At", "Be", "Am"})
_NEGATION = re.compile(r"\b(?:not|n't|nor|rather than|instead of|unlike) (?:in |the |of )*$")
_SENTENCE = re.compile(r"(?<=[.!?;])\s+|\n+")


class Mention(NamedTuple):
    """A possible answer found in a text."""

    meaning: str
    start: int
    end: int


class Finding(NamedTuple):
    """What a short answer amounts to, and why."""

    label: Label
    words: str


def gold_judge(candidates: Callable[[str], Mapping[str, str]]) -> Judge:
    """A judge for questions with one right answer.

    Args:
        candidates: from the sort of a question to folded name -> what it means, for every answer
            that a question of this sort could have.
    """

    def decide(answer: Answer) -> Verdict:
        table = candidates(answer.type)
        label, words = judge_short_answer(answer.generation, answer.gold, answer.type, table)
        return Verdict.on(answer, label, VERSION, words)

    return Judge(VERSION, decide, kinds=("fact",))


GOLD = gold_judge(lambda sort: {})  # noqa: ARG005 - knows the right answers and no wrong one


def judge_short_answer(
    answer: str, gold: Sequence[str], sort: str, candidates: Mapping[str, str]
) -> Finding:
    """Label one short answer.

    Args:
        answer: what the model said.
        gold: the names that are right.
        sort: ``symbol`` for chemical symbols, anything else for names.
        candidates: folded name -> what it means, for every answer of this sort.
    """
    if not re.search(r"[^\W\d_]", answer):
        return Finding("invalid", "the answer has no words")
    if sort == "symbol":
        return _judge_symbol(answer, gold[0])
    right = {fold(name) for name in gold}
    table = {**candidates, **dict.fromkeys(right, _RIGHT)}
    if "usa" in right:
        table.pop("georgia", None)  # then it is the state
    for sentence in _SENTENCE.split(answer):
        text = fold(sentence)
        mentions = [m for m in _mentions(text, table) if not _NEGATION.search(text[: m.start])]
        mentions = [m for m in mentions if m.meaning]
        if mentions:
            return _judge_mentions(text, mentions)
    return _without_answer(answer, closed=sort == "city")


def _judge_mentions(text: str, mentions: Sequence[Mention]) -> Finding:
    first = mentions[0]
    said = text[first.start : first.end]
    if first.meaning != _RIGHT:
        return Finding("hallucinated", f"answers {said!r}")
    for other in mentions[1:]:
        between = text[first.end : other.start].split()
        if other.meaning != _RIGHT and between in (["or"], ["or", "in"], ["or", "the"]):
            return Finding("hallucinated", f"does not settle on {said!r}")
    return Finding("correct", f"answers {said!r}")


def _mentions(text: str, table: Mapping[str, str]) -> list[Mention]:
    """Names in order of appearance; the longest at each place, none inside another."""
    words = [(match.group(), match.start(), match.end()) for match in re.finditer(r"\S+", text)]
    found = []
    place = 0
    while place < len(words):
        for length in range(min(_MAX_WORDS, len(words) - place), 0, -1):
            start, end = words[place][1], words[place + length - 1][2]
            if text[start:end] in table:
                found.append(Mention(table[text[start:end]], start, end))
                place += length - 1
                break
        place += 1
    return found


def _judge_symbol(answer: str, gold: str) -> Finding:
    bare = answer.strip().strip("\"'.*`()[] \n")
    if bare.casefold() == gold.casefold():
        return Finding("correct", f"answers {bare!r}")
    for sentence in _SENTENCE.split(answer):
        found = [
            match.group()
            for match in _SYMBOL.finditer(sentence)
            if not (match.group() in _WORDS_LIKE_SYMBOLS and _is_a_word(sentence, match))
            and not _NEGATION.search(fold(sentence[: match.start()]))
        ]
        # "A" opens sentences and is no element.
        found = [symbol for symbol in found if symbol != "A"]
        if found:
            label: Label = "correct" if found[0] == gold else "hallucinated"
            return Finding(label, f"answers {found[0]!r}")
    return _without_answer(answer)


def _is_a_word(sentence: str, match: re.Match[str]) -> bool:
    """Whether "In", "As" and the like open a clause here and are no symbol."""
    return bool(re.match(r"(?:'\w+)?,? [a-z]", sentence[match.end() :]))


def _without_answer(answer: str, *, closed: bool = False) -> Finding:
    if says_ignorance(answer):
        return Finding("refused", "names no answer and says that it does not know")
    if denies(answer):
        return Finding("hallucinated", "denies that there is such a thing")
    if closed:
        return Finding("invalid", "names no possible answer, right or wrong")
    return Finding("hallucinated", "names none of the right answers")
