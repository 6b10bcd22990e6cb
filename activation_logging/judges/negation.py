"""Whether a possible answer that a text names is said not to be the answer, or is taken back.

"It isn't located in Germany, it is in France.", "Neither Germany nor Austria: France.", "Germany?
No, France.", "Germany is wrong, France is right.": only France is answered.
"""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

from activation_logging.judges.given import sentences

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from activation_logging.judges.values import Found

_T = TypeVar("_T")

_NEAR = 200  # characters before and after an answer that may say what it is
_LISTED = 20  # answers that one "or" negates together
_MARKS = str.maketrans(dict.fromkeys('"*_`()[]\u201c\u201d', " ") | {"\u2019": "'", "\u02bc": "'"})
_INNER = re.compile(r"(?<=\w)'(?=\w)")

_NOT = (
    r"not|never|neither|nor|no longer|cannot|"
    r"(?:is|was|are|were|ai|ca|could|wo|would|do|does|did|has|have|should|must)nt|"
    r"rather than|instead of|unlike|outside|other than|as opposed to"
)
_BETWEEN = (
    r"in|the|of|a|an|at|to|on|it|its|is|was|be|been|being|that|as|located|situated|found|based|lying|lie|"
    r"lies|belong|belongs|part|city|town|place|country|year|anywhere|within|from|inside|called|named|"
    r"known|born|die|died|dead|founded|built|made|written|published|discovered|about|around|just|"
    r"actually|really|exactly|definitely|certainly|still|currently|say|think|believe|either"
)
_NEGATED = re.compile(rf"\b(?:{_NOT})\s+(?:(?:{_BETWEEN})\s+)*$")

_SUPPOSED = re.compile(
    r"(?:\bi (?:at )?(?:first|initially|originally|once)|(?<!\bi )\b(?:might|may|could|would)|"
    r"\bi would have|"
    r"\b(?:people|many|some|often|commonly|mistakenly|wrongly|falsely))\s+"
    r"(?:think|thought|say|said|guess|guessed|expect|assume|assumed|believe|believed|confused with|"
    rf"mistaken for)\s+(?:(?:{_BETWEEN})\s+)*$"
)
_BUT = re.compile(r"[^.;]{0,80}?\b(?:but|however|yet)\b")

_WRONG = re.compile(
    r"\s*(?:is|was|would be)\s+(?:wrong|incorrect|false|mistaken|(?:a|the) (?:mistake|wrong))|"
    r"\s*(?:is not|isnt|was not|wasnt|cannot be|cant be)\s+(?:the\s+)?(?:right|correct|answer|it\b)"
)
_TAKEN_BACK = re.compile(
    r"[\s,.;:?!\u2026\u2010-\u2015-]*"
    r"(?:(?:oh|oops|er|um|hm|hmm|well|ah|actually|or|but|i think|i believe)[\s,.\u2026]+)*"
    r"(?:no+pe\b|no\s*[,.;:!\u2026\u2010-\u2015-]|no (?:wait|its?|thats?|sorry|actually|i)\b|"
    r"sorry\b|wait\b|i meant?\b|or rather\b(?! than)|correction\b|scratch that\b|my mistake\b|"
    r"(?:that|this|it)(?:s| is| was) (?:wrong|incorrect|not (?:right|correct))\b)"
)
_OR = re.compile(r"\s*,?\s*(?:or|nor)\s+(?:(?:in|the|of|at)\s+)*")
_COMMA = re.compile(r"\s*,\s*(?:(?:in|the|of|at)\s+)*")


def is_negated(text: str, start: int) -> bool:
    """Whether what begins there is said not to be the answer: "not in Germany but in Austria"."""
    return _NEGATED.search(_plain(text[max(0, start - _NEAR) : start])) is not None


def settled(
    text: str, find: Callable[[str], Sequence[Found[_T]]]
) -> list[tuple[int, str, list[Found[_T]]]]:
    """The sentences of a text with what each gives as the answer, neither negated nor taken back.

    Args:
        text: the whole answer.
        find: the possible answers in a sentence, in their order.

    Returns:
        The place of each sentence, the sentence, and what counts of what was found in it.
    """
    parts = [(start, sentence, find(sentence)) for start, sentence in sentences(text)]
    named = [
        replace(one, start=start + one.start, end=start + one.end)
        for start, _, found in parts
        for one in found
    ]
    places = _given(text, named)
    return [
        (start, sentence, [one for one in found if start + one.start in places])
        for start, sentence, found in parts
    ]


def _given(text: str, named: Sequence[Found[object]]) -> set[int]:
    """Where those begin that are neither negated nor taken back for another one."""
    kept = []
    negated = False
    for number, one in enumerate(named):
        goes_on = negated and _goes_on(text, named[number - 1 : number + _LISTED])
        negated = goes_on or is_negated(text, one.start)
        if not negated:
            kept.append(one)
    last = len(kept) - 1
    return {
        one.start
        for number, one in enumerate(kept)
        if not _is_taken_back(text, one, more=number < last)
    }


def _is_taken_back(text: str, one: Found[object], *, more: bool) -> bool:
    """Whether what follows says that it is wrong or, if ``more`` are named, takes it back."""
    after = _plain(text[one.end : one.end + _NEAR])
    if _WRONG.match(after) or not more:
        return _WRONG.match(after) is not None
    before = _plain(text[max(0, one.start - _NEAR) : one.start])
    supposed = _SUPPOSED.search(before) is not None and _BUT.match(after) is not None
    return supposed or _TAKEN_BACK.match(after) is not None


def _goes_on(text: str, named: Sequence[Found[object]]) -> bool:
    """Whether the second is negated with the first: "not in Germany, Austria or Italy"."""
    for one, following in pairwise(named):
        between = _plain(text[one.end : following.start])
        if _OR.fullmatch(between):
            return True
        if not _COMMA.fullmatch(between):
            return False
    return False


def _plain(text: str) -> str:
    """Lower case, without apostrophes in words; blanks for quotes, brackets and emphasis."""
    return _INNER.sub("", text.translate(_MARKS).lower())
