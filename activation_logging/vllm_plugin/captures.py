"""Captures of requests: which rows and scores belong to a request, and where they lie.

Nothing is copied here. The rows of a capture are read from the arena by the store's writer, or when
vLLM is about to give a block of theirs to another request.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from activation_logging.records import Capture, Segment
from activation_logging.sites import RESID, Site
from activation_logging.vllm_plugin.arena import COLUMNS, SlotRows, Unread, row_bytes
from activation_logging.vllm_plugin.pipeline import JoinedRows, RowSender
from activation_logging.vllm_plugin.plan import Plan, StoredBlocks
from activation_logging.vllm_plugin.scorer import CapturedScores, Columns

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from activation_logging.settings import RequestOptions, Settings
    from activation_logging.sites import RowShape
    from activation_logging.store import StoreWriter
    from activation_logging.vllm_plugin.arena import Moment, RowArena
    from activation_logging.vllm_plugin.pipeline import RowReceiver
    from activation_logging.vllm_plugin.scorer import Scorer
    from activation_logging.vllm_plugin.undecided import Word


@dataclass
class Request:
    """One request in flight: its block table, and the number of computed positions.

    ``scored`` says whether probes apply: not to an adapter, which is another model. ``kept`` says
    whether the rows are kept, as far as that is known; ``word`` is what the front end has said of
    its end. ``bare`` is the capture without rows, and ``columns`` what probes need of the answer,
    once these were made. ``held`` is the capture from the moment when vLLM took the blocks away, of
    ``held_bytes``. It is None once the request has been computed as far again (``held_computed``
    positions).
    """

    options: RequestOptions
    prompt_len: int
    blocks: list[int]
    scored: bool
    kept: bool
    bare: Capture
    word: Word | None = None
    columns: Columns | None = None
    computed: int = 0
    held: Capture | None = None
    held_bytes: int = 0
    held_computed: int = 0


class Captures:
    """Makes the captures of requests.

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
        scorer: applies probes to the rows; None if there are none.

    Attributes:
        stored: the blocks whose rows are stored.
        unread: the rows that captures have asked for and nobody has read.
        entry_in: ``HOST:PATH`` of the store that has the entries, if it is another.
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
        scorer: Scorer | None = None,
    ) -> None:
        self.settings = settings
        self._shapes = shapes
        self._sites = tuple(map(Site.from_code, sorted(shapes)))
        self.arena = arena
        self.writer = writer
        self.others = others
        self.num_layers = num_layers
        self._hidden_size = hidden_size
        self.block_size = block_size
        self.scorer = scorer
        self.stored = StoredBlocks()
        self.unread = Unread()
        self.entry_in: str | None = None
        self._segment_numbers = count()

    def plan(self, request: Request) -> Plan:
        """Decide which of a request's rows are stored already, and which must be gathered."""
        tokens = request.options.tokens or self.settings.tokens
        end = min(request.computed, request.prompt_len) if tokens == "prompt" else request.computed
        first, segment = self._first(request), self._new_segment_id()
        plan = Plan(self._wanted(request.options), first, segment)
        # Only requests that log all of the server's sites share rows.
        shares = len(plan.sites) == len(self._sites)
        plan.fill(request.blocks, end, self.block_size, self.stored if shares else None)
        return plan

    def with_rows(self, bare: Capture, plan: Plan, written: Moment) -> Capture:
        """A capture with the rows of a plan. The fresh ones are copied later."""
        segments: tuple[Segment, ...] = ()
        if plan.fresh:
            codes = [site.code for site in plan.sites]
            here = [code for code in codes if code in self.arena.shapes]
            found = self.arena.read(np.concatenate(plan.fresh), here, written)
            self.unread.add(found, plan.blocks)
            rows: Mapping[int, npt.NDArray[Any]] = found
            if self.others is not None:
                away = [code for code in codes if code not in here]
                rows = JoinedRows(found, self.others, bare.id, away, plan.num_fresh)
            segments = (Segment(plan.segment, rows, self.nbytes(plan)),)
        return replace(bare, slices=plan.slices, segments=(*segments, *bare.segments))

    def bare(self, name: str, request: Request) -> Capture:
        """The capture of a request without rows, with its scores, which are computed later.

        A stage that only sends its rows sends its columns like those of a segment.
        """
        capture = self._without_rows(name, self._wanted(request.options), self._first(request))
        first, scorer = request.prompt_len - 1, self.scorer
        count = self._num_scored(request)
        if scorer is None or not count:
            return capture
        request.columns = columns = self.columns(self.slots(request, first, count))
        if isinstance(self.writer, RowSender):
            return replace(capture, segments=(Segment(b"", columns.rows, 0),))
        if self.others is not None:
            rows = JoinedRows(columns.rows, self.others, capture.id, scorer.away, count)
            columns = Columns(scorer.layout, rows, count)
        return replace(capture, scores=CapturedScores(columns, first))

    def slots(self, request: Request, first: int, count: int) -> npt.NDArray[np.int64]:
        """The slots of some positions of a request."""
        positions = np.arange(first, first + count)
        blocks = np.array(request.blocks, np.int64)[positions // self.block_size]
        return blocks * self.block_size + positions % self.block_size

    def columns(self, slots: npt.NDArray[np.int64]) -> Columns:
        """What this stage has of the columns of some slots. They are read later."""
        assert self.scorer is not None
        found = self.scorer.read(slots)
        assert isinstance(found.rows, SlotRows)
        self.unread.add(found.rows, np.unique(slots // self.block_size).tolist())
        return found

    def _num_scored(self, request: Request) -> int:
        """At how many positions a request has scores: from the prompt's last on."""
        if self.scorer is None or not request.scored:
            return 0
        return max(request.computed - request.prompt_len + 1, 0)

    def score_bytes(self, request: Request) -> int:
        """Size of the columns of a request, bytes."""
        sites = 0 if self.scorer is None else len(self.scorer.here) + len(self.scorer.away)
        return self._num_scored(request) * sites * row_bytes(COLUMNS)

    def empty(self, name: str) -> Capture:
        """The capture of a request that has no rows and no scores."""
        return self._without_rows(name, self._sites, 0)

    def _without_rows(self, name: str, sites: Sequence[Site], first: int) -> Capture:
        layers = tuple(site.layer for site in sites if site.name == RESID)
        last = self._shapes.get(self.num_layers, next(iter(self._shapes.values())))
        return Capture(
            id=name,
            layers=layers,
            num_layers=self.num_layers,
            hidden_size=self._hidden_size,
            dtype=last.dtype,
            first=first,
            slices=(),
            entry_in=self.entry_in,
            sites={s.code: self._shapes[s.code] for s in sites if s.name != RESID},
        )

    def nbytes(self, plan: Plan) -> int:
        """Size of the fresh rows of a plan, bytes."""
        return plan.num_fresh * sum(row_bytes(self._shapes[site.code]) for site in plan.sites)

    def most_bytes(self, request: Request) -> int:
        """Size of a request's rows if none of them is stored, bytes."""
        sites = self._wanted(request.options)
        return request.computed * sum(row_bytes(self._shapes[site.code]) for site in sites)

    def _first(self, request: Request) -> int:
        """The position of a request's first row."""
        tokens = request.options.tokens or self.settings.tokens
        return request.prompt_len - 1 if tokens == "response" else 0

    def _wanted(self, options: RequestOptions) -> tuple[Site, ...]:
        return options.chosen(self._sites, self.num_layers)

    def _new_segment_id(self) -> bytes:
        return bytes.fromhex(self.writer.id) + next(self._segment_numbers).to_bytes(8, "big")
