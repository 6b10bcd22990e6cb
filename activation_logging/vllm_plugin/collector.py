"""Tracks which rows belong to which request, and writes them when the request ends.

The collector receives vLLM's ``SchedulerOutput`` before every step. It tracks each request's block
table and the number of computed positions. The model writes the step's rows into the arena by
itself. When vLLM reports the request as finished, the collector queues its rows for the store. The
store's writer thread copies them from the arena, unless vLLM gives a block of theirs to another
request before: then they are copied at once.

vLLM can also take a request's blocks away before the request ends: it preempts one request, or all
of them when the engine goes to sleep. The collector then gathers the rows and *holds* them until
the request ends, or until it has been computed as far again.

The rows of a full block are stored once. Later captures refer to the stored rows. The collector
forgets a block as soon as vLLM gives it to another request.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from activation_logging.records import NEVER_RAN, Capture, Segment, SegmentSlice
from activation_logging.settings import RequestOptions, Settings
from activation_logging.sites import RESID, Site
from activation_logging.vllm_plugin.arena import COLUMNS, Unread, row_bytes
from activation_logging.vllm_plugin.origin import is_accepted, is_warm_up, scores_to
from activation_logging.vllm_plugin.pipeline import JoinedRows, RowSender
from activation_logging.vllm_plugin.score_sender import Listeners
from activation_logging.vllm_plugin.scorer import Columns, LiveScores

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from vllm.v1.core.sched.output import NewRequestData, SchedulerOutput

    from activation_logging.detectors.served_probes import ServedProbes
    from activation_logging.sites import RowShape
    from activation_logging.store import StoreWriter
    from activation_logging.vllm_plugin.arena import RowArena
    from activation_logging.vllm_plugin.pipeline import RowReceiver
    from activation_logging.vllm_plugin.score_sender import Due, StepScores
    from activation_logging.vllm_plugin.scorer import Scorer

HELD_BYTES = 512 << 20
"""Limit for the held rows of requests that have lost their blocks, bytes."""

_TOO_MUCH_HELD = (
    "it was preempted while {held} MB of rows of other preempted requests were held, and ended "
    "before its rows were computed again"
)


@dataclass
class _Request:
    """One request in flight: its block table, and the number of computed positions.

    ``scored`` says whether probes apply: not to an adapter, which is another model. ``columns`` are
    what they need of the answer, once it was gathered. ``held`` is the
    capture from the moment when vLLM took the blocks away, of ``held_bytes``. It is None once the
    request has been computed as far again (``held_computed`` positions).
    """

    options: RequestOptions
    prompt_len: int
    blocks: list[int]
    scored: bool
    columns: Columns | None = None
    computed: int = 0
    held: Capture | None = None
    held_bytes: int = 0
    held_computed: int = 0


class _Stored(NamedTuple):
    """Where the rows of a full block are stored: the segment, and the first row in it."""

    segment: bytes
    row: int


@dataclass
class _Plan:
    """The rows of one request: stored rows to refer to, and fresh rows to gather.

    ``fresh`` holds the slots to gather into ``segment``, one array for each of ``blocks``.
    ``full_blocks`` are the gathered blocks that later requests may share.
    """

    sites: tuple[Site, ...]
    first: int
    segment: bytes
    slices: list[SegmentSlice] = field(default_factory=list)
    fresh: list[npt.NDArray[np.int64]] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    num_fresh: int = 0
    full_blocks: dict[int, _Stored] = field(default_factory=dict)


class RowCollector:
    """Tracks requests through one worker and writes their rows when they end.

    Args:
        settings: what the server logs.
        shapes: what a row of each site is that is logged, of all pipeline stages, by the site's
            code.
        arena: holds the rows of all tokens in flight, of this stage's sites.
        writer: writes to the store, or sends to the last stage.
        others: has the rows of other stages; None if this one has all, or only sends its own.
        num_layers: the model's depth.
        hidden_size: elements of a row of the residual stream.
        block_size: slots per block of the tracked KV cache group.
        kv_group: index of that group in vLLM's block tables.
        accepted_only: log only requests that our front end has accepted.
        scorer: applies probes to the rows; None if there are none.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        shapes: Mapping[int, RowShape],
        arena: RowArena,
        writer: StoreWriter | RowSender,
        others: RowReceiver | None = None,
        num_layers: int,
        hidden_size: int,
        block_size: int,
        kv_group: int,
        accepted_only: bool = False,
        scorer: Scorer | None = None,
    ) -> None:
        self._settings = settings
        self._arena = arena
        self._writer = writer
        self._others = others
        self._sites = tuple(map(Site.from_code, sorted(shapes)))
        self._num_layers = num_layers
        self._hidden_size = hidden_size
        self._shapes = shapes
        self._block_size = block_size
        self._kv_group = kv_group
        self._accepted_only = accepted_only
        self._scorer = scorer
        self._requests: dict[str, _Request] = {}
        self._stored: dict[int, _Stored] = {}
        self._unread = Unread()
        self._held_bytes = 0
        self._listeners = Listeners()
        self._segment_numbers = count()

    def before_step(self, step: SchedulerOutput) -> None:
        """Apply a scheduler output, before the step overwrites any slot.

        Rows of finished and preempted requests are gathered first: the step may give their blocks
        to other requests, or copy into them.
        """
        self.finish(step.finished_req_ids)
        self.hold(step.preempted_req_ids or ())
        if step.kv_cache_block_copies:
            self._copy_blocks(step.kv_cache_block_copies)
        for new in step.scheduled_new_reqs:
            if is_warm_up(new.req_id):
                continue
            request = self._begin(new)
            self._forget(request.blocks[-(-new.num_computed_tokens // self._block_size) :])
            self._advance(new.req_id, new.num_computed_tokens, step)
        cached = step.scheduled_cached_reqs
        for name, new_blocks, computed in zip(
            cached.req_ids, cached.new_block_ids, cached.num_computed_tokens, strict=True
        ):
            known = self._requests.get(name)
            if known is None:
                continue
            if name in cached.resumed_req_ids:
                # A resumed request starts over on new blocks.
                known.blocks = []
            if new_blocks is not None:
                added = new_blocks[self._kv_group]
                first = len(known.blocks)
                known.blocks.extend(added)
                self._forget(added[max(-(-computed // self._block_size) - first, 0) :])
            self._advance(name, computed, step)

    def finish(self, names: Iterable[str]) -> None:
        """Queue the rows of requests that have ended. Unknown requests are skipped."""
        for name in names:
            request = self._requests.pop(name, None)
            if request is None:
                continue
            held = request.held
            self._release(request)
            if not request.options.enabled:
                continue
            if held is not None:
                self._writer.put_capture(held)
            else:
                plan = self._plan(request)
                if self._writer.put_capture(self._gather(name, request, plan)):
                    self._stored.update(plan.full_blocks)
            self._listeners.end(name, request.columns)

    def hold(self, names: Iterable[str]) -> None:
        """Gather the rows of requests that lose their blocks before they end.

        A request that is held already keeps its older capture: it lost its blocks again before it
        had been computed as far.
        """
        for name in names:
            request = self._requests.get(name)
            if request is None or not request.options.enabled or request.held is not None:
                continue
            plan = self._plan(request)
            request.held_bytes = self._nbytes(plan) + self._score_bytes(request)
            if self._held_bytes + request.held_bytes > HELD_BYTES:
                reason = _TOO_MUCH_HELD.format(held=self._held_bytes >> 20)
                request.held_bytes = self._score_bytes(request)
                bare = self._without_rows(name, plan, reason)
                request.held = self._with_scores(bare, request)
            else:
                request.held = self._gather(name, request, plan)
            request.held_computed = request.computed
            self._held_bytes += request.held_bytes

    def hold_all(self) -> None:
        """Hold all requests, because the KV cache is about to lose its memory."""
        self.hold(list(self._requests))
        self._stored.clear()

    def load_probes(self, served: ServedProbes) -> None:
        """Take these probes in place of the others, of a server that has some.

        Raises:
            ProbeError: one does not fit, and the others stay.
        """
        assert self._scorer is not None
        # The columns of every slot are about to change.
        self._unread.gather_all()
        self._scorer.load(served)

    def scores_due(self) -> StepScores:
        """What goes to front ends, after the device has been told of the step."""

        def read(due: Sequence[Due]) -> Columns:
            slots = [self._slots(self._requests[one.request], one.first, one.count) for one in due]
            return self._columns(np.concatenate(slots))

        return self._listeners.take(read)

    def settle(self, names: Iterable[str]) -> None:
        """Record that requests have no rows: they ended before they reached this worker."""
        for name in names:
            if name not in self._requests:
                nothing = _Plan(self._sites, 0, b"")
                self._writer.put_capture(self._without_rows(name, nothing, NEVER_RAN))

    def close(self) -> None:
        """Write the rows of all requests in flight, and wait for the store."""
        self.finish(list(self._requests))
        self._writer.close()
        if self._others is not None:
            self._others.close()

    def flush(self, finished: Iterable[str], unseen: Iterable[str] = ()) -> None:
        """Write the rows of these requests, and return when everything is committed.

        Args:
            finished: requests that have ended. vLLM may not have told this worker yet.
            unseen: requests that ended and may never have reached this worker; see :meth:`settle`.
        """
        self.finish(finished)
        self.settle(unseen)
        self._writer.flush()

    def _begin(self, new: NewRequestData) -> _Request:
        """Start to track a request. A known one starts over on new blocks."""
        blocks = list(new.block_ids[self._kv_group])
        known = self._requests.get(new.req_id)
        if known is not None:
            known.blocks = blocks
            return known
        arguments = new.sampling_params.extra_args if new.sampling_params else None
        if self._accepted_only and not is_accepted(arguments):
            options = RequestOptions(enabled=False)
        else:
            options = RequestOptions.parse(
                arguments, settings=self._settings, num_layers=self._num_layers
            )
        scored = new.lora_request is None
        request = self._requests[new.req_id] = _Request(options, new.prompt_len, blocks, scored)
        to = scores_to(arguments)
        if scored and to is not None:
            first, live = new.prompt_len - 1, bool(options.scores)
            self._listeners.begin(new.req_id, to, first, live=live)
        return request

    def _advance(self, name: str, computed: int, step: SchedulerOutput) -> None:
        request = self._requests[name]
        request.computed = computed + step.num_scheduled_tokens[name]
        self._listeners.advance(name, computed, request.computed)
        if request.held is not None and request.computed >= request.held_computed:
            self._release(request)

    def _release(self, request: _Request) -> None:
        if request.held is not None:
            self._held_bytes -= request.held_bytes
            request.held = None

    def _forget(self, blocks: Iterable[int]) -> None:
        """Blocks get other rows: those that they have are copied, if anybody still wants them."""
        for block in blocks:
            self._stored.pop(block, None)
            self._unread.gather(block)

    def _copy_blocks(self, copies: Iterable[tuple[int, int]]) -> None:
        """Repeat vLLM's copies of blocks, of which only a part matches a cached prefix.

        vLLM lists the copies of all KV cache groups together. Copies of other groups move rows
        that are never read.
        """
        pairs = np.array([tuple(pair) for pair in copies], dtype=np.int64)
        slots = pairs[:, :, None] * self._block_size + np.arange(self._block_size)
        self._forget(pairs[:, 1].tolist())
        self._arena.copy(slots[:, 0].reshape(-1), slots[:, 1].reshape(-1))

    def _plan(self, request: _Request) -> _Plan:
        """Decide which of a request's rows are stored already, and which must be gathered."""
        tokens = request.options.tokens or self._settings.tokens
        first = request.prompt_len - 1 if tokens == "response" else 0
        end = min(request.computed, request.prompt_len) if tokens == "prompt" else request.computed
        plan = _Plan(self._wanted(request.options), first, self._new_segment_id())
        # Only requests that log all of the server's sites share rows.
        shares = len(plan.sites) == len(self._sites)
        position, size = first, self._block_size
        while position < end:
            number, offset = divmod(position, size)
            block = request.blocks[number]
            rows = min(size - offset, end - position)
            stored = self._stored.get(block) if shares else None
            if stored is not None:
                part = SegmentSlice(stored.segment, stored.row + offset, rows)
            else:
                part = SegmentSlice(plan.segment, plan.num_fresh, rows)
                if shares and rows == size:
                    plan.full_blocks[block] = _Stored(plan.segment, plan.num_fresh)
                plan.blocks.append(block)
                start = block * size + offset
                plan.fresh.append(np.arange(start, start + rows, dtype=np.int64))
                plan.num_fresh += rows
            _append_slice(plan.slices, part)
            position += rows
        return plan

    def _gather(self, name: str, request: _Request, plan: _Plan) -> Capture:
        """The capture of a plan. Its fresh rows are copied later."""
        segments: tuple[Segment, ...] = ()
        if plan.fresh:
            codes = [site.code for site in plan.sites]
            here = [code for code in codes if code in self._arena.shapes]
            found = self._arena.read(np.concatenate(plan.fresh), here)
            self._unread.add(found, plan.blocks)
            rows: Mapping[int, npt.NDArray[Any]] = found
            if self._others is not None:
                away = [code for code in codes if code not in here]
                rows = JoinedRows(found, self._others, name, away, plan.num_fresh)
            segments = (Segment(plan.segment, rows, self._nbytes(plan)),)
        bare = self._without_rows(name, plan)
        whole = replace(bare, slices=plan.slices, segments=segments)
        return self._with_scores(whole, request)

    def _with_scores(self, capture: Capture, request: _Request) -> Capture:
        """The same with the scores of a request, which are computed later.

        A stage that only sends its rows sends its columns like those of a segment.
        """
        first, scorer = request.prompt_len - 1, self._scorer
        count = self._num_scored(request)
        if scorer is None or not count:
            return capture
        request.columns = columns = self._columns(self._slots(request, first, count))
        if isinstance(self._writer, RowSender):
            return replace(capture, segments=(*capture.segments, Segment(b"", columns.rows, 0)))
        if self._others is not None:
            rows = JoinedRows(columns.rows, self._others, capture.id, scorer.away, count)
            columns = Columns(scorer.layout, rows, count)
        return replace(capture, scores=LiveScores(columns, first))

    def _slots(self, request: _Request, first: int, count: int) -> npt.NDArray[np.int64]:
        """The slots of some positions of a request."""
        positions = np.arange(first, first + count)
        blocks = np.array(request.blocks, np.int64)[positions // self._block_size]
        return blocks * self._block_size + positions % self._block_size

    def _columns(self, slots: npt.NDArray[np.int64]) -> Columns:
        """What this stage has of the columns of some slots. They are read later."""
        assert self._scorer is not None
        found = self._scorer.read(slots)
        self._unread.add(found.rows, np.unique(slots // self._block_size).tolist())
        return found

    def _num_scored(self, request: _Request) -> int:
        """At how many positions a request has scores: from the prompt's last on."""
        if self._scorer is None or not request.scored:
            return 0
        return max(request.computed - request.prompt_len + 1, 0)

    def _score_bytes(self, request: _Request) -> int:
        sites = 0 if self._scorer is None else len(self._scorer.here) + len(self._scorer.away)
        return self._num_scored(request) * sites * row_bytes(COLUMNS)

    def _without_rows(self, name: str, plan: _Plan, reason: str | None = None) -> Capture:
        layers = tuple(site.layer for site in plan.sites if site.name == RESID)
        last = self._shapes.get(self._num_layers, next(iter(self._shapes.values())))
        return Capture(
            id=name,
            layers=layers,
            num_layers=self._num_layers,
            hidden_size=self._hidden_size,
            dtype=last.dtype,
            first=plan.first,
            slices=(),
            dropped=reason,
            sites={s.code: self._shapes[s.code] for s in plan.sites if s.name != RESID},
        )

    def _nbytes(self, plan: _Plan) -> int:
        return plan.num_fresh * sum(row_bytes(self._shapes[site.code]) for site in plan.sites)

    def _wanted(self, options: RequestOptions) -> tuple[Site, ...]:
        return options.chosen(self._sites, self._num_layers)

    def _new_segment_id(self) -> bytes:
        return bytes.fromhex(self._writer.id) + next(self._segment_numbers).to_bytes(8, "big")


def _append_slice(slices: list[SegmentSlice], part: SegmentSlice) -> None:
    """Append a slice, or extend the last one if the rows continue without a gap."""
    if slices:
        last = slices[-1]
        if last.segment == part.segment and last.start + last.rows == part.start:
            slices[-1] = last._replace(rows=last.rows + part.rows)
            return
    slices.append(part)
