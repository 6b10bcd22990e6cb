"""The search index of a store: a SQLite file beside it, made of the store and made again at will.

It holds the texts of prompts and answers for full-text search (FTS5), and the :mod:`.columns` for
filters, counts and order. It follows the store by the list of changes that the store's own index
keeps (:meth:`.store.index.Index.changes`). So it may be behind, also beside a server that writes,
but never wrong about what it has read. What is shown of an answer is always read from the store.

Several processes may use one index: SQLite lets one of them write, and the others load what that
one has written.
"""

from __future__ import annotations

import json
import logging
import secrets
import sqlite3
import threading
from contextlib import contextmanager, suppress
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from activation_logging.errors import StoreCorrupt, StoreVersionError, ViewError
from activation_logging.progress import Progress, silent
from activation_logging.store import layout
from activation_logging.store.feed import Feed
from activation_logging.view.columns import MOST, Columns
from activation_logging.view.facts import LABEL_CODES, STATUS_CODES, read_record, utf8
from activation_logging.view.index_file import SCHEMA, TABLES, index_path, refusal, remove_files
from activation_logging.view.words import Asked, matching

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from activation_logging.store import Entry, Store

logger = logging.getLogger(f"vllm.{__name__}")

VERSION = 2
MOST_FOUND = 200_000
"""A search looks at so many answers with its words, the newest."""
_SEARCHES = 8
"""So many searches are remembered, until the index changes."""
_PER_BATCH = 500
_PER_READ = 5000
_MOST_WAITING = 100
_PIECE = "SELECT text FROM pieces WHERE model = ? AND token = ?"
_MAX_WORDS = 200_000


