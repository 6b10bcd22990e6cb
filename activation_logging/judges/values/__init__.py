"""Typed values found in an English text, each with the characters that it stands at.

========================  =====================================================================
:func:`find_years`        "1879", "44 BC", "AD 476", both ends of "1914-18"
:func:`find_periods`      "the 1990s", "the 19th century", "the 5th century BC"
:func:`find_dates`        "14 March 1879", "March 14, 1879", "March 1879", "1879-03-14"
:func:`find_quantities`   "8,849 m", "2.1 million square kilometres", "minus 40 °C", "seven"
:func:`find_names`        names of a table of your own: places, capitals, occupations
========================  =====================================================================

All are deterministic, and find nothing where a text could mean two things: "3/4/1879" is no date.
They follow the text's order, and none of one sort overlaps another.
"""

from activation_logging.judges.values.found import Found
from activation_logging.judges.values.names import find_names
from activation_logging.judges.values.quantities import Quantity, find_quantities, other_reading
from activation_logging.judges.values.times import (
    Date,
    Period,
    find_dates,
    find_periods,
    find_years,
)
from activation_logging.judges.values.units import UNITS, Unit

__all__ = [
    "UNITS",
    "Date",
    "Found",
    "Period",
    "Quantity",
    "Unit",
    "find_dates",
    "find_names",
    "find_periods",
    "find_quantities",
    "find_years",
    "other_reading",
]
