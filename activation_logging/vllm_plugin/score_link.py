"""The way of projected rows from the workers to the front ends: ZeroMQ, one direction, no pickle.

A front end binds one :class:`ScoreInbox`. Its address travels with every request that it accepts
(:mod:`.origin`), so a worker needs to know of no front end before. A worker has one
:class:`ScoreOutbox`, which connects to an address when it first meets it. It never waits: what a
front end does not take is counted and dropped, and a front end that has gone is forgotten.

A message is three frames: the address's key, a header in msgpack, and the columns as they are in
memory, float64 ``[rows, columns]`` of all its blocks, one after the other. Who does not know the
key is not listened to.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import socket
import tempfile
from collections import OrderedDict
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import zmq

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

logger = logging.getLogger(f"vllm.{__name__}")

_QUEUED = 10_000
"""Messages that wait at either end before the next ones are dropped."""
_MAX_FRONT_ENDS = 256
_KEY_BYTES = 16
_REACH_S = 5.0


class Block(NamedTuple):
    """The columns of some positions of one request.

    Attributes:
        request: the engine's id of the request.
        first: the position of the first row.
        columns: float64 ``[rows, columns]``, one row for each position from ``first`` on.
    """

    request: str
    first: int
    columns: npt.NDArray[np.float64]


class Columns(NamedTuple):
    """One message.

    Attributes:
        probes: the digest of the probes that the columns are of.
        part: number of the sender among those that compute a part each. A pipeline stage knows
            only what its own layers contribute; the columns are the sum.
        parts: how many there are.
        ended: whether these requests have ended, and the blocks hold all rows of their answers.
        blocks: one for each request.
    """

    probes: str
    part: int
    parts: int
    ended: bool
    blocks: Sequence[Block]


class _Header(msgspec.Struct, array_like=True):
    probes: str
    part: int
    parts: int
    ended: bool
    width: int
    blocks: list[tuple[str, int, int]]


class ScoreInbox:
    """The front end's end.

    Args:
        host: the address of this host, where workers run on others too; None for workers on this
            host alone, which need no port.
    """

    def __init__(self, host: str | None = None) -> None:
        self._folder = None if host else Path(tempfile.mkdtemp(prefix="activation-scores-"))
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PULL)
        self._socket.set(zmq.RCVHWM, _QUEUED)
        self._socket.set(zmq.LINGER, 0)
        if host and ":" in host:
            self._socket.set(zmq.IPV6, 1)
            host = f"[{host}]"
        self._socket.bind(f"tcp://{host}:*" if host else f"ipc://{self._folder}/columns")
        self._key = secrets.token_bytes(_KEY_BYTES)
        endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.address = f"{self._key.hex()}@{endpoint}"
        """What a worker needs to know to reach this inbox."""

    def receive(self, timeout_s: float = 0.0) -> Iterator[Columns]:
        """The messages that are there.

        Args:
            timeout_s: time to wait for one where there is none, seconds.
        """
        if timeout_s > 0 and not self._socket.poll(round(timeout_s * 1000)):
            return
        while True:
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            message = self._read(frames)
            if message is not None:
                yield message

    def _read(self, frames: Sequence[bytes]) -> Columns | None:
        if len(frames) != 3 or not secrets.compare_digest(frames[0], self._key):
            return None
        header = msgspec.msgpack.decode(frames[1], type=_Header)
        # Where all probes were removed there are no columns, and no bytes that tell their number.
        number = sum(count for _, _, count in header.blocks)
        rows = np.frombuffer(frames[2], "<f8").reshape(number, header.width)
        blocks, at = [], 0
        for request, first, count in header.blocks:
            blocks.append(Block(request, first, rows[at : at + count]))
            at += count
        return Columns(header.probes, header.part, header.parts, header.ended, blocks)

    def close(self) -> None:
        """Give the socket and its folder back. A second call does nothing."""
        self._context.destroy(linger=0)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def is_reachable(address: str) -> bool:
    """Whether an inbox can be reached from here; see :attr:`ScoreInbox.address`."""
    way, _, where = address.partition("@")[2].partition("://")
    if way == "ipc":
        return Path(where).exists()
    host, _, port = where.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _REACH_S):
            return True
    except OSError:
        return False


class ScoreOutbox:
    """The worker's end, for any number of front ends. Two threads may send at once."""

    def __init__(self) -> None:
        self._context = zmq.Context()
        self._lock = Lock()
        self._sockets: OrderedDict[str, zmq.Socket[bytes]] = OrderedDict()
        self.dropped = 0
        """Messages that a front end did not take."""

    def send(self, address: str, message: Columns) -> None:
        """Hand a message over to ZeroMQ's own thread. What cannot be sent is dropped."""
        width = message.blocks[0].columns.shape[1]
        header = _Header(
            message.probes,
            message.part,
            message.parts,
            message.ended,
            width,
            [(block.request, block.first, len(block.columns)) for block in message.blocks],
        )
        rows = np.concatenate([block.columns for block in message.blocks], dtype="<f8")
        key, _, endpoint = address.partition("@")
        frames = [bytes.fromhex(key), msgspec.msgpack.encode(header), rows.tobytes()]
        with self._lock:
            if self._context.closed:
                return
            try:
                self._socket(endpoint).send_multipart(frames, zmq.NOBLOCK)
            except zmq.Again:
                self.dropped += 1
                if self.dropped.bit_count() == 1:  # the first, the second, the fourth, ...
                    logger.warning(
                        "a front end does not read the scores of its requests; %d messages were "
                        "dropped so far",
                        self.dropped,
                    )

    def _socket(self, endpoint: str) -> zmq.Socket[bytes]:
        socket = self._sockets.get(endpoint)
        if socket is None:
            socket = self._sockets[endpoint] = self._context.socket(zmq.PUSH)
            socket.set(zmq.SNDHWM, _QUEUED)
            socket.set(zmq.LINGER, 0)
            socket.set(zmq.IPV6, int("[" in endpoint))
            socket.connect(endpoint)
            if len(self._sockets) > _MAX_FRONT_ENDS:
                self._sockets.popitem(last=False)[1].close()
        self._sockets.move_to_end(endpoint)
        return socket

    def close(self, linger_s: float = 1.0) -> None:
        """Send what is queued, for at most so long. A second call does nothing."""
        with self._lock:
            self._context.destroy(linger=round(linger_s * 1000))
