"""Which rows belong to which request, and handing them over when a request ends.

Fed with vLLM's ``SchedulerOutput`` before every step and with the step's hidden states after
it. It follows each request's block table and how far it has been computed; when vLLM reports
the request as finished, it gathers the rows from the arena and queues them for the store.

Full blocks whose rows are already in the store are not stored again: the capture refers to
them. A block is forgotten as soon as vLLM gives it to another request.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

import torch

from activation_logging.records import Capture, Segment, SegmentSlice
from activation_logging.settings import RequestOptions, Settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vllm.v1.core.sched.output import SchedulerOutput

    from activation_logging.store import StoreWriter
    from activation_logging.vllm_plugin.arena import RowArena

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass
class _Request:
    """One request in flight: its block table, and how many positions have been computed."""

    options: RequestOptions
    prompt_len: int
    blocks: list[int]
    computed: int


class _Stored(NamedTuple):
    """Where the rows of a full block lie in the store."""

    segment: bytes
    row: int


class RowCollector:
    """Follows requests through one worker and writes their rows when they end."""

    def __init__(
        self,
        settings: Settings,
        *,
        arena: RowArena,
        writer: StoreWriter,
        layers: Sequence[int],
        num_layers: int,
        hidden_size: int,
        model_dtype: torch.dtype,
        block_size: int,
        kv_group: int,
    ) -> None:
        self._settings = settings
        self._arena = arena
        self._writer = writer
        self._layers = tuple(layers)
        self._num_layers = num_layers
        self._hidden_size = hidden_size
        self._dtype = DTYPES.get(settings.dtype, model_dtype)
        self._block_size = block_size
        self._kv_group = kv_group
        self._requests: dict[str, _Request] = {}
        self._stored: dict[int, _Stored] = {}
        self._segment_numbers = count()

    def before_step(self, step: SchedulerOutput) -> None:
        """Write out what has finished, and take over the step's block tables."""
        self.finish(step.finished_req_ids)
        for new in step.scheduled_new_reqs:
            params = new.sampling_params
            options = RequestOptions.parse(
                params.extra_args if params else None, allowed_layers=self._settings.layers
            )
            blocks = list(new.block_ids[self._kv_group])
            self._requests[new.req_id] = _Request(options, new.prompt_len, blocks, 0)
            self._forget(blocks[-(-new.num_computed_tokens // self._block_size) :])
            self._advance(new.req_id, new.num_computed_tokens, step)
        cached = step.scheduled_cached_reqs
        for name, new_blocks, computed in zip(
            cached.req_ids, cached.new_block_ids, cached.num_computed_tokens, strict=True
        ):
            request = self._requests.get(name)
            if request is None:
                continue
            if name in cached.resumed_req_ids:
                # After a preemption the request starts again on other blocks.
                request.blocks = []
            if new_blocks is not None:
                added = new_blocks[self._kv_group]
                first = len(request.blocks)
                request.blocks.extend(added)
                self._forget(added[max(-(-computed // self._block_size) - first, 0) :])
            self._advance(name, computed, step)

    def after_step(self, slots: torch.Tensor, states: Sequence[torch.Tensor]) -> None:
        """Keep the step's hidden states; see :meth:`RowArena.write`."""
        self._arena.write(slots, states)

    def finish(self, names: Iterable[str]) -> None:
        """Queue the rows of requests that have ended; unknown ones are none of ours."""
        for name in names:
            request = self._requests.pop(name, None)
            if request is not None and request.options.enabled:
                capture, full_blocks = self._capture(name, request)
                if self._writer.put_capture(capture):
                    self._stored.update(full_blocks)

    def close(self) -> None:
        """Write out what is still in flight, and wait for the store."""
        self.finish(list(self._requests))
        self._writer.close()

    def flush(self, finished: Iterable[str]) -> None:
        """Write out these requests, and return when everything is committed."""
        self.finish(finished)
        self._writer.flush()

    def _advance(self, name: str, computed: int, step: SchedulerOutput) -> None:
        self._requests[name].computed = computed + step.num_scheduled_tokens[name]

    def _forget(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            self._stored.pop(block, None)

    def _capture(self, name: str, request: _Request) -> tuple[Capture, dict[int, _Stored]]:
        """A request's rows, and the full blocks among them that others may now refer to."""
        tokens = request.options.tokens or self._settings.tokens
        first = request.prompt_len - 1 if tokens == "response" else 0
        end = min(request.computed, request.prompt_len) if tokens == "prompt" else request.computed
        layers = self._wanted_layers(request.options)
        # Rows are shared only among requests that keep the same layers.
        shares = len(layers) == len(self._layers)

        segment = self._new_segment_id()
        slices: list[SegmentSlice] = []
        fresh: list[int] = []
        full_blocks: dict[int, _Stored] = {}
        position = first
        size = self._block_size
        while position < end:
            number, offset = divmod(position, size)
            block = request.blocks[number]
            rows = min(size - offset, end - position)
            stored = self._stored.get(block) if shares else None
            if stored is not None:
                part = SegmentSlice(stored.segment, stored.row + offset, rows)
            else:
                part = SegmentSlice(segment, len(fresh), rows)
                if rows == size:
                    full_blocks[block] = _Stored(segment, len(fresh))
                fresh.extend(range(block * size + offset, block * size + offset + rows))
            _append_slice(slices, part)
            position += rows
        segments: tuple[Segment, ...] = ()
        if fresh:
            places = {layer: self._layers.index(layer) for layer in layers}
            nbytes = len(fresh) * len(layers) * self._hidden_size * self._dtype.itemsize
            segments = (Segment(segment, self._arena.read(fresh, places, self._dtype), nbytes),)
        capture = Capture(
            id=name,
            layers=layers,
            num_layers=self._num_layers,
            hidden_size=self._hidden_size,
            dtype=str(self._dtype).removeprefix("torch."),
            first=first,
            slices=slices,
            segments=segments,
        )
        return capture, full_blocks if shares else {}

    def _wanted_layers(self, options: RequestOptions) -> tuple[int, ...]:
        if options.layers is None:
            return self._layers
        wanted = {self._num_layers if layer == "last" else layer for layer in options.layers}
        return tuple(layer for layer in self._layers if layer in wanted)

    def _new_segment_id(self) -> bytes:
        return bytes.fromhex(self._writer.id) + next(self._segment_numbers).to_bytes(8, "big")


def _append_slice(slices: list[SegmentSlice], part: SegmentSlice) -> None:
    """Append a slice, joining it to the one before where the rows go on without a gap."""
    if slices:
        last = slices[-1]
        if last.segment == part.segment and last.start + last.rows == part.start:
            slices[-1] = last._replace(rows=last.rows + part.rows)
            return
    slices.append(part)
