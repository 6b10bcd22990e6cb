"""The wording of a question without what it asks about."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from activation_logging.tags import NAME_TAGS, TEMPLATE

if TYPE_CHECKING:
    from collections.abc import Mapping

HOLE = "{}"


def template_of(question: str, tags: Mapping[str, str]) -> str | None:
    """The tag ``template``, or else the question with :data:`HOLE` for the name in its tags.

    An article before the name goes with it: "the capital of the Gambia" and "the capital of Chad"
    are one template. None where no tag's text is a word of the question.
    """
    if tags.get(TEMPLATE, "").strip():
        return tags[TEMPLATE].strip()
    for tag in NAME_TAGS:
        name = tags.get(tag, "").strip()
        if not name:
            continue
        words = rf"(?:\b[Tt]he )?(?<!\w){re.escape(name)}(?!\w)"
        # The symbol "In" is a name, and "in" is not.
        for flags in (0, re.IGNORECASE):
            template, found = re.subn(words, HOLE, question, flags=flags)
            if found:
                return template
    return None
