"""The templates, with what they may call. Those of the report are there as ``report/``."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, PrefixLoader, StrictUndefined

from activation_logging.printable import printable
from activation_logging.report.marking import shade
from activation_logging.strict_json import dumps
from activation_logging.text import brief
from activation_logging.view.addresses import address


def environment() -> Environment:
    """Jinja2 with escaping of every text."""
    made = Environment(
        loader=ChoiceLoader(
            [
                PackageLoader("activation_logging.view", "templates"),
                PrefixLoader({"report": PackageLoader("activation_logging.report", ".")}),
            ]
        ),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        address=address,
        brief=brief,
        json=_json,
        moment=_moment,
        printable=printable,
        shade=shade,
        thousands="{:,}".format,
    )
    return made


def _json(value: Any) -> str:
    return dumps(value, indent=1, ascii_only=False)


def _moment(seconds: float) -> str:
    """A time in UTC, to the second."""
    try:
        return datetime.fromtimestamp(seconds, tz=timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return f"{seconds:g} s"
