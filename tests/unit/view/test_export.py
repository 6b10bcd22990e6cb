"""The pages of an export: all that can be looked at, and nothing that can be changed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from activation_logging import open_store
from activation_logging.export import export_store
from activation_logging.store import StoreWriter
from activation_logging.view.addresses import address
from activation_logging.view.index_file import index_path
from tests.fixtures.answers import put_answer
from tests.fixtures.planted import MODEL, build
from tests.unit.view.conftest import Pages

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return build(tmp_path / "s", n=8, samples=2)


@pytest.fixture(params=["folder", "address"])
def target(request: pytest.FixtureRequest, path: Path, tmp_path: Path, monkeypatch) -> str:
    pytest.importorskip("fsspec")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    where = tmp_path / "out" if request.param == "folder" else f"memory://{tmp_path.name}/out"
    export_store(path, where, format="npy")
    return str(where)


def shown(pages: Pages, where: str) -> str:
    text = pages.get(where).replace(pages.state.title, "TITLE")
    return re.sub(r'(form-token|form_token" value)="[^"]*"', "", text)


def test_every_page_is_that_of_the_store(path: Path, target: str) -> None:
    pages, others = Pages(path), Pages([target])  # as the command line gives it
    others.state.index.build()
    pages.state.index.build()
    with open_store(path) as store:
        keys = [address(key) for key in store]
    places = ["", "?q=question", "?label=facts%3Dcorrect", "label?by=ada", "agreement"]
    for key in keys[:3]:
        places += [
            f"entry/{key}",
            f"entry/{key}?colour=logprob",
            f"entry/{key}/map",
            f"entry/{key}/near",
        ]
    for where in places:
        assert shown(others, where) == shown(pages, where), where


def test_nothing_is_changed(path: Path, target: str) -> None:
    pages = Pages(target)
    pages.state.index.build()
    with open_store(path) as store:
        key = address(next(iter(store)))
    said = pages.post("label", 403, by="ada", key=key, label="correct").text
    assert "is an export, which is only read" in said


def test_what_is_appended_is_seen(path: Path, target: str) -> None:
    pages = Pages(target)
    pages.state.index.build()
    assert "late news" not in pages.get()
    writer = StoreWriter(path, role="test")
    put_answer(writer, "late", prompt="late news", layers=(0, 2, 4), model=MODEL)
    writer.close()
    export_store(path, target, append=True)
    if "://" in target:  # which is not looked at again
        pages = Pages(target)
    pages.get()
    pages.state.index.build()
    assert "late news" in pages.get()
    assert index_path(pages.state.store.path).is_file()
