"""The search index follows the store, whatever happens to either."""

from __future__ import annotations

import sqlite3

import numpy as np
import pytest

from activation_logging import Derived, open_store
from activation_logging.errors import StoreVersionError
from activation_logging.store import StoreWriter
from activation_logging.store.upgrade import upgrade
from activation_logging.view.columns import CHUNK, MOST, SCHEMA, Columns
from activation_logging.view.facts import LABEL_CODES, STATUS_CODES
from activation_logging.view.index import SearchIndex
from activation_logging.view.index_file import index_path
from bench.version_1 import make_version_1
from tests.fixtures.answers import make_document, put_answer
from tests.unit.view.conftest import HOSTILE, NUMBER


def known(index):
    """All that an index says, by key, in the words of the store."""
    statuses = {code: name for name, code in STATUS_CODES.items()}
    labels = {code: name for name, code in LABEL_CODES.items()}
    found = {}
    with index.reading() as columns:
        for slot in range(columns.size):
            status = int(columns["status"][slot])
            if status:
                (key,) = index.keys([slot])
                found[key] = {
                    "status": statuses[status],
                    "created": float(columns["created"][slot]),
                    "model": index.texts([columns["model"][slot]]),
                    "tags": {
                        name: index.texts([columns[f"tag/{name}"][slot]])[0]
                        for name in columns.names("tag")
                        if columns[f"tag/{name}"][slot]
                    },
                    "labels": {
                        name: labels[int(columns[f"label/{name}"][slot])]
                        for name in columns.names("label")
                        if columns[f"label/{name}"][slot]
                    },
                    "scores": {
                        name: float(columns[f"score/{name}"][slot])
                        for name in columns.names("score")
                        if np.isfinite(columns[f"score/{name}"][slot])
                    },
                }
    return found


def expected(store):
    return {
        entry.key: {
            "status": entry.status,
            "created": entry.created,
            "model": [entry.model],
            "tags": entry.tags,
            "labels": {name: one.label for name, one in entry.evaluations.items()},
            "scores": {name: float(np.nanmax(rows)) for name, rows in entry.scores.items()},
        }
        for entry in store.entries()
    }


def found(index, query):
    return sorted(index.keys(index.matching(query)))


def test_it_knows_what_the_store_has(store, index):
    assert index.ready
    assert len(known(index)) == NUMBER
    assert known(index) == expected(store)


def test_it_finds_words_of_prompts_and_answers(store, index):
    by_request = {entry.request_id: entry.key for entry in store.entries()}
    assert found(index, "answer:9") == [by_request["request-9"]]
    assert found(index, "onerror") == sorted(by_request[f"request-{i}"] for i in (3, 4))
    assert found(index, "absent") == []


CHANGES = {
    "a label": lambda s, e: s.put_evaluation(e.key, name="hand", label="invalid", score=0.25),
    "another label": lambda s, e: s.put_evaluation(e.key, name="rules", label="refused"),
    "a label less": lambda s, e: s.delete_evaluation(e.key, "rules"),
    "a score": lambda s, e: s.put_derived([Derived(e.key, "score/new", np.ones(7, np.float32))]),
    "an answer less": lambda s, e: s.delete(e.key),
}


@pytest.mark.parametrize("change", CHANGES)
def test_it_follows(store, index, change):
    entry = next(store.entries())
    CHANGES[change](store, entry)
    assert index.keep_up()
    assert known(index) == expected(store)


def test_a_deleted_text_is_not_found(store, index):
    entry = next(store.entries())
    store.delete(entry.key)
    index.keep_up()
    assert entry.key not in found(index, "number")


def test_the_next_answer_takes_the_number_of_a_deleted_last_one(path, store, index):
    last = next(store.entries(newest_first=True))
    store.delete(last.key)
    writer = StoreWriter(path, role="test")
    put_answer(writer, "another", prompt="Something else")
    writer.close()
    assert next(store.entries(newest_first=True)).sequence == last.sequence
    index.keep_up()
    assert known(index) == expected(store)
    assert found(index, "something") == [next(store.entries(newest_first=True)).key]
    assert last.key not in found(index, "number")


