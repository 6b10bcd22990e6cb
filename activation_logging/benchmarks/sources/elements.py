"""Chemical elements, read from the package ``mendeleev``."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from activation_logging.extras import require

_ALIASES = {13: ("Aluminum",), 16: ("Sulphur",), 55: ("Cesium",)}


class Element(NamedTuple):
    """A chemical element.

    Attributes:
        names: the preferred one first.
        weight: standard atomic weight, u; of a radioactive element that of one isotope.
        is_stable: whether it is found in nature without decaying.
    """

    symbol: str
    names: tuple[str, ...]
    number: int
    weight: float
    is_stable: bool


@cache
def elements() -> tuple[Element, ...]:
    """All elements by atomic number.

    Raises:
        ExtraMissing: the package is not installed.
    """
    require("eval", "mendeleev")
    from mendeleev.fetch import fetch_table

    table = fetch_table("elements").sort_values("atomic_number")
    return tuple(
        Element(
            symbol=str(row.symbol),
            names=(str(row.name_), *_ALIASES.get(int(row.atomic_number), ())),
            number=int(row.atomic_number),
            weight=float(row.atomic_weight),
            is_stable=not row.is_radioactive,
        )
        for row in table.rename(columns={"name": "name_"}).itertuples()
    )


@cache
def element_names() -> dict[str, tuple[str, ...]]:
    """Symbol -> names, the preferred one first, by atomic number."""
    return {element.symbol: element.names for element in elements()}
