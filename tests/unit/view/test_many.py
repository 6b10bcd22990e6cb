"""The pages of several stores that are read as one."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from activation_logging import open_store
from activation_logging.store import StoreWriter
from activation_logging.view.addresses import address, key_of
from activation_logging.view.app import make_app
from activation_logging.view.index import SearchIndex
from activation_logging.view.index_file import index_path
from tests.fixtures.answers import make_capture, make_segment, put_answer
from tests.fixtures.halves import make_halves
from tests.unit.view.conftest import NUMBER, build
from tests.unit.view.test_index import expected, known


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two stores with the same answers."""
    for host in "ab":
        build(tmp_path / "hosts" / f"{host}.lmdb")
    return tmp_path / "hosts"


def test_the_index_knows_and_follows_all(folder: Path) -> None:
    with open_store(folder, writable=True) as store:
        index = SearchIndex(store)
        index.build()
        assert len(known(index)) == 2 * NUMBER
        assert known(index) == expected(store)
        keys = [entry.key for entry in store.entries()]
        store.put_evaluation(keys[0], name="hand", label="invalid")
        store.delete(keys[5])
        writer = StoreWriter(folder / "b.lmdb", role="test")
        put_answer(writer, "late", prompt="late")
        writer.close()
        assert index.keep_up()
        assert known(index) == expected(store)
    assert index.path == index_path(folder) == folder.parent / "hosts.view.sqlite"
    assert index_path(folder / "*.lmdb").parent.name == "activation-logging"


def test_rows_that_come_to_another_store(tmp_path: Path) -> None:
    folder = make_halves(tmp_path / "h")
    with open_store(folder) as store:
        index = SearchIndex(store)
        index.build()
        assert known(index) == expected(store)
        writer = StoreWriter(folder / "b.lmdb", role="worker of engine 1")
        writer.put_capture(make_capture("r4", [make_segment("r4", 4)]))
        writer.close()
        assert index.keep_up()
        assert {one["status"] for one in known(index).values()} == {"complete"}


def test_pages(folder: Path) -> None:
    app = make_app(folder)
    app.state.view.index.build()
    with TestClient(app, base_url="http://localhost") as pages:
        with open_store(folder) as store:
            first, second = store.for_request("request-7")
        assert {first.key[:7], second.key[:7]} == {"a.lmdb:", "b.lmdb:"}
        place = f"/activations/entry/{address(first.key)}"
        assert place in pages.get("/activations/").text
        assert address(second.key) in pages.get(place).text
        found = pages.get(f"/activations/?q={address(first.key)}", follow_redirects=False)
        assert found.headers["location"] == place
        both = pages.get(f"/activations/?q={first.stored_key}")
        assert both.status_code == 400
        assert first.key in both.text
        assert second.key in both.text
        assert pages.get("/activations/studies").status_code == 200


def test_addresses() -> None:
    key = "host-1.lmdb:" + "0" * 64 + "#2"
    assert address(key) == "host-1.lmdb:" + "0" * 64 + ".2"
    assert key_of(address(key)) == key
    assert key_of(address("0" * 64 + "#3")) == "0" * 64 + "#3"
