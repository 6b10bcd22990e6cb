"""What stands beside an entry: evaluators' labels, and arrays derived from it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from activation_logging.errors import DerivedError, EntryNotFound, LabelError, StoreCorrupt
from activation_logging.printable import printable
from activation_logging.records import Evaluation
from activation_logging.store import layout, schema
from activation_logging.store.derived import (
    SCORE,
    Derived,
    Header,
    check_name,
    decode,
    encode,
    name_of,
    read_header,
)
from activation_logging.store.live import decode_scores, in_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy as np
    import numpy.typing as npt

    from activation_logging.records import Label, Span
    from activation_logging.store.engine.snapshot import Snapshot
    from activation_logging.store.mutations import Mutations
    from activation_logging.store.store import Store

T = TypeVar("T")
W = TypeVar("W", bound="tuple[Any, ...]")

_LABELS_PER_COMMIT = 1000
_ARRAYS_PER_COMMIT = 1000
_BYTES_PER_COMMIT = 32 << 20


class Beside:
    """The part of an :class:`.Entry` that has its key, and reads what stands beside it."""

    _store: Store
    _key: str

    if TYPE_CHECKING:

        @property
        def num_tokens(self) -> tuple[int, int]: ...
        @property
        def num_unread(self) -> int: ...
        @property
        def num_rows_expected(self) -> int: ...
        @property
        def positions(self) -> npt.NDArray[np.int64]: ...
        @property
        def created(self) -> float: ...
        def capture_record(self) -> dict[str, Any] | None: ...

    @property
    def key(self) -> str:
        """Lower-case hex SHA-256 of the prompt, followed by ``#n`` for the n-th repetition.

        Of several stores that are read as one, the name of the entry's store and a colon precede.
        """
        return self._key

    @property
    def stored_key(self) -> str:
        """The key in the store that it lies in, without a name of that."""
        return self._key

    @property
    def prompt_key(self) -> str:
        """Lower-case hex SHA-256 of the prompt, which all answers to it share."""
        return self._key.partition("#")[0]

    @property
    def evaluations(self) -> dict[str, Evaluation]:
        """Labels by evaluator name, as they are now."""
        return self.evaluations_in(self._store.snapshot())

    @property
    def derived_names(self) -> list[str]:
        """Names of the arrays beside the entry, sorted; see :meth:`derived`.

        What a server's probes have said while the model answered is among them.
        """
        return list(self.derived_headers())

    def derived(self, name: str) -> Derived:
        """An array beside the entry, with its details; a copy.

        Raises:
            KeyError: there is none of this name.
            StoreCorrupt: the record is invalid.
        """
        raw = self._store.snapshot().get(layout.DERIVED, self._place(name))
        if raw is not None:
            return decode(self._key, name, raw, self._what(name))
        live = self._live_scores()
        if name not in live:
            raise KeyError(f"entry {self._key} has no {name}")
        return live[name]

    @property
    def scores(self) -> dict[str, npt.NDArray[np.float32]]:
        """Probabilities by the name of the probe, one for each row, float32 ``[rows]``.

        NaN where the probe says nothing. They are what a probe of the server said while the model
        answered, or what was computed later, which replaces the former. If the rows themselves
        were not kept, the scores are of those that the entry would have.

        Raises:
            StoreCorrupt: a record is invalid.
        """
        found = {name[len(SCORE) :]: live.values for name, live in self._live_scores().items()}
        for name, header, raw in self.derived_records(self._store.snapshot(), SCORE):
            if header.dtype != "float32" or len(header.shape) != 1:
                raise StoreCorrupt(f"{self._what(name)} is not float32 [rows]")
            scores = decode(self._key, name, raw, self._what(name))
            found[name[len(SCORE) :]] = scores.values
        return found

    @property
    def score_digests(self) -> dict[str, str | None]:
        """By the name of the probe, the digest of the weights that gave its scores."""
        return {
            name[len(SCORE) :]: schema.text(header.details.get("digest"))
            for name, header in self.derived_headers(SCORE).items()
        }

    def _live_scores(self) -> dict[str, Derived]:
        """What probes said while the model answered, as arrays beside the entry."""
        record = self.capture_record()
        if record is None or not record.get("scores"):
            return {}
        count = len(self.positions) if record["slices"] else self.num_rows_expected
        last = sum(self.num_tokens) - 1 - self.num_unread
        scores = decode_scores(record, f"entry {self._key}")
        found = {}
        for name, score in scores.items():
            values = in_rows(score, record["first"], count, last)
            details = {"digest": score.digest, "live": True}
            found[SCORE + name] = Derived(self._key, SCORE + name, values, details, self.created)
        return found

    # --- for the other modules of the package; no part of the contract ------------------

    def derived_headers(self, start: str = "") -> dict[str, Header]:
        """What is known of the arrays whose names begin so, without reading them."""
        found = {
            name: Header("float32", live.values.shape, dict(live.details), self.created)
            for name, live in self._live_scores().items()
            if name.startswith(start)
        }
        later = self.derived_records(self._store.snapshot(), start)
        found |= {name: header for name, header, _ in later}
        return dict(sorted(found.items()))

    def evaluations_in(self, snapshot: Snapshot) -> dict[str, Evaluation]:
        """The labels that one view shows, by evaluator name."""
        prefix = layout.beside_key(self._key, "")
        found: dict[str, Evaluation] = {}
        for key, value in snapshot.starting_with(layout.EVALUATIONS, prefix):
            name = key[len(prefix) :].decode("utf-8", "backslashreplace")
            what = f"label {name} of entry {self._key}"
            record = schema.label(value, what)
            found[name] = Evaluation(name=name, **{**record, "spans": schema.spans(record)})
        return found

    def derived_records(
        self, snapshot: Snapshot, start: str = ""
    ) -> Iterator[tuple[str, Header, memoryview]]:
        """Name, header and record of each array; in the map as long as ``snapshot`` lives.

        Raises:
            StoreCorrupt: a record is invalid.
        """
        begin = len(layout.beside_key(self._key, ""))
        prefix = layout.beside_key(self._key, start)
        for key, raw in snapshot.starting_with(layout.DERIVED, prefix):
            name = name_of(key[begin:])
            yield name, read_header(raw, self._what(name)), raw

    def _place(self, name: str) -> bytes:
        try:
            check_name(name)
        except DerivedError as error:
            raise KeyError(str(error)) from None
        return layout.beside_key(self._key, name)

    def _what(self, name: str) -> str:
        return f"{name} of entry {self._key}"


class WritesBeside:
    """The part of a :class:`.Store` that writes labels and arrays beside its entries."""

    if TYPE_CHECKING:

        def transact(self, action: Callable[[Mutations, Any], T]) -> T: ...

    def put_evaluation(
        self,
        key: str,
        *,
        name: str,
        label: Label,
        score: float | None = None,
        judge: str | None = None,
        details: Mapping[str, Any] | None = None,
        spans: Iterable[Span | Mapping[str, Any]] = (),
    ) -> None:
        """Write one evaluator's label beside an entry, replacing only its own earlier one.

        ``spans`` are claims within the entry's ``response``, each with a label of its own.

        Raises:
            EntryNotFound: no entry has that key.
            StoreReadOnly: the store was opened for reading.
            LabelError: a part of it is invalid, see :meth:`.Evaluation.checked`, or a span lies
                outside the response.
        """
        evaluation = Evaluation.checked(name, label, score, judge, details, spans=spans)
        self.put_evaluations([(key, evaluation)])

    def put_evaluations(
        self,
        evaluations: Iterable[tuple[str, Evaluation] | Mapping[str, Any]],
        *,
        skip_deleted: bool = False,
    ) -> int:
        """Write many labels, many per commit, and return how many.

        Args:
            evaluations: pairs of an entry's key and a label, or mappings with the arguments of
                :meth:`put_evaluation`, including ``key``.
            skip_deleted: pass over labels of entries that are not there, or not any more.

        Raises:
            EntryNotFound, LabelError: as for :meth:`put_evaluation`. Labels of earlier
                commits stay.
            StoreReadOnly: the store was opened for reading.
        """
        left = iter(evaluations)
        written = 0
        while some := [pair(one) for one in islice(left, _LABELS_PER_COMMIT)]:
            written += self._write(some, _put_labels, skip_deleted)
        return written

    def delete_evaluation(self, key: str, name: str) -> bool:
        """Remove one evaluator's label of an entry. Returns False if there is none.

        Raises:
            StoreReadOnly: the store was opened for reading.
        """
        return self.transact(lambda change, txn: change.delete_evaluation(txn, key, name))

    def put_derived(self, items: Iterable[Derived], *, skip_deleted: bool = False) -> int:
        """Write arrays beside entries, many per commit, and return how many.

        An array replaces an earlier one of the same name. Deleting the entry deletes it.

        Args:
            items: the arrays.
            skip_deleted: pass over arrays of entries that are not there, or not any more.

        Raises:
            EntryNotFound: an array names no entry. Those of earlier commits stay.
            DerivedError: one cannot be kept: its name, type, size or details.
            StoreReadOnly: the store was opened for reading.
            StoreVersionError: the store is of version 1, and has to be upgraded first.
        """
        written = 0
        for some in _batches(items):
            written += self._write(some, _put_arrays, skip_deleted)
        return written

    def _write(self, some: list[W], put: Callable[..., int], skip_deleted: bool) -> int:
        """Write some labels or arrays, whose first item is a key, in one transaction."""
        return self.transact(partial(put, some, skip_deleted))


def _batches(items: Iterable[Derived]) -> Iterable[list[tuple[str, str, bytes]]]:
    batch: list[tuple[str, str, bytes]] = []
    size = 0
    for item in items:
        record = encode(item, time.time())
        if batch and (len(batch) == _ARRAYS_PER_COMMIT or size + len(record) > _BYTES_PER_COMMIT):
            yield batch
            batch, size = [], 0
        batch.append((item.key, item.name, record))
        size += len(record)
    if batch:
        yield batch


def _put_arrays(
    some: Iterable[tuple[str, str, bytes]], skip_deleted: bool, change: Mutations, txn: Any
) -> int:
    return sum(
        _done(partial(change.put_derived, txn, key, name, record), skip_deleted)
        for key, name, record in some
    )


def pair(given: tuple[str, Evaluation] | Mapping[str, Any]) -> tuple[str, Evaluation]:
    """An entry's key and a checked label, from either form that labels are given in.

    Raises:
        LabelError: it has neither form, or a part of the label is invalid.
    """
    try:
        fields = dict(given) if isinstance(given, Mapping) else {"key": given[0], **vars(given[1])}
        return fields.pop("key"), Evaluation.checked(**fields)
    except (KeyError, TypeError, IndexError):
        raise LabelError(
            "each label is a pair of a key and an Evaluation, or a mapping with key, name, label, "
            f"and optionally score, judge, details and spans; not {printable(repr(given)[:200])}"
        ) from None


def _put_labels(
    evaluations: Iterable[tuple[str, Evaluation]],
    skip_deleted: bool,
    change: Mutations,
    txn: Any,
) -> int:
    return sum(
        _done(partial(change.put_evaluation, txn, key, evaluation), skip_deleted)
        for key, evaluation in evaluations
    )


def _done(write: Callable[[], None], skip_deleted: bool) -> bool:
    """Whether there was an entry to write beside; EntryNotFound where that is not passed over."""
    try:
        write()
    except EntryNotFound:
        if not skip_deleted:
            raise
        return False
    return True
