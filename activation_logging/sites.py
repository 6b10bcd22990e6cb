"""What of a layer can be logged: sites, how they are written, and their codes in a store.

A *site* is one tensor of the model per token. :data:`SITES` lists the kinds. A :class:`Site` is a
kind at one layer, such as ``attn_out@15``. In a store a site is a number of two bytes, its code.
The codes of the residual stream are its layer numbers, as in stores without other sites.

Lists of sites are written ``resid@8;15-20;last,heads@all``: parts separated by commas, the layers
of a part by semicolons. ``8,15-20,last`` is a list of layers of the residual stream.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from activation_logging.errors import SettingsError
from activation_logging.text import ranges, shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

RESID = "resid"
PRENORM = "resid_prenorm"
HEADS = "heads"
SITES = (RESID, PRENORM, "attn_out", HEADS, "mlp_out", "router")
"""The kinds. Their order gives the codes and never changes; a new kind goes to the end.

============= =====================================================================================
resid         the residual stream after k decoder layers, ``[hidden]``; 0 is the embeddings, and the
              model's depth (``last``) is after the final norm
resid_prenorm the residual stream before the final norm, ``[hidden]``; its layer is the depth
attn_out      what the attention block of layer k (1 to depth) adds, ``[hidden]``
heads         each head's output, the input of the output projection, ``[num_heads, head_dim]``
mlp_out       what the MLP or mixture of experts of layer k gives, ``[hidden]``
router        the router's logits of a mixture of experts, ``[num_experts]``
============= =====================================================================================
"""

_LAYER_BITS = 12
MAX_LAYER = 1000
"""No model is deeper."""


class Site(NamedTuple):
    """A kind of site at one layer."""

    name: str
    layer: int

    @property
    def code(self) -> int:
        """Its number in a store, 0 to 65,535."""
        return SITES.index(self.name) << _LAYER_BITS | self.layer

    @classmethod
    def of(cls, given: AnySite, num_layers: int) -> Site:
        """The site that a caller names, of a model of ``num_layers`` decoder layers.

        Args:
            given: a site; a text such as ``heads@15`` or ``heads@last``; or ``last``, or the number
                of a layer of the residual stream. The layer need not exist.
            num_layers: the model's depth, which is the number of ``last``.

        Raises:
            SettingsError: it is none of these.
        """
        return given if isinstance(given, Site) else _one_site(given, int(num_layers))

    @classmethod
    def from_code(cls, code: int) -> Site:
        """The site of a code.

        Raises:
            IndexError: no kind has that code; a later version wrote it.
        """
        return cls(SITES[code >> _LAYER_BITS], code & ((1 << _LAYER_BITS) - 1))

    @property
    def label(self) -> int | str:
        """What reports and files call it: the layer's number for the residual stream, else text."""
        return self.layer if self.name == RESID else str(self)

    @property
    def words(self) -> str:
        """What a sentence calls it: ``layer 15`` for the residual stream, else ``heads@15``."""
        return str(Wanted(self.name, self.layer))

    def __str__(self) -> str:
        return self.name if self.name == PRENORM else f"{self.name}@{self.layer}"


class RowShape(NamedTuple):
    """What one row of a site is: its shape, such as ``(hidden,)``, and its stored type's name."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def width(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


AnySite: TypeAlias = Site | int | str
"""A site as a caller may name it; see :meth:`Site.of`."""

MAX_TEXT = 4096
MAX_PARTS = 256

_NUMBERS = re.compile(r"([0-9]{1,40})(?:-([0-9]{1,40}))?")
_LAYER = "'last', 'all', a number of a layer, or a range of them such as 15-20"
_Word = Literal["last", "all"]


class Wanted(NamedTuple):
    """One part of a list of sites. ``last`` and ``all`` depend on the model's depth."""

    name: str
    layer: int | _Word

    def __str__(self) -> str:
        if self.name == RESID:
            return f"layer {self.layer}"
        return self.name if self.name == PRENORM else f"{self.name}@{self.layer}"


def parse_sites(text: str, num_layers: int | None = None) -> tuple[Wanted, ...]:
    """Parse a list of sites such as ``resid@8;15-20;last,attn_out@15,resid_prenorm``.

    Args:
        text: the list.
        num_layers: the model's depth, where it is known: ``last`` becomes a number.

    Raises:
        SettingsError: a part is invalid, empty or repeated, or the model (any model, if its depth
            is unknown) has no such layer; the message names the part.
    """
    _refuse_long(text)
    parts = [part for raw in text.split(",") for part in _site_parts(raw)]
    seen = set()
    for part in parts:
        if part in seen:
            raise SettingsError(f"{_written(part)} is given twice")
        seen.add(part)
    return _expand(parts, num_layers)


def parse_layers(text: str, num_layers: int | None = None) -> tuple[Wanted, ...]:
    """Parse ``last``, ``all``, or numbers and ranges such as ``8,15-20,last``.

    They are layers of the residual stream; a repeated one counts once.

    Raises:
        SettingsError: as for :func:`parse_sites`.
    """
    _refuse_long(text)
    return _expand([(RESID, _layer_part(raw)) for raw in text.split(",")], num_layers)


