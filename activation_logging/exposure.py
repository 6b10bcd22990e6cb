"""What strangers get to see: whether they reach the server, what needs its key, whose token shows.

What has been logged is for whoever may ask for it.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import secrets
import sys
from base64 import b64encode, urlsafe_b64encode
from typing import TYPE_CHECKING
from urllib.parse import unquote_plus

from activation_logging.settings import TOKEN_FIELD

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from logging import Logger

    from starlette.types import ASGIApp, Receive, Scope, Send

OPEN_PATHS = frozenset({"/health", "/ping", "/metrics"})
"""What anybody may GET: it tells whether the server lives, and how busy it is."""
_PIECE = 8
"""So many characters of a token in a row are too many to be shown."""


class KeyGuard:
    """In front of an ASGI application: whatever is not open to anybody needs the API key.

    vLLM's own guard knows the beginnings of the paths that it protects; this one knows the few
    paths that it lets pass, so that no other spelling and no new route slips by.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._keys = [_digest(key) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or _is_open(scope) or self._has_key(scope):
            await self._app(scope, receive, send)
            return
        from activation_logging.routes import openai_error

        response = openai_error(
            "this server asks for its API key: send it as `Authorization: Bearer <key>`",
            status=401,
            kind="AuthenticationError",
        )
        await response(scope, receive, send)

    def _has_key(self, scope: Scope) -> bool:
        for name, value in scope["headers"]:
            if name.lower() == b"authorization":
                scheme, _, key = value.partition(b" ")
                given = _digest(key)
                # All are compared, each in constant time: how long it takes tells nothing.
                same = [secrets.compare_digest(given, known) for known in self._keys]
                return scheme.lower() == b"bearer" and any(same)
        return False


def is_preflight(scope: Scope) -> bool:
    """Whether a browser asks what it may ask; it cannot send a key with that."""
    if scope["type"] != "http" or scope["method"] != "OPTIONS":
        return False
    names = {name.lower() for name, _ in scope["headers"]}
    return {b"origin", b"access-control-request-method"} <= names


def route_path(scope: Scope, root_path: str = "") -> str:
    """A request's path without what the server is mounted under, as Starlette's routes see it."""
    path: str = scope["path"]
    rest = path.removeprefix(root_path or scope.get("root_path", ""))
    return rest if rest.startswith("/") else path


def _is_open(scope: Scope) -> bool:
    if is_preflight(scope):
        return True
    return scope["type"] == "http" and scope["method"] == "GET" and route_path(scope) in OPEN_PATHS


def _digest(key: str | bytes) -> bytes:
    return hashlib.sha256(key.encode() if isinstance(key, str) else key).digest()


def without_token(text: str, token: str | None) -> str:
    """A text, or a sentence in its place where it shows the token or a piece of it."""
    if token is None or not _shows(text, token):
        return text
    return f"the reason is withheld, because its text would show the {TOKEN_FIELD}"


def _shows(text: str, token: str) -> bool:
    """Whether a text has a piece of the token, be it quoted, escaped or encoded."""
    plain, raw = _unescaped(text), token.encode()
    if token in text or _unescaped(token) in plain:
        return True
    # What base64 makes of a token depends on what stands before it; its ends also on what is near.
    encoded = [
        encode(b" " * before + raw).decode()[4:-4]
        for encode in (b64encode, urlsafe_b64encode)
        for before in range(3)
    ]
    hidden = _pieces(token, _unescaped(token), *encoded)
    return not hidden.isdisjoint(_pieces(text, plain))


def _pieces(*texts: str) -> set[str]:
    return {
        text[start : start + _PIECE] for text in texts for start in range(len(text) - _PIECE + 1)
    }


def _unescaped(text: str) -> str:
    """A text as it was before it was quoted for a URL, once or twice, or by repr or JSON."""
    return unquote_plus(unquote_plus(text)).replace("\\", "")


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
