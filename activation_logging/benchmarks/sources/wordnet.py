"""The nouns of WordNet 3.1, read from the archive of :data:`~activation_logging.packages.WORDNET`.

The format is that of ``wndb(5WN)``: a line for each synset, with its words, its pointers and its
gloss; and an index with the meanings of each word, the most frequent one first.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from activation_logging.errors import PackageError
from activation_logging.packages import WORDNET

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")

_DATA, _INDEX = "package/dict/data.noun", "package/dict/index.noun"
_PARENT, _CLASS, _WHOLE = "@", "@i", "#p"


class Synset(NamedTuple):
    """One meaning, and the words for it.

    Attributes:
        id: its place in the file, which is its identity in this version of WordNet.
        names: the words, with blanks; of a person often the surname first.
        gloss: definition and examples.
        parents: ids of what it is a kind of; empty for an instance.
        classes: ids of what it is an instance of; empty for a kind.
        wholes: ids of what it is a part of, such as a city's country.
    """

    id: str
    names: tuple[str, ...]
    gloss: str
    parents: tuple[str, ...]
    classes: tuple[str, ...]
    wholes: tuple[str, ...]


@cache
def nouns() -> dict[str, Synset]:
    """Every synset by its id, in the order of the file.

    Raises:
        PackageError: the package was not downloaded, or its archive is broken.
    """
    return {synset.id: synset for synset in _parsed(_DATA, _synset)}


@cache
def meanings() -> dict[str, tuple[str, ...]]:
    """A word in lower case -> the ids of its synsets, the most frequent one first.

    Raises:
        PackageError: as :func:`nouns`.
    """
    return dict(_parsed(_INDEX, _entry))


@cache
def kinds_of(word: str) -> frozenset[str]:
    """Ids of the word's most frequent synset, and of all that are kinds of it.

    Raises:
        KeyError: there is no such noun.
        PackageError: as :func:`nouns`.
    """
    below: dict[str, list[str]] = {}
    for synset in nouns().values():
        for parent in synset.parents:
            below.setdefault(parent, []).append(synset.id)
    found: set[str] = set()
    waiting = [meanings()[word][0]]
    while waiting:
        kind = waiting.pop()
        if kind not in found:
            found.add(kind)
            waiting += below.get(kind, ())
    return frozenset(found)


@cache
def instances_of(word: str) -> tuple[Synset, ...]:
    """All that are an instance of the word's most frequent synset, or of a kind of it.

    Raises:
        KeyError: there is no such noun.
        PackageError: as :func:`nouns`.
    """
    kinds = kinds_of(word)
    return tuple(synset for synset in nouns().values() if not kinds.isdisjoint(synset.classes))


def _parsed(member: str, parse: Callable[[str], _T]) -> list[_T]:
    (content,) = WORDNET.read(member)
    lines = content.decode("utf-8", "replace").splitlines()
    try:
        return [parse(line) for line in lines if not line.startswith(" ")]  # " ": the licence
    except (ValueError, IndexError) as error:
        raise PackageError(
            f"{member} in {WORDNET.file} is not what this version expects ({error}): run  "
            f"activation-logging benchmark-data {WORDNET.name}"
        ) from error


def _entry(line: str) -> tuple[str, tuple[str, ...]]:
    word, _, count, *rest = line.split()
    return word.replace("_", " "), tuple(rest[-int(count) :])


def _synset(line: str) -> Synset:
    head, _, gloss = line.partition(" | ")
    fields = head.split()
    pointers_at = 4 + 2 * int(fields[3], 16)
    words = fields[4:pointers_at:2]
    pointers = fields[pointers_at + 1 :][: 4 * int(fields[pointers_at])]
    to: dict[str, list[str]] = {}
    for symbol, target, part in zip(pointers[::4], pointers[1::4], pointers[2::4], strict=True):
        if part == "n":
            to.setdefault(symbol, []).append(target)
    return Synset(
        id=fields[0],
        names=tuple(word.replace("_", " ") for word in words),
        gloss=gloss.strip(),
        parents=tuple(to.get(_PARENT, ())),
        classes=tuple(to.get(_CLASS, ())),
        wholes=tuple(to.get(_WHOLE, ())),
    )
