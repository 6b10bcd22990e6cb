"""The probes of a server while it runs: which there are, and changes to them.

A change names files of one folder, which the server was started with. What is asked for is read and
checked here, then by every worker. Only where nobody refuses it do all of them change over, between
two steps; otherwise all go on with what they had. With several API servers the others learn of it
before they look at their next request (:mod:`.shared_probes`).
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vllm.v1.metrics.prometheus import get_prometheus_registry

from activation_logging.detectors.probe_format import names_in, paths_of
from activation_logging.detectors.probe_parcel import pack
from activation_logging.detectors.saved_probe import SavedProbe
from activation_logging.detectors.served_probes import ServedProbes
from activation_logging.errors import ProbeError, SettingsError
from activation_logging.probe_list import check_name
from activation_logging.text import shown
from activation_logging.vllm_plugin.calls import ask_workers
from activation_logging.vllm_plugin.score_metrics import Window, gauges, observe_all, told_by
from activation_logging.vllm_plugin.shared_probes import SharedProbes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from starlette.applications import Starlette
    from vllm.v1.engine.async_llm import AsyncLLM

    from activation_logging.vllm_plugin.score_metrics import Moved
    from activation_logging.vllm_plugin.scored_outputs import LiveScores

logger = logging.getLogger(f"vllm.{__name__}")

_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")


class Wanted(NamedTuple):
    """A probe to set: the name of its file in the folder, and whether no client gets its scores."""

    file: str
    shadow: bool = False


class ProbeDesk:
    """What one API server knows of the probes, and how it changes them.

    Args:
        folder: where probes may be loaded from; None where none may.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._shared = SharedProbes.here()
        self._changing = asyncio.Lock()
        self._window = Window(time.monotonic())

    def learn(self, live: LiveScores) -> None:
        """Take over what another API server has changed, and count the scores from now on.

        It is called in the thread of the event loop, before each request.
        """
        if live.on_final is None:
            live.on_final = lambda finals: observe_all(live.served, finals)
            live.on_unknown = lambda: self._recognize(live)
        news = None if self._shared is None else self._shared.news()
        if news is not None:
            self._take(live, news)

    def _recognize(self, live: LiveScores) -> None:
        """Know what workers use already, because another API server has just changed to it."""
        self.learn(live)
        coming = None if self._shared is None else self._shared.coming()
        if coming is not None:
            live.expect(coming)

    def files(self) -> list[str]:
        """The names of the probes that may be loaded.

        Raises:
            ProbeError: the folder cannot be looked into.
        """
        return [] if self._folder is None else [n for n in names_in(self._folder) if _is_file(n)]

    async def change(
        self, engine: AsyncLLM, new: Mapping[str, Wanted], removed: Sequence[str]
    ) -> None:
        """Set some probes and remove others, on all workers at once.

        A change that has begun goes on to its end, also if the client leaves.

        Args:
            engine: of the application.
            new: by the names that requests will call them; one of that name is replaced.
            removed: names.

        Raises:
            SettingsError: the server may not load any, or a name is not that of a probe or file.
            ProbeError: a probe is broken, or cannot be served; everything stays as it was.
            EngineGone: the engine has died.
        """
        if self._folder is None:
            raise SettingsError(
                "this server may not load probes: start it with --activation-probe-folder FOLDER "
                "(ACTIVATION_PROBE_FOLDER)"
            )
        live = live_of(engine)
        if live is None:
            raise SettingsError(
                "this server was started without probes, so it computes no scores: start it with "
                "one of each layer that probes are to read (--activation-probe NAME=PATH)"
            )
        changing = self._change(engine, live, partial(changed, self._folder, new, removed))
        await asyncio.shield(asyncio.ensure_future(changing))

    async def _change(
        self,
        engine: AsyncLLM,
        live: LiveScores,
        changed: Callable[[ServedProbes], ServedProbes],
    ) -> None:
        async with self._changing:
            lock = nullcontext() if self._shared is None else self._shared.changing()
            # Another process may have the lock for as long as its workers take.
            await asyncio.to_thread(lock.__enter__)
            try:
                self.learn(live)
                served = await asyncio.to_thread(changed, live.served)
                live.expect(served)
                await _ask_workers(engine, "check_activation_probes", pack(served))
                if self._shared is not None:
                    self._shared.announce(served)
                await _ask_workers(engine, "use_activation_probes")
                self._take(live, served)
                if self._shared is not None:
                    self._shared.put(served)
            finally:
                lock.__exit__(None, None, None)
        logger.info("the probes are now: %s", ", ".join(served) or "none")

    def _take(self, live: LiveScores, served: ServedProbes) -> None:
        """Use these probes for the requests to come; what a new one says counts from here."""
        live.load(served)
        self._moved(live)

    def _moved(self, live: LiveScores) -> dict[str, Moved]:
        told = told_by(get_prometheus_registry().collect())
        return self._window.moved(live.served, told, time.monotonic())

    def told(self, live: LiveScores) -> Iterator[dict[str, Any]]:
        """What is to be known of each probe, for JSON."""
        told = told_by(get_prometheus_registry().collect())
        for name, one in live.served.items():
            probe, said = one.probe, told.get(name)
            yield {
                "name": name,
                "kind": probe.kind,
                "form": probe.form,
                "sources": list(probe.sources),
                "position": probe.position,
                "model": probe.model,
                "label": probe.label,
                "positive": probe.positive,
                "negative": probe.negative,
                "digest": probe.digest,
                "threshold": probe.threshold,
                "operating_points": [point._asdict() for point in probe.operating_points],
                "shadow": one.shadow,
                "scored": said.number if said else 0,
                "flagged": said.flagged if said else 0,
            }

    def metrics(self, live: LiveScores) -> bytes:
        """The metrics that are computed when they are asked for, in Prometheus's format."""
        return gauges(live.served, self._moved(live))


