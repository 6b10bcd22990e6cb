"""How the templates of all pages are read: every text is escaped, and every name must be there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jinja2 import Environment, StrictUndefined

if TYPE_CHECKING:
    from jinja2 import BaseLoader


def environment_of(loader: BaseLoader) -> Environment:
    """Jinja2 with templates from ``loader``. What they may call is added to its filters."""
    return Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
