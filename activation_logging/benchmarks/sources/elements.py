"""Chemical elements, read from the package ``mendeleev``."""

from __future__ import annotations

from functools import cache

from activation_logging.extras import require

_ALIASES = {13: ("Aluminum",), 16: ("Sulphur",), 55: ("Cesium",)}


@cache
def element_names() -> dict[str, tuple[str, ...]]:
    """Symbol -> names, the preferred one first, by atomic number."""
    require("eval", "mendeleev")
    from mendeleev.fetch import fetch_table

    table = fetch_table("elements").sort_values("atomic_number")
    return {
        str(row.symbol): (str(row.name_), *_ALIASES.get(int(row.atomic_number), ()))
        for row in table.rename(columns={"name": "name_"}).itertuples()
    }
