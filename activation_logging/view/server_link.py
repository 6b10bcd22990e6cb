"""How the pages reach the server that one chats with: over HTTP, or inside its own process.

A browser never talks to the server, only to the pages. So the server's key stays in this process.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx

from activation_logging.asgi import WHOLE_APP
from activation_logging.errors import SettingsError, ViewError
from activation_logging.exposure import is_loopback
from activation_logging.printable import printable
from activation_logging.text import brief

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from starlette.types import ASGIApp, Message

logger = logging.getLogger(f"vllm.{__name__}")

CONNECT_S = 5.0
ANSWER_S = 900.0
"""The longest silence of a server, which may be loading a model."""
_ROUTES = "/v1/activations"
_MOST_ERROR = 600


class ServerLink:
    """A server that speaks OpenAI's API.

    Args:
        url: its address, such as ``http://localhost:8000/v1``; of a server within this process
            only what people call it.
        key: its API key.
        app: the application, of a server within this process.

    Raises:
        SettingsError: the address is none.
    """

    def __init__(self, url: str, key: str | None = None, app: ASGIApp | None = None) -> None:
        self.url = url if app is not None else _checked(url)
        self._key = key
        self._app = app

    @property
    def inside(self) -> bool:
        """Whether it is the server that these pages are on."""
        return self._app is not None

    def client(self, scope: Mapping[str, Any]) -> httpx.AsyncClient:
        """A client of the server, to be closed; addresses begin with ``/v1``.

        Args:
            scope: of the request to the pages.
        """
        headers = {"authorization": f"Bearer {self._key}"} if self._key else {}
        timeout = httpx.Timeout(ANSWER_S, connect=CONNECT_S)
        if self._app is not None:
            inner = InProcess(scope.get(WHOLE_APP, self._app))
            return httpx.AsyncClient(
                transport=inner, base_url="http://localhost", headers=headers, timeout=timeout
            )
        host = urlsplit(self.url).hostname
        return httpx.AsyncClient(
            base_url=self.url.removesuffix("/v1"),
            headers=headers,
            timeout=timeout,
            # A proxy between this machine and itself knows nothing of its servers.
            trust_env=not is_loopback(host),
        )

    async def learn(self, scope: Mapping[str, Any]) -> dict[str, Any]:
        """The names of its models, its probes, and whether it logs activations.

        Raises:
            ViewError: it cannot be reached, or refuses.
        """
        async with self.client(scope) as client:
            try:
                models = await client.get("/v1/models", timeout=CONNECT_S)
                probes = await client.get(f"{_ROUTES}/probes", timeout=CONNECT_S)
                # Servers before the probes had answers alone.
                logs = probes.is_success or (await client.get(f"{_ROUTES}?limit=1")).is_success
            except httpx.HTTPError as error:
                raise self.unreachable(error) from None
        if not models.is_success:
            raise ViewError(self.refusal(models.status_code, models.content))
        return {
            "models": [one["id"] for one in _listed(models)],
            "probes": [_told(one) for one in _listed(probes) if not one.get("shadow")],
            "logs": logs,
        }

    def unreachable(self, error: Exception) -> ViewError:
        """What is said where a connection fails."""
        reason = brief(str(error) or type(error).__name__)
        return ViewError(
            f"{self.url} does not answer ({printable(reason)}): start the server, or open the "
            "pages with its address (--server URL)"
        )

    def refusal(self, status: int, body: bytes) -> str:
        """What a server said that refused a request."""
        reason = printable(brief(_message(body), _MOST_ERROR))
        if status == 401:
            return (
                f"{self.url} wants its API key: open the pages with VLLM_API_KEY in their "
                "environment"
            )
        return f"the server says (HTTP {status}): {reason or 'nothing'}"


def _checked(url: str) -> str:
    """The address with ``/v1`` at its end."""
    found = urlsplit(url.strip())
    if found.scheme not in {"http", "https"} or not found.hostname or found.query:
        raise SettingsError(
            f"--server {printable(url[:200])}: give the server's address, such as "
            "http://localhost:8000/v1"
        )
    if found.username or found.password:
        raise SettingsError("--server: give the key in VLLM_API_KEY, not in the address")
    return f"{url.strip().rstrip('/').removesuffix('/v1')}/v1"


def _listed(answer: httpx.Response) -> list[dict[str, Any]]:
    try:
        data = answer.json()["data"] if answer.is_success else []
    except (ValueError, KeyError, TypeError):
        return []
    return [one for one in data if isinstance(one, dict)]


def _told(probe: dict[str, Any]) -> dict[str, Any]:
    return {
        name: probe.get(name)
        for name in ("name", "kind", "position", "positive", "negative", "threshold")
    }


def _message(body: bytes) -> str:
    try:
        found = json.loads(body)
    except ValueError:
        return body.decode("utf-8", "replace")
    return message_of(found)


def message_of(found: Any) -> str:
    """The text of an error as OpenAI's API, FastAPI and vLLM write it."""
    for name in ("error", "message", "detail"):
        if isinstance(found, dict) and name in found:
            return message_of(found[name])
    return found if isinstance(found, str) else str(found)


class InProcess(httpx.AsyncBaseTransport):
    """Requests to an application of this process, whose answers come as they are made.

    Httpx has such a transport, which waits for the end of an answer.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = await request.aread()
        call = _Call(self._app, request, body)
        try:
            start = await call.next()
        except BaseException:
            call.leave()
            raise
        if start is None:
            raise httpx.RemoteProtocolError("the application ended without an answer")
        return httpx.Response(start["status"], headers=start["headers"], stream=call)


class _Call(httpx.AsyncByteStream):
    """One request to an application, and the body of its answer."""

    _running: set[asyncio.Task[None]] = set()  # noqa: RUF012 - asyncio keeps no task itself

    def __init__(self, app: ASGIApp, request: httpx.Request, body: bytes) -> None:
        self._messages: asyncio.Queue[Message | None] = asyncio.Queue()
        self._left = asyncio.Event()
        self._asked = False
        self._body = body
        task = asyncio.create_task(self._run(app, _scope(request)))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _run(self, app: ASGIApp, scope: dict[str, Any]) -> None:
        try:
            await app(scope, self._receive, self._messages.put)
        except Exception:
            logger.exception("a request of the chat has failed")
        finally:
            await self._messages.put(None)

    async def _receive(self) -> Message:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def next(self) -> Message | None:
        """The next message of the answer; None after the last."""
        return await self._messages.get()

    def leave(self) -> None:
        """Tell the application that nobody listens any more: vLLM ends the answer then."""
        self._left.set()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (message := await self.next()) is not None:
            yield message.get("body", b"")
            if not message.get("more_body", False):
                return

    async def aclose(self) -> None:
        self.leave()


def _scope(request: httpx.Request) -> dict[str, Any]:
    url = request.url
    return {
        "type": "http",
        # Above 2.3, an application would learn from `send` that its client has left.
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": url.path,
        "raw_path": url.raw_path.partition(b"?")[0],
        "query_string": url.query,
        "root_path": "",
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
        "client": ("127.0.0.1", 0),
        "server": ("127.0.0.1", 80),
    }
