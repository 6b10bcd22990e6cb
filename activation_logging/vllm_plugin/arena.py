"""The rows of every token in flight, kept where vLLM keeps that token's key and value.

vLLM stores the key and value of each computed token in a *slot* of its paged KV cache, and
publishes the slot of every scheduled token as ``slot_mapping``. The arena has one row per slot
and site. The model itself scatters each site's tensor to the same slots (:mod:`.capture`).

A row therefore lives exactly as long as the token's key and value. Batching, chunked prefill and
prefix-cache hits need no special case: the rows of a cached prefix are already in the arena.
When vLLM copies blocks, the arena copies them too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

if TYPE_CHECKING:
    from activation_logging.sites import RowShape

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""By the names that records have for them."""

STAGING_BYTES = 16 << 20
"""Size of one staging buffer on the device, bytes. Rows leave through two of them."""


def staging_bytes(shapes: Mapping[int, RowShape], device: torch.device) -> int:
    """Device memory that an arena needs in addition to its rows, bytes."""
    if device.type != "cuda" or not shapes:
        return 0
    return 2 * max(STAGING_BYTES, *(row_bytes(shape) for shape in shapes.values()))


def row_bytes(shape: RowShape) -> int:
    """Bytes of one row of a site."""
    return shape.width * DTYPES[shape.dtype].itemsize


