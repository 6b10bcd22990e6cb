"""A store with a largest size: the file stays below it, and what must give way does so in order."""

from __future__ import annotations

import gc
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from activation_logging import open_store
from activation_logging.errors import StoreError, StoreVersionError
from activation_logging.store import StoreWriter
from activation_logging.store.prune import plan_prune
from activation_logging.store.repair import page_problems
from activation_logging.verify import verify
from bench.version_1 import make_version_1
from tests.fixtures.answers import make_capture, make_document, make_segment
from tests.unit.store.programs import LARGE, ROOT, command, put_large

MB = 1_000_000
CEILING = 16 * MB


def write(path: Path, names: list[str], **options: object) -> StoreWriter:
    """A writer below the ceiling that has written these answers, a quarter of a MB each."""
    writer = StoreWriter(path, role="test", ceiling=CEILING, **options)  # type: ignore[arg-type]
    writer.share(list)
    for name in names:
        put_large(writer, name)
    return writer


def numbered(count: int, start: int = 0) -> list[str]:
    return [f"r{number}" for number in range(start, start + count)]


def size(path: Path) -> int:
    return (path / "data.mdb").stat().st_size


def statuses(path: Path) -> list[str]:
    """Of all entries, from the oldest."""
    with open_store(path) as store:
        found = verify(store).problems
        assert not [one for one in found if "dropped" not in one.what]
        return [entry.status for entry in store.entries()]


def label(path: Path, count: int | None = None) -> None:
    with open_store(path, writable=True) as store:
        keys = [entry.key for entry in store.entries() if entry.status == "complete"][:count]
        for key in keys:
            store.put_evaluation(key, name="judge", label="correct")


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_the_oldest_make_room(store_path: Path) -> None:
    writer = write(store_path, numbered(20))
    writer.flush()
    label(store_path, 3)
    for name in numbered(280, 20):
        put_large(writer, name)
        assert size(store_path) <= CEILING
    writer.close()
    found = statuses(store_path)
    assert found[:3] == ["complete"] * 3
    later = found[3:]
    gone = later.index("complete")
    assert later == ["unkept"] * gone + ["complete"] * (len(later) - gone)
    # It is full, and not emptied more than it needs.
    assert len(later) - gone > 0.5 * CEILING / LARGE
    assert writer.record["pruned"] == gone
    assert writer.stats.errors == writer.stats.lost == 0
    assert size(store_path) <= CEILING
    assert page_problems(store_path) == []
    with open_store(store_path) as store:
        entry = list(store.entries())[3]
        assert entry.response == "answer r3"
        assert "ACTIVATION_MAX_SIZE" in str(entry.status_reason)


def test_what_is_removed_is_counted_in_the_same_commit(store_path: Path) -> None:
    """Not with the next answer, which an idle server may never get."""
    writer = write(store_path, [])
    for name in numbered(300):
        put_large(writer, name)
        writer.flush()
        time.sleep(0.1)  # for the look that follows the commit
        if writer.record["pruned"]:
            break
    wait_for(lambda: writer.record["pruned"] == statuses(store_path).count("unkept") > 0)
    with open_store(store_path) as store:
        (record,) = store.writers().values()
        assert record["pruned"] == writer.record["pruned"]
    writer.close()


@pytest.fixture
def labelled(store_path: Path) -> Path:
    """A store as large as the ceiling, in which every answer is labelled."""
    writer = StoreWriter(store_path, role="test")
    for name in numbered(50):
        put_large(writer, name)
    writer.close()
    label(store_path)
    return store_path


def test_if_only_labelled_rows_are_left_new_ones_wait(
    labelled: Path, our_log: pytest.LogCaptureFixture
) -> None:
    before = size(labelled)
    writer = write(labelled, ["new"])
    with pytest.raises(StoreError, match="2 records could not be written"):
        writer.flush(timeout=3)
    assert "only what is labelled is left" in our_log.text
    with open_store(labelled, writable=True) as store:
        store.delete_all([entry.key for entry in store.entries()][:20])
    writer.flush()
    writer.close()
    assert writer.stats.lost == 0
    assert statuses(labelled) == ["complete"] * 31
    assert size(labelled) <= before + MB


def test_or_are_dropped(labelled: Path) -> None:
    writer = write(labelled, [], policy="drop", queue_bytes=MB)
    for name in numbered(20, 50):
        put_large(writer, name)
    assert writer.stats.dropped
    with open_store(labelled, writable=True) as store:
        store.delete_all([entry.key for entry in store.entries()][:20])
    writer.close()
    found = Counter(statuses(labelled))
    assert found["dropped"] == writer.stats.dropped
    assert found == {"complete": 50 - found["dropped"], "dropped": found["dropped"]}


