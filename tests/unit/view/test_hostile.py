"""What a careless or hostile world does to the pages: odd addresses, and stores that go away."""

from __future__ import annotations

import shutil
import sqlite3

import pytest

from activation_logging import open_store
from activation_logging.errors import ViewError
from activation_logging.store import StoreWriter
from activation_logging.view.addresses import address
from activation_logging.view.index import SearchIndex
from bench.version_1 import make_version_1
from tests.fixtures.answers import put_answer
from tests.unit.view.conftest import HOSTILE, Pages, build

QUERIES = (
    "after=nan:0", "after=1:99999999999999999999999", "after=:", "after=1e400:-5", "after=x",
    "score=score/made_up&low=1e300", "score=score/made_up&low=-1e400&high=nan", "low=1",
    "score=created&sort=highest", "score=columns&low=0", "sort=sideways", "status=", "tag==",
    "since=1e400", "since=-1", "since=9999999999999999d", "until=nan", "since=0000-00-00",
    "label=%00=correct", "tag=%ED%B2%80=x", "q=%00", "q=%22", "q=-", "q=*", "q=NEAR(a%20b)",
    "q=" + "%28" * 500, "q=" + "a+" * 900, "model=" + "x" * 9000,
)  # fmt: skip
ADDRESSES = (
    "label?by=ada&threshold=nan&order=threshold&score=score/made_up", "label?by=ada&threshold=x",
    "label?by=ada&after=1:9999999999999999999999", "agreement?first=%00&second=%ED%B2%80",
    "entry/%00", "entry/..%2f..%2fetc", "entry/" + "a" * 64 + "%23" + "9" * 30, "request/%00",
    "request/" + "r" * 9000, "chat?like=%00", "studies/..%2f..", "studies/20260101-000000/x.json",
    "entry/{key}/map?start=2147483648", "entry/{key}/map?of=lens", "entry/{key}?colour=norm/",
    "entry/{key}?spans=%00", "entry/{key}/near?site=%00", "entry/{key}/near?position=-1",
)  # fmt: skip


def test_odd_addresses_are_answered(pages, store):
    key = address(store.for_request("request-2")[0].key)
    odd = [f"{page}{query}" for query in QUERIES for page in ("?", "label?by=ada&order=newest&")]
    for where in [*odd, *(one.format(key=key) for one in ADDRESSES)]:
        status = pages.client.get(f"/activations/{where}").status_code
        assert status in {200, 400, 404, 422}, where


def test_what_is_wrong_with_an_address_is_said_on_a_page(pages):
    wrong = {"label?threshold=x": (400, "threshold: "), "nothing": (404, "no such page"),
             "label?by=" + "x" * 301: (400, "by: "), "selection": (405, "Method Not Allowed"),
             "entry/a/map?start=-1": (400, "start: ")}  # fmt: skip
    for where, (status, said) in wrong.items():
        assert said in pages.get(where, status=status), where


def test_a_link_with_endless_conditions_takes_no_memory(pages):
    """Another site may lead a browser here, and each condition is a column as long as the list."""
    for name in ("label=j{}=correct", "tag=t{}=x"):
        query = "&".join(name.format(i) for i in range(200))
        assert "200 conditions are too many" in pages.get(f"?{query}", status=400)


# --- stores that go away -----------------------------------------------------------------


def test_a_store_that_is_removed_is_not_made_again(pages, path, store):
    key = address(store.for_request("request-2")[0].key)
    store.close()
    shutil.rmtree(path)
    assert "there is no store at" in pages.get(status=404)
    for where, fields in (
        ("label", {"by": "ada", "key": key, "label": "correct"}),
        ("label/undo", {"by": "ada"}),
        ("selection", {"key": key, "action": "delete", "sure": "1"}),
        (f"entry/{key}/near", {}),
        ("studies", {"positive": "correct", "negative": "refused"}),
    ):
        pages.post(where, 404, **fields)
    assert not path.exists()
    build(path)
    pages.state.index.build()
    assert "number 7" in pages.get()


def test_a_store_that_is_replaced_is_shown(pages, path, store):
    old = store.for_request("request-2")[0].key
    pages.post("label", by="ada", key=address(old), label="correct")
    behind = pages.state.index
    shutil.rmtree(path)
    writer = StoreWriter(path, role="test")
    put_answer(writer, "only", prompt="the only one", layers=(2, 4), response_ids=(4, 5, 6))
    writer.close()
    assert len(pages.state.store) == 1
    pages.state.index.build()
    page = pages.get()
    assert "the only one" in page
    assert "number 7" not in page
    pages.get(f"entry/{address(old)}", status=404)
    # What was labelled by hand was labelled in the other store.
    assert "labelled nothing" in pages.post("label/undo", 400, by="ada").text
    # What still reads the old store writes nothing of it into the index of the new one.
    assert behind.store.replaced
    store.put_evaluation(old, name="late", label="correct")
    with pytest.raises(ViewError, match="another store"):
        behind.keep_up()
    assert pages.state.index.keys(range(10)) == list(pages.state.store)


def test_a_store_of_version_1_says_what_to_do(tmp_path):
    build(tmp_path / "one")
    make_version_1(tmp_path / "one")
    page = Pages(tmp_path / "one").get(status=400)
    assert "activation-logging upgrade" in page


def test_what_is_no_store_says_so(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "data.mdb").write_bytes(b"no store" * 4000)
    page = Pages(tmp_path / "s").get(status=400)
    assert "That did not work" in page
    assert list(tmp_path.iterdir()) == [tmp_path / "s"]


# --- search indexes that break -------------------------------------------------------------


def test_an_index_that_breaks_while_it_is_read_is_made_anew(pages):
    assert "number 7" in pages.get("?q=number")
    pages.state.index._connection.execute("DROP TABLE texts")
    assert "reload the page" in pages.get("?q=seven", status=400)
    pages.state.index.build()
    assert "number 7" in pages.get("?q=number")


def test_an_index_that_somebody_else_writes_keeps_what_was_labelled(pages, path, monkeypatch):
    key = address(pages.state.store.for_request("request-2")[0].key)
    pages.post("label", by="ada", key=key, label="correct")
    pages.state.index._connection.execute("PRAGMA busy_timeout = 1")
    other = sqlite3.connect(pages.state.index.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    page = pages.post("label", 400, by="ada", key=key, label="refused").text
    assert "another process" in page
    other.execute("ROLLBACK")
    other.close()
    pages.post("label/undo", by="ada")
    with open_store(path) as store:
        assert "ada" not in store.for_request("request-2")[0].evaluations


def test_an_index_of_a_full_disk_is_not_thrown_away(store, index):
    """A disk of the pages that there are, as SQLite sees it."""
    pages = index._connection.execute("PRAGMA page_count").fetchone()[0]
    index._connection.execute(f"PRAGMA max_page_count = {pages}")
    key = store.for_request("request-2")[0].key
    store.put_evaluation(key, name="new", label="correct", details={"text": HOSTILE})
    with pytest.raises(sqlite3.OperationalError, match="full"):
        for i in range(90):
            store.put_evaluation(key, name=f"new {i}", label="correct")
            index.keep_up()
    assert index.path.exists()
    again = SearchIndex(store, index.path)
    assert again.keep_up()
    again.close()