def test_it_follows_a_server_that_writes(path, store, index):
    writer = StoreWriter(path, role="test")
    for i in range(20):
        put_answer(writer, f"later-{i}", prompt=f"later {i}")
    writer.put_entry(make_document("half", prompt="half of it"))
    writer.flush()
    assert not index.keep_up(5)
    assert index.keep_up()
    assert known(index) == expected(store)
    assert known(index)[store.for_prompt("half of it")[0].key]["status"] == "pending"
    writer.close()


def test_a_broken_off_build_goes_on(store, monkeypatch):
    monkeypatch.setattr("activation_logging.view.index._PER_READ", 5)
    first = SearchIndex(store)
    with pytest.raises(KeyboardInterrupt):
        first.build(stop_after_five)
    second = SearchIndex(store)
    assert not second.ready
    assert second.read == 5
    second.build()
    assert known(second) == expected(store)


def stop_after_five(what, done, total):
    assert (done, total) == (5, NUMBER)
    raise KeyboardInterrupt


def test_what_changes_while_it_is_built_is_read_again(store, monkeypatch):
    monkeypatch.setattr("activation_logging.view.index._PER_READ", 5)
    index = SearchIndex(store)
    entry = next(store.entries())
    index.build(lambda *_: store.put_evaluation(entry.key, name="hand", label="invalid"))
    index.keep_up()
    assert known(index) == expected(store)


