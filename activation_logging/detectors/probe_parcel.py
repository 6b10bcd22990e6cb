"""The probes of a server as bytes, for its other processes: workers, and other API servers.

They do not read the files themselves: those may have been replaced since, and a probe that stays
must stay what it was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from activation_logging.detectors.saved_probe import SavedProbe
from activation_logging.detectors.served_probes import ServedProbes
from activation_logging.errors import ProbeError

if TYPE_CHECKING:
    from collections.abc import Iterator


class _Item(msgspec.Struct, array_like=True):
    name: str
    shadow: bool
    weights: bytes
    notes: bytes


def pack(served: ServedProbes) -> bytes:
    """All of the probes, in msgpack."""
    items = [_Item(name, one.shadow, *one.probe.packed()) for name, one in served.items()]
    return msgspec.msgpack.encode(items)


def unpack(parcel: bytes) -> ServedProbes:
    """Read what :func:`pack` made.

    Raises:
        ProbeError: it is something else.
    """
    try:
        items = msgspec.msgpack.decode(parcel, type=list[_Item])
    except msgspec.DecodeError as error:
        raise ProbeError(f"what another process sent is no list of probes: {error}") from None
    return ServedProbes(_read(items))


def _read(items: list[_Item]) -> Iterator[tuple[str, SavedProbe, bool]]:
    for item in items:
        name = f"the probe {item.name}"
        yield item.name, SavedProbe.unpack(name, item.weights, item.notes), item.shadow
