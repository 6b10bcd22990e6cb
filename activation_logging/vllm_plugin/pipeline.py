"""Rows of a model in pipeline stages: each stage keeps those of its layers, the last writes them.

Every stage is told the same scheduler outputs in the same order, and its KV cache has the same
block tables. So every stage runs a :class:`.RowCollector` of its own, and all of them gather the
same positions of the same requests. Earlier stages run ahead of the last one, and reuse blocks
earlier. That is why each gathers its own rows. A :class:`RowSender` takes the place of the store's
writer there. A :class:`RowReceiver` has the rows of the other stages for the last one.

Messages go from thread to thread, through a process group of their own. No step waits for them.
Only the thread that writes to the store does.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import distributed

from activation_logging.errors import RowsMissing

if TYPE_CHECKING:
    from activation_logging.records import Capture
    from activation_logging.sites import RowShape

logger = logging.getLogger(f"vllm.{__name__}")

_CLOSE_S = 60.0
"""Time for the last rows to leave or to arrive at shutdown, seconds."""
_FOREVER = timedelta(days=3650)
"""A server may be idle for long between two messages."""
_WIRE_TYPES: Mapping[str, Any] = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": np.uint16,
}
"""numpy types of rows and columns on their way. bfloat16 travels as its bits."""


class Link(Protocol):
    """An ordered, reliable way of bytes from one stage to another."""

    def send(self, data: npt.NDArray[np.uint8]) -> None:
        """Send some bytes; return when they may be overwritten."""

    def receive(self, data: npt.NDArray[np.uint8]) -> None:
        """Fill ``data`` with the next bytes sent. They are sent in pieces of the same sizes."""


class GroupLink:
    """A :class:`Link` through a process group.

    Args:
        group: the group.
        peer: the rank of the other stage among all of vLLM's ranks.
    """

    def __init__(self, group: Any, peer: int) -> None:
        self._group = group
        self._peer = peer

    def send(self, data: npt.NDArray[np.uint8]) -> None:
        distributed.send(torch.from_numpy(data), self._peer, self._group)

    def receive(self, data: npt.NDArray[np.uint8]) -> None:
        distributed.recv(torch.from_numpy(data), self._peer, self._group)


def make_group(ranks: Sequence[int]) -> Any:
    """A process group of the stages that exchange rows. All of these ranks must call it."""
    return distributed.new_group(
        list(ranks), timeout=_FOREVER, backend="gloo", use_local_synchronization=True
    )


class _Message(NamedTuple):
    """What precedes the rows of one request: its id, their number, and the codes of the sites."""

    id: str
    rows: int
    codes: Sequence[int]


_END = _Message("", 0, ())


def _send_header(link: Link, message: _Message) -> None:
    text = np.frombuffer(json.dumps(message).encode(), np.uint8).copy()
    link.send(np.array([text.size], np.int64).view(np.uint8))
    link.send(text)


def _receive_header(link: Link) -> _Message:
    size = np.empty(1, np.int64)
    link.receive(size.view(np.uint8))
    text = np.empty(int(size[0]), np.uint8)
    link.receive(text)
    name, count, codes = json.loads(text.tobytes())
    return _Message(name, count, codes)


class RowSender:
    """Sends the rows of this stage to the last one, in a thread of its own.

    It takes captures like the store's writer. The last stage makes the same captures, so only the
    rows are sent.

    Args:
        link: the way to the last stage.
    """

    id = "00" * 8
    """Segments need a writer's id. Nobody sees those of this stage."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._queue: deque[Capture | None] = deque()
        self._wake = threading.Condition()
        self.planning = threading.RLock()
        """As of a store's writer: here only one thread plans."""
        self._broken = False
        self._thread = threading.Thread(target=self._run, name="activation-sender", daemon=True)
        self._thread.start()

    def put_capture(self, capture: Capture) -> bool:
        """Queue the rows of a capture. Returns False if it has none, as the writer does."""
        if capture.segments:
            self._put(capture)
        return not capture.dropped

    def flush(self) -> None:
        """Nothing to do: the last stage waits for the rows that it commits."""

    def close(self) -> None:
        """Send what is queued, and tell the last stage that nothing follows."""
        self._put(None)
        self._thread.join(_CLOSE_S)

    def _put(self, item: Capture | None) -> None:
        with self._wake:
            self._queue.append(item)
            self._wake.notify()

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._queue)
                capture = self._queue.popleft()
            try:
                if not self._broken:
                    self._send(capture)
            except RuntimeError as error:  # what torch raises if the other end is gone
                self._broken = True
                logger.error("rows cannot be sent to the last pipeline stage: %s", error)  # noqa: TRY400
            if capture is None:
                return

    def _send(self, capture: Capture | None) -> None:
        if capture is None:
            _send_header(self._link, _END)
            return
        for segment in capture.segments:
            rows = list(segment.rows.values())
            if not rows:
                continue
            _send_header(self._link, _Message(capture.id, len(rows[0]), list(segment.rows)))
            for some in rows:
                self._link.send(some.view(np.uint8).reshape(-1))


