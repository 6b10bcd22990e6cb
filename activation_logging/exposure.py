"""Whether strangers can reach the server: what it has logged is for whoever may ask for it."""

from __future__ import annotations

import ipaddress
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from logging import Logger


def warn_if_open(host: str | None, *, has_key: bool, logger: Logger) -> None:
    """Log a warning if the server listens on more than this machine and asks for no key.

    Args:
        host: the address that it listens on; None or an empty one stands for all.
        has_key: whether it asks for an API key.
        logger: where the warning goes.
    """
    if has_key or is_loopback(host):
        return
    logger.warning(
        "no API key on %s: whoever reaches this address can ask the model, and read and label "
        "every prompt, answer and activation that is logged, under /v1/activations. Set "
        "VLLM_API_KEY, or listen on 127.0.0.1",
        host or "all addresses",
    )


def is_loopback(host: str | None) -> bool:
    """Whether an address can be reached from this machine alone."""
    if not host:
        return False
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def uvicorn_host(
    argv: Sequence[str] = sys.argv, environment: Mapping[str, str] = os.environ
) -> str | None:
    """The address that ``uvicorn`` was told to listen on, which an application is not told of.

    A Unix socket counts as loopback.
    """
    found = environment.get("UVICORN_HOST", "127.0.0.1")
    for index, part in enumerate(argv):
        name, equals, value = part.partition("=")
        if name == "--uds":
            return "127.0.0.1"
        if name == "--host":
            found = value if equals else "".join(argv[index + 1 : index + 2])
    return found
