"""The rows of every token in flight, kept where vLLM keeps that token's key and value.

vLLM stores the key and value of each computed token in a *slot* of its paged KV cache, and
publishes the slot of every scheduled token as ``slot_mapping``. The arena has one row per slot
and site. The model itself scatters each site's tensor to the same slots (:mod:`.capture`).

A row therefore lives exactly as long as the token's key and value. Batching, chunked prefill and
prefix-cache hits need no special case: the rows of a cached prefix are already in the arena.
When vLLM copies blocks, the arena copies them too.

Of a site that probes read there are *columns* beside the rows: a few numbers per slot, which are
the row, as it is stored, times a matrix (:mod:`.scorer`). They are kept like the rows of a site of
their own, whose code is :func:`columns_code`. A site may have columns and no rows.

The rows lie in the memory of the host. A GPU writes them there itself: the memory is pinned and
mapped, so that the scatter is one kernel that writes across the bus while the step goes on. So
logging takes next to none of a GPU's own memory, whatever is logged (:func:`device_bytes`).
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from threading import Lock
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import psutil
import torch

from activation_logging.detectors.served_probes import CAPACITY
from activation_logging.errors import UnsupportedEngineError
from activation_logging.sites import RowShape, Site

if TYPE_CHECKING:
    from collections.abc import Iterable

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""By the names that records have for them."""
_TYPES = {**DTYPES, "float64": torch.float64}
"""The same, and that of columns."""
COLUMNS = RowShape((CAPACITY,), "float64")
"""What the columns of one slot are."""
_PIECE = 1024
"""How many rows are in float64 at once."""


def columns_code(code: int) -> int:
    """The code of the columns of a site. No site of a store has it, which has two bytes for it."""
    return code | 1 << 16


def site_of(code: int) -> Site:
    """The site of a code, or of its columns."""
    return Site.from_code(code & 0xFFFF)


def row_bytes(shape: RowShape) -> int:
    """Bytes of one row of a site."""
    return shape.width * _TYPES[shape.dtype].itemsize


def slot_bytes(shapes: Mapping[int, RowShape], scored: Collection[int] = ()) -> int:
    """Host memory of one slot, bytes: its rows, and the columns of the ``scored`` sites."""
    return sum(map(row_bytes, shapes.values())) + len(scored) * row_bytes(COLUMNS)


def device_bytes(
    shapes: Mapping[int, RowShape],
    num_tokens: int,
    element_bytes: int,
    device: torch.device,
    scored: Collection[int] = (),
) -> int:
    """A GPU's own memory that writing to an arena takes at most, bytes; elsewhere 0.

    One site is written at a time. On its way are the sum with the residual in the model's type, the
    same in the arena's, each token's slot twice, and of a scored site the columns and some of the
    rows in float64. The matrices stay there.

    Args:
        shapes: what a row of each site is, by the site's code: with rows, columns, or both.
        num_tokens: tokens of the largest step.
        element_bytes: of the model's type.
        device: the model's.
        scored: codes of the sites with columns.
    """
    if device.type != "cuda" or not shapes:
        return 0
    widest = max(shape.width * element_bytes + row_bytes(shape) for shape in shapes.values())
    passing = num_tokens * (widest + 2 * torch.int64.itemsize)
    widths = [shapes[code].width for code in scored]
    if not widths:
        return passing
    wide = min(num_tokens, _PIECE) * max(widths) * torch.float64.itemsize
    matrices = sum(widths) * row_bytes(COLUMNS)
    return passing + wide + num_tokens * row_bytes(COLUMNS) + matrices


