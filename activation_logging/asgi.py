"""Shared parts of our ASGI applications: request bodies, OpenAI errors, the API key guard."""

from __future__ import annotations

import hashlib
import json
import secrets
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse

from activation_logging.errors import RequestOptionError
from activation_logging.strict_json import dumps

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN_PATHS = frozenset({"/health", "/ping", "/metrics"})
"""Paths that need no API key for GET: the server's health and metrics."""

WHOLE_APP = "activation_logging.whole_app"
"""In the scope of a request: the application around the one that has got it, if there is one."""


class AsciiJson(JSONResponse):
    """Strict JSON with ASCII escapes. Any text or number is valid, so one entry breaks no list."""

    def render(self, content: Any) -> bytes:
        return dumps(content).encode("ascii")


def openai_error(
    message: str,
    *,
    status: int = 400,
    kind: str = "BadRequestError",
    param: str | None = None,
) -> AsciiJson:
    """An error response in OpenAI's format."""
    error = {"message": message, "type": kind, "param": param, "code": status}
    return AsciiJson({"error": error}, status_code=status)


def parse_object(raw: bytes) -> dict[str, Any] | None:
    """The JSON object in a body. None for any other body, which vLLM then rejects itself.

    Raises:
        RequestOptionError: the JSON is nested too deeply to be parsed.
    """
    try:
        body = json.loads(raw)
    except ValueError:
        return None
    except RecursionError:
        raise _too_deep() from None
    return body if isinstance(body, dict) else None


def dump_object(body: dict[str, Any]) -> bytes:
    """A changed body as JSON.

    Raises:
        RequestOptionError: it is nested too deeply to be written, although it could be parsed.
    """
    try:
        return json.dumps(body).encode()
    except RecursionError:
        raise _too_deep() from None


def _too_deep() -> RequestOptionError:
    return RequestOptionError("body", "nested too deeply; send a flatter one")


async def read_body(receive: Receive) -> bytes:
    """The whole body of a request."""
    chunks: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            break
        chunks.append(message.get("body", b""))
        if not message.get("more_body", False):
            break
    return b"".join(chunks)


def replay(raw: bytes, receive: Receive) -> Receive:
    """A ``receive`` that returns the body again, then the messages after it: a disconnect."""
    pending = True

    async def replayed() -> Message:
        nonlocal pending
        if pending:
            pending = False
            return {"type": "http.request", "body": raw, "more_body": False}
        return await receive()

    return replayed


class KeyGuard:
    """Requires the API key in front of an ASGI application, except for :data:`OPEN_PATHS`.

    At ``except_below`` and below it, the application asks for the key itself, as browsers can give
    it.

    vLLM's own guard lists the path prefixes that it protects. This one lists the few open paths, so
    no other spelling of a path and no new route bypasses it.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str], *, except_below: str = "") -> None:
        self._app = app
        self._except_below = except_below
        self._keys = [_digest(key) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            scope["type"] == "lifespan"
            or _is_open(scope)
            or self._has_guard_of_its_own(scope)
            or self._has_key(scope)
        ):
            await self._app(scope, receive, send)
            return
        response = openai_error(
            "this server requires an API key: send it as `Authorization: Bearer <key>`",
            status=401,
            kind="AuthenticationError",
        )
        await response(scope, receive, send)

    def _has_guard_of_its_own(self, scope: Scope) -> bool:
        below = self._except_below
        return bool(below) and scope["type"] == "http" and is_below(route_path(scope), below)

    def _has_key(self, scope: Scope) -> bool:
        for name, value in scope["headers"]:
            if name.lower() == b"authorization":
                scheme, _, key = value.partition(b" ")
                given = _digest(key)
                # Compare with every key in constant time, so that the timing reveals nothing.
                same = [secrets.compare_digest(given, known) for known in self._keys]
                return scheme.lower() == b"bearer" and any(same)
        return False


def is_preflight(scope: Scope) -> bool:
    """Whether this is a CORS preflight request. A browser sends it without the key."""
    if scope["type"] != "http" or scope["method"] != "OPTIONS":
        return False
    names = {name.lower() for name, _ in scope["headers"]}
    return {b"origin", b"access-control-request-method"} <= names


def route_path(scope: Scope, root_path: str = "") -> str:
    """A request's path without the mount prefix, as Starlette's routes see it."""
    path: str = scope["path"]
    rest = path.removeprefix(root_path or scope.get("root_path", ""))
    return rest if rest.startswith("/") else path


def is_below(path: str, prefix: str) -> bool:
    """Whether a path is this one, or one below it."""
    return path == prefix or path.startswith(f"{prefix}/")


def _is_open(scope: Scope) -> bool:
    if is_preflight(scope):
        return True
    return scope["type"] == "http" and scope["method"] == "GET" and route_path(scope) in OPEN_PATHS


def _digest(key: str | bytes) -> bytes:
    return hashlib.sha256(key.encode() if isinstance(key, str) else key).digest()
