"""What a feature is read from: a layer of the residual stream, another site, or one head of it.

It is written as the layer's number, as ``heads@15``, or as ``heads@15.3`` for head 3 alone. In a
list ``heads@15.*`` stands for every head, and the ranges of :mod:`activation_logging.sites` are
valid: ``8-12``, ``heads@3;15``, ``attn_out@all``.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from activation_logging.errors import DatasetError, SettingsError
from activation_logging.sites import PRENORM, AnySite, Site, parse_layers, parse_sites

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

_HEAD = re.compile(r"(.+@.+)\.([0-9]{1,5})")


class Source(NamedTuple):
    """A site, and the number of one of its heads; None for the whole row, flattened."""

    site: Site
    head: int | None = None

    @classmethod
    def of(cls, given: AnySite, num_layers: int) -> Source:
        """The source that a caller names.

        Args:
            given: as described above; ``last`` is valid for a layer.
            num_layers: the model's depth, which is the number of ``last`` and the layer of
                ``resid_prenorm``.

        Raises:
            DatasetError: it is none of these.
        """
        return cls(given) if isinstance(given, Site) else _source(given, num_layers)

    @classmethod
    def labelled(cls, label: int | str) -> Source:
        """The source of this label; 0 stands in for the depth, as layer of ``resid_prenorm``."""
        return _source(label, 0)

    @property
    def label(self) -> int | str:
        """A number for a layer of the residual stream, else a text."""
        return self.site.label if self.head is None else f"{self.site}.{self.head}"

    def width(self, shape: Sequence[int]) -> int:
        """Number of elements of a vector, where a row of the site has this shape.

        Raises:
            DatasetError: the site has no such head.
        """
        if self.head is None:
            return math.prod(shape)
        heads = shape[0] if len(shape) > 1 else 0
        if self.head >= heads:
            raise DatasetError(f"{self.label} does not exist: {self.site} has {heads} heads")
        return math.prod(shape[1:])

    def columns(self, shape: Sequence[int]) -> slice:
        """Where a vector is in a row of the site, flattened.

        Raises:
            DatasetError: the site has no such head.
        """
        width = self.width(shape)
        return slice((self.head or 0) * width, ((self.head or 0) + 1) * width)


@lru_cache(maxsize=4096)
def _source(given: int | str, num_layers: int) -> Source:
    found = _HEAD.fullmatch(str(given))
    try:
        if found is None:
            return Source(Site.of(given, num_layers))
        return Source(Site.of(found[1], num_layers), int(found[2]))
    except SettingsError as error:
        raise DatasetError(str(error)) from None


def in_order(labels: Iterable[int | str]) -> list[int | str]:
    """Labels of sources, each once: layers first, then by kind, layer and head."""

    def place(label: int | str) -> tuple[int, int]:
        site, head = Source.labelled(label)
        return site.code, -1 if head is None else head

    return sorted(set(labels), key=place)


def labels_of(
    layers: Iterable[AnySite],
    shapes: Mapping[Site, Sequence[int]],
    *,
    num_layers: int,
    answers: int,
) -> list[int | str]:
    """Labels of all that a list names, in order, each once.

    Args:
        layers: the parts of the list.
        shapes: the sites that all answers have, with the shape of a row.
        num_layers: the model's depth.
        answers: how many there are.

    Raises:
        DatasetError: a part is invalid, or not there.
    """
    found: set[int | str] = set()
    for given in layers:
        try:
            sources = list(_named(str(given), num_layers))
        except SettingsError as error:
            raise DatasetError(str(error)) from None
        for source in sources:
            found.update(one.label for one in _those_there(source, shapes, num_layers, answers))
    return in_order(found)


def _named(part: str, num_layers: int) -> Iterator[Source]:
    """What one part names. ``*`` is head -1, and ``all`` is layer -1."""
    name, at, layers = part.strip().rpartition("@")
    for piece in layers.split(";"):
        layer, dot, head = piece.partition(".")
        if dot and not (at and (head == "*" or (head.isdecimal() and len(head) < 6))):
            raise SettingsError(f"{part!r} names no head; write one as heads@15.3")
        parse = parse_sites if at or layer == PRENORM else parse_layers
        for kind, number in parse(f"{name}{at}{layer}", num_layers):
            site = Site(kind, number if isinstance(number, int) else -1)
            yield Source(site, (-1 if head == "*" else int(head)) if dot else None)


def _those_there(
    source: Source, shapes: Mapping[Site, Sequence[int]], num_layers: int, answers: int
) -> Iterator[Source]:
    """The sources that one of :func:`_named` stands for."""
    site, head = source
    sites = [there for there in shapes if site in (there, (there.name, -1))]
    if not sites:
        known = ", ".join(str(there.label) for there in shapes) or "none"
        wanted = site.name if site.layer < 0 else site.words
        raise DatasetError(
            f"{wanted} is not there for all {answers} answers; the layers that all of them have "
            f"are {known} (last is {num_layers})"
        )
    for there in sites:
        heads = range(shapes[there][0]) if head == -1 else [head]
        for one in (Source(there, number) for number in heads):
            one.width(shapes[there])
            yield one
