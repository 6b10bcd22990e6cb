"""Who may see the pages and change something, and what a browser may do with them.

A page holds what models and users have written. So a browser runs no script but ours (the Content
Security Policy), and sends no form of another site here. Without a key only this machine's browsers
get in, and only by a name of this machine: a site whose name points to this machine is refused.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
FORM_COOKIE = "activations_form"
"""A random text that a form of ours repeats. Another site can neither read nor set it."""
TOKEN = "token"  # noqa: S105 - the name of a part of an address
_OPEN = ("/key", "/static/")
"""What needs no key: the page that asks for it, and how it looks."""


class Guard:
    """The outermost part of the application of pages.

    Args:
        app: the pages.
        keys: any of which opens them; none if they are open to all who reach them.
        hosts: names by which they may be reached; None for any.
    """

    def __init__(
        self, app: ASGIApp, keys: Sequence[str] = (), hosts: Sequence[str] | None = None
    ) -> None:
        self._app = app
        self._keys = tuple(keys)
        self._hosts = None if hosts is None else frozenset(hosts)
        self._passes = [_pass(key) for key in keys]
        self._cookie = f"activations_{_pass(*keys)[:8]}" if keys else ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        cookies = _cookies(headers)
        known = cookies.get(FORM_COOKIE, "")
        form = known if _is_random(known) else secrets.token_urlsafe(24)
        scope.setdefault("state", {})["form_token"] = form

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                sent = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    sent.setdefault(name, value)
                if form != known:
                    sent.append("set-cookie", _set(FORM_COOKIE, form, scope))
            await send(message)

        app = self._refusal(scope, headers) or self._without_key(scope, headers, cookies)
        await (app or self._app)(scope, receive, guarded)

    def _refusal(self, scope: Scope, headers: Headers) -> ASGIApp | None:
        host = headers.get("host", "")
        if self._hosts is not None and (urlsplit(f"//{host}").hostname or "") not in self._hosts:
            return _refuse(
                421, f"these pages are not at {host[:80]!r}; open them as the command printed"
            )
        if scope["method"] not in {"GET", "HEAD"}:
            site, origin = headers.get("sec-fetch-site"), headers.get("origin")
            other = site is not None and site not in {"same-origin", "none"}
            if other or (origin is not None and urlsplit(origin).netloc != host):
                return _refuse(403, "this form was sent by another site")
        return None

    def _without_key(
        self, scope: Scope, headers: Headers, cookies: dict[str, str]
    ) -> ASGIApp | None:
        """What answers instead of the pages if the key is missing, or comes in the address."""
        if not self._keys:
            return None
        path, root = scope["path"], scope.get("root_path", "")
        pairs = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = [value for name, value in pairs if name == TOKEN]
        if given and scope["method"] == "GET" and self.opens(given[0]):
            # Out of the address, so that it is not shared, shown or logged with it.
            rest = urlencode([pair for pair in pairs if pair[0] != TOKEN])
            answer = RedirectResponse(f"{path}?{rest}" if rest else path, 303)
            self.admit(answer, scope)
            return answer
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        cookie = cookies.get(self._cookie, "")
        if (
            _any_equal(cookie, self._passes)
            or (scheme.lower() == "bearer" and self.opens(bearer))
            or path.removeprefix(root).startswith(_OPEN)
        ):
            return None
        if scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
            return RedirectResponse(f"{root}/key", 303)
        return _refuse(401, "these pages need the key: open them with ?token=KEY, or log in")

    def opens(self, key: str) -> bool:
        """Whether this is one of the keys."""
        return _any_equal(_pass(key), self._passes)

    def admit(self, answer: Any, scope: Scope) -> None:
        """Let the browser in that gets this answer."""
        answer.headers.append("set-cookie", _set(self._cookie, self._passes[0], scope))


def _pass(*keys: str) -> str:
    """What a cookie holds in the key's place: it opens these pages and nothing else."""
    secret = "\0".join(keys).encode("utf-8", "surrogatepass")
    return hmac.new(secret, b"activation-logging view", hashlib.sha256).hexdigest()


def _any_equal(given: str, known: Sequence[str]) -> bool:
    raw = given.encode("utf-8", "surrogatepass")
    return any([secrets.compare_digest(raw, one.encode()) for one in known])


def _is_random(text: str) -> bool:
    return len(text) == 32 and text.isascii() and text.replace("-", "").replace("_", "").isalnum()


def _cookies(headers: Headers) -> dict[str, str]:
    found: SimpleCookie = SimpleCookie()
    for raw in headers.getlist("cookie"):
        for part in raw.split(";"):
            try:
                found.load(part.strip())
            except CookieError:
                continue
    return {name: one.value for name, one in found.items()}


def _set(name: str, value: str, scope: Scope) -> str:
    path = scope.get("root_path", "") or "/"
    secure = "; Secure" if scope.get("scheme") == "https" else ""
    return f"{name}={value}; Path={path}; HttpOnly; SameSite=Lax{secure}"


def _refuse(status: int, text: str) -> ASGIApp:
    return PlainTextResponse(f"{text}\n", status)
