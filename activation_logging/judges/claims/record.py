"""What is known of a thing, what of the world, and an answer while its claims are read."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from activation_logging.records import Span

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from activation_logging.records import SpanLabel


_SHOWN = 12


@dataclass(frozen=True)
class Fact:
    """What is right about one thing in one respect.

    Attributes:
        values: everything that is right, the preferred one first; numbers as text.
        source: where that is known from.
        open: whether more may be right than the values, so that nothing contradicts them.
        several: whether the values are several things, not names of one.
        unit: of numbers.
    """

    values: tuple[str, ...]
    source: str
    open: bool = False
    several: bool = False
    unit: str = ""

    @property
    def shown(self) -> str:
        """What is right, for people."""
        values = self.values[:_SHOWN] if self.several else self.values[:1]
        return f"{', '.join(values)} {self.unit}".strip()

    @property
    def numbers(self) -> list[float]:
        """The values that are numbers."""
        return [float(value) for value in self.values if re.fullmatch(r"-?\d+(\.\d+)?", value)]


@dataclass(frozen=True)
class Profile:
    """All that is known of one thing: facts by claim, such as ``birth year``.

    Attributes:
        names: what the thing is called.
        type: ``person``, ``country`` or ``element``.
    """

    names: tuple[str, ...]
    type: str
    facts: Mapping[str, Fact]


@dataclass(frozen=True)
class World:
    """Names that mean something, folded as by :func:`~activation_logging.text.fold`.

    Attributes:
        countries: name -> ISO 3166 code, or "" for what only looks like a country.
        demonyms: adjective -> code.
        cities: name of a large city or capital -> code of its country.
        languages: name of a language -> one name for all that mean the same.
        currencies: last words of the names of currencies, in the singular.
        symbols: of the chemical elements, as written.
    """

    countries: Mapping[str, str] = field(default_factory=dict)
    demonyms: Mapping[str, str] = field(default_factory=dict)
    cities: Mapping[str, str] = field(default_factory=dict)
    languages: Mapping[str, str] = field(default_factory=dict)
    currencies: frozenset[str] = frozenset()
    symbols: frozenset[str] = frozenset()


class Sentence(NamedTuple):
    """A part of the plain text, and where it begins there."""

    text: str
    start: int


_MARKUP = re.compile(r"[*_`#|>\"\u201c\u201d\s]+")
_ALIKE = str.maketrans({
    "\u2019": "'", "\u2018": "'", "\u2013": "-", "\u2014": "-", "\u2212": "-", "\u2010": "-",
    "\u2011": "-", "\u00b2": "2", "\u00b3": "3", "\u00ba": "\u00b0",
})  # fmt: skip
_MAX_SENTENCE = 1000  # characters
_END = re.compile(r"(?<=[.!?]) (?=[A-Z(\[\d])|(?<=[.!?]['\")]) (?=[A-Z])|\n")
_ABBREVIATION = re.compile(
    r"(?:\b[A-Z]|\b(?:c|ca|b|d|r|Dr|Mr|Mrs|St|Jr|Sr|No|sq|vs|approx|est|e\.g|i\.e|Mt|Ft|U\.S))\.$"
)


class Reading:
    """An answer while its claims are found: the text without markup, and the spans so far.

    ``plain`` has runs of markup and blanks as one blank (one line feed where there was one), so
    patterns need not know Markdown; :meth:`claim` translates places in it to places in the answer.
    """

    def __init__(self, text: str, profile: Profile, world: World, *, cut: bool = False) -> None:
        self.profile, self.world = profile, world
        self._text, self._cut = text, cut
        self.plain, self._places = _plain(text)
        self.sentences = tuple(_sentences(self.plain))
        self._spans: list[Span] = []
        self._taken = bytearray(len(self.plain) + 1)

    @property
    def spans(self) -> tuple[Span, ...]:
        """The claims so far, in the order of the text."""
        return tuple(sorted(self._spans, key=lambda span: (span.start, span.end)))

    def fact(self, claim: str) -> Fact | None:
        return self.profile.facts.get(claim)

    def free(self, start: int, end: int) -> bool:
        """Whether no claim has been made of this place of the plain text yet."""
        return not any(self._taken[start:end])

    def claim(self, start: int, end: int, claim: str, label: SpanLabel, about: str = "") -> None:
        """Note a claim at a place of the plain text, unless there is one already.

        What stands at the very end of an answer that was cut off may be half a claim, and is not
        judged.

        Args:
            start: the first character.
            end: the one after the last.
            claim: what kind of claim it is.
            label: what it is beside the fact; ``contradicted`` becomes ``unverifiable`` where
                more may be right than what is known.
            about: which fact it is compared with, if it is not called as the claim.
        """
        at_the_cut = self._cut and end >= len(self.plain.rstrip())
        if start >= end or at_the_cut or not self.free(start, end):
            return
        self._taken[start:end] = b"\1" * (end - start)
        fact = self.fact(about or claim)
        if fact is None or (fact.open and label == "contradicted"):
            label = "unverifiable"
        self._spans.append(
            Span(
                self._places[start],
                self._places[end - 1] + 1,
                label,
                claim,
                fact.shown if fact and label != "unverifiable" else None,
                fact.source if fact and label != "unverifiable" else None,
            )
        )


def _plain(text: str) -> tuple[str, list[int]]:
    pieces: list[str] = []
    places: list[int] = []
    last = 0
    for gap in _MARKUP.finditer(text):
        pieces.append(text[last : gap.start()])
        places += range(last, gap.start())
        pieces.append("\n" if "\n" in gap.group() else " " if _is_gap(gap.group()) else "")
        places += [gap.start()] * len(pieces[-1])
        last = gap.end()
    pieces.append(text[last:])
    places += range(last, len(text))
    return "".join(pieces).translate(_ALIKE), places


def _is_gap(marks: str) -> bool:
    """Whether marks stand for a blank: those of emphasis and quotation beside a word do not."""
    return any(mark.isspace() for mark in marks) or not set(marks) <= set('*_`"\u201c\u201d')


def _sentences(text: str) -> Iterator[Sentence]:
    for begin, end in _bounds(text):
        # Patterns look back within a sentence: without a limit one long one would take for ever.
        for start in range(begin, end, _MAX_SENTENCE):
            part = text[start : min(end, start + _MAX_SENTENCE)]
            if part.strip():
                yield Sentence(part, start)


def _bounds(text: str) -> Iterator[tuple[int, int]]:
    begin = 0
    for end in _END.finditer(text):
        if text[end.start()] != "\n" and _ABBREVIATION.search(
            text, max(begin, end.start() - 8), end.start()
        ):
            continue
        yield begin, end.start()
        begin = end.end()
    yield begin, len(text)
