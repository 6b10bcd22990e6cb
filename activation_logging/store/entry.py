"""One entry of a store: prompt, response, and the activations."""

from __future__ import annotations

from functools import cached_property
from operator import getitem
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from activation_logging.errors import InputMissing, LabelError, RowsMissing
from activation_logging.sites import AnySite, RowShape, Site
from activation_logging.store import layout, schema
from activation_logging.store.beside import Beside
from activation_logging.store.offsets import NO_TEXTS, OFFSETS_DIFFER, token_offsets, touching
from activation_logging.store.rows import copy_runs, cut, find_runs, shape_in, sites_of
from activation_logging.store.status import rows_stored, status_of, why_no_rows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from activation_logging.records import Span, Status
    from activation_logging.store.engine.snapshot import Snapshot
    from activation_logging.store.rows import RowType, Run
    from activation_logging.store.store import Store

_SUMMARY = (
    *("key", "created", "model", "request_id", "choice", "prompt", "response", "finish_reason"),
    *("status", "tags"),
)


class Entry(Beside):
    """One answer: the prompt, the response, and the activations of the logged sites.

    All is read on access: a walk goes on behind a damaged record. ``P`` and ``R`` are the numbers
    of prompt and response tokens. Row ``p`` of an array of activations is the state at position
    ``p`` of prompt + response, from which the model predicted token ``p + 1``.
    """

    def __init__(self, store: Store, key: str, raw: memoryview) -> None:
        self._store = store
        self._key = key
        self._raw = bytes(raw)
        self._found_capture: dict[str, Any] | None = None

    @cached_property
    def _document(self) -> dict[str, Any]:
        return schema.entry(self._raw, f"entry {self._key}")

    @cached_property
    def _head(self) -> layout.Head:
        return layout.read_head(self._raw) or layout.head_of(self._document)

    @property
    def prompt(self) -> str:
        """The exact text that the model read; for chat, the rendered template."""
        return str(self._document["prompt"])

    @property
    def response(self) -> str:
        """The text of the answer. Special tokens and stop strings are omitted as requested.

        The client got this text, unless the server parses answers: see :attr:`content`.
        """
        return str(self._document["response"])

    @property
    def content(self) -> str:
        """The answer's content as the client got it.

        It differs from :attr:`response` if the server removes reasoning (``--reasoning-parser``) or
        tool calls. It is empty if nothing else is left.
        """
        content = schema.text(self._document.get("content"))
        return self.response if content is None else content

    @property
    def question(self) -> str:
        """What was asked: of a chat, the user's last message; otherwise the prompt."""
        for message in reversed(self.messages or ()):
            if message.get("role") == "user" and isinstance(message.get("content"), str):
                return str(message["content"])
        return self.prompt

    @property
    def model(self) -> str:
        """The served name of the model."""
        return str(self._document["model"])

    @property
    def messages(self) -> list[dict[str, Any]] | None:
        """The messages of a chat request as sent; None for a completion."""
        return schema.messages(self._document.get("messages"))

    @property
    def request_id(self) -> str:
        """The ``id`` of the OpenAI answer. All of its choices share it."""
        return str(self._document["request_id"])

    @property
    def choice(self) -> int | None:
        """Index among the choices of the OpenAI answer; None for a beam."""
        return schema.index(self._document.get("choice"))

    @property
    def prompt_token_ids(self) -> list[int]:
        """The ``P`` token ids of the prompt."""
        return list(self._document["prompt_token_ids"])

    @property
    def response_token_ids(self) -> list[int]:
        """The ``R`` token ids of the answer, including the end-of-sequence token."""
        return list(self._document["response_token_ids"])

    @property
    def num_tokens(self) -> tuple[int, int]:
        """``P`` and ``R``."""
        return self._head.lengths

    @property
    def num_unread(self) -> int:
        """How many of the ``R`` response tokens the model has not read.

        That is the last one; where a probe has ended the answer, none.
        """
        return self._head.unread

    @property
    def response_tokens(self) -> list[str] | None:
        """The text that each response token adds to :attr:`response`. Joined, they equal it.

        A token that the response omits has an empty text. None if no tokenizer was loaded.
        """
        return schema.texts(self._document.get("response_tokens"))

    @property
    def shared_characters(self) -> list[tuple[int, int, int]] | None:
        """Tokens that hold other characters than they add, because they are parts of characters.

        Token, start and end each. None if an earlier version, which did not look, wrote the entry.
        """
        given = self._document.get("shared_characters")
        return schema.shared(given, self.num_tokens[1], len(self.response))

    def span_tokens(self, span: Span) -> npt.NDArray[np.int64]:
        """Indices of the response tokens that a span touches, ascending, shape ``[tokens]``.

        A token that holds a part of one of the span's characters counts. A token that
        :attr:`response` omits does not, so there may be gaps. Token ``i`` is at position ``P + i``.
        Where :attr:`shared_characters` is None, every token without text that stands before a
        character of the span which is not ASCII counts too: rather too many than too few.

        Raises:
            InputMissing: the tokens' texts are not known, because no tokenizer was loaded, or they
                do not add up to the response.
            LabelError: the span lies outside :attr:`response`.
        """
        if not 0 <= span.start < span.end <= len(self.response):
            raise LabelError(
                f"the span from {span.start} to {span.end} lies outside the response of entry "
                f"{self.key}, which has {len(self.response)} characters"
            )
        found = touching(self._offsets, span.start, span.end)
        if not len(found):
            raise InputMissing(f"entry {self.key}: {OFFSETS_DIFFER}")
        return found

    @cached_property
    def _offsets(self) -> npt.NDArray[np.int64]:
        tokens = self.response_tokens
        if not tokens or len(tokens) != self.num_tokens[1]:
            raise InputMissing(f"entry {self.key}: {NO_TEXTS}")
        return token_offsets(self.response, tokens, self.shared_characters)

    @property
    def logprobs(self) -> list[float | None] | None:
        """Log-probability of each response token; None if the request did not ask for it."""
        return schema.logprobs(self._document.get("logprobs"))

    @property
    def top_logprobs(self) -> list[dict[int, float]] | None:
        """For each response token, the log-probabilities that vLLM returned, by token id."""
        return schema.top_logprobs(self._document.get("top_logprobs"))

    @property
    def finish_reason(self) -> str | None:
        """``stop``, ``length``, ``abort`` (the client left), ``error`` or ``repetition``."""
        return schema.text(self._document.get("finish_reason"))

    @property
    def stop_reason(self) -> str | None:
        """``activation:NAME`` if the probe of that name has ended the answer."""
        return schema.text(self._document.get("stop_reason"))

    @property
    def error(self) -> str | None:
        """Why the request failed, if it did."""
        return self._document.get("error")

    @property
    def sampling(self) -> dict[str, Any]:
        """Sampling parameters that differ from vLLM's defaults."""
        return schema.mapping(self._document.get("sampling"))

    @property
    def tags(self) -> dict[str, str]:
        """The request's ``activation_tags``."""
        return schema.tags(self._document.get("tags"))

    @property
    def created(self) -> float:
        """When the request arrived, seconds since the epoch."""
        return float(self._document["created"])

    @property
    def sequence(self) -> int:
        """Its number in the order of writing. Deleted entries leave gaps."""
        return int(self._document["sequence"])

    @property
    def vllm_version(self) -> str:
        """Version of the vLLM that answered."""
        return str(self._document["vllm_version"])

    @property
    def document(self) -> dict[str, Any]:
        """The whole stored record. Fields that a client sent may have any type."""
        return dict(self._document)

    def summary(self) -> dict[str, Any]:
        """What a list shows of it, for JSON: whole texts, no labels, nothing of each token."""
        return {name: getattr(self, name) for name in _SUMMARY}

    # --- activations -----------------------------------------------------------------

    @property
    def status(self) -> Status:
        """The state of the activations.

        ``pending`` means that the rows have not arrived yet; after a crash it stays so. If the
        status is not ``complete``, :attr:`status_reason` has the reason.
        """
        return status_of(self._head, self.capture_record())

    @property
    def status_reason(self) -> str | None:
        """One sentence where the status is not ``complete``."""
        return self._reason(self.capture_record())

    def _reason(self, capture: Mapping[str, Any] | None) -> str | None:
        if status_of(self._head, capture) == "complete":
            return None
        if self.error is not None:
            return self.error
        if capture is None:
            return "the activations have not arrived"
        if reason := why_no_rows(capture):
            return reason
        return f"{rows_stored(capture)} of {self.num_rows_expected} rows were stored"

    @property
    def num_rows_expected(self) -> int:
        """``P + R - 1`` for all tokens, ``R`` for the response, ``P`` for the prompt.

        Where a probe has ended the answer, ``P + R``, ``R + 1`` and ``P``: see :attr:`num_unread`.
        """
        return self._head.rows

    @property
    def layers(self) -> tuple[int, ...]:
        """Numbers of the residual stream's logged layers, ascending; the depth is ``last``."""
        return tuple(self._rows_record()["layers"])

    @property
    def sites(self) -> tuple[Site, ...]:
        """All logged sites: the layers of the residual stream, then the others."""
        return sites_of(self._rows_record())

    def shape_of(self, site: AnySite) -> RowShape:
        """What a row of a logged site is: its shape, and its stored type.

        Raises:
            RowsMissing: the site was not logged, or the rows never arrived.
        """
        record = self._rows_record()
        return shape_in(record, self.key, Site.of(site, record["num_layers"]))

    @property
    def num_layers(self) -> int:
        """Number of decoder layers of the model, and the number of its ``last`` layer."""
        return int(self._rows_record()["num_layers"])

    @property
    def hidden_size(self) -> int:
        """Number of elements of a row of the residual stream."""
        return int(self._rows_record()["hidden_size"])

    @property
    def dtype(self) -> str:
        """The residual stream's stored type: ``float32``, ``float16`` or ``bfloat16``."""
        return str(self._rows_record()["dtype"])

    @property
    def positions(self) -> npt.NDArray[np.int64]:
        """Position in prompt + response of every row, ascending, shape ``[rows]``."""
        record = self._rows_record()
        # The engine may run one step too many before it learns of a stop string.
        rows = min(rows_stored(record), self.num_rows_expected)
        return np.arange(record["first"], record["first"] + rows, dtype=np.int64)

    @property
    def activations(self) -> npt.NDArray[Any]:
        """The last layer, after the final norm, shape ``[rows, hidden]``."""
        return self.layer("last")

    def layer(self, layer: int | Literal["last"]) -> npt.NDArray[Any]:
        """A copy of one logged layer of the residual stream, shape ``[rows, hidden]``.

        float32 and float16 keep their type. bfloat16 is widened to float32, which changes no value.
        :meth:`Store.read` is faster for many answers.

        Raises:
            RowsMissing: the layer was not logged, or the rows never arrived.
        """
        return self.rows(layer)

    def site(self, name: str, layer: int | Literal["last"] | None = None) -> npt.NDArray[Any]:
        """A copy of one logged site, shape ``[rows, *shape]``, widened as by :meth:`layer`.

        Args:
            name: a kind of :data:`activation_logging.sites.SITES`, or a text such as ``heads@15``.
            layer: the layer, where ``name`` is a kind. ``resid_prenorm`` has one only.

        Raises:
            RowsMissing: the site was not logged, or the rows never arrived.
            SettingsError: there is no such site.
        """
        return self.site_rows(name if layer is None else f"{name}@{layer}")

    def rows(self, layer: AnySite, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        """Rows ``start`` to ``stop`` (exclusive) of a layer or site, flat: ``[rows, width]``.

        Only these are read. Negative numbers count from the end, as in a slice.

        Raises:
            RowsMissing: the site was not logged, or the rows never arrived.
        """
        return self._read(layer, start, stop, widen=True)

    def site_rows(self, site: AnySite, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        """The rows of :meth:`rows` in their shape, ``[rows, *shape]``.

        Args:
            site: one of :attr:`sites`, or a text such as ``heads@15``.
            start: number of the first row.
            stop: number of the row after the last.

        Raises:
            RowsMissing: the site was not logged, or the rows never arrived.
        """
        rows = self._read(site, start, stop, widen=True)
        return rows.reshape(len(rows), *self.shape_of(site).shape)

    def stored(self, site: AnySite, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        """A copy of rows of a layer or site in its stored type, in its shape; bfloat16 as its bits.

        ``start`` and ``stop`` are those of :meth:`site_rows`.

        Raises:
            RowsMissing: the site was not logged, or the rows never arrived.
        """
        shape, dtype = self.shape_of(site)
        rows = self._read(site, start, stop, widen=False)
        shaped = rows.reshape(len(rows), *shape)
        return shaped.view(np.uint16) if dtype == "bfloat16" else shaped

    def _read(
        self, site: AnySite, start: int, stop: int | None, *, widen: bool
    ) -> npt.NDArray[Any]:
        snapshot = self._rows_snapshot()
        kind, runs = self.runs(snapshot, site)
        first, last, _ = slice(start, stop).indices(sum(run.rows for run in runs))
        return copy_runs(kind, cut(runs, first, last, kind.nbytes), widen=widen)

    @property
    def response_activations(self) -> npt.NDArray[Any]:
        """The last layer's rows that produced the answer, shape ``[R, hidden]``.

        Response token ``i`` was predicted from row ``i``.

        Raises:
            RowsMissing: those rows were not logged.
        """
        first = int(self._rows_record()["first"])
        prompt, response = self._head.lengths
        start = prompt - 1 - first
        rows = self.rows("last", max(start, 0), max(start + response, 0))
        if start < 0 or (len(rows) < response and self.finish_reason != "abort"):
            raise RowsMissing(
                f"entry {self.key} has only the rows of positions {first} to "
                f"{first + len(self.positions) - 1}, not all of the response's rows"
            )
        return rows

    # --- for the other modules of the store; no part of the contract --------------------

    @property
    def raw(self) -> memoryview:
        """Its record as it is stored."""
        return memoryview(self._raw)

    def capture_record(self, snapshot: Snapshot | None = None) -> dict[str, Any] | None:
        """The record of its rows, as checked by :func:`.schema.capture`; None while there is none.

        Read once: a later commit is not seen.
        """
        if self._found_capture is None:
            snapshot = snapshot or self._store.snapshot()
            raw = snapshot.get(layout.CAPTURES, layout.id_key(self._head.capture))
            if raw is not None:
                self._found_capture = schema.capture(raw, f"capture of {self.key}")
        return self._found_capture

    def runs(self, snapshot: Snapshot, site: AnySite) -> tuple[RowType, list[Run]]:
        """Where the rows of a site are in the map, valid as long as ``snapshot`` lives."""
        record = self._rows_record(snapshot)
        found = Site.of(site, record["num_layers"])
        kind, runs = find_runs(snapshot, self._key, self._head.capture, record, found)
        return kind, cut(runs, 0, self.num_rows_expected, kind.nbytes)

    def _rows_snapshot(self) -> Snapshot:
        """A view of the store that holds its rows."""
        return self._store.snapshot()

    def _rows_record(self, snapshot: Snapshot | None = None) -> dict[str, Any]:
        record = self.capture_record(snapshot)
        if record is None or why_no_rows(record):
            raise RowsMissing(f"entry {self.key} has no activations: {self._reason(record)}")
        return record

    def __reduce__(self) -> tuple[Any, ...]:
        """An entry is pickled as its store and its key; see :class:`Store`."""
        return getitem, (self._store, self._key)

    def __repr__(self) -> str:
        return f"Entry({self.key!r}, {self.prompt[:40]!r} -> {self.response[:40]!r}, {self.status})"