class RowArena:
    """For each site ``[slots, width]`` in host memory, which the model's device writes to.

    Args:
        shapes: what a row of each site is, by the site's code: those whose rows are kept.
        num_slots: slots of the KV cache group that the arena follows. There is one row more, for
            padding.
        device: the model's.
        scored: the same of the sites that have columns.

    Attributes:
        matrices: by the codes of the scored sites, what makes the columns of a row: float64
            ``[width, CAPACITY]`` on the device, zero at first.
        in_use: by the same, how many columns are computed, from the first on.

    Raises:
        UnsupportedEngineError: the host has not that much memory, or CUDA cannot pin it.
    """

    def __init__(
        self,
        shapes: Mapping[int, RowShape],
        *,
        num_slots: int,
        device: torch.device,
        scored: Mapping[int, RowShape] = MappingProxyType({}),
    ) -> None:
        self._shapes = dict(shapes)
        written = {**scored, **shapes}
        self._types = {code: DTYPES[shape.dtype] for code, shape in written.items()}
        self._widths = {code: shape.width for code, shape in written.items()}
        self._device = device
        self._num_slots = num_slots
        self._pinned: list[int] = []
        self.matrices = {
            code: torch.zeros((shape.width, CAPACITY), dtype=torch.float64, device=device)
            for code, shape in scored.items()
        }
        self.in_use = dict.fromkeys(scored, CAPACITY)
        if device.type != "meta":
            _check_memory((num_slots + 1) * slot_bytes(shapes, scored), num_slots)
        kept = {**shapes, **{columns_code(code): COLUMNS for code in scored}}
        self._host = {code: self._allocate(num_slots + 1, shape) for code, shape in kept.items()}
        self._rows = {code: self._on_device(host) for code, host in self._host.items()}

    def _allocate(self, rows: int, shape: RowShape) -> torch.Tensor:
        dtype = _TYPES[shape.dtype]
        if self._device.type == "meta":
            return torch.empty((rows, shape.width), dtype=dtype, device=self._device)
        # Numpy's memory is in huge pages where the system allows: a step touches a page of each
        # site for every token, and the first touch of a small one costs more than the row.
        raw = np.empty((rows, shape.width * dtype.itemsize), np.uint8)
        host = torch.from_numpy(raw).view(dtype)
        if self._device.type == "cuda":
            # Torch's own allocator of pinned memory rounds up to a power of two.
            result = torch.cuda.cudart().cudaHostRegister(host.data_ptr(), host.nbytes, 0)
            # Of memory that is not pinned, the view on the device would be one of a copy.
            if result.value or not host.is_pinned():
                self.close()
                raise UnsupportedEngineError(
                    f"CUDA could not pin {host.nbytes >> 20} MiB of host memory for activations "
                    f"({result}): log fewer sites, or raise the limit of locked memory"
                )
            self._pinned.append(host.data_ptr())
        return host

    def _on_device(self, host: torch.Tensor) -> torch.Tensor:
        if self._device.type != "cuda":
            return host
        from vllm.utils.torch_utils import get_accelerator_view_from_cpu_tensor

        return get_accelerator_view_from_cpu_tensor(host)

    @property
    def shapes(self) -> Mapping[int, RowShape]:
        """What a row of each site is, by the site's code, where rows are kept."""
        return self._shapes

    @property
    def codes(self) -> Collection[int]:
        """The codes of all rows and columns."""
        return self._rows.keys()

    @property
    def nbytes(self) -> int:
        """Host memory of the rows and columns, bytes."""
        return sum(rows.nbytes for rows in self._host.values())

    def write(
        self, code: int, slots: torch.Tensor, x: torch.Tensor, residual: torch.Tensor | None
    ) -> None:
        """Scatter one step's rows of one site, and their columns.

        Args:
            code: the site's; one that is not kept here is ignored.
            slots: slot of every token, int64 ``[tokens]``, on the device; -1 for padding.
            x: ``[>= tokens, ...]`` of the site's width; rows after the tokens are padding.
            residual: is added to ``x`` if given: as many rows, or one for all, such as a bias.
        """
        dtype = self._types.get(code)
        if dtype is None:
            return
        rows, matrix = self._rows.get(code), self.matrices.get(code)
        width = self._widths[code]
        x = x.reshape(-1, width)
        slots = slots[: x.shape[0]]
        x = x[: slots.shape[0]]
        if residual is not None:
            x = x + residual.reshape(-1, width)[: slots.shape[0]]
        target = torch.where(slots < 0, self._num_slots, slots)
        stored = x.to(dtype)
        if rows is not None:
            rows.index_copy_(0, target, stored)
        if matrix is not None:
            used = self.in_use[code]
            columns, matrix = self._rows[columns_code(code)][:, :used], matrix[:, :used]
            for start in range(0, len(stored), _PIECE):
                piece = slice(start, start + _PIECE)
                columns.index_copy_(0, target[piece], stored[piece].double() @ matrix)

    def copy(self, sources: npt.NDArray[np.int64], targets: npt.NDArray[np.int64]) -> None:
        """Copy rows between slots. All sources are read before any target is written."""
        source, target = self._to_device(sources), self._to_device(targets)
        for rows in self._rows.values():
            rows.index_copy_(0, target, rows.index_select(0, source))

    def now(self) -> Moment:
        """The moment when all is written that the device has been told so far.

        The call waits for nothing. It belongs into the thread that runs the model.
        """
        if self._device.type != "cuda":
            return Moment(None)
        return Moment(torch.cuda.current_stream(self._device).record_event())

    def read(
        self, slots: npt.NDArray[np.int64], codes: Iterable[int], at: Moment | None = None
    ) -> SlotRows:
        """The rows of some slots, after all that the device has been told to write so far.

        Nothing is copied yet, and the call waits for nothing. Before a slot is written again,
        :meth:`SlotRows.gather` must have been called.

        Args:
            slots: slots in the order wanted, int64 ``[rows]``.
            codes: the sites wanted.
            at: an earlier moment, when these slots had their rows already; it suffices to wait for
                that.
        """
        return SlotRows({code: self._host[code] for code in codes}, slots, at or self.now())

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

    def use(self, code: int, count: int) -> None:
        """Compute only the first ``count`` columns of a site from now on."""
        # A captured graph has one width. A GPU computes all of them at the same time anyway.
        if self._device.type != "cuda":
            self.in_use[code] = count

    def forget(self, code: int, places: npt.NDArray[np.int64]) -> None:
        """Make some columns of a site NaN at every slot. ``places`` are int64 ``[n]``."""
        self._rows[columns_code(code)].index_fill_(1, self._to_device(places), float("nan"))

    def close(self) -> None:
        """Give the host memory back to the system. Nothing may be written any more."""
        for address in self._pinned:
            torch.cuda.cudart().cudaHostUnregister(address)
        self._pinned.clear()

    def _to_device(self, numbers: npt.NDArray[np.int64]) -> torch.Tensor:
        tensor = torch.from_numpy(numbers)
        return tensor.to(self._device) if self._device.type == "cuda" else tensor