class RowArena:
    """For each site ``[slots, width]`` on the model's device.

    Args:
        shapes: what a row of each site is, by the site's code.
        num_slots: slots of the KV cache group that the arena follows.
        device: the model's.
    """

    def __init__(
        self, shapes: Mapping[int, RowShape], *, num_slots: int, device: torch.device
    ) -> None:
        self._shapes = dict(shapes)
        self._device = device
        self._num_slots = num_slots
        # One row more: padding, which has no slot, is written there.
        self._rows = {
            code: torch.empty(
                (num_slots + 1, shape.width), dtype=DTYPES[shape.dtype], device=device
            )
            for code, shape in self._shapes.items()
        }
        self._host_copier = (
            _HostCopier(self._rows, staging_bytes(shapes, device) // 2, device)
            if device.type == "cuda"
            else None
        )

    @property
    def shapes(self) -> Mapping[int, RowShape]:
        """What a row of each site is, by the site's code."""
        return self._shapes

    @property
    def nbytes(self) -> int:
        """Device memory of the rows and the staging buffers, bytes."""
        return sum(rows.nbytes for rows in self._rows.values()) + staging_bytes(
            self._shapes, self._device
        )

    def write(
        self, code: int, slots: torch.Tensor, x: torch.Tensor, residual: torch.Tensor | None
    ) -> None:
        """Scatter one step's rows of one site.

        Args:
            code: the site's; one that is not kept here is ignored.
            slots: slot of every token, int64 ``[tokens]``, on the device; -1 for padding.
            x: ``[>= tokens, ...]`` of the site's width; rows after the tokens are padding.
            residual: is added to ``x`` if given: as many rows, or one for all, such as a bias.
        """
        rows = self._rows.get(code)
        if rows is None:
            return
        x = x.reshape(-1, rows.shape[1])
        slots = slots[: x.shape[0]]
        x = x[: slots.shape[0]]
        if residual is not None:
            x = x + residual.reshape(-1, rows.shape[1])[: slots.shape[0]]
        target = torch.where(slots < 0, self._num_slots, slots)
        rows.index_copy_(0, target, x.to(rows.dtype))

    def copy(self, sources: npt.NDArray[np.int64], targets: npt.NDArray[np.int64]) -> None:
        """Copy rows between slots. All sources are read before any target is written."""
        source, target = self._to_device(sources), self._to_device(targets)
        for rows in self._rows.values():
            rows.index_copy_(0, target, rows.index_select(0, source))

    def read(
        self, slots: npt.NDArray[np.int64], dtypes: Mapping[int, torch.dtype]
    ) -> Mapping[int, npt.NDArray[Any]]:
        """Gather the rows of some slots. The slots may be overwritten as soon as this returns.

        On an accelerator the call does not block. The gather is queued behind the forward pass,
        and a side stream copies to pinned memory. Only access to a site's rows waits for the copy.

        Args:
            slots: slots in the order wanted, int64 ``[rows]``.
            dtypes: for each site wanted, by its code, the type to convert to.

        Returns:
            ``{code: [rows, width]}``, bfloat16 as its bits in uint16.
        """
        index = self._to_device(slots)
        if self._host_copier is not None:
            return self._host_copier.read(index, dtypes)
        return {
            code: _as_numpy(self._rows[code].index_select(0, index), dtype)
            for code, dtype in dtypes.items()
        }

    def fill(self, slots: npt.NDArray[np.int64], value: float) -> None:
        """Overwrite the rows of some slots, of all sites, with one value."""
        index = self._to_device(slots)
        for rows in self._rows.values():
            rows.index_fill_(0, index, value)

    def differ(
        self, slots: npt.NDArray[np.int64], value: float
    ) -> dict[int, npt.NDArray[np.bool_]]:
        """For each site, which rows have an element other than ``value``, bool ``[slots]``."""
        return {
            code: (self.rows_at(code, slots) != value).any(dim=-1).cpu().numpy()
            for code in self._rows
        }

    def rows_at(self, code: int, slots: npt.NDArray[np.int64]) -> torch.Tensor:
        """The rows of some slots of one site, on the device, ``[slots, width]``."""
        return self._rows[code].index_select(0, self._to_device(slots))

    def wait(self) -> None:
        """Wait for all copies to the host. Afterwards the arena's memory may be freed."""
        if self._host_copier is not None:
            self._host_copier.wait()

    def _to_device(self, numbers: npt.NDArray[np.int64]) -> torch.Tensor:
        """Copy through pinned memory: a copy from pageable memory would wait for the device."""
        tensor = torch.from_numpy(numbers)
        if self._host_copier is None:
            return tensor
        return tensor.pin_memory().to(self._device, non_blocking=True)


class _HostCopier:
    """Copies rows to the host through two alternating staging buffers.

    The forward pass waits only if more rows leave at once than fit into both buffers.
    """

    def __init__(
        self, rows: Mapping[int, torch.Tensor], buffer_bytes: int, device: torch.device
    ) -> None:
        self._rows = rows
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._buffers = [
            (torch.empty(buffer_bytes, dtype=torch.uint8, device=device), torch.cuda.Event())
            for _ in range(2)
        ]

    def wait(self) -> None:
        self._stream.synchronize()

    def read(self, index: torch.Tensor, dtypes: Mapping[int, torch.dtype]) -> _PendingRows:
        host: dict[int, torch.Tensor] = {}
        for code in dtypes:
            rows = self._rows[code]
            host[code] = torch.empty((len(index), rows.shape[1]), dtype=rows.dtype, pin_memory=True)
            piece = max(self._buffers[0][0].numel() // (rows.shape[1] * rows.itemsize), 1)
            for start in range(0, len(index), piece):
                some = index[start : start + piece]
                self._send(rows, some, host[code][start : start + piece])
        arrived = torch.cuda.Event()
        arrived.record(self._stream)
        return _PendingRows(host, arrived, dtypes)

    def _send(self, rows: torch.Tensor, index: torch.Tensor, target: torch.Tensor) -> None:
        self._buffers.reverse()
        buffer, free = self._buffers[0]
        forward = torch.cuda.current_stream(self._device)
        forward.wait_event(free)
        size = len(index) * rows.shape[1] * rows.itemsize
        gathered = buffer[:size].view(rows.dtype).view(len(index), rows.shape[1])
        torch.index_select(rows, 0, index, out=gathered)
        self._stream.wait_stream(forward)
        with torch.cuda.stream(self._stream):
            target.copy_(gathered, non_blocking=True)
        free.record(self._stream)


class _PendingRows(Mapping[int, npt.NDArray[Any]]):
    """Rows that a side stream copies to pinned memory. Access to a site waits, then converts."""

    def __init__(
        self,
        host: Mapping[int, torch.Tensor],
        arrived: torch.cuda.Event,
        dtypes: Mapping[int, torch.dtype],
    ) -> None:
        self._host = host
        self._arrived = arrived
        self._dtypes = dtypes

    def __getitem__(self, code: int) -> npt.NDArray[Any]:
        self._arrived.synchronize()
        return _as_numpy(self._host[code], self._dtypes[code])

    def __iter__(self) -> Iterator[int]:
        return iter(self._host)

    def __len__(self) -> int:
        return len(self._host)


def _as_numpy(rows: torch.Tensor, dtype: torch.dtype) -> npt.NDArray[Any]:
    rows = rows.to(dtype)
    if dtype == torch.bfloat16:
        return rows.view(torch.int16).numpy().view(np.uint16)
    return rows.numpy()
