"""What our ASGI applications share: request bodies, errors in OpenAI's form, the key's guard."""

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
"""What anybody may GET: it tells whether the server lives, and how busy it is."""


class AsciiJson(JSONResponse):
    """Strict JSON with ASCII escapes: no entry hides others, whatever text or number it holds."""

    def render(self, content: Any) -> bytes:
        return dumps(content).encode("ascii")


def openai_error(
    message: str,
    *,
    status: int = 400,
    kind: str = "BadRequestError",
    param: str | None = None,
) -> AsciiJson:
    """An error in the form that OpenAI's clients understand."""
    error = {"message": message, "type": kind, "param": param, "code": status}
    return AsciiJson({"error": error}, status_code=status)


def parse_object(raw: bytes) -> dict[str, Any] | None:
    """The JSON object in a body, or None: then it is vLLM's to say what is wrong with it.

    Raises:
        RequestOptionError: it is nested too deeply to be looked into.
    """
    try:
        body = json.loads(raw)
    except ValueError:
        return None
    except RecursionError:
        raise _too_deep() from None
    return body if isinstance(body, dict) else None


def dump_object(body: dict[str, Any]) -> bytes:
    """A body that has been changed, as JSON.

    Raises:
        RequestOptionError: it is nested so deeply that it could be read, but not written.
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
    """A ``receive`` that gives the body once more, then what comes after it: a disconnect."""
    pending = True

    async def replayed() -> Message:
        nonlocal pending
        if pending:
            pending = False
            return {"type": "http.request", "body": raw, "more_body": False}
        return await receive()

    return replayed


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