@dataclass(frozen=True)
class Moment:
    """A moment in what the device does; None where it has done it at once."""

    event: torch.cuda.Event | None

    def wait(self) -> None:
        """Wait until then."""
        if self.event is not None:
            self.event.synchronize()


class SlotRows(Mapping[int, npt.NDArray[Any]]):
    """The rows of some slots, by the site's code: copied when they are first asked for.

    Each is ``[rows, width]``, bfloat16 as its bits in uint16. Two threads may ask at once.
    """

    def __init__(
        self,
        host: Mapping[int, torch.Tensor],
        slots: npt.NDArray[np.int64],
        written: Moment,
    ) -> None:
        self._host = host
        self._slots = slots
        self._written = written
        self._found: dict[int, npt.NDArray[Any]] = {}
        self._lock = Lock()

    def gather(self) -> None:
        """Copy all rows that have not been copied yet."""
        for code in self._host:
            self[code]

    def __getitem__(self, code: int) -> npt.NDArray[Any]:
        with self._lock:
            if code not in self._found:
                self._written.wait()
                # Numpy's, because torch would start threads of its own for the thread that asks.
                self._found[code] = _as_numpy(self._host[code]).take(self._slots, axis=0)
            return self._found[code]

    def __iter__(self) -> Iterator[int]:
        return iter(self._host)

    def __len__(self) -> int:
        return len(self._host)


class Unread:
    """Which rows that were asked for lie in which blocks, and were perhaps not copied yet.

    Two threads may use it at once.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._by_block: dict[int, list[weakref.ref[SlotRows]]] = {}

    def add(self, rows: SlotRows, blocks: Iterable[int]) -> None:
        """Note that these blocks hold these rows."""
        with self._lock:
            for block in blocks:
                known = [ref for ref in self._by_block.get(block, ()) if ref() is not None]
                self._by_block[block] = [*known, weakref.ref(rows)]

    def gather(self, block: int) -> None:
        """Copy what lies in a block, because its slots are about to be written again."""
        with self._lock:
            found = self._by_block.pop(block, ())
        for ref in found:
            rows = ref()
            if rows is not None:
                rows.gather()

    def gather_all(self) -> None:
        """Copy everything, because columns are about to change at every slot."""
        for block in list(self._by_block):
            self.gather(block)


def _check_memory(needed: int, num_slots: int) -> None:
    free = psutil.virtual_memory().available
    if needed > free:
        raise UnsupportedEngineError(
            f"the activations of {num_slots} tokens, which is what the KV cache holds, take "
            f"{needed / (1 << 30):.1f} GiB of host memory, and {free / (1 << 30):.1f} GiB are "
            "free: log fewer sites or layers, or give the KV cache less with "
            "--num-gpu-blocks-override, --kv-cache-memory-bytes or --gpu-memory-utilization"
        )


def _as_numpy(rows: torch.Tensor) -> npt.NDArray[Any]:
    if rows.dtype == torch.bfloat16:
        return rows.view(torch.int16).numpy().view(np.uint16)
    return rows.numpy()