def checked_folder(path: str) -> Path:
    """The folder that probes may be loaded from, whole and without links.

    Raises:
        SettingsError: there is none.
    """
    folder = Path(path).expanduser().resolve()
    if not folder.is_dir():
        raise SettingsError(f"ACTIVATION_PROBE_FOLDER: {folder} is not a folder")
    return folder


def engine_of(app: Starlette) -> AsyncLLM | None:
    """The engine behind an application; None without a model."""
    return getattr(app.state, "engine_client", None)


def live_of(engine: AsyncLLM | None) -> LiveScores | None:
    """The scores of an engine's requests; None without a model, or without probes."""
    tap = getattr(getattr(engine, "output_processor", None), "tap", None)
    return None if tap is None else tap.live


def changed(
    folder: Path, new: Mapping[str, Wanted], removed: Sequence[str], served: ServedProbes
) -> ServedProbes:
    """The probes after a change; one that is replaced keeps its place."""
    for name in new:
        check_name(name)
    for name in removed:
        if name not in served:
            raise SettingsError(
                f"there is no probe {shown(name)} to remove, only {', '.join(served) or 'none'}"
            )
        if name in new:
            raise SettingsError(f"the probe {name} is to be set and removed; ask for one of both")
    probes = {name: (one.probe, one.shadow) for name, one in served.items() if name not in removed}
    for name, (file, shadow) in new.items():
        probes[name] = _load(folder, name, file), shadow
    return ServedProbes((name, probe, shadow) for name, (probe, shadow) in probes.items())


def _load(folder: Path, name: str, file: str) -> SavedProbe:
    try:
        return SavedProbe.load(_inside(folder, file))
    except ProbeError as error:
        # The client need not know where the folder is.
        reason = str(error).replace(f"{folder}/", "")
        raise ProbeError(f"the probe {name}: {reason}") from None


def _inside(folder: Path, file: str) -> Path:
    """The path of a probe of the folder.

    Raises:
        SettingsError: it is not the name of a file. ProbeError: it is a link out of the folder.
    """
    if not _is_file(file):
        raise SettingsError(
            f"{shown(file)} is not the name of a probe's file: give one of the folder's without "
            "its path, of letters, digits and _.- in ASCII"
        )
    path = folder / file
    for part in paths_of(path):
        if not part.resolve().is_relative_to(folder):
            raise ProbeError(f"{part} is a link out of the folder; copy the file there")
    return path


def _is_file(name: str) -> bool:
    return _FILE.fullmatch(name) is not None


async def _ask_workers(engine: AsyncLLM, method: str, *args: Any) -> None:
    """Have all workers do something.

    Raises:
        ProbeError: one of them refuses.
        EngineGone: the engine has died.
    """
    for reason in filter(None, await ask_workers(engine, method, *args)):
        raise ProbeError(reason)
