"""What all pages share: the store, its search index, the probes, and how a page is made."""

from __future__ import annotations

import logging
import os
import secrets
import sqlite3
import threading
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, Request
from starlette.responses import HTMLResponse

from activation_logging.errors import (
    ActivationLoggingError,
    EntryNotFound,
    NotAStore,
    StoreCorrupt,
    StoreNotFound,
    StoreReadOnly,
    ViewError,
)
from activation_logging.locations import Address, located
from activation_logging.store import Store, open_store
from activation_logging.store.places import find_stores
from activation_logging.view.index import SearchIndex
from activation_logging.view.index_file import refusal
from activation_logging.view.near import Near
from activation_logging.view.rendering import environment

if TYPE_CHECKING:
    from collections.abc import Mapping

    from activation_logging.detectors.saved_probe import SavedProbe
    from activation_logging.store.places import OnePlace, Where
    from activation_logging.view.server_link import ServerLink

logger = logging.getLogger(f"vllm.{__name__}")

AT_ONCE = 200
"""Changes of the store that a page reads before it is shown; more are read in the background."""
MOST_BYTES = 1 << 26
"""So long may a field of a form be. Where a page takes less, it says so in its own words."""


class ViewState:
    """What the pages work on.

    Args:
        path: the store's folder, which may not be there yet; or several, see :func:`.open_store`.
        probes: saved probes by the names that they are shown under.
        server: a server to chat with.
        inspect: the address of a viewer of Inspect's logs.
    """

    def __init__(
        self,
        path: Where,
        probes: Mapping[str, SavedProbe],
        server: ServerLink | None = None,
        inspect: str | None = None,
    ) -> None:
        self.path = path if isinstance(path, (str, os.PathLike)) else list(path)
        self.title = _title(self.path)
        self.probes = dict(probes)
        self.server = server
        self.inspect = inspect
        self.pages = environment()
        self._lock = threading.Lock()
        self._index: SearchIndex | None = None
        self._near: Near | None = None
        self._reader: threading.Thread | None = None
        self._failed: ActivationLoggingError | None = None

    @property
    def store(self) -> Store:
        """The store, open for reading.

        Raises:
            StoreError: it is not there, or cannot be read.
        """
        return self.index.store

    @property
    def index(self) -> SearchIndex:
        """The search index, as far as it has been made."""
        with self._lock:
            if self._index is not None and self._index.store.replaced:
                logger.warning("the store at %s has been removed or replaced", self.path)
                self._index = None
            if self._index is None:
                self._index = SearchIndex(open_store(self.path))
                self._near = Near(self._index)
            return self._index

    @property
    def near(self) -> Near:
        """What finds the nearest answers by state."""
        self.index  # noqa: B018 - makes both
        assert self._near is not None
        return self._near

    def writable(self) -> Store:
        """The store, open for writing; to be closed.

        Raises:
            StoreReadOnly: this user may not write to it, or it is an export.
        """
        if self.store.is_export:
            self.store.transact(lambda *_: None)  # which says that it is only read
        return open_store(self.store.where, writable=True)

    def up_to_date(self) -> bool:
        """Read what is new. Returns False if there is more than a page should wait for.

        Raises:
            ActivationLoggingError: reading the store has failed.
        """
        index = self.index
        try:
            if index.ready and index.keep_up(AT_ONCE):
                return True
        except sqlite3.DatabaseError as error:
            self.start_anew(index, error)
            return False
        with self._lock:
            failed, self._failed = self._failed, None
            if failed is not None:
                raise failed
            if self._reader is None or not self._reader.is_alive():
                self._reader = threading.Thread(
                    target=self._read, args=(index,), name="activation-view-index", daemon=True
                )
                self._reader.start()
        return False

    def start_anew(self, index: SearchIndex, error: sqlite3.DatabaseError) -> None:
        """Give up a search index that is broken; the next page begins another.

        Raises:
            ViewError: it is not broken, but cannot be used now.
        """
        if (said := refusal(index.path, error)) is not None:
            raise said from None
        logger.warning("%s is broken (%s); reading the store anew", index.path, error)
        with self._lock:
            if self._index is index:
                index.remove()
                self._index = None

    def _read(self, index: SearchIndex) -> None:
        try:
            index.build()
            index.keep_up()
        except ActivationLoggingError as error:
            self._failed = error
        except Exception as error:
            logger.exception("the search index of %s cannot be made", self.title)
            self._failed = ViewError(f"the search index cannot be made: {error}")


def _title(path: OnePlace | list[OnePlace]) -> str:
    if isinstance(path, (str, os.PathLike)):
        return str(path)
    # An address is that of an export, which cannot be one of several.
    one = located(path[0]) if len(path) == 1 else None
    return str(one if isinstance(one, Address) else find_stores(path).title)


def state_of(request: Request) -> ViewState:
    """What :func:`.app.make_app` was given."""
    found: ViewState = request.app.state.view
    return found


async def checked_form(request: Request) -> list[tuple[str, str]]:
    """The fields of a form that one of our pages has sent.

    Raises:
        ViewError: it does not hold what our pages put into their forms.
    """
    form = await request.form(max_files=0, max_part_size=MOST_BYTES)
    fields = [(name, str(value)) for name, value in form.multi_items()]
    given = dict(fields).get("form_token", "")
    if not secrets.compare_digest(given.encode(), request.state.form_token.encode()):
        raise ViewError("this form is too old, or of another site: reload the page and try again")
    return [pair for pair in fields if pair[0] != "form_token"]


State = Annotated[ViewState, Depends(state_of)]
Form = Annotated[list[tuple[str, str]], Depends(checked_form)]


def base_of(request: Request) -> str:
    """What the addresses of all pages begin with, without a slash at the end."""
    return str(request.scope.get("root_path", "")).rstrip("/")


def page(
    request: Request, state: ViewState, template: str, *, status: int = 200, **names: Any
) -> HTMLResponse:
    """A page or a part of one. Every text in it is escaped."""
    text = state.pages.get_template(template).render(
        base=base_of(request),
        form_token=request.state.form_token,
        store_path=state.title,
        **names,
    )
    # Lone surrogates of a store become question marks: UTF-8 has none.
    return HTMLResponse(text.encode("utf-8", "replace"), status)


def error_page(
    request: Request, error: ActivationLoggingError, status: int | None = None
) -> HTMLResponse:
    """What a page says that cannot be shown; the error has its status, unless one is given."""
    no_store = isinstance(error, StoreNotFound)
    missing = no_store or isinstance(error, EntryNotFound)
    status = status or (404 if missing else 403 if isinstance(error, StoreReadOnly) else 400)
    return page(
        request,
        state_of(request),
        "error.html.j2",
        status=status,
        error=str(error),
        no_store=no_store,
        broken=isinstance(error, (NotAStore, StoreCorrupt)),
    )
