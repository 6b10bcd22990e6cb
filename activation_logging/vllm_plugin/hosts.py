"""Where the workers of an engine write, and whether that is where their front end writes.

Every host writes to its own disk. At start each front end meets all workers: it learns which store
each writes to, and refuses to serve if one was started otherwise than itself. Rows that go to
another store are looked for there until they are found. Then the front end's store has a note in
their place, so that an entry never just waits (:mod:`activation_logging.store.elsewhere`).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import time
import weakref
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from activation_logging.errors import EngineGone, StoreError, UnsupportedEngineError
from activation_logging.records import NEVER_RAN
from activation_logging.store.elsewhere import find_captures, note
from activation_logging.store.engine.filesystem import network_type
from activation_logging.store.engine.liveness import boot
from activation_logging.vllm_plugin.calls import ask_workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from activation_logging.settings import Settings
    from activation_logging.store import StoreWriter

logger = logging.getLogger(f"vllm.{__name__}")

LOOK_S = 1.0
"""How often rows of answers that have ended are looked for, seconds: a call costs the engine a
pause."""
ANSWER_S = 60.0
"""How long a host may take to answer, seconds."""
CLOCKS_S = 2.0
"""Clocks of hosts that differ by more are warned of, seconds."""
_NOT_OURS = (
    "a worker of this server does not log: start vLLM on every host with this version of "
    "activation-logging and the same ACTIVATION_* variables"
)
_MOST = 100_000
"""Answers whose rows are looked for at once. Of more, the oldest stay pending."""

Located: TypeAlias = "tuple[str | None, Mapping[str, tuple[str | None, str | None]], Sequence[str]]"
"""What a worker says of some answers: its store (None if it shares the front end's, or has none),
what that store has of them (:class:`.Found`), and those of which it knows nothing."""


@dataclass(frozen=True)
class Met:
    """What a worker says of itself. The fields from ``path`` on are of workers that write.

    Attributes:
        host: the name of its host.
        engine: number of its engine.
        clock: its time, seconds since the epoch.
        settings: what all hosts must have the same; see :attr:`.Settings.agreed`.
        probes: the digest of its probes.
        reached: whether it reaches the front end's inbox of scores; True if there is none.
        path: the folder of its store; None if it writes to none.
        boot: the id of its host's last start; None if unknown.
        shared: whether that folder is the front end's.
        ceiling: whether old rows there make room for new ones.
        rows: what its rows are, see :func:`.about`.
    """

    host: str
    engine: int
    clock: float
    settings: Mapping[str, str]
    probes: str
    reached: bool = True
    path: str | None = None
    boot: str | None = None
    shared: bool = False
    ceiling: bool = False
    rows: Mapping[str, Any] | None = None

    @property
    def where(self) -> str:
        """Its store, for people."""
        return f"{self.host}:{self.path}"


class Hosts:
    """The workers of one engine, or of several, as one front end knows them.

    Methods without ``_async`` are for an offline engine, which answers in the caller's own thread.

    Args:
        engine: the front end's ``AsyncLLM`` or ``LLMEngine``.
        writer: the front end's.
        settings: the front end's.
        probes: the digest of its probes.
        scores_to: the address of its inbox of scores; None if it has none.
    """

    def __init__(
        self,
        engine: Any,
        writer: StoreWriter,
        settings: Settings,
        probes: str,
        scores_to: str | None,
    ) -> None:
        self._engine: Callable[[], Any] = weakref.ref(engine)
        self._writer = writer
        self._settings = settings
        self._probes = probes
        self._scores_to = scores_to
        self._here = f"{socket.gethostname()}:{writer.path}"
        self._met: tuple[Met, ...] | None = None
        self.away: tuple[Met, ...] = ()
        """The workers that write to another store than this front end."""
        self._open: dict[str, bool] = {}
        """Answers that have ended and whose rows were not seen; whether a worker had them."""
        self._looking: asyncio.Task[None] | None = None

    def meet(self) -> None:
        """Get to know the workers.

        Raises:
            UnsupportedEngineError: one would write something else, or to the wrong place.
            StoreError: the folder of the store cannot be written to.
        """
        engine = self._engine()
        with self._meeting() as args:
            sent = time.time()
            self._take_met(engine.collective_rpc("meet_activations", args=args), sent)

    async def meet_async(self) -> None:
        """See :meth:`meet`."""
        with self._meeting() as args:
            sent = time.time()
            try:
                answers = await ask_workers(self._engine(), "meet_activations", *args)
            except Exception as error:
                # A worker that has no such method fails in vLLM's own way, with its name.
                if "meet_activations" not in str(error):
                    raise
                raise UnsupportedEngineError(_NOT_OURS) from None
            self._take_met(answers, sent)

    @contextmanager
    def _meeting(self) -> Iterator[tuple[str, str, str | None]]:
        """The arguments of ``meet_activations``, while the worker may look for the marker."""
        marker = self._writer.path / f".front-end-{secrets.token_hex(8)}"
        try:
            marker.touch()
        except OSError as error:
            raise StoreError(f"{self._writer.path} cannot be written: {error.strerror}") from None
        try:
            yield self._here, marker.name, self._scores_to
        finally:
            marker.unlink(missing_ok=True)

    def _take_met(self, answers: Sequence[Mapping[str, Any]], sent: float) -> None:
        """Take what all workers, asked at ``sent``, have said of themselves."""
        now = time.time()
        self._met = tuple(Met(**answer) for answer in answers)
        self.away = tuple(one for one in self._met if one.path is not None and not one.shared)
        for one in self._met:
            self._check(one)
            # It looked at its clock at some time between the two.
            ahead = max(one.clock - now, sent - one.clock, 0.0)
            if ahead > CLOCKS_S:
                logger.warning(
                    "the clock of host %s differs from this host's by %.0f seconds or more: "
                    "entries have this host's time, and of two labels of one answer the later "
                    "stays. Synchronize the clocks (NTP)",
                    *(one.host, ahead),
                )
        for where in sorted({one.where for one in self.away}):
            logger.info("rows of this server also go to %s; entries to %s", where, self._here)
        if not self.away:
            self._open.clear()

    def _check(self, one: Met) -> None:
        mine = self._settings.agreed
        for name in mine:
            if one.settings.get(name) != mine[name]:
                raise UnsupportedEngineError(
                    f"a worker on host {one.host} was started with {name}="
                    f"{one.settings.get(name)}, and this front end with {mine[name]}: start every "
                    "host with the same ACTIVATION_* variables"
                )
        if one.probes != self._probes:
            raise UnsupportedEngineError(
                f"a worker on host {one.host} has other probes than this front end: give every "
                "host the same files in ACTIVATION_PROBES"
            )
        if not one.reached:
            raise UnsupportedEngineError(
                f"host {one.host} cannot reach this front end for scores at "
                f"{(self._scores_to or '').rpartition('@')[2]}: set VLLM_HOST_IP to an address "
                "that it can, and let it through the firewall"
            )
        if one.shared and None not in (one.boot, boot()) and one.boot != boot():
            kind = network_type(self._writer.path) or "shared"
            raise UnsupportedEngineError(
                f"hosts {socket.gethostname()} and {one.host} write to one store, "
                f"{self._writer.path} on a {kind} disk, which LMDB cannot: give each host its own, "
                "with {host} in ACTIVATION_LMDB_PATH"
            )
        if one.path is not None and not one.shared and one.ceiling:
            raise UnsupportedEngineError(
                f"the store of host {one.host} has rows whose entries are elsewhere, so it cannot "
                "tell which may go: unset ACTIVATION_MAX_SIZE"
            )

    def ended(self, request_id: str, *, ran: bool) -> None:
        """Look for the rows of an answer from now on, if they may be elsewhere.

        Args:
            request_id: the engine's id of it.
            ran: whether it has a token; without one it may never have reached a worker.
        """
        if self._met is not None and not self.away:
            return
        self._open[request_id] = ran
        if len(self._open) > _MOST:
            del self._open[next(iter(self._open))]
        if self._looking is None:
            # Offline, and during a server's shutdown, no event loop runs: a flush looks.
            with suppress(RuntimeError):
                self._looking = asyncio.get_running_loop().create_task(self._look())

    async def _look(self) -> None:
        try:
            while self._open:
                await asyncio.sleep(LOOK_S)
                if self._engine() is None:
                    return
                await self._try_to_locate()
        except EngineGone:
            return
        finally:
            self._looking = None

    async def _try_to_locate(self) -> None:
        try:
            await asyncio.wait_for(self.locate_async(), ANSWER_S)
        except EngineGone:
            raise
        except Exception:
            # Whatever a worker raised, nobody else would see it.
            logger.exception(
                "workers cannot be asked for rows; it is tried again in %g s, and entries wait",
                ANSWER_S,
            )
            await asyncio.sleep(ANSWER_S)

    def close(self) -> None:
        """Look no longer."""
        if self._looking is not None:
            with suppress(RuntimeError):  # the event loop has been closed
                self._looking.cancel()

    def locate(self) -> None:
        """Note in the store which rows are in the stores of other hosts, as far as they are."""
        if self.away:
            engine = self._engine()
            args = self._asked(find_captures(self._writer.path, self._open))
            self._take(engine.collective_rpc("locate_activations", args=args))

    async def locate_async(self) -> None:
        """See :meth:`locate`."""
        if self._met is None:
            await self.meet_async()
        if self.away:
            stored = await asyncio.to_thread(find_captures, self._writer.path, list(self._open))
            args = self._asked(stored)
            self._take(await ask_workers(self._engine(), "locate_activations", *args))

    def _asked(self, stored: Iterable[str]) -> tuple[list[str], list[str]]:
        """The arguments of ``locate_activations``: what to look for, and what may be unknown.

        What is ``stored`` in this front end's store is no longer looked for.
        """
        for name in stored:
            self._open.pop(name, None)
        return list(self._open), [name for name, ran in self._open.items() if not ran]

    def _take(self, answers: Sequence[Located]) -> None:
        """Note what all workers have found of what they were asked for."""
        rows = {one.where: one.rows or {} for one in self.away}
        for where, found, _ in answers:
            for name, (dropped, unkept) in found.items():
                if where is not None and self._open.pop(name, None) is not None:
                    said = note(name, rows[where], rows_in=where, dropped=dropped, unkept=unkept)
                    self._writer.put_capture(said)
        any_rows = next(iter(rows.values()))
        for name in set.intersection(*(set(unknown) for _, _, unknown in answers)):
            if self._open.pop(name, None) is not None:
                self._writer.put_capture(note(name, any_rows, dropped=NEVER_RAN))

    def as_json(self) -> list[dict[str, Any]]:
        """The stores that this server writes to, the front end's first."""
        here = {"host": socket.gethostname(), "path": str(self._writer.path)}
        shared = sorted({one.engine for one in self._met or () if one.shared})
        found = [{**here, "entries": True, "rows_of_engines": shared}]
        for where in sorted({one.where for one in self.away}):
            some = [one for one in self.away if one.where == where]
            engines = sorted({one.engine for one in some})
            about = {"host": some[0].host, "path": some[0].path, "entries": False}
            found.append({**about, "rows_of_engines": engines})
        return found
