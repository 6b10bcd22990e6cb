"""Whether a name is known anywhere: in any list of names, or in any paragraph, that is here.

A made-up name must name nothing. That cannot be proved; what can be done is to look it up in
everything on this machine: titles of Wikipedia, nouns of WordNet, names of living things from the
NCBI taxonomy, places of GeoNames in all their spellings, medicines, elements, and the paragraphs of
230,000 articles.
"""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING

from activation_logging.benchmarks.sources.drugs import medicines
from activation_logging.benchmarks.sources.elements import element_names
from activation_logging.benchmarks.sources.ncbi import taxonomy
from activation_logging.benchmarks.sources.people import people
from activation_logging.benchmarks.sources.places import all_place_names
from activation_logging.benchmarks.sources.wikipedia import articles
from activation_logging.benchmarks.sources.wordnet import nouns
from activation_logging.text import fold

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def is_known(name: str) -> bool:
    """Whether a list has the name; case, accents and a plural's ending do not matter.

    Of a person's names the first and the last are enough: Wolfgang Mozart is known.

    Raises:
        PackageError: a package was not downloaded, or its archive is broken.
        ExtraMissing: a package of the ``eval`` extra is not installed.
    """
    folded = fold(name)
    return (
        _singular(folded) in _listed()
        or folded in _listed()
        or taxonomy().is_scientific(name[:1].upper() + name[1:].lower())
    )


def mentioned(names: Iterable[str]) -> frozenset[str]:
    """Those of the names that stand as a phrase in some paragraph, whatever their case.

    All are looked for in one pass of about ten seconds.

    Raises:
        PackageError, ExtraMissing: as :func:`is_known`.
    """
    asked: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name in names:
        asked[tuple(fold(name).split())].append(name)
    by_length = {
        length: frozenset(words for words in asked if len(words) == length)
        for length in {len(words) for words in asked}
    }
    found: set[str] = set()
    for paragraph in _paragraphs():
        words = fold(paragraph).split()
        for length, wanted in by_length.items():
            grams = zip(*(words[start:] for start in range(length)), strict=False)
            for gram in wanted.intersection(grams):
                found.update(asked[gram])
    return frozenset(found)


@cache
def _listed() -> frozenset[str]:
    """Every name, folded."""
    persons = (name for person in people() for name in person.names)
    names = chain(
        (text for article in articles().values() for text in (article.title, article.name)),
        (name for synset in nouns().values() for name in synset.names),
        (f"{name.split()[0]} {name.split()[-1]}" for name in persons),
        (name for _, name in chain(taxonomy().common_names(), taxonomy().article_titles())),
        all_place_names(),
        medicines().names,
        chain.from_iterable(element_names().values()),
    )
    folded = {fold(name) for name in names}
    return frozenset(folded | {_singular(name) for name in folded})


def _singular(folded: str) -> str:
    return folded.removesuffix("s")


def _paragraphs() -> Iterator[str]:
    yield from (article.extract for article in articles().values())
    yield from taxonomy().paragraphs()
