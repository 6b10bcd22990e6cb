"""The templates, with what they may call. Those of the report are there as ``report/``."""

from __future__ import annotations

from datetime import datetime, timezone
from functools import cache
from typing import TYPE_CHECKING, Any

from jinja2 import ChoiceLoader, PackageLoader, PrefixLoader

from activation_logging.printable import printable
from activation_logging.report.marking import shade
from activation_logging.report.templates import environment_of
from activation_logging.strict_json import dumps
from activation_logging.text import brief
from activation_logging.view.addresses import address

if TYPE_CHECKING:
    from jinja2 import Environment


@cache
def environment() -> Environment:
    """Jinja2 with escaping of every text; one for the process, which compiles a template once."""
    own = PackageLoader("activation_logging.view", "templates")
    report = PrefixLoader({"report": PackageLoader("activation_logging.report", ".")})
    made = environment_of(ChoiceLoader([own, report]))
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
