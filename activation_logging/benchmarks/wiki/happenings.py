"""Years of works, wars and battles.

A work's year stands at the beginning of its description ("1953 Japanese film by ..."), a war's two
in a parenthesis at its end, a battle's in WordNet's gloss, which must have no other year. Where the
first paragraph gives years of its own and none of them is the same, the question is left out.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from activation_logging.benchmarks.sources.wikipedia import Article, articles
from activation_logging.benchmarks.sources.wordnet import instances_of
from activation_logging.benchmarks.wiki.fact import (
    FIRST_YEAR,
    LAST_YEAR,
    Fact,
    article_of,
    slug,
)
from activation_logging.judges.values import find_years

if TYPE_CHECKING:
    from collections.abc import Iterator

_VERBS = {
    "first published": "novel|novella|book|poem|treatise|story|textbook|essay|pamphlet|comedy|"
    "satire|epic|encyclopedia|translation",
    "released": "film|album|single|song|game|television|video",
    "first performed": "play|opera|ballet|symphony|oratorio|musical|singspiel|concerto|tragedy",
    "finished": "painting|sculpture|fresco|woodblock|statue|altarpiece|mural",
}
_VERB_OF = {word: verb for verb, words in _VERBS.items() for word in words.split("|")}
_WORK = re.compile(
    rf"^(?P<year>\d{{4}}) (?:[\w'-]+ )*?(?P<what>{'|'.join(_VERB_OF)})s?\b(?P<rest>.*)$"
)
_BY = re.compile(
    r"^ (?:directed |written |composed )?by (?P<author>[A-Z][^,;()]*?)"
    r"(?: (?:describing|from|in|about)\b.*)?$"
)
_WAR = re.compile(r"\b(?:[Ww]ars?|Rebellion|Revolt)\b")
_SPAN = re.compile(r"\((?P<start>\d{4})[-\u2013](?P<end>\d{2}|\d{4})\)$")


_PRINTED = 1450  # before that nothing was published in one year
# There were several of that name.
_SEVERAL = frozenset({
    "Boyne", "Fort Ticonderoga", "Fredericksburg", "Lutzen", "Panipat", "Poitiers", "Port Arthur",
    "Ravenna", "Santiago", "Soissons-Reims", "Tannenberg", "Yalu River",
})  # fmt: skip


class Happening(NamedTuple):
    """What happened in which year, as a question asks it."""

    sort: str
    what: str
    year: int


def happenings() -> Iterator[Fact]:
    """Years of works, of beginnings and ends of wars, and of battles."""
    for article in articles().values():
        if article.name != article.title or re.search(r"\d", article.title):
            continue
        for happening in (*_work(article), *_war(article)):
            if FIRST_YEAR <= happening.year <= LAST_YEAR and _agrees(article, happening.year):
                yield _fact(happening, article.title, article, ("Wikipedia",))
    yield from _battles()


def _agrees(article: Article, year: int) -> bool:
    """Whether the first paragraph has the year too, or no year at all."""
    years = {found.value for found in find_years(article.extract)}
    return not years or year in years


def _work(article: Article) -> Iterator[Happening]:
    match = _WORK.match(article.description)
    if match is not None:
        author = _BY.match(match["rest"])
        by = f" by {author['author']}" if author else ""
        verb = _VERB_OF[match["what"]]
        what = f"was the {match['what']} {article.title}{by} {verb}"
        if verb != "first published" or int(match["year"]) >= _PRINTED:
            yield Happening("work year", what, int(match["year"]))


def _war(article: Article) -> Iterator[Happening]:
    match = _SPAN.search(article.description)
    if match is None or not _WAR.search(article.title):
        return
    start = int(match["start"])
    end = int(match["end"]) if len(match["end"]) == 4 else start - start % 100 + int(match["end"])
    name = article.title if article.title.startswith("World") else f"the {article.title}"
    yield Happening("war year", f"did {name} begin", start)
    yield Happening("war year", f"did {name} end", end)


def _battles() -> Iterator[Fact]:
    """Battles of WordNet, whose names are those of places."""
    battles = instances_of("battle")
    for synset in battles:
        years = {found.value for found in find_years(synset.gloss)}
        full = [name for name in synset.names if name.lower().startswith("battle of ")]
        name = full[0][len("battle of ") :] if full else synset.names[0]
        same = sum(name in other.names or f"battle of {name}" in other.names for other in battles)
        if name in _SEVERAL or len(years) != 1 or same != 1 or "battle" not in synset.gloss:
            continue
        (year,) = years
        article = article_of(f"Battle of {name}", about="battle")
        if article is not None and not _agrees(article, year):
            continue
        if FIRST_YEAR <= year <= LAST_YEAR:
            happening = Happening("battle year", f"was the battle of {name}", year)
            yield _fact(happening, f"Battle of {name}", article, ("WordNet",))


def _fact(
    happening: Happening, name: str, article: Article | None, sources: tuple[str, ...]
) -> Fact:
    return Fact(
        id=f"{slug(happening.sort)}-{slug(happening.what)}",
        sort=happening.sort,
        name=name,
        prompt=f"In what year {happening.what}? Answer with only the year.",
        gold=(str(happening.year),),
        fame="vital" if article else "other",
        group=f"happening:{slug(name)}",
        sources=sources,
    )
