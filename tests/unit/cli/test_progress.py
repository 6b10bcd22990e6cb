"""How long work says where it is, and what a terminal shows of it."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from activation_logging import open_store
from activation_logging.cli import progress as face
from activation_logging.progress import track
from activation_logging.store import StoreWriter
from activation_logging.store.compact import compact
from activation_logging.store.merge import merge
from activation_logging.store.statistics import statistics
from activation_logging.store.upgrade import upgrade
from activation_logging.verify import verify
from bench.version_1 import make_version_1
from tests.fixtures.answers import put_answer

NUMBER = 7


class Told(list[tuple[str, int, int]]):
    """Everything that was reported."""

    def __call__(self, *said: Any) -> None:
        self.append(said)


@pytest.fixture
def path(store_path: Path) -> Path:
    with_answers(store_path)
    return store_path


def with_answers(path: Path) -> None:
    writer = StoreWriter(path, role="test")
    for number in range(NUMBER):
        put_answer(writer, f"a{number}", prompt=f"p{number}")
    writer.close()


def each(what: str) -> list[tuple[str, int, int]]:
    return [(what, done, NUMBER) for done in range(NUMBER + 1)]


def test_what_goes_through_the_entries_counts_them(path: Path, tmp_path: Path) -> None:
    told = Told()
    with open_store(path) as store:
        verify(store, progress=told)
    assert told == each("verifying")
    told.clear()
    merge([path], tmp_path / "merged", progress=told)
    assert told == each(f"merging {path.name}")


def test_a_store_without_an_index_is_counted_entry_by_entry(path: Path) -> None:
    told = Told()
    with open_store(path) as store:
        statistics(store, told)
    assert not told, "the index knows"
    make_version_1(path)
    with open_store(path) as store:
        statistics(store, told)
    assert told == each("counting")
    told.clear()
    upgrade(path, progress=told)
    assert told == [("listing", NUMBER, NUMBER)]


def test_a_copy_counts_bytes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("activation_logging.store.compact._POLL_S", 0)
    told = Told()
    compact(path, progress=told)
    assert {what for what, _, _ in told} == {"copying"}
    assert all(0 <= done <= total for _, done, total in told)


class TestBar:
    @pytest.fixture
    def screen(self, monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
        """What a terminal gets to see."""
        screen = io.StringIO()
        terminal = Console(file=screen, force_terminal=True, width=100)
        monkeypatch.setattr(face, "errors", terminal)
        return screen

    def test_work_that_is_soon_done_shows_nothing(self, screen: io.StringIO) -> None:
        with face.show_progress() as progress:
            assert list(track("abc", "counting", 3, progress)) == [*"abc"]
        assert not screen.getvalue()

    def test_each_stage_begins_at_nothing(
        self, screen: io.StringIO, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(face, "_PATIENCE_S", -1)
        with face.show_progress() as progress:
            progress("starting", 0, 0)
            progress("12 tokens/s", 1, 3)
            progress("13 tokens/s [red]", 3, 3)
            progress("counting", 0, 3)
        shown = re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]", "", screen.getvalue())
        assert re.search(r"counting \W+ 0/3 0:00:00 left", shown)

    def test_an_error_takes_the_bar_away(
        self, screen: io.StringIO, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(face, "_PATIENCE_S", -1)
        with pytest.raises(KeyError), face.show_progress() as progress:
            progress("counting", 1, 3)
            raise KeyError
        assert screen.getvalue().endswith("\x1b[1A\x1b[2K"), "the line is erased"
