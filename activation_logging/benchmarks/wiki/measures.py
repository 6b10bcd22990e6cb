"""Numbers: atomic numbers and weights of elements, areas of countries.

All of these things have a vital article, so none is obscure.

A country's area is asked for where GeoNames and Wikipedia agree within 3 %, which is what an answer
may be off by.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

from activation_logging.benchmarks.sources.elements import elements
from activation_logging.benchmarks.sources.places import Country, countries, geonames
from activation_logging.benchmarks.sources.wikipedia import Article, articles
from activation_logging.benchmarks.wiki.fact import Fact, article_of, slug
from activation_logging.judges.typed import TOLERANCES
from activation_logging.judges.values import UNITS, find_quantities

if TYPE_CHECKING:
    from collections.abc import Iterator

    from activation_logging.judges.values import Quantity

_NUMBER = re.compile(r"\batomic number (\d+)\b")


def measures() -> Iterator[Fact]:
    """All numbers."""
    yield from _atomic()
    yield from _areas()


def _atomic() -> Iterator[Fact]:
    for element in elements():
        name = element.names[0].lower()
        article = _elements_by_number().get(element.number)
        if article is not None and article.name not in element.names:
            continue
        yield _fact(
            "atomic number",
            name,
            prompt=f"What is the atomic number of the element {name}? Answer with only the number.",
            gold=str(element.number),
            sources=("mendeleev", "Wikipedia") if article else ("mendeleev",),
        )
        if element.is_stable:
            yield _fact(
                "atomic weight",
                name,
                prompt=f"What is the standard atomic weight of the element {name}, in atomic mass "
                "units? Answer with only the number.",
                gold=f"{element.weight:.6g} u",
                sources=("mendeleev",),
            )


@cache
def _elements_by_number() -> dict[int, Article]:
    """Articles by the atomic number that their description gives."""
    found = ((_NUMBER.search(article.description), article) for article in articles().values())
    return {int(match[1]): article for match, article in found if match}


def _areas() -> Iterator[Fact]:
    for country, known, stated in areas():
        if abs(stated - known) <= TOLERANCES["area"] * known:
            yield _fact(
                "country area",
                country.names[0],
                prompt=f"What is the area of {country.in_text}, in square kilometres? "
                "Answer with only the number.",
                gold=f"{stated:,.0f} km2",
                sources=("GeoNames", "Wikipedia"),
            )


def areas() -> Iterator[tuple[Country, float, float]]:
    """Countries with the area that GeoNames gives, and the one that Wikipedia does, km2."""
    table = geonames().get_countries()
    for country in countries():
        article = article_of(*country.names, about="country|state|republic|kingdom")
        found = _first(article.extract, "area") if article else None
        known = float(table[country.code]["areakm2"])
        if found is not None and known:
            yield country, known, found.to(UNITS["km2"]).number


def _first(text: str, sort: str) -> Quantity | None:
    """The first quantity of a sort, in the text."""
    return next((q.value for q in find_quantities(text) if q.value.sort == sort), None)


def _fact(sort: str, name: str, *, prompt: str, gold: str, sources: tuple[str, ...]) -> Fact:
    kind = "element" if sort.startswith("atomic") else "place"
    return Fact(
        id=f"{slug(sort)}-{slug(name)}",
        sort=sort,
        name=name,
        prompt=prompt,
        gold=(gold,),
        fame="vital",
        group=f"{kind}:{slug(name)}",
        sources=sources,
    )
