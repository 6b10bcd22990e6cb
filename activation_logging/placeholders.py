"""The placeholders of a store's path, by which one environment serves every host and engine.

``/data/{host}/activations.lmdb`` is another folder on each host. ``{host}`` is the host's name as
far as its first dot; ``{engine}`` is the number of the engine among those of one data-parallel
server, and ``front`` in the front end, which may serve several.
"""

from __future__ import annotations

import re
import socket

from activation_logging.errors import SettingsError
from activation_logging.text import shown

FRONT = "front"
"""``{engine}`` where no engine is meant."""
KNOWN = ("host", "engine")

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_UNFIT = re.compile(r"[^A-Za-z0-9_-]")


def check_placeholders(path: str) -> None:
    """Raise a SettingsError if a path has a placeholder that is unknown."""
    for name in _PLACEHOLDER.findall(path):
        if name not in KNOWN:
            known = " and ".join(f"{{{one}}}" for one in KNOWN)
            raise SettingsError(
                f"{shown(path)} has the placeholder {shown(f'{{{name}}}')}, which is unknown: "
                f"known are {known}"
            )


def filled(path: str, engine: int | None = None) -> str:
    """A path with its placeholders replaced.

    Args:
        path: one that :func:`check_placeholders` accepts.
        engine: number of the engine; None in the front end.
    """
    values = {"host": short_host(), "engine": FRONT if engine is None else str(engine)}
    return _PLACEHOLDER.sub(lambda found: values[found[1]], path)


def short_host() -> str:
    """This host's name as far as its first dot, as a part of a path."""
    return _UNFIT.sub("_", socket.gethostname().partition(".")[0]) or "host"
