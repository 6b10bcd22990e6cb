"""Who may see the pages and change something, and what a browser may do with them.

A page holds what models and users have written. So a browser runs no script but ours (the Content
Security Policy), and sends no form of another site here. Without a key only this machine's browsers
get in, and only by a name of this machine: a site whose name points to this machine is refused.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from activation_logging.printable import printable

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
    # Without a referrer a browser would not say either that a form is ours.
    "referrer-policy": "same-origin",
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
        hosts: names by which they may be reached; None for any, but without a key for addresses
            of numbers and ``localhost``: a site can make a name of its own lead here.
        key_in_address: whether ``?token=KEY`` opens them, too. A server would log it.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Sequence[str] = (),
        hosts: Sequence[str] | None = None,
        *,
        key_in_address: bool = False,
    ) -> None:
        self._key_in_address = key_in_address
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
        if not self._answers_to(host):
            return _refuse(
                421,
                f"these pages are not at {printable(host[:80])}: open them by the address that was "
                "printed, or of a server without a key by its number",
            )
        other = headers.get("sec-fetch-site") in {"cross-site", "same-site"}
        reads = scope["method"] in {"GET", "HEAD"}
        # A link of another site may lead here. Its scripts may not look, even where a server
        # around these pages allows them to.
        if other and not (reads and headers.get("sec-fetch-mode") == "navigate"):
            return _refuse(403, "another site has asked for this")
        origin = headers.get("origin")
        if not reads and origin is not None and urlsplit(origin).netloc != host:
            return _refuse(403, "this form was sent by another site")
        return None

    def _answers_to(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if self._hosts is not None:
            return name in self._hosts
        return bool(self._keys) or name == "localhost" or _is_number(name)

    def _without_key(
        self, scope: Scope, headers: Headers, cookies: dict[str, str]
    ) -> ASGIApp | None:
        """What answers instead of the pages if the key is missing, or comes in the address."""
        if not self._keys:
            return None
        path, root = scope["path"], scope.get("root_path", "")
        pairs = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        rest = urlencode([pair for pair in pairs if pair[0] != TOKEN])
        given = [value for name, value in pairs if name == TOKEN]
        if given and self._key_in_address and scope["method"] == "GET" and self.opens(given[0]):
            # Out of the address, so that it is not shared, shown or logged with it.
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
        if "hx-request" in headers:
            # A part of a page, whose key is another's by now: the whole page asks for the new one.
            return Response(status_code=401, headers={"hx-refresh": "true"})
        if scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
            here = quote(path.removeprefix(root)) + (f"?{rest}" if rest else "")
            return RedirectResponse(f"{root}/key?{urlencode({'to': here})}", 303)
        return _refuse(
            401,
            "these pages need the key, so nothing was shown or changed: open or reload them in a "
            "browser, which asks for it",
        )

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
    # With every one, so that the timing says nothing of which.
    return sum(secrets.compare_digest(raw, one.encode()) for one in known) > 0


def _is_number(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_random(text: str) -> bool:
    return len(text) == 32 and text.isascii() and text.replace("-", "").replace("_", "").isalnum()


def _cookies(headers: Headers) -> dict[str, str]:
    parts = (part.partition("=") for raw in headers.getlist("cookie") for part in raw.split(";"))
    return {name.strip(): value.strip() for name, _, value in parts}


def _set(name: str, value: str, scope: Scope) -> str:
    path = scope.get("root_path", "") or "/"
    secure = "; Secure" if scope.get("scheme") == "https" else ""
    return f"{name}={value}; Path={path}; HttpOnly; SameSite=Lax{secure}"


def _refuse(status: int, text: str) -> ASGIApp:
    return PlainTextResponse(f"{text}\n", status)