def resolve(wanted: Iterable[Wanted], num_layers: int) -> tuple[Site, ...]:
    """The sites of a parsed list, ascending by code, for a model of ``num_layers`` layers."""
    found: set[Site] = set()
    for name, layer in wanted:
        if layer == "all":
            found.update(Site(name, k) for k in range(_lowest(name), num_layers + 1))
        else:
            found.add(Site(name, num_layers if layer == "last" else layer))
    return tuple(sorted(found, key=lambda site: site.code))


def written(sites: Iterable[Site]) -> str:
    """A list of sites as one would write it: ``resid@0-30,resid_prenorm,heads@4;8``."""
    layers: dict[str, list[int]] = {}
    for site in sorted(sites, key=lambda site: site.code):
        layers.setdefault(site.name, []).append(site.layer)
    return ",".join(
        name if name == PRENORM else f"{name}@{';'.join(ranges(numbers))}"
        for name, numbers in layers.items()
    )


def not_logged(asked: Sequence[Wanted], logged: Sequence[Wanted]) -> Wanted | None:
    """The first part of a request's list that a server does not log; None if it logs them all.

    Both were parsed with the same depth. ``all`` asks for all that the server logs of that kind.
    """
    there, kinds = frozenset(logged), {part.name for part in logged}
    for part in asked:
        if part.layer == "all":
            if part.name not in kinds:
                return part
        elif part not in there and Wanted(part.name, "all") not in there:
            return part
    return None


_Part: TypeAlias = tuple[str, "range | _Word"]


def _refuse_long(text: str) -> None:
    if len(text) > MAX_TEXT or text.count(",") + text.count(";") >= MAX_PARTS:
        raise SettingsError(
            f"the list of layers is too long; give up to {MAX_PARTS} numbers or ranges "
            f"in {MAX_TEXT} characters"
        )


def _site_parts(raw: str) -> list[_Part]:
    name, at, layers = raw.strip().lower().partition("@")
    if name not in SITES:
        raise SettingsError(
            f"{shown(raw)} is not a site such as attn_out@8;12-16; known are {', '.join(SITES)}"
        )
    if name == PRENORM:
        if at:
            raise SettingsError(f"{shown(raw)}: {PRENORM} has one layer; write it without '@'")
        return [(name, "last")]
    if not at:
        raise SettingsError(f"{shown(raw)} names no layer; write {name}@LAYERS, with {_LAYER}")
    return [(name, _layer_part(part)) for part in layers.split(";")]


def _layer_part(raw: str) -> range | _Word:
    part = raw.strip().lower()
    if part == "last":
        return "last"
    if part == "all":
        return "all"
    numbers = _NUMBERS.fullmatch(part)
    if numbers:
        first = int(numbers[1])
        end = int(numbers[2] or first)
        if first <= end:
            return range(first, end + 1)
    raise SettingsError(f"{shown(raw)} is not {_LAYER}")


def _written(part: _Part) -> str:
    name, layers = part
    if isinstance(layers, str):
        return str(Wanted(name, layers))
    return f"{name}@{layers[0]}" + (f"-{layers[-1]}" if len(layers) > 1 else "")


def _lowest(name: str) -> int:
    return 0 if name == RESID else 1


def _expand(parts: Iterable[_Part], num_layers: int | None) -> tuple[Wanted, ...]:
    """The parts as single layers, each once. No range grows beyond the depth."""
    deepest = MAX_LAYER if num_layers is None else num_layers
    found: dict[Wanted, None] = {}
    for name, layers in parts:
        if isinstance(layers, str):
            is_known = layers == "last" and num_layers is not None
            found[Wanted(name, deepest if is_known else layers)] = None
        elif layers[-1] <= deepest and layers[0] >= _lowest(name):
            found.update(dict.fromkeys(Wanted(name, layer) for layer in layers))
        else:
            bad = layers[0] if layers[0] < _lowest(name) else max(layers[0], deepest + 1)
            raise SettingsError(_no_such_layer(Wanted(name, bad), num_layers))
    return tuple(found)


def _no_such_layer(part: Wanted, num_layers: int | None) -> str:
    lowest = _lowest(part.name)
    if num_layers is not None:
        of = "" if part.name == RESID else f" of {part.name}"
        why = f"this model has layers {lowest} to {num_layers}{of} ('last' is {num_layers})"
    elif part.layer == 0:
        why = f"its layers begin at {lowest}"
    else:
        why = f"no model has more than {MAX_LAYER}"
    return f"{part} does not exist: {why}"


_SITE = re.compile(rf"(?:({'|'.join(SITES)})@)?(last|-?[0-9]{{1,20}})")


@lru_cache(maxsize=4096)
def _one_site(given: int | str, num_layers: int) -> Site:
    text = str(given).strip().lower()
    if text == PRENORM:
        return Site(PRENORM, num_layers)
    found = _SITE.fullmatch(text)
    if found is None:
        raise SettingsError(
            f"{shown(given)} is not a layer's number, 'last', or a site such as heads@15; known "
            f"sites are {', '.join(SITES)}"
        )
    return Site(found[1] or RESID, num_layers if found[2] == "last" else int(found[2]))
