"""One fact and its question, how well known it is, and what all sorts of facts leave out."""

from __future__ import annotations

import re
from functools import cache
from typing import Literal, NamedTuple

from activation_logging.benchmarks.sources.wikipedia import Article, articles
from activation_logging.text import fold

Fame = Literal["top", "vital", "other"]
"""``vital``: among Wikipedia's 10,000 vital articles; ``top``: a person among the first 1,000."""

FIRST_YEAR, LAST_YEAR = 1000, 2015
"""Years that are asked for: all have four digits, and no model is too old to know the last."""


class Fact(NamedTuple):
    """One question with its right answer.

    Attributes:
        id: unique, and the same on every machine.
        sort: what the answer is, such as ``birth year``; the judge goes by it.
        name: the thing asked about.
        prompt: the question.
        gold: the right answers, the preferred one first.
        fame: how well known the thing is.
        group: the thing itself: all facts about it share this.
        sources: who says so, and alike.
    """

    id: str
    sort: str
    name: str
    prompt: str
    gold: tuple[str, ...]
    fame: Fame
    group: str
    sources: tuple[str, ...]


def article_of(*names: str, about: str) -> Article | None:
    """The article that has one of these names and says what it is about: ``river``, ``city``."""
    found = (_by_name().get(fold(name)) for name in names)
    word = re.compile(rf"\b{about}\b", re.IGNORECASE)
    return next((a for a in found if a and word.search(f"{a.description}. {a.extract}")), None)


@cache
def _by_name() -> dict[str, Article]:
    """Articles by their folded title, of those whose title needs no parenthesis."""
    return {fold(a.title): a for a in articles().values() if a.name == a.title}


def slug(name: str) -> str:
    """A name as a part of an id."""
    return fold(name).replace(" ", "-")


def gives_away(name: str, gold: tuple[str, ...]) -> bool:
    """Whether a name has a digit, or a word that begins like a right answer (Brazil, Brazilian)."""
    if re.search(r"\d", name):
        return True
    words = fold(name).split()
    stems = [stem[:5] for answer in gold for stem in fold(answer).split() if len(stem) > 3]
    return any(word.startswith(stem) for word in words for stem in stems)