@pytest.mark.parametrize("damage", ["garbage", "empty", "truncated", "another database"])
def test_a_broken_file_is_made_anew(store, index, damage):
    index.close()
    size = index.path.stat().st_size
    if damage == "garbage":
        index.path.write_bytes(b"no database" * 1000)
    elif damage == "empty":
        index.path.write_bytes(b"")
    elif damage == "truncated":
        index.path.write_bytes(index.path.read_bytes()[: size // 3])
    else:
        index.path.unlink()
        with sqlite3.connect(index.path) as other:
            other.execute("CREATE TABLE columns (x)")
    again = SearchIndex(store)
    again.build()
    assert known(again) == expected(store)
    assert len(found(again, "number")) == NUMBER


def test_the_index_of_another_store_is_not_used(tmp_path, store, index):
    writer = StoreWriter(tmp_path / "other", role="test")
    put_answer(writer, "only", prompt="only one")
    writer.close()
    with open_store(tmp_path / "other") as other:
        again = SearchIndex(other, index.path)
        again.build()
        assert known(again) == expected(other)


def test_an_index_with_other_codes_is_not_used(store, index, monkeypatch):
    shifted = {"new": 1, **{name: code + 1 for name, code in STATUS_CODES.items()}}
    for module in ("index", "facts"):
        monkeypatch.setattr(f"activation_logging.view.{module}.STATUS_CODES", shifted)
    again = SearchIndex(store)
    again.build()
    with again.reading() as columns:
        assert set(columns["status"].tolist()) == {shifted["complete"]}


def test_a_rebuilt_index_of_the_store_is_read_anew(path, store, index):
    store.close()
    upgrade(path, rebuild=True)
    with open_store(path, writable=True) as reopened:
        again = SearchIndex(reopened)
        assert not again.keep_up()
        again.build()
        assert known(again) == expected(reopened)


def test_two_processes_share_one_file(store, index):
    other = SearchIndex(store)
    store.put_evaluation(next(iter(store)), name="hand", label="invalid")
    other.keep_up()
    assert known(other) == expected(store)
    store.put_evaluation(next(iter(store)), name="hand", label="correct")
    index.keep_up()
    assert known(index) == expected(store)
    other.keep_up()
    assert known(other) == expected(store)


def test_another_process_has_made_it_anew(path, store, index):
    """What one knows of the file before is given up, however much has been written since."""
    assert len(found(index, "number")) == NUMBER
    other = SearchIndex(store)
    with other._exclusively():
        other._forget()
    other.build()
    for number in range(8):
        store.put_evaluation(next(iter(store)), name="hand", label="invalid", score=number)
        other.keep_up()
    index.keep_up()
    assert known(index) == known(other) == expected(store)
    assert len(found(index, "number")) == NUMBER


def test_an_entry_that_cannot_be_read_is_listed_as_such(store, index):
    from activation_logging.store import layout

    key = next(iter(store))
    store.transact(
        lambda change, txn: txn.put(
            layout.beside_key(key, "broken"),
            b"{",
            db=store.environment.database(layout.EVALUATIONS),
        )
    )
    store.put_evaluation(key, name="hand", label="correct")
    index.keep_up()
    with index.reading() as columns:
        assert (columns["status"] == STATUS_CODES["unreadable"]).sum() == 1


def test_where_nobody_may_write_it_is_in_the_cache(path, monkeypatch, tmp_path):
    assert index_path(path) == path.with_name("s.lmdb.view.sqlite")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("os.access", lambda *_: False)
    found = index_path(path)
    assert found.parent == tmp_path / "cache" / "activation-logging"


def test_it_is_as_private_as_the_store(path, store):
    (path / "data.mdb").chmod(0o600)
    assert SearchIndex(store).path.stat().st_mode & 0o777 == 0o600


def test_a_store_without_an_index_is_refused_with_the_remedy(path):
    make_version_1(path)
    with open_store(path) as old, pytest.raises(StoreVersionError, match="upgrade"):
        SearchIndex(old)


def test_names_without_end_do_not_fill_the_memory(path, store, index):
    writer = StoreWriter(path, role="test")
    for i in range(MOST + 5):
        put_answer(writer, f"tagged-{i}", prompt=f"tagged {i}", tags={f"name {i}": "x"})
    writer.close()
    index.keep_up()
    with index.reading() as columns:
        assert len(columns.names("tag")) == MOST
    assert len(index.left_out) == 7  # and the two names that were there before
    assert f"tag/name {MOST + 4}" in index.left_out


class TestColumns:
    def test_what_is_not_named_is_absent(self):
        columns = Columns()
        columns.put(0, {"status": 1, "score/a": 0.5})
        columns.put(0, {"status": 2})
        assert columns["status"].tolist() == [2]
        assert np.isnan(columns["score/a"]).all()

    def test_they_grow_and_are_read_back(self):
        database = sqlite3.connect(":memory:")
        database.executescript(SCHEMA)
        columns = Columns()
        for slot in (0, CHUNK - 1, CHUNK, 3 * CHUNK + 7):
            columns.put(slot, {"status": 1, "score/a": slot})
        columns.save(database, 1)
        columns.put(2, {"label/x": 3})
        columns.save(database, 2)
        other = Columns()
        other.load(database, columns.size, 0)
        assert other.size == 3 * CHUNK + 8
        for name in ("status", "score/a", "label/x"):
            np.testing.assert_array_equal(other[name], columns[name])

    def test_a_change_writes_one_chunk(self):
        database = sqlite3.connect(":memory:")
        database.executescript(SCHEMA)
        columns = Columns()
        for slot in (0, 5 * CHUNK):
            columns.put(slot, {"status": 1, "created": 1.0})
        columns.save(database, 1)
        columns.put(1, {"status": 2, "created": 1.0})
        columns.put(1, {"status": 3, "created": 1.0})
        columns.put(0, {"status": 1, "created": 1.0})
        columns.save(database, 2)
        written = database.execute("SELECT name, chunk FROM columns WHERE revision = 2").fetchall()
        assert sorted(written) == [("created", 0), ("status", 0)]


def test_hostile_names_are_texts(index):
    assert index.word(HOSTILE) > 0
    assert index.word("no such word") == -1


def test_what_has_changed_too_much_is_read_anew(index, store, monkeypatch):
    """Also by who has seen no change, since the store was empty then."""
    monkeypatch.setattr("activation_logging.store.indexing.MOST_CHANGES", 10)
    monkeypatch.setattr("activation_logging.store.indexing.PER_FORGETTING", 1)
    for i in range(40):
        store.put_evaluation(next(iter(store)), name=f"judge {i % 3}", label="correct")
    assert not index.keep_up()
    assert not index.ready
    index.build()
    assert index.keep_up()
    assert known(index) == expected(store)


def test_an_index_of_an_empty_store_misses_no_forgotten_change(tmp_path, monkeypatch):
    monkeypatch.setattr("activation_logging.store.indexing.MOST_CHANGES", 0)
    monkeypatch.setattr("activation_logging.store.indexing.PER_FORGETTING", 1)
    with open_store(tmp_path / "s", writable=True) as store:
        index = SearchIndex(store)
        index.build()
        writer = StoreWriter(tmp_path / "s", role="test")
        for name in "abc":
            put_answer(writer, name, prompt=name)
        writer.close()
        for i in range(20):
            store.put_evaluation(next(iter(store)), name=f"judge {i % 3}", label="correct")
        assert not index.keep_up()
        index.build()
        assert known(index) == expected(store)
        index.close()
