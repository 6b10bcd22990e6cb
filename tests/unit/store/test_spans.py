"""Spans of an answer in the store: written, read, moved, and found out where they are wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import lmdb
import pytest

from activation_logging import Span, Store, open_store
from activation_logging.errors import InputMissing, LabelError, StoreCorrupt
from activation_logging.store import StoreWriter, layout
from activation_logging.store.compact import compact
from activation_logging.store.engine.opening import open_alone
from activation_logging.store.merge import merge
from activation_logging.store.statistics import statistics
from activation_logging.store.upgrade import index_problems, upgrade
from activation_logging.verify import verify
from bench.version_1 import make_version_1
from tests.fixtures.answers import put_answer
from tests.fixtures.readers import command

FOX = "\U0001f98a"
RESPONSE = f"Born in 1867. {FOX}!"
PIECES = ["Born", " in", " 18", "67", ".", "", "", f" {FOX}", "", "!", ""]
SHARED = [[5, 13, 15], [6, 14, 15], [7, 14, 15]]
YEAR = Span(8, 12, "contradicted", claim="birth year", gold="1868", source="a list")
WHOLE = Span(0, len(RESPONSE), "unverifiable")
ANSWER: dict[str, Any] = {
    "response": RESPONSE,
    "response_ids": list(range(len(PIECES))),
    "response_tokens": PIECES,
    "shared_characters": SHARED,
}


@pytest.fixture
def path(store_path: Path) -> Path:
    writer = StoreWriter(store_path, role="test")
    put_answer(writer, "one", **ANSWER)
    put_answer(writer, "two", prompt="another")
    writer.close()
    with open_store(store_path, writable=True) as store:
        (entry,) = store.for_request("one")
        store.put_evaluation(entry.key, name="a", label="correct", spans=[YEAR, WHOLE])
        store.put_evaluation(entry.key, name="b", label="refused")
    return store_path


def one(store: Store) -> Any:
    (entry,) = store.for_request("one")
    return entry


def put_raw(path: Path, change: dict[str, Any]) -> None:
    """Write a label as another program would."""
    with open_store(path) as store:
        place = layout.beside_key(one(store).key, "a")
    with open_alone(path) as opened, opened.env.begin(write=True) as txn:
        database = opened.databases[layout.EVALUATIONS]
        record = json.loads(txn.get(place, db=database))
        txn.put(place, json.dumps({**record, **change}).encode(), db=database)


class TestWriting:
    def test_they_come_back_in_order(self, path: Path) -> None:
        with open_store(path) as store:
            found = one(store).evaluations
            assert found["a"].spans == (WHOLE, YEAR)
            assert found["b"].spans == ()

    def test_the_plain_layout_has_them(self, path: Path) -> None:
        with open_store(path) as store:
            key = one(store).key
        env = lmdb.open(str(path), readonly=True, max_dbs=16)
        with env.begin() as txn:
            labels = env.open_db(b"~evaluations", txn=txn, create=False)
            read = {n: json.loads(txn.get(f"{key}\0{n}".encode(), db=labels)) for n in "ab"}
        env.close()
        assert read["a"]["spans"] == [
            {"start": 0, "end": len(RESPONSE), "label": "unverifiable"},
            {
                "start": 8,
                "end": 12,
                "label": "contradicted",
                "claim": "birth year",
                "gold": "1868",
                "source": "a list",
            },
        ]
        # As labels were before there were spans.
        assert read["b"].keys() == {"label", "score", "judge", "details", "created"}

    def test_a_later_label_replaces_them(self, path: Path) -> None:
        with open_store(path, writable=True) as store:
            store.put_evaluation(one(store).key, name="a", label="correct")
            assert one(store).evaluations["a"].spans == ()
            assert statistics(store).spans == {}
            assert list(index_problems(store)) == []

    def test_many_at_once(self, path: Path) -> None:
        with open_store(path, writable=True) as store:
            key, label = one(store).key, one(store).evaluations["a"]
            more = {"key": key, "name": "c", "label": "correct", "spans": [vars(YEAR)]}
            assert store.put_evaluations([(key, label), more]) == 2
            assert one(store).evaluations["a"] == label
            assert one(store).evaluations["c"].spans == (YEAR,)

    def test_outside_the_response(self, path: Path) -> None:
        outside = Span(3, len(RESPONSE) + 1, "supported")
        said = f"the span of c from 3 to {outside.end} lies outside the response, which has 16 char"
        with open_store(path, writable=True) as store:
            key = one(store).key
            with pytest.raises(LabelError, match=said):
                store.put_evaluation(key, name="c", label="correct", spans=[YEAR, outside])
            assert one(store).evaluations.keys() == {"a", "b"}


class TestTokens:
    @pytest.mark.parametrize(
        ("span", "tokens"),
        [
            ((0, 4), [0]),
            ((8, 12), [2, 3]),
            ((7, 8), [2]),
            ((9, 11), [2, 3]),
            ((13, 14), [5]),
            ((14, 15), [5, 6, 7]),
            ((15, 16), [9]),
            ((0, 16), [0, 1, 2, 3, 4, 5, 6, 7, 9]),
        ],
    )
    def test_those_that_hold_a_part(
        self, path: Path, span: tuple[int, int], tokens: list[int]
    ) -> None:
        with open_store(path) as store:
            found = one(store).span_tokens(Span(*span, "supported"))
            assert found.tolist() == tokens
            assert found.dtype == "int64"

    def test_they_count_in_the_response(self, store_path: Path, store_writer: StoreWriter) -> None:
        """Not in the content, which may be a part of it."""
        put_answer(store_writer, "one", **ANSWER, content="1867")
        store_writer.flush()
        with open_store(store_path) as store:
            assert one(store).span_tokens(Span(0, 4, "supported")).tolist() == [0]

    def test_outside(self, path: Path) -> None:
        with open_store(path) as store, pytest.raises(LabelError, match="outside the response"):
            one(store).span_tokens(Span(0, 17, "supported"))

    @pytest.mark.parametrize(
        ("fields", "said"),
        [
            ({"response_tokens": None}, "were not logged"),
            ({"response_tokens": []}, "were not logged"),
            ({"response_tokens": PIECES[:-1]}, "were not logged"),
            ({"response_tokens": ["other"] * len(PIECES)}, "do not add up"),
        ],
    )
    def test_unknown_texts(
        self,
        fields: dict[str, Any],
        said: str,
        store_path: Path,
        store_writer: StoreWriter,
    ) -> None:
        put_answer(store_writer, "one", **{**ANSWER, **fields})
        store_writer.flush()
        with open_store(store_path) as store, pytest.raises(InputMissing, match=said):
            one(store).span_tokens(YEAR)

    @pytest.mark.parametrize(
        "shared", [None, 5, [[1]], [[0, 0, 99]], [[99, 0, 1]], [[0, 2, 2]], [[True, 0, 1]]]
    )
    def test_without_shared_characters_rather_too_many(
        self, shared: Any, store_path: Path, store_writer: StoreWriter
    ) -> None:
        put_answer(store_writer, "one", **{**ANSWER, "shared_characters": shared})
        store_writer.flush()
        with open_store(store_path) as store:
            assert one(store).shared_characters is None
            assert one(store).span_tokens(Span(14, 15, "supported")).tolist() == [5, 6, 7]
            assert one(store).span_tokens(Span(13, 14, "supported")).tolist() == [5, 6, 7]
            problems = [what for _, what in verify(store).problems]
        wrong = "its shared_characters are no places in its response"
        assert problems == ([] if shared is None else [wrong])


class TestUpkeep:
    def test_merge_takes_them_along(self, path: Path, tmp_path: Path) -> None:
        for _ in range(2):
            merge([path], tmp_path / "merged")
        with open_store(path) as store, open_store(tmp_path / "merged") as merged:
            assert one(merged).evaluations == one(store).evaluations
            assert one(merged).span_tokens(YEAR).tolist() == [2, 3]
            assert statistics(merged).spans == statistics(store).spans

    def test_they_are_counted_by_answers(self, path: Path) -> None:
        expected = {"a": {"contradicted": 1, "unverifiable": 1}}
        with open_store(path) as store:
            assert statistics(store).spans == expected
        make_version_1(path)
        with open_store(path) as store:
            assert statistics(store).spans == expected
            assert one(store).evaluations["a"].spans == (WHOLE, YEAR)
        upgrade(path)
        with open_store(path) as store:
            assert statistics(store).spans == expected

    def test_they_go_with_their_entry(self, path: Path) -> None:
        with open_store(path, writable=True) as store:
            store.delete(one(store).key)
            assert statistics(store).spans == {}
            assert verify(store).ok

    def test_compact_and_repair_keep_them(self, path: Path) -> None:
        compact(path)
        command("repair", path)
        with open_store(path) as store:
            assert one(store).evaluations["a"].spans == (WHOLE, YEAR)
            assert verify(store).ok


class TestDamage:
    def test_outside_the_response(self, path: Path, tmp_path: Path) -> None:
        labels = ("unverifiable", "contradicted")
        put_raw(path, {"spans": [{"start": 0, "end": 99, "label": label} for label in labels]})
        said = "the span of a from 0 to 99 lies outside the response, which has 16 characters"
        with open_store(path) as store:
            key = one(store).key
            assert [tuple(found) for found in verify(store).problems] == [(key, said)]
        assert merge([path], tmp_path / "merged").unreadable == {key: said}

    @pytest.mark.parametrize(
        "spans",
        [
            None,
            {},
            [5],
            [{"start": 0, "end": 1}],
            [{"start": 0, "end": 1, "label": "x"}],
            [{"start": 1, "end": 1, "label": "supported"}],
            [{"start": True, "end": 2, "label": "supported"}],
            [{"start": -1, "end": 2, "label": "supported"}],
            [{"start": 0, "end": 2, "label": "supported", "claim": 5}],
        ],
        ids=str,
    )
    def test_invalid_records(self, path: Path, spans: Any) -> None:
        put_raw(path, {"spans": spans})
        with open_store(path, writable=True) as store:
            with pytest.raises(StoreCorrupt, match=re.escape("label a of entry")):
                one(store).evaluations  # noqa: B018 - asked for what it raises
            problems = verify(store).problems
            assert any(what.startswith("label a of entry") for _, what in problems)
            store.put_evaluation(one(store).key, name="a", label="correct", spans=[YEAR])
            assert one(store).evaluations["a"].spans == (YEAR,)

    def test_fields_of_a_later_version_are_left_out(self, path: Path) -> None:
        put_raw(path, {"spans": [{"start": 0, "end": 4, "label": "supported", "later": [1]}]})
        with open_store(path) as store:
            assert one(store).evaluations["a"].spans == (Span(0, 4, "supported"),)
