"""Units of measurement: how they are written, and how those of one sort are converted."""

from __future__ import annotations

from typing import NamedTuple


class Unit(NamedTuple):
    """A unit.

    Attributes:
        name: its symbol, such as ``km2``.
        sort: what it measures: units of one sort can be converted.
        factor: how many units of the sort's first are one of it.
        zero: where its zero lies on the sort's first unit (temperatures).
    """

    name: str
    sort: str
    factor: float = 1.0
    zero: float = 0.0


SPELLINGS = (
    (Unit("m", "length"), "m", "metres?|meters?"),
    (Unit("km", "length", 1000.0), "km|kms", "kilomet(?:re|er)s?"),
    (Unit("cm", "length", 0.01), "cm", "centimet(?:re|er)s?"),
    (Unit("mm", "length", 0.001), "mm", "millimet(?:re|er)s?"),
    (Unit("pm", "length", 1e-12), "pm", "picomet(?:re|er)s?"),
    (Unit("ft", "length", 0.3048), "ft\\.?|\u2032", "feet|foot"),
    (Unit("in", "length", 0.0254), "in\\.|\u2033", "inch(?:es)?"),
    (Unit("yd", "length", 0.9144), "yd", "yards?"),
    (Unit("mi", "length", 1609.344), "mi\\.?", "miles?"),
    (Unit("nmi", "length", 1852.0), "nmi", "nautical miles?"),
    (Unit("m2", "area"), "m2|m\u00b2|sq\\.? ?m", "square met(?:re|er)s?"),
    (
        Unit("km2", "area", 1e6),
        "km2|km\\^2|km\u00b2|sq\\.? ?km",
        "square (?:kilomet(?:re|er)s?|km)",
    ),
    (Unit("ha", "area", 1e4), "ha", "hectares?"),
    (Unit("mi2", "area", 2_589_988.110336), "mi2|mi\u00b2|sq\\.? ?mi\\.?", "square miles?"),
    (Unit("acre", "area", 4046.8564224), "ac", "acres?"),
    (Unit("K", "temperature"), "K", "kelvins?|degrees? kelvin"),
    (
        Unit("\u00b0C", "temperature", 1.0, 273.15),
        "\u00b0 ?C|\u2103|C",
        "degrees? (?:celsius|centigrade|c)|celsius",
    ),
    (
        Unit("\u00b0F", "temperature", 5 / 9, 273.15 - 32 * 5 / 9),
        "\u00b0 ?F|\u2109|F",
        "degrees? (?:fahrenheit|f)|fahrenheit",
    ),
    (Unit("kg", "mass"), "kg", "kilograms?|kilos?"),
    (Unit("g", "mass", 0.001), "g", "grams?"),
    (Unit("t", "mass", 1000.0), "t", "tonnes?|metric tons?"),
    (Unit("lb", "mass", 0.45359237), "lbs?\\.?", "pounds?"),
    (
        Unit("u", "atomic mass"),
        "u|amu|Da|g/mol",
        "daltons?|(?:unified )?atomic mass units?|grams per mole",
    ),
    (
        Unit("g/cm3", "density"),
        "g/cm3|g/cm\u00b3|g/cm\\^3|g/cc|g/ml",
        "grams per cubic centimet(?:re|er)",
    ),
    (
        Unit("kg/m3", "density", 0.001),
        "kg/m3|kg/m\u00b3|kg/m\\^3",
        "kilograms per cubic met(?:re|er)",
    ),
    (Unit("s", "time"), "(?!)", "seconds?"),
    (Unit("min", "time", 60.0), "min", "minutes?"),
    (Unit("h", "time", 3600.0), "h|hrs?", "hours?"),
    (Unit("d", "time", 86_400.0), "(?!)", "days?"),
    (Unit("yr", "time", 31_557_600.0), "yrs?", "years?"),
    (Unit("%", "share", 0.01), "%", "percent|per cent|percentage points?"),
    (Unit("$", "dollars"), "USD", "(?:us |u\\.s\\. )?dollars?"),
    (Unit("\u20ac", "euros"), "EUR", "euros?"),
)  # fmt: skip
"""Each unit, its symbols, and its names: regular expressions, of names in any case."""

UNITS = {unit.name: unit for unit, _, _ in SPELLINGS}
"""Every unit by its symbol."""
