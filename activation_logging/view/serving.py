"""The socket and the loop that serve the pages alone."""

from __future__ import annotations

import socket as sockets
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from activation_logging.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def listen(host: str, port: int) -> Iterator[sockets.socket]:
    """A socket that listens; the port is free, or this says that it is not.

    Raises:
        SettingsError: the address cannot be listened on.
    """
    try:
        family, _, _, _, address = sockets.getaddrinfo(
            host.strip("[]"), port, type=sockets.SOCK_STREAM, flags=sockets.AI_PASSIVE
        )[0]
        opened = sockets.create_server(address[:2], family=family)
    except OSError as error:
        raise SettingsError(
            f"--host {host} --port {port}: {error.strerror or error}; choose others, or --port 0 "
            "for any free port"
        ) from None
    with opened:
        yield opened


def run(app: Any, socket: sockets.socket) -> None:
    """Serve until Ctrl-C."""
    import uvicorn

    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
    uvicorn.Server(config).run(sockets=[socket])
