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

from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from activation_logging.records import NEVER_RAN, Capture
from activation_logging.settings import RequestOptions
from activation_logging.store import StoreWriter
from activation_logging.store.queued import Later
from activation_logging.vllm_plugin.captures import Captures, Request
from activation_logging.vllm_plugin.origin import is_accepted, is_kept, is_warm_up, scores_to
from activation_logging.vllm_plugin.score_sender import Listeners
from activation_logging.vllm_plugin.scorer import CapturedScores, Columns
from activation_logging.vllm_plugin.undecided import Ended, Undecided, Word

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from vllm.v1.core.sched.output import NewRequestData, SchedulerOutput

    from activation_logging.detectors.served_probes import ServedProbes
    from activation_logging.vllm_plugin.plan import Plan
    from activation_logging.vllm_plugin.score_sender import Due, StepScores

HELD_BYTES = 512 << 20
"""Limit for the held rows of requests that have lost their blocks, bytes."""

_TOO_MUCH_HELD = (
    "it was preempted while {held} MB of rows of other preempted requests were held, and ended "
    "before its rows were computed again"
)


class RowCollector:
    """Tracks requests through one worker and writes their rows when they end.

    Args:
        captures: makes the captures of requests; has the arena and the writer.
        kv_group: index of the tracked KV cache group in vLLM's block tables.
        accepted_only: log only requests that our front end has accepted.
    """

    def __init__(self, captures: Captures, *, kv_group: int, accepted_only: bool = False) -> None:
        self._captures = captures
        self._arena = captures.arena
        self._writer = captures.writer
        self._block_size = captures.block_size
        self._kv_group = kv_group
        self._accepted_only = accepted_only
        self._requests: dict[str, Request] = {}
        self._keep = captures.settings.keeping
        self._undecided = Undecided()
        self._held_bytes = 0
        self._listeners = Listeners()
        if captures.others is None and isinstance(self._writer, StoreWriter):
            # Other stages would not know of it, and share other rows.
            self._writer.share(self.give_up)

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
            with self._writer.planning:
                request = self._requests.pop(name, None)
                if request is not None and request.options.enabled:
                    self._end(name, request)
                    self._listeners.end(name, request.columns)
                elif request is not None:
                    self._release(request)

    def _end(self, name: str, request: Request) -> None:
        """Queue the rows of a request that has ended, once it is known whether they are kept."""
        held, held_bytes = request.held, 0 if request.held is None else request.held_bytes
        if held is None:
            request.bare = self._captures.bare(name, request)
        request.held = None
        ended = Ended(name, request, self._arena.now(), held, held_bytes)
        waits = not request.kept and bool(self._keep.finish or self._keep.scores)
        if not waits:
            self._put(ended)
            return
        self._undecided.add(ended)
        if request.word is not None:
            self._decide(ended, request.word)

    def hear(self, words: Mapping[str, tuple[bool, int]]) -> None:
        """Take what the front end says of answers that have ended.

        Args:
            words: by the names of requests, see :class:`.Word`. vLLM may not have told this worker
                yet that they have ended. Unknown requests are skipped.
        """
        with self._writer.planning:
            for name, word in words.items():
                request, ended = self._requests.get(name), self._undecided.get(name)
                if request is not None:
                    request.word = Word(*word)
                elif ended is not None:
                    self._decide(ended, Word(*word))

    def _decide(self, ended: Ended, word: Word) -> None:
        """Decide whether the rows of an answer are kept, or have the writer's thread do so."""
        request = ended.request
        scores = request.bare.scores
        request.kept = request.kept or word.keeps
        if request.kept or not (self._keep.scores and isinstance(scores, CapturedScores)):
            self._put(ended)
            return
        assert isinstance(self._writer, StoreWriter)
        later = Later(
            lambda: self._judge(ended, scores, word.states), self._captures.most_bytes(request)
        )
        if not self._writer.put_later(request.bare, later):
            self._undecided.remove(ended)
            self._held_bytes -= ended.held_bytes

    def _judge(self, ended: Ended, scores: CapturedScores, states: int) -> Capture | None:
        """In the writer's thread: the capture of an answer that probes decide on.

        None if that has been put meanwhile, because too much was held.
        """
        keeps = self._keep.by_scores(scores.answers(states))
        with self._writer.planning:
            if self._undecided.get(ended.name) is not ended:
                return None
            ended.request.kept = keeps
            capture, plan = self._decided(ended)
            if plan is not None:
                self._captures.stored.update(plan.full_blocks)
            return capture

    def _put(self, ended: Ended) -> None:
        """Queue an answer that is decided."""
        capture, plan = self._decided(ended)
        if self._writer.put_capture(capture) and plan is not None:
            self._captures.stored.update(plan.full_blocks)

    def _decided(self, ended: Ended) -> tuple[Capture, Plan | None]:
        """The capture of an answer that is decided, and the plan that was made for it."""
        self._undecided.remove(ended)
        self._held_bytes -= ended.held_bytes
        if not ended.request.kept:
            reason = f"no term of ACTIVATION_KEEP={self._keep.text} holds"
            return replace(ended.request.bare, unkept=reason), None
        if ended.held is not None:
            return ended.held, None
        plan = self._captures.plan(ended.request)
        return self._captures.with_rows(ended.request.bare, plan, ended.written), plan

    def give_up(self, segments: Sequence[bytes]) -> Sequence[bytes]:
        """Forget where some rows are stored that no entry has any more.

        Returns:
            Those that no capture refers to which is held here. Nothing will refer to them again.
        """
        held = [request.held for request in list(self._requests.values())]
        held += [ended.held for ended in self._undecided]
        wanted = {part.segment for one in held if one is not None for part in one.slices}
        free = [name for name in segments if name not in wanted]
        self._captures.stored.forget_segments(free)
        return free

    def hold(self, names: Iterable[str]) -> None:
        """Gather the rows of requests that lose their blocks before they end.

        A request that is held already keeps its older capture: it lost its blocks again before it
        had been computed as far.
        """
        for name in names:
            request = self._requests.get(name)
            if request is None or not request.options.enabled or request.held is not None:
                continue
            with self._writer.planning:
                plan = self._captures.plan(request)
                request.bare = self._captures.bare(name, request)
                columns = self._captures.score_bytes(request)
                request.held_bytes = self._captures.nbytes(plan) + columns
                if self._held_bytes + request.held_bytes > HELD_BYTES:
                    reason = _TOO_MUCH_HELD.format(held=self._held_bytes >> 20)
                    request.held_bytes = columns
                    request.held = replace(request.bare, dropped=reason)
                else:
                    now = self._arena.now()
                    request.held = self._captures.with_rows(request.bare, plan, now)
                request.held_computed = request.computed
                self._held_bytes += request.held_bytes

    def hold_all(self) -> None:
        """Hold all requests, because the KV cache is about to lose its memory."""
        self.hold(list(self._requests))
        self._captures.stored.clear()

    def load_probes(self, served: ServedProbes) -> None:
        """Take these probes in place of the others, of a server that has some.

        Raises:
            ProbeError: one does not fit, and the others stay.
        """
        scorer = self._captures.scorer
        assert scorer is not None
        # The columns of every slot are about to change.
        self._captures.unread.gather_all()
        scorer.load(served)

    def scores_due(self) -> StepScores:
        """What goes to front ends, after the device has been told of the step."""

        def read(due: Sequence[Due]) -> Columns:
            slots = [
                self._captures.slots(self._requests[one.request], one.first, one.count)
                for one in due
            ]
            return self._captures.columns(np.concatenate(slots))

        return self._listeners.take(read)

    def settle(self, names: Iterable[str]) -> None:
        """Record that requests have no rows: they ended before they reached this worker."""
        for name in self.unknown(names):
            self._writer.put_capture(replace(self._captures.empty(name), dropped=NEVER_RAN))

    def unknown(self, names: Iterable[str]) -> list[str]:
        """Those of some requests that this worker does not have, or no longer."""
        known = self._requests
        return [n for n in names if n not in known and self._undecided.get(n) is None]

    def close(self) -> None:
        """Write the rows of all requests in flight, and wait for the store."""
        self.finish(list(self._requests))
        # Nobody will say any more how these have ended.
        left = [one.name for one in self._undecided if one.request.word is None]
        self.hear(dict.fromkeys(left, (True, 0)))
        self._writer.close()
        if self._captures.others is not None:
            self._captures.others.close()

    def flush(
        self,
        finished: Iterable[str],
        unseen: Iterable[str] = (),
        words: Mapping[str, tuple[bool, int]] = MappingProxyType({}),
    ) -> None:
        """Write the rows of these requests, and return when everything is committed.

        Args:
            finished: requests that have ended. vLLM may not have told this worker yet.
            unseen: requests that ended and may never have reached this worker; see :meth:`settle`.
            words: what the front end says of answers; see :meth:`hear`.
        """
        self.hear(words)
        self.finish(finished)
        self.settle(unseen)
        self._writer.flush()

    def _begin(self, new: NewRequestData) -> Request:
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
                arguments,
                settings=self._captures.settings,
                num_layers=self._captures.num_layers,
            )
        scored = new.lora_request is None
        kept = is_kept(arguments) or self._keep.everything
        empty = self._captures.empty(new.req_id)
        request = Request(options, new.prompt_len, blocks, scored, kept, empty)
        self._requests[new.req_id] = request
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

    def _release(self, request: Request) -> None:
        if request.held is not None:
            self._held_bytes -= request.held_bytes
            request.held = None

    def _forget(self, blocks: Iterable[int]) -> None:
        """Blocks get other rows: those that they have are copied, if anybody still wants them."""
        for block in blocks:
            with self._writer.planning:
                for ended in self._undecided.in_block(block):
                    self._hold_ended(ended)
                self._captures.stored.forget(block)
            self._captures.unread.gather(block)

    def _hold_ended(self, ended: Ended) -> None:
        """Copy the rows of an answer that is not decided. If too much is held, they are kept."""
        if self._undecided.get(ended.name) is not ended:
            return
        plan = self._captures.plan(ended.request)
        size = self._captures.nbytes(plan)
        if self._held_bytes + size > HELD_BYTES:
            ended.request.kept = True
            self._put(ended)
            return
        ended.held = self._captures.with_rows(ended.request.bare, plan, ended.written)
        ended.held_bytes = size
        self._held_bytes += size
        self._undecided.leave_blocks(ended)

    def _copy_blocks(self, copies: Iterable[tuple[int, int]]) -> None:
        """Repeat vLLM's copies of blocks, of which only a part matches a cached prefix.

        vLLM lists the copies of all KV cache groups together. Copies of other groups move rows
        that are never read.
        """
        pairs = np.array([tuple(pair) for pair in copies], dtype=np.int64)
        slots = pairs[:, :, None] * self._block_size + np.arange(self._block_size)
        self._forget(pairs[:, 1].tolist())
        self._arena.copy(slots[:, 0].reshape(-1), slots[:, 1].reshape(-1))
