"""Species that many have heard of."""

from __future__ import annotations

import re
from functools import cache

from activation_logging.benchmarks.sources.ncbi import taxonomy
from activation_logging.benchmarks.sources.wikipedia import articles
from activation_logging.text import fold

_MENTION = re.compile(r"\b[A-Z][a-z]{2,} [a-z]{3,}(?:-[a-z]+)?")


@cache
def famous_species(domain: str) -> tuple[str, ...]:
    """Scientific names, of two words, of the species that vital articles are about or name.

    An article is about a species when its title is the scientific name, the common name, or the
    title of the article that the taxonomy links to.

    Raises:
        PackageError: a package was not downloaded, or its archive is broken.
        BenchmarkError, ExtraMissing: the taxonomy is missing or not as expected.
    """
    tree = taxonomy()
    others = [dict(tree.common_names()), dict(tree.article_titles())]
    titles = {fold(article.title) for article in articles().values()}
    named = {name for one in articles().values() for name in _MENTION.findall(one.extract)}
    return tuple(
        one.name
        for one in tree.species(domain)
        if one.name in named
        or not titles.isdisjoint(
            fold(name) for name in (one.name, *(other.get(one.id, "") for other in others))
        )
    )
