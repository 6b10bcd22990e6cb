"""The rows of every token in flight, kept where vLLM keeps that token's key and value.

vLLM stores the key and value of each computed token in a *slot* of its paged KV cache, and
publishes the slot of every scheduled token as ``slot_mapping``. The arena has one row per slot
and layer. After each forward pass it scatters the hidden states to the same slots.

A row therefore lives exactly as long as the token's key and value. Batching, chunked prefill and
prefix-cache hits need no special case: the rows of a cached prefix are already in the arena.
When vLLM copies blocks, the arena copies them too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

STAGING_BYTES = 16 << 20
"""Size of one staging buffer on the device, bytes. Rows leave through two of them."""


def staging_bytes(hidden_size: int, dtype: torch.dtype, device: torch.device) -> int:
    """Device memory that an arena needs in addition to its rows, bytes."""
    if device.type != "cuda":
        return 0
    row = hidden_size * dtype.itemsize
    return 2 * _piece(row) * row


def _piece(row_bytes: int) -> int:
    return max(STAGING_BYTES // row_bytes, 1)


class RowArena:
    """``[layer, slot, hidden]`` on the model's device, in the model's dtype."""

    def __init__(
        self,
        *,
        num_layers_logged: int,
        num_slots: int,
        hidden_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._rows = torch.empty(
            (num_layers_logged, num_slots, hidden_size), dtype=dtype, device=device
        )
        self._host_copier = _HostCopier(self._rows) if device.type == "cuda" else None

    @property
    def nbytes(self) -> int:
        """Device memory of the rows and the staging buffers, bytes."""
        rows = self._rows
        return rows.nbytes + staging_bytes(rows.shape[-1], rows.dtype, rows.device)

    def write(self, slots: torch.Tensor, states: Sequence[torch.Tensor]) -> None:
        """Scatter one step's hidden states.

        Args:
            slots: slot of every scheduled token, int64 ``[tokens]``, on the device.
            states: per logged layer, ``[>= tokens, hidden]``; rows after the tokens are padding.
        """
        for block, state in zip(self._rows, states, strict=True):
            block.index_copy_(0, slots, state[: slots.shape[0]])

    def copy(self, sources: npt.NDArray[np.int64], targets: npt.NDArray[np.int64]) -> None:
        """Copy rows between slots. All sources are read before any target is written."""
        source, target = self._to_device(sources), self._to_device(targets)
        for block in self._rows:
            block.index_copy_(0, target, block.index_select(0, source))

    def read(
        self, slots: npt.NDArray[np.int64], layers: Mapping[int, int], dtype: torch.dtype
    ) -> Mapping[int, npt.NDArray[Any]]:
        """Gather the rows of some slots. The slots may be overwritten as soon as this returns.

        On an accelerator the call does not block. The gather is queued behind the forward pass,
        and a side stream copies to pinned memory. Only access to a layer's rows waits for the copy.

        Args:
            slots: slots in the order wanted, int64 ``[rows]``.
            layers: layer number -> index of that layer in the arena.
            dtype: type to convert to.

        Returns:
            ``{layer: [rows, hidden]}``, bfloat16 as its bits in uint16.
        """
        index = self._to_device(slots)
        if self._host_copier is not None:
            return self._host_copier.read(index, layers, dtype)
        return {
            layer: _as_numpy(self._rows[place].index_select(0, index), dtype)
            for layer, place in layers.items()
        }

    def fill(self, slots: npt.NDArray[np.int64], value: float) -> None:
        """Overwrite the rows of some slots, in all layers, with one value."""
        self._rows.index_fill_(1, self._to_device(slots), value)

    def differ(self, slots: npt.NDArray[np.int64], value: float) -> npt.NDArray[np.bool_]:
        """Which rows have an element other than ``value``, bool ``[layers, slots]``."""
        rows = self._rows.index_select(1, self._to_device(slots))
        differing: npt.NDArray[np.bool_] = (rows != value).any(dim=-1).cpu().numpy()
        return differing

    def last_layer(self, slots: npt.NDArray[np.int64]) -> torch.Tensor:
        """The rows of some slots in the arena's last layer, on the device, ``[slots, hidden]``."""
        return self._rows[-1].index_select(0, self._to_device(slots))

    def wait(self) -> None:
        """Wait for all copies to the host. Afterwards the arena's memory may be freed."""
        if self._host_copier is not None:
            self._host_copier.wait()

    def _to_device(self, numbers: npt.NDArray[np.int64]) -> torch.Tensor:
        """Copy through pinned memory: a copy from pageable memory would wait for the device."""
        tensor = torch.from_numpy(numbers)
        if self._host_copier is None:
            return tensor
        return tensor.pin_memory().to(self._rows.device, non_blocking=True)


class _HostCopier:
    """Copies rows to the host through two alternating staging buffers.

    The forward pass waits only if more rows leave at once than fit into both buffers.
    """

    def __init__(self, rows: torch.Tensor) -> None:
        self._rows = rows
        self._stream = torch.cuda.Stream(rows.device)
        hidden = rows.shape[-1]
        self._piece = _piece(hidden * rows.itemsize)
        self._buffers = [
            (rows.new_empty((self._piece, hidden)), torch.cuda.Event()) for _ in range(2)
        ]

    def wait(self) -> None:
        self._stream.synchronize()

    def read(
        self, index: torch.Tensor, layers: Mapping[int, int], dtype: torch.dtype
    ) -> _PendingRows:
        shape = (len(index), self._rows.shape[-1])
        host: dict[int, torch.Tensor] = {}
        for layer, place in layers.items():
            host[layer] = torch.empty(shape, dtype=self._rows.dtype, pin_memory=True)
            for start in range(0, len(index), self._piece):
                piece = index[start : start + self._piece]
                self._send(place, piece, host[layer][start : start + self._piece])
        arrived = torch.cuda.Event()
        arrived.record(self._stream)
        return _PendingRows(host, arrived, dtype)

    def _send(self, place: int, index: torch.Tensor, target: torch.Tensor) -> None:
        self._buffers.reverse()
        buffer, free = self._buffers[0]
        forward = torch.cuda.current_stream(self._rows.device)
        forward.wait_event(free)
        gathered = buffer[: len(index)]
        torch.index_select(self._rows[place], 0, index, out=gathered)
        self._stream.wait_stream(forward)
        with torch.cuda.stream(self._stream):
            target.copy_(gathered, non_blocking=True)
        free.record(self._stream)


class _PendingRows(Mapping[int, npt.NDArray[Any]]):
    """Rows that a side stream copies to pinned memory. Access to a layer waits, then converts."""

    def __init__(
        self, host: Mapping[int, torch.Tensor], arrived: torch.cuda.Event, dtype: torch.dtype
    ) -> None:
        self._host = host
        self._arrived = arrived
        self._dtype = dtype

    def __getitem__(self, layer: int) -> npt.NDArray[Any]:
        self._arrived.synchronize()
        return _as_numpy(self._host[layer], self._dtype)

    def __iter__(self) -> Iterator[int]:
        return iter(self._host)

    def __len__(self) -> int:
        return len(self._host)


def _as_numpy(rows: torch.Tensor, dtype: torch.dtype) -> npt.NDArray[Any]:
    rows = rows.to(dtype)
    if dtype == torch.bfloat16:
        return rows.view(torch.int16).numpy().view(np.uint16)
    return rows.numpy()