class SearchIndex:
    """The index of one store. Threads may share it.

    Args:
        store: the store, open for reading.
        path: the index's file; beside the store, or in the user's cache, if left out.
    """

    def __init__(self, store: Store, path: Path | None = None) -> None:
        if not (store.is_indexed or store.is_export):  # which does not change
            raise StoreVersionError(
                f"{store.path} has no index, or an unfinished one: run `activation-logging upgrade "
                f"{store.path}` and come back"
            )
        self.store = store
        self._feed = Feed(store)
        self.path = path or index_path(store.path)
        self.columns = Columns()
        self.left_out: set[str] = set()
        """Names of tags, evaluators and probes for which there was no column left."""
        self._lock = threading.RLock()
        self._words: dict[str, int] = {}
        self._known: set[tuple[int, int]] = set()
        self._found: dict[tuple[Asked, int], npt.NDArray[np.int64]] = {}
        self._meta: dict[str, Any] = {}
        self._connection = self._open()

    def close(self) -> None:
        """Close the file. The store stays open."""
        with self._lock:
            self._connection.close()

    def remove(self) -> None:
        """Close and delete the file, which is broken."""
        self.close()
        remove_files(self.path)

    # --- reading ---------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether every entry has been read once."""
        return self._meta["next"] is None

    @property
    def read(self) -> int:
        """How many entries have been read."""
        return self.columns.size

    @contextmanager
    def reading(self) -> Iterator[Columns]:
        """The columns, which do not change meanwhile."""
        with self._lock:
            yield self.columns

    @contextmanager
    def file(self, *, writing: bool = False) -> Iterator[sqlite3.Connection]:
        """The file, for what is kept in it beside the texts and columns, such as :mod:`.near`.

        It is this thread's alone meanwhile; ``writing`` makes it one transaction.
        """
        with self._lock:
            if writing:
                with self._exclusively():
                    self._check_store()
                    yield self._connection
            else:
                yield self._connection

    def matching(self, query: str) -> npt.NDArray[np.int64] | None:
        """Slots of the newest answers that a search finds; None where it asks for nothing.

        There are :data:`MOST_FOUND` at most.

        Raises:
            ViewError: the search cannot be understood.
        """
        asked = matching(query)
        if asked is None:
            return None
        with self._lock:
            known = self._found.get((asked, self._meta["revision"]))
            if known is None:
                known = self._look_for(asked)
                # The next page of a list, or one more condition, asks for the same words.
                kept = list(self._found.items())[-_SEARCHES:]
                self._found = {**dict(kept), (asked, self._meta["revision"]): known}
        return known

    def _look_for(self, asked: Asked) -> npt.NDArray[np.int64]:
        # What is left of all is known once all is found.
        most = -1 if asked.others else MOST_FOUND
        try:
            found = self._connection.execute(
                "SELECT rowid FROM texts WHERE texts MATCH ? ORDER BY rowid DESC LIMIT ?",
                (utf8(asked.query), most),
            ).fetchall()
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):
                raise
            raise ViewError(f"the search {asked.query[:80]!r} cannot be made: {error}") from None
        slots = np.fromiter(chain.from_iterable(found), np.int64, len(found))
        if asked.others:
            slots = np.setdiff1d(np.arange(self.columns.size), slots)[::-1][:MOST_FOUND]
        return slots

    def word(self, text: str) -> int:
        """The number of a word in the columns of models and tags; -1 if no answer has it."""
        with self._lock:
            row = self._connection.execute(
                "SELECT id FROM words WHERE text = ?", (utf8(text),)
            ).fetchone()
        return -1 if row is None else int(row[0])

    def texts(self, numbers: Iterable[int]) -> list[str]:
        """The words with these numbers."""
        with self._lock:
            ask = self._connection.execute
            return [
                ask("SELECT text FROM words WHERE id = ?", (int(number),)).fetchone()[0]
                for number in numbers
            ]

    def pieces(self, model: str, tokens: Iterable[int]) -> dict[int, str]:
        """Texts of a model's tokens by number, as far as an answer has had them."""
        number = self.word(model)
        with self._lock:
            ask = self._connection.execute
            rows = (
                (token, ask(_PIECE, (number, token)).fetchone()) for token in dict.fromkeys(tokens)
            )
            return {token: row[0] for token, row in rows if row is not None}

    def entry(self, slot: int) -> Entry | None:
        """The answer in a slot, as the store has it now; None if it is gone or unreadable."""
        with self._lock:
            if slot >= self.columns.size:  # another process has made the index anew
                return None
            sequence = int(self.columns["sequence"][slot]) - 1
        with suppress(StoreCorrupt):
            return self.store.at(layout.place(0, sequence))
        return None

    def keys(self, slots: Iterable[int]) -> list[str]:
        """The keys of the answers in these slots; those that are gone are left out."""
        left, found = iter(slots), []
        while some := list(islice(left, _PER_BATCH)):
            # Of many slots, others have their turn in between.
            with self._lock:
                ask = self._connection.execute
                rows = [
                    ask("SELECT key FROM slots WHERE slot = ?", (int(s),)).fetchone() for s in some
                ]
            found += [row[0] for row in rows if row is not None and row[0]]
        return found

    # --- following the store ---------------------------------------------------------

    def build(self, progress: Progress = silent) -> None:
        """Read every entry that has not been read. Broken off, it goes on where it was."""
        while not self.ready:
            with self._lock, self._writing():
                if not self.ready:
                    self._read_more()
            progress("reading", self.read, max(len(self.store), self.read))

    def keep_up(self, limit: int = 1 << 62) -> bool:
        """Read what has changed in the store, ``limit`` changes at most.

        Returns:
            Whether the index now shows all of the store.
        """
        done = 0
        while done < limit:
            if self.ready and self._feed.last() == self._meta["change"]:
                self._look_again()
                return True
            with self._lock, self._writing():
                if not self.ready:
                    return False
                found = self._feed.changed(self._meta["change"], min(_PER_BATCH, limit - done))
                if found is None:
                    logger.warning("%s: another store, or a rebuilt one; reading anew", self.path)
                    self._forget()
                    return False
                self._put(set(found.sequences))
                self._meta["change"] = found.mark
                done += max(len(found.sequences), 1)
        return False

    def _look_again(self) -> None:
        """Of several stores: read the newest answers whose rows have come to another than theirs.

        The store that an answer lies in does not list that as a change.
        """
        if not self.store.is_many:
            return
        with self._lock:
            waiting = np.flatnonzero(self.columns["status"] == STATUS_CODES["pending"])
            sequences = (self.columns["sequence"][waiting[-_MOST_WAITING:]] - 1).tolist()
        found = [self.store.at(layout.place(0, sequence)) for sequence in sequences]
        joined = {entry.sequence for entry in found if entry and entry.status != "pending"}
        if joined:
            with self._lock, self._writing():
                self._put(joined)

    def _read_more(self) -> None:
        """Read the next batch in the order of writing."""
        batch = self._feed.written(self._meta["next"], _PER_READ)
        self._put(batch)
        self._meta["next"] = batch[-1] + 1 if len(batch) == _PER_READ else None

    def _put(self, sequences: Iterable[int]) -> None:
        ask = self._connection.execute
        for sequence in sorted(sequences):
            row = ask("SELECT slot, key FROM slots WHERE sequence = ?", (sequence,)).fetchone()
            slot, key = row or (self.columns.size, None)
            found = read_record(self.store, sequence, self._number)
            if found is None and row is None:
                continue
            if found is None or found.key != key:
                if key is not None:
                    ask("DELETE FROM texts WHERE rowid = ?", (slot,))
                ask(
                    "INSERT OR REPLACE INTO slots VALUES (?, ?, ?)",
                    (sequence, slot, None if found is None else found.key),
                )
                if found is not None:
                    ask(
                        "INSERT INTO texts (rowid, prompt, response) VALUES (?, ?, ?)",
                        (slot, found.prompt, found.response),
                    )
            facts = {} if found is None else found.facts
            if found is not None:
                self._learn(facts.get("model", 0), found.pieces)
            # One more, so that 0 is what is not there.
            refused = self.columns.put(slot, {"sequence": sequence + 1, **facts})
            # Some of them are shown. A client may send others without end.
            self.left_out.update(refused[: MOST - len(self.left_out)])

    def _learn(self, model: int, pieces: Mapping[int, str]) -> None:
        """Keep the texts of tokens that no answer has had before."""
        new = {token: text for token, text in pieces.items() if (model, token) not in self._known}
        self._connection.executemany(
            "INSERT OR IGNORE INTO pieces VALUES (?, ?, ?)",
            [(model, token, text) for token, text in new.items()],
        )
        if len(self._known) > _MAX_WORDS:
            self._known.clear()
        self._known.update((model, token) for token in new)

    def _number(self, word: str) -> int:
        """The number of a word, which is added if it is new."""
        known = self._words.get(word)
        if known is None:
            text = utf8(word)
            self._connection.execute("INSERT OR IGNORE INTO words (text) VALUES (?)", (text,))
            known = self.word(text)
            if len(self._words) > _MAX_WORDS:
                self._words.clear()
            self._words[word] = known
        return known

    # --- the file --------------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return self._try_open()
        except sqlite3.DatabaseError as error:
            if (said := refusal(self.path, error)) is not None:
                raise said from None
            logger.warning("%s is broken (%s); reading the store anew", self.path, error)
            remove_files(self.path)
            return self._try_open()

    def _try_open(self) -> sqlite3.Connection:
        self._connection = sqlite3.connect(
            self.path, timeout=30, isolation_level=None, check_same_thread=False
        )
        # What it holds is as private as the store, unless it is somebody else's.
        with suppress(PermissionError):
            self.path.chmod(self._feed.mode())
        ask = self._connection.execute
        ask("PRAGMA journal_mode = WAL")
        # After a power cut it may be behind or broken; then the store is read again.
        ask("PRAGMA synchronous = NORMAL")
        ask("PRAGMA cache_size = -65536")
        with self._exclusively():
            made = ask("SELECT count(*) FROM sqlite_master WHERE name = 'columns'").fetchone()[0]
            if not made:
                self._make()
        self._load()
        if self._meta.get("version") != _version() or self._meta["store"] != self._feed.identity():
            with self._exclusively():
                if self._meta["store"] != self._feed.identity():
                    ask("DELETE FROM history")
                self._forget()
            self._load()
        return self._connection

    def _check_store(self) -> None:
        """Write nothing of a store into the index of another one, which has replaced it."""
        (known,) = self._connection.execute(
            "SELECT value FROM meta WHERE name = 'store'"
        ).fetchone()
        if json.loads(known) != self._feed.identity():
            raise ViewError(f"another store is at {self.store.path} by now: reload the page")

    def _make(self) -> None:
        for line in SCHEMA.split(";\n"):
            self._connection.execute(line)
        # What changes while the entries are read is read again.
        self._meta = {
            "version": _version(),
            "store": self._feed.identity(),
            "made": secrets.token_hex(8),
            "change": self._feed.last(),
            "next": 0,
            "size": 0,
            "revision": 1,
        }
        self.columns = Columns()
        self._words.clear()
        self._known.clear()
        self._found.clear()
        self._save()

    def _forget(self) -> None:
        for name in TABLES:
            self._connection.execute(f"DROP TABLE IF EXISTS {name}")
        self._make()

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            # SQLite itself has ended it where the disk is full.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction, which begins with what other processes have written."""
        try:
            with self._exclusively():
                self._check_store()
                self._load()
                yield
                self._save()
        except BaseException:
            # What is in memory is of a transaction that never was.
            self._words.clear()
            self._known.clear()
            self.columns, self._meta = Columns(), {}
            self._load()
            raise

    def _load(self) -> None:
        rows = self._connection.execute("SELECT name, value FROM meta").fetchall()
        found = {name: json.loads(value) for name, value in rows}
        if found.get("made") != self._meta.get("made"):
            self.columns, self._meta = Columns(), {}
            self._words.clear()
            self._known.clear()
            self._found.clear()
        known = self._meta.get("revision", 0)
        if found.get("revision", 0) != known:
            self.columns.load(self._connection, found["size"], known)
        self._meta = found

    def _save(self) -> None:
        self._meta["size"] = self.columns.size
        self._meta["revision"] += 1
        self.columns.save(self._connection, self._meta["revision"])
        self._connection.executemany(
            "INSERT OR REPLACE INTO meta VALUES (?, ?)",
            [(name, json.dumps(value)) for name, value in self._meta.items()],
        )


def _version() -> list[Any]:
    """What an index must have been made with: also the codes, which a later release adds to."""
    return [VERSION, list(STATUS_CODES), list(LABEL_CODES)]
