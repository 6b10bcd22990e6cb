"""The rows of every token in flight, kept where vLLM keeps that token's key and value.

vLLM stores the key and value of each token it computes in a *slot* of its paged KV cache,
and hands out the slot of every scheduled token as ``slot_mapping``. The arena has one row
per slot and layer: after each forward pass it scatters the hidden states to the same slots.
So a row lives exactly as long as the token's key and value do, and everything that vLLM does
with its cache holds for rows too, without a special case: batching, chunked prefill,
preemption, and above all prefix-cache hits, whose rows are already there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch


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
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None

    @property
    def nbytes(self) -> int:
        return self._rows.nbytes

    def write(self, slots: torch.Tensor, states: Sequence[torch.Tensor]) -> None:
        """Scatter one step's hidden states.

        Args:
            slots: slot of every scheduled token, int64 ``[tokens]``, on the device.
            states: per logged layer, ``[at least tokens, hidden]``; rows beyond are padding.
        """
        for block, state in zip(self._rows, states, strict=True):
            block.index_copy_(0, slots, state[: slots.shape[0]])

    def read(
        self, slots: Sequence[int], layers: Mapping[int, int], dtype: torch.dtype
    ) -> Mapping[int, npt.NDArray[Any]]:
        """Gather the rows of some slots; they may be overwritten right after.

        Args:
            slots: slots in the order wanted.
            layers: number of each layer wanted, and its place in the arena.
            dtype: what to convert to.

        Returns:
            ``{layer: [len(slots), hidden]}``, bfloat16 as its bits in uint16.
        """
        index = torch.tensor(slots, dtype=torch.int64, device=self._rows.device)
        rows = {
            layer: self._rows[place].index_select(0, index).to(dtype)
            for layer, place in layers.items()
        }
        if self._copies is None:
            return {layer: _as_numpy(block) for layer, block in rows.items()}
        return _RowsOnTheirWay(rows, self._copies)


class _RowsOnTheirWay(Mapping[int, npt.NDArray[Any]]):
    """Rows being copied to pinned memory on a side stream; only looking at one waits for it.

    The forward pass is never blocked: the gather is queued on its stream, the copy beside it.
    """

    def __init__(self, rows: Mapping[int, torch.Tensor], stream: torch.cuda.Stream) -> None:
        stream.wait_stream(torch.cuda.current_stream(stream.device))
        self._host: dict[int, torch.Tensor] = {}
        with torch.cuda.stream(stream):
            for layer, block in rows.items():
                host = torch.empty(block.shape, dtype=block.dtype, pin_memory=True)
                host.copy_(block, non_blocking=True)
                block.record_stream(stream)
                self._host[layer] = host
            self._arrived = torch.cuda.Event()
            self._arrived.record(stream)

    def __getitem__(self, layer: int) -> npt.NDArray[Any]:
        self._arrived.synchronize()
        return _as_numpy(self._host[layer])

    def __iter__(self) -> Iterator[int]:
        return iter(self._host)

    def __len__(self) -> int:
        return len(self._host)


def _as_numpy(block: torch.Tensor) -> npt.NDArray[Any]:
    if block.dtype == torch.bfloat16:
        return block.view(torch.int16).numpy().view(np.uint16)
    return block.numpy()
