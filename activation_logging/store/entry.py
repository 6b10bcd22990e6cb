"""One entry of a store: what was asked, what came, and the rows in between."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from activation_logging.errors import RowsMissing, StoreCorrupt
from activation_logging.records import Evaluation, SegmentSlice, Status
from activation_logging.store import layout, schema
from activation_logging.store.mutations import slices_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from activation_logging.store.environment import Snapshot
    from activation_logging.store.reader import Store

_STORED_TYPES = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}


class Entry:
    """One answer: what was asked, what came, and what the model's layers held meanwhile.

    Text and arrays are read when asked for. ``P`` and ``R`` are the numbers of
    prompt and response tokens. Row ``p`` of an array of activations is the state at position
    ``p`` of prompt + response, the one that the model predicted token ``p + 1`` from.
    """

    def __init__(self, store: Store, key: str, raw: memoryview) -> None:
        self._store = store
        self._key = key
        self._raw = bytes(raw)
        self._found_capture: dict[str, Any] | None = None
        # Written before records had a head, or with a capture id of unusual characters: parse it.
        self._head = layout.read_head(self._raw) or layout.head_of(self._document)

    @cached_property
    def _document(self) -> dict[str, Any]:
        what = f"entry {self._key}"
        return schema.entry(layout.load(self._raw, what), what)

    @property
    def key(self) -> str:
        """Lower-case hex SHA-256 of the prompt; ``#n`` follows for the n-th repetition."""
        return self._key

    @property
    def prompt(self) -> str:
        """The exact text that the model was given; for chat, the rendered template."""
        return str(self._document["prompt"])

    @property
    def response(self) -> str:
        """The text that the model answered, special tokens and stop strings left out as asked.

        It is what the client got, unless the server parses answers: see :attr:`content`.
        """
        return str(self._document["response"])

    @property
    def content(self) -> str:
        """What the client got as the answer's content.

        Differs from :attr:`response` where the server takes out reasoning (``--reasoning-parser``)
        or tool calls; empty where nothing else is left.
        """
        content = self._document.get("content")
        return self.response if content is None else str(content)

    @property
    def model(self) -> str:
        """The model's name as it was served."""
        return str(self._document["model"])

    @property
    def messages(self) -> list[dict[str, Any]] | None:
        """The messages of a chat request, as they were sent; None for a completion."""
        return self._document.get("messages")

    @property
    def request_id(self) -> str:
        """The ``id`` of the OpenAI answer; several choices share it."""
        return str(self._document["request_id"])

    @property
    def choice(self) -> int | None:
        """Index among the choices of its answer."""
        return self._document.get("choice")

    @property
    def prompt_token_ids(self) -> list[int]:
        """The ``P`` ids that the model was given."""
        return list(self._document["prompt_token_ids"])

    @property
    def response_token_ids(self) -> list[int]:
        """The ``R`` ids that it answered, the end-of-sequence token included."""
        return list(self._document["response_token_ids"])

    @property
    def response_tokens(self) -> list[str] | None:
        """What each response token adds to :attr:`response`; joined they are it.

        None where no tokenizer was loaded, and empty texts for tokens that the response leaves out.
        """
        return self._document.get("response_tokens")

    @property
    def logprobs(self) -> list[float | None] | None:
        """Log-probability of each response token, where the request asked for it."""
        return self._document.get("logprobs")

    @property
    def top_logprobs(self) -> list[dict[int, float]] | None:
        """Per response token, the log-probabilities that vLLM returned, by token id."""
        tops = self._document.get("top_logprobs")
        return None if tops is None else [{int(k): v for k, v in top.items()} for top in tops]

    @property
    def finish_reason(self) -> str | None:
        """``stop``, ``length``, ``abort`` (the client left) or ``error``."""
        return self._document.get("finish_reason")

    @property
    def error(self) -> str | None:
        """Why the request failed, if it did."""
        return self._document.get("error")

    @property
    def sampling(self) -> dict[str, Any]:
        """Sampling parameters that differ from vLLM's defaults."""
        return dict(self._document.get("sampling") or {})

    @property
    def tags(self) -> dict[str, str]:
        """What the request gave as ``activation_tags``."""
        return dict(self._document.get("tags") or {})

    @property
    def created(self) -> float:
        """When the request arrived, seconds since the epoch."""
        return float(self._document["created"])

    @property
    def vllm_version(self) -> str:
        """Version of the vLLM that served it."""
        return str(self._document["vllm_version"])

    @property
    def document(self) -> dict[str, Any]:
        """The whole stored record, for fields that have no property of their own."""
        return dict(self._document)

    # --- activations -----------------------------------------------------------------

    @property
    def status(self) -> Status:
        """How the request ended, as far as its activations go.

        ``pending`` means that rows are still to come, and stays for good after a crash. What is
        not ``complete`` has its reason in :attr:`status_reason`.
        """
        if self.error is not None:
            return "failed"
        if self._capture is None:
            return "pending"
        if self._capture.get("dropped"):
            return "dropped"
        if self.finish_reason != "abort" and self._rows_stored < self.num_rows_expected:
            return "failed"
        return "complete"

    @property
    def status_reason(self) -> str | None:
        """One sentence where the status is not ``complete``."""
        status = self.status
        if status == "complete":
            return None
        if status == "pending":
            return "the activations have not arrived"
        if self.error is not None:
            return self.error
        if status == "dropped":
            return str((self._capture or {})["dropped"])
        return f"{self._rows_stored} of {self.num_rows_expected} rows were stored"

    @property
    def num_rows_expected(self) -> int:
        """``P + R - 1`` for all tokens, ``R`` for the response, ``P`` for the prompt."""
        return self._head.rows

    @property
    def layers(self) -> tuple[int, ...]:
        """Numbers of the logged layers, ascending; the last is ``num_layers`` after the norm."""
        return tuple(self._rows_record()["layers"])

    @property
    def num_layers(self) -> int:
        """Number of decoder layers of the model, and the number of its ``last`` layer."""
        return int(self._rows_record()["num_layers"])

    @property
    def hidden_size(self) -> int:
        """Number of elements of a row."""
        return int(self._rows_record()["hidden_size"])

    @property
    def dtype(self) -> str:
        """The stored type: ``float32``, ``float16`` or ``bfloat16``."""
        return str(self._rows_record()["dtype"])

    @property
    def positions(self) -> npt.NDArray[np.int64]:
        """Position in prompt + response of every row, ascending, shape ``[rows]``."""
        first = int(self._rows_record()["first"])
        return np.arange(first, first + self._num_rows, dtype=np.int64)

    @property
    def activations(self) -> npt.NDArray[Any]:
        """The last layer, after the final norm, shape ``[rows, hidden]``."""
        return self.layer("last")

    def layer(self, layer: int | Literal["last"]) -> npt.NDArray[Any]:
        """One logged layer, shape ``[rows, hidden]``; read-only.

        float32 and float16 come as they are stored, without a copy where the rows lie in one
        piece; bfloat16 is widened to float32, which changes no value.

        Raises:
            RowsMissing: the layer was not logged, or the rows never arrived.
        """
        return self._widen(self.stored(layer))

    def rows(self, layer: int | Literal["last"], start: int, stop: int) -> npt.NDArray[Any]:
        """Rows ``start`` to ``stop`` (not included) of :meth:`layer`; the others are not touched.

        Raises:
            RowsMissing: the layer was not logged, or the rows never arrived.
        """
        return self._widen(self.stored(layer)[start:stop])

    def stored(self, layer: int | Literal["last"]) -> npt.NDArray[Any]:
        """One layer exactly as stored; bfloat16 appears as its bits in ``uint16``.

        Raises:
            RowsMissing: the layer was not logged, or the rows never arrived.
        """
        snapshot = self._store._snapshot()
        record = self._rows_record(snapshot)
        number = record["num_layers"] if layer == "last" else int(layer)
        if number not in record["layers"]:
            raise RowsMissing(
                f"layer {layer} of entry {self.key} was not logged; logged are "
                f"{', '.join(map(str, record['layers']))} (last is {record['num_layers']})"
            )
        blocks = [self._slice(record, part, number, snapshot) for part in slices_of(record)]
        if len(blocks) == 1:
            return blocks[0][: self._num_rows]
        empty = np.empty((0, record["hidden_size"]), _STORED_TYPES[record["dtype"]])
        joined: npt.NDArray[Any] = np.concatenate([empty, *blocks])[: self._num_rows]
        joined.flags.writeable = False
        return joined

    def _widen(self, stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if self.dtype != "bfloat16":
            return stored
        wide: npt.NDArray[Any] = np.left_shift(stored, 16, dtype=np.uint32).view(np.float32)
        wide.flags.writeable = False
        return wide

    @property
    def response_activations(self) -> npt.NDArray[Any]:
        """The last layer where it produced the answer, shape ``[R, hidden]``.

        Row ``i`` is the state that response token ``i`` was predicted from.

        Raises:
            RowsMissing: those rows were not logged.
        """
        first = int(self._rows_record()["first"])
        start = self._num_prompt - 1 - first
        rows = self.activations[max(start, 0) : start + self._num_response]
        if start < 0 or (len(rows) < self._num_response and self.finish_reason != "abort"):
            raise RowsMissing(
                f"entry {self.key} holds the rows of positions {first} to "
                f"{first + self._num_rows - 1}, not all of the response's"
            )
        return rows

    @property
    def evaluations(self) -> dict[str, Evaluation]:
        """Labels by evaluator name, as they are now."""
        prefix = layout.evaluation_key(self.key, "")
        snapshot = self._store._snapshot()
        found: dict[str, Evaluation] = {}
        for key, value in snapshot.starting_with(layout.EVALUATIONS, prefix):
            name = key[len(prefix) :].decode("utf-8", "backslashreplace")
            what = f"label {name} of entry {self.key}"
            found[name] = Evaluation(name=name, **schema.label(layout.load(value, what), what))
        return found

    @property
    def _num_prompt(self) -> int:
        return len(self._document["prompt_token_ids"])

    @property
    def _num_response(self) -> int:
        return len(self._document["response_token_ids"])

    @property
    def _rows_stored(self) -> int:
        return sum(part[2] for part in (self._capture or {}).get("slices", ()))

    @property
    def _num_rows(self) -> int:
        # The engine may have run a step past the end before it learned of a stop string.
        return min(self._rows_stored, self.num_rows_expected)

    @property
    def _capture(self) -> dict[str, Any] | None:
        return self._read_capture(None)

    def _read_capture(self, snapshot: Snapshot | None) -> dict[str, Any] | None:
        if self._found_capture is None:
            snapshot = snapshot or self._store._snapshot()
            raw = snapshot.get(layout.CAPTURES, layout.id_key(self._head.capture))
            if raw is not None:
                what = f"capture of {self.key}"
                self._found_capture = schema.capture(layout.load(raw, what), what)
        return self._found_capture

    def _rows_record(self, snapshot: Snapshot | None = None) -> dict[str, Any]:
        record = self._read_capture(snapshot)
        if record is None or record.get("dropped"):
            raise RowsMissing(f"entry {self.key} has no activations: {self.status_reason}")
        return record

    def _slice(
        self, record: Mapping[str, Any], part: SegmentSlice, layer: int, snapshot: Snapshot
    ) -> npt.NDArray[Any]:
        """Rows of a segment where they lie in the map, ``[part.rows, hidden]``."""
        raw, snapshot = self._store._rows(layout.rows_key(part.segment, layer), snapshot)
        if raw is None:
            if snapshot.get(layout.MAIN, self.key.encode()) is None:
                raise RowsMissing(f"entry {self.key} has been deleted")
            raise StoreCorrupt(f"entry {self.key} lacks rows of layer {layer} that it refers to")
        kind, width = np.dtype(_STORED_TYPES[record["dtype"]]), record["hidden_size"]
        end = part.start + part.rows
        if len(raw) % (kind.itemsize * width) or end * kind.itemsize * width > len(raw):
            raise StoreCorrupt(f"layer {layer} of entry {self.key} has a length that cannot be")
        flat = np.asarray(_Pinned(raw, snapshot)).view(kind)
        return flat.reshape(-1, width)[part.start : end]

    def __repr__(self) -> str:
        return f"Entry({self.key!r}, {self.prompt[:40]!r} -> {self.response[:40]!r}, {self.status})"


class _Pinned:
    """Memory inside the map, which keeps its read transaction open for as long as it is used."""

    __slots__ = ("__array_interface__", "_snapshot")

    def __init__(self, raw: memoryview, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self.__array_interface__ = np.frombuffer(raw, np.uint8).__array_interface__
