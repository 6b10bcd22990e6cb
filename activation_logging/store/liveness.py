"""Whether a process that wrote to a store may still write."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


def is_running(writer: Mapping[str, Any]) -> bool:
    """Whether a writer may still write; of those on other machines nobody here can tell."""
    if "stopped" in writer:
        return False
    if writer["host"] != socket.gethostname():
        return True
    try:
        os.kill(writer["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