def test_a_reader_that_stays_costs_nobody_their_rows(
    store_path: Path, our_log: pytest.LogCaptureFixture
) -> None:
    """LMDB cannot use what the reader still sees; removing more would not help."""
    writer = write(store_path, numbered(50))
    writer.flush()
    with open_store(store_path) as store:
        view = store.snapshot()
        for name in numbered(60, 50):
            put_large(writer, name)
        wait_for(lambda: "still reads what has been removed" in our_log.text)
        complete = sum(entry.status == "complete" for entry in store.entries())
        assert complete > 0.5 * CEILING / LARGE
        del view
    writer.close()
    assert statuses(store_path)[-1] == "complete"
    assert writer.stats.lost == 0
    assert size(store_path) <= CEILING


def test_a_store_that_is_too_large_at_first(store_path: Path) -> None:
    writer = StoreWriter(store_path, role="test")
    for name in numbered(100):
        put_large(writer, name)
    writer.close()
    before = size(store_path)
    assert before > CEILING
    writer = write(store_path, [])
    with open_store(store_path) as store:
        wait_for(lambda: store.snapshot().used_bytes < CEILING)
    for name in numbered(100, 100):
        put_large(writer, name)
    writer.close()
    assert statuses(store_path)[-1] == "complete"
    assert size(store_path) <= before + MB


def test_rows_that_are_too_large_by_themselves(store_path: Path) -> None:
    writer = write(store_path, numbered(2))
    segment = make_segment("huge", 3000, layers=range(1, 41))
    writer.put_capture(make_capture("huge", [segment], layers=range(1, 41)))
    writer.put_entry(make_document("huge", prompt="huge", prompt_ids=[1] * 2999))
    put_large(writer, "last")
    writer.close()
    assert statuses(store_path) == ["complete", "complete", "dropped", "complete"]


def test_texts_give_way_where_they_have_come_to_fill_it(
    store_path: Path, our_log: pytest.LogCaptureFixture
) -> None:
    writer = StoreWriter(store_path, role="test", ceiling=CEILING)
    writer.share(list)
    text = "word " * 20_000
    for number in range(300):
        put_large(writer, f"r{number}", messages=[{"role": "user", "content": text}])
    writer.flush()
    label(store_path, 1)
    for number in range(300, 400):
        put_large(writer, f"r{number}", messages=[{"role": "user", "content": text}])
    writer.close()
    assert size(store_path) <= CEILING
    with open_store(store_path) as store:
        assert verify(store).ok
        left = [int(entry.request_id[1:]) for entry in store.entries()]
        assert sum(bool(entry.evaluations) for entry in store.entries()) == 1
    assert len(left) < 200
    assert left[-50:] == list(range(350, 400))
    assert writer.record["deleted"] == 400 - len(left)
    assert our_log.text.count("the oldest entries without rows and labels are deleted whole") == 1


def test_two_writers_share_it(store_path: Path) -> None:
    writers = [write(store_path, []) for _ in range(2)]
    for number in range(120):
        for place, writer in enumerate(writers):
            put_large(writer, f"w{place}-{number}")
        assert size(store_path) <= CEILING
    for writer in writers:
        writer.close()
    found = Counter(statuses(store_path))
    assert found.total() == 240
    assert found["complete"] > 0.4 * CEILING / LARGE


def test_kills_leave_a_whole_store_below_it(store_path: Path) -> None:
    for _ in range(4):
        with subprocess.Popen(
            command("write_below_until_killed", store_path, CEILING),
            cwd=ROOT,
            stdout=subprocess.PIPE,
        ) as child:
            assert child.stdout is not None
            for _ in range(4):
                child.stdout.readline()
            child.send_signal(signal.SIGKILL)
        assert size(store_path) <= CEILING
        assert page_problems(store_path) == []
    write(store_path, numbered(100)).close()
    with open_store(store_path) as store:
        # What the killed writers were about to write; nothing is damaged, and nothing leaks.
        rest = [found.what for found in verify(store).problems]
        assert not [what for what in rest if not what.startswith(("pending", "rows whose"))]
        assert "unkept" in {entry.status for entry in store.entries()}
        assert store.snapshot().used_bytes <= CEILING
    assert size(store_path) <= CEILING


def test_a_store_without_an_index_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "1"
    write(path, []).close()
    gc.collect()
    make_version_1(path)
    with pytest.raises(StoreVersionError, match="ACTIVATION_MAX_SIZE needs"):
        StoreWriter(path, role="test", ceiling=CEILING)
    with open_store(path) as store, pytest.raises(StoreVersionError, match="pruning needs"):
        plan_prune(store, before=1)