class RowReceiver:
    """Receives the rows of other stages, in a thread for each.

    Args:
        links: the ways from the other stages.
        shapes: what a row of each site is, as it is stored, by the site's code; also columns, by
            :func:`.columns_code`.
    """

    def __init__(self, links: Sequence[Link], shapes: Mapping[int, RowShape]) -> None:
        self._shapes = shapes
        self._wake = threading.Condition()
        self._arrived: dict[tuple[str, int], npt.NDArray[Any]] = {}
        self._open = len(links)
        self._threads = [
            threading.Thread(
                target=self._run, args=(link,), name="activation-receiver", daemon=True
            )
            for link in links
        ]
        for thread in self._threads:
            thread.start()

    def take(self, name: str, code: int, count: int) -> npt.NDArray[Any]:
        """The rows of one site of a request, ``[count, width]``, as soon as they are there.

        Stages send the rows of a request once, when it has ended, and they can be taken once.

        Raises:
            RowsMissing: its stage has ended, or did not compute the same positions.
        """
        with self._wake:
            self._wake.wait_for(lambda: (name, code) in self._arrived or not self._open)
            rows = self._arrived.pop((name, code), None)
        if rows is None or len(rows) != count:
            raise RowsMissing("a pipeline stage ended before it had sent this request's rows")
        return rows

    def close(self) -> None:
        """Wait until the other stages have said that nothing follows."""
        for thread in self._threads:
            thread.join(_CLOSE_S)

    def _run(self, link: Link) -> None:
        try:
            while (message := _receive_header(link)).id:
                self._take(message, link)
        except RuntimeError as error:  # what torch raises if the other end is gone
            logger.error("a pipeline stage is gone: %s", error)  # noqa: TRY400
        finally:
            with self._wake:
                self._open -= 1
                self._wake.notify_all()

    def _take(self, message: _Message, link: Link) -> None:
        found = {}
        for code in message.codes:
            shape = self._shapes[code]
            rows = np.empty((message.rows, shape.width), _WIRE_TYPES[shape.dtype])
            link.receive(rows.view(np.uint8).reshape(-1))
            found[message.id, code] = rows
        with self._wake:
            self._arrived.update(found)
            self._wake.notify_all()


class JoinedRows(Mapping[int, npt.NDArray[Any]]):
    """The rows of a request by site: those of this stage, and those that other stages send.

    Args:
        here: the rows of this stage.
        receiver: has those of other stages. Access to them waits for them.
        name: the request's id.
        codes: the sites of other stages.
        count: number of rows of each site.
    """

    def __init__(
        self,
        here: Mapping[int, npt.NDArray[Any]],
        receiver: RowReceiver,
        name: str,
        codes: Sequence[int],
        count: int,
    ) -> None:
        self._here = here
        self._receiver = receiver
        self._name = name
        self._codes = codes
        self._count = count
        self._taken: dict[int, npt.NDArray[Any]] = {}

    def __getitem__(self, code: int) -> npt.NDArray[Any]:
        if code in self._here:
            return self._here[code]
        if code not in self._codes:
            raise KeyError(code)
        if code not in self._taken:
            self._taken[code] = self._receiver.take(self._name, code, self._count)
        return self._taken[code]

    def __iter__(self) -> Iterator[int]:
        yield from self._here
        yield from self._codes

    def __len__(self) -> int:
        return len(self._here) + len(self._codes)
