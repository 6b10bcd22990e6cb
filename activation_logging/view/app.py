"""The application of pages, alone or below the address of a server."""

from __future__ import annotations

import sqlite3
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import RedirectResponse, Response

from activation_logging.errors import ActivationLoggingError, ViewError
from activation_logging.view.addresses import PREFIX
from activation_logging.view.guard import Guard
from activation_logging.view.pages import answers, chat, entry, judge, key, near, selection, studies
from activation_logging.view.state import ViewState, base_of, error_page, state_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from activation_logging.detectors.saved_probe import SavedProbe
    from activation_logging.store.places import Where
    from activation_logging.view.server_link import ServerLink

PAGES = (answers, selection, entry, near, judge, chat, studies, key)
"""Every module of pages; its ``router`` has their addresses."""

LOOPBACK = ("localhost", "127.0.0.1", "::1")
_STATIC = {
    "page.css": ("activation_logging.report", "text/css"),
    "tokens.js": ("activation_logging.report", "text/javascript"),
    "view.css": ("activation_logging.view", "text/css"),
    "view.js": ("activation_logging.view", "text/javascript"),
    "judge.js": ("activation_logging.view", "text/javascript"),
    "chat.css": ("activation_logging.view", "text/css"),
    "chat.js": ("activation_logging.view", "text/javascript"),
    "htmx.min.js": ("activation_logging.view", "text/javascript"),
}


def make_app(
    path: Where,
    *,
    probes: Mapping[str, SavedProbe] | None = None,
    server: ServerLink | None = None,
    inspect: str | None = None,
    keys: Sequence[str] = (),
    hosts: Sequence[str] | None = LOOPBACK,
) -> FastAPI:
    """The pages of one store as an application of their own, below ``/activations``.

    Args:
        path: the store's folder.
        probes: saved probes by the names that they are shown under.
        server: a server to chat with.
        inspect: the address of Inspect's viewer, see :func:`.inspect_link.checked_viewer`.
        keys: any of which opens the pages.
        hosts: the names in addresses that are answered; None for any.
    """
    app = FastAPI(title="activation-logging", openapi_url=None)
    # Nothing logs these addresses, so the key may come in one.
    app.state.view = mount(
        app, path, probes=probes, server=server, inspect=inspect, keys=keys, hosts=hosts,
        key_in_address=True,
    )  # fmt: skip

    app.add_route("/", _to_the_pages)
    return app


def mount(
    app: Any,
    path: Where,
    *,
    probes: Mapping[str, SavedProbe] | None = None,
    server: ServerLink | None = None,
    inspect: str | None = None,
    keys: Sequence[str] = (),
    hosts: Sequence[str] | None = None,
    key_in_address: bool = False,
) -> ViewState:
    """Give an application the pages of a store below ``/activations``.

    Args:
        app: any application of FastAPI or Starlette.
        path: the store's folder, which may not be there yet; or several, see :func:`.open_store`.
        probes: see :func:`make_app`, as for the rest.
        server: see there.
        inspect: see there.
        keys: see there.
        hosts: see there.
        key_in_address: whether ``?token=KEY`` opens the pages, too.
    """
    guard: dict[str, Any] = {"keys": tuple(keys), "hosts": hosts, "key_in_address": key_in_address}
    pages = FastAPI(openapi_url=None, middleware=[Middleware(Guard, **guard)])
    pages.state.view = ViewState(path, probes or {}, server, inspect)
    pages.state.guard = Guard(pages, **guard)
    for module in PAGES:
        pages.include_router(module.router)
    pages.add_api_route("/static/{name}", _static)
    pages.add_exception_handler(ActivationLoggingError, _refused)
    app.add_route(PREFIX, _to_the_pages)
    pages.add_exception_handler(sqlite3.DatabaseError, _broken)
    pages.add_exception_handler(RequestValidationError, _not_understood)
    pages.add_exception_handler(HTTPException, _no_page)
    app.mount(PREFIX, pages)
    state: ViewState = pages.state.view
    return state


async def _to_the_pages(request: Request) -> Response:
    """For who leaves the slash away; what else is in the address stays."""
    query = request.url.query
    return RedirectResponse(f"{base_of(request)}{PREFIX}/{f'?{query}' if query else ''}")


def _static(name: str) -> Response:
    if name not in _STATIC:
        return Response("there is no such file\n", 404, media_type="text/plain")
    package, kind = _STATIC[name]
    folder = files(package)
    file = folder / name if package.endswith("report") else folder / "static" / name
    return Response(
        file.read_bytes(), media_type=kind, headers={"cache-control": "max-age=300, private"}
    )


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ActivationLoggingError)
    return error_page(request, error)


async def _not_understood(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return error_page(request, ViewError(f"{first['loc'][-1]}: {first['msg']}"))


async def _no_page(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = "there is no such page" if error.status_code == 404 else error.detail
    return error_page(request, ViewError(what), error.status_code)


async def _broken(request: Request, error: Exception) -> Response:
    assert isinstance(error, sqlite3.DatabaseError)
    state = state_of(request)
    try:
        state.start_anew(state.index, error)
    except ActivationLoggingError as said:
        return error_page(request, said)
    return error_page(
        request, ViewError("the search index was broken and is made anew: reload the page")
    )
