"""Columns on their way from workers to front ends: whole, in order, and never waited for."""

from __future__ import annotations

import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from activation_logging.vllm_plugin.score_link import Block, Columns, ScoreInbox, ScoreOutbox

SECONDS = 120.0


@pytest.fixture(params=[None, "127.0.0.1"], ids=["ipc", "tcp"])
def inbox(request: pytest.FixtureRequest) -> Iterator[ScoreInbox]:
    found = ScoreInbox(request.param)
    yield found
    found.close()


@pytest.fixture
def outbox() -> Iterator[ScoreOutbox]:
    found = ScoreOutbox()
    yield found
    found.close(0)


def message(*counts: int, digest: str = "d", width: int = 3, ended: bool = False) -> Columns:
    """Blocks of so many rows, each filled with numbers of its own."""
    rng = np.random.default_rng(sum(counts))
    blocks = [Block(f"r{n}", 7 + n, rng.normal(size=(c, width))) for n, c in enumerate(counts)]
    return Columns(digest, 0, 1, ended, blocks)


def received(inbox: ScoreInbox, count: int) -> list[Columns]:
    found: list[Columns] = []
    end = time.monotonic() + SECONDS
    while len(found) < count and time.monotonic() < end:
        found += inbox.receive(0.2)
    return found


def same(one: Columns, other: Columns) -> bool:
    blocks = zip(one.blocks, other.blocks, strict=True)
    return one[:4] == other[:4] and all(
        a[:2] == b[:2] and np.array_equal(a.columns, b.columns, equal_nan=True) for a, b in blocks
    )


def test_messages_arrive_whole_and_in_order(inbox: ScoreInbox, outbox: ScoreOutbox) -> None:
    sent = [message(1), message(3, 1, 40), message(2, digest="e", width=1, ended=True)]
    sent[1].blocks[0].columns[1, 2] = np.nan
    for one in sent:
        outbox.send(inbox.address, one)
    found = received(inbox, 3)
    assert all(map(same, sent, found))
    assert len(found) == 3
    assert list(inbox.receive()) == []


def test_rows_without_columns_arrive(inbox: ScoreInbox, outbox: ScoreOutbox) -> None:
    """As they are sent once all probes were removed."""
    for one in (message(2, 3, width=0), message(1)):
        outbox.send(inbox.address, one)
    found = received(inbox, 2)
    assert [block.columns.shape for block in found[0].blocks] == [(2, 0), (3, 0)]
    assert same(message(1), found[1])


def test_two_threads_send_at_once(inbox: ScoreInbox, outbox: ScoreOutbox) -> None:
    def send(number: int) -> None:
        for count in range(200):
            outbox.send(inbox.address, message(1 + count % 3, digest=str(number)))

    threads = [threading.Thread(target=send, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    found = received(inbox, 800)
    for thread in threads:
        thread.join()
    assert len(found) == 800
    counts = [[len(m.blocks[0].columns) for m in found if m.probes == str(n)] for n in range(4)]
    assert counts == [[1 + c % 3 for c in range(200)]] * 4


def test_several_front_ends_get_their_own(outbox: ScoreOutbox) -> None:
    inboxes = [ScoreInbox() for _ in range(3)]
    for number, inbox in enumerate(inboxes):
        outbox.send(inbox.address, message(1, digest=str(number)))
    for number, inbox in enumerate(inboxes):
        assert [m.probes for m in received(inbox, 1)] == [str(number)]
        inbox.close()


def test_who_does_not_know_the_key_is_not_listened_to(
    inbox: ScoreInbox, outbox: ScoreOutbox
) -> None:
    _, _, endpoint = inbox.address.partition("@")
    outbox.send(f"{'00' * 16}@{endpoint}", message(1, digest="forged"))
    with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
        socket.connect(endpoint)
        socket.send(b"nonsense")
        socket.send_multipart([b"a", b"b", b"c"])
        outbox.send(inbox.address, message(1, digest="ours"))
        assert [m.probes for m in received(inbox, 1)] == ["ours"]
        assert list(inbox.receive(0.3)) == []


def test_a_front_end_that_has_gone_disturbs_nobody(outbox: ScoreOutbox) -> None:
    gone, there = ScoreInbox(), ScoreInbox()
    outbox.send(gone.address, message(1))
    assert received(gone, 1)
    gone.close()
    for number in range(30_000):
        outbox.send(gone.address, message(1, digest=str(number)))
    outbox.send(there.address, message(1, digest="there"))
    assert [m.probes for m in received(there, 1)] == ["there"]
    assert outbox.dropped > 0
    there.close()


def test_a_front_end_that_does_not_read_loses_messages(
    outbox: ScoreOutbox, our_log: pytest.LogCaptureFixture
) -> None:
    inbox = ScoreInbox()
    for _ in range(40_000):
        outbox.send(inbox.address, message(1))
    assert 0 < outbox.dropped < 40_000
    assert "a front end does not read the scores of its requests" in our_log.text
    inbox.close()


def test_the_socket_is_this_users_alone() -> None:
    inbox = ScoreInbox()
    folder = Path(inbox.address.partition("@ipc://")[2]).parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    inbox.close()
    inbox.close()
    assert not folder.exists()


def test_another_process_sends(inbox: ScoreInbox) -> None:
    program = textwrap.dedent(
        """
        import sys
        import numpy as np
        from activation_logging.vllm_plugin.score_link import Block, Columns, ScoreOutbox
        outbox = ScoreOutbox()
        for n in range(100):
            block = Block("r", n, np.full((1, 2), n, np.float64))
            outbox.send(sys.argv[1], Columns("d", 0, 1, False, [block]))
        outbox.close(10)
        outbox.send(sys.argv[1], Columns("d", 0, 1, False, [block]))
        """
    )
    done: Any = subprocess.Popen([sys.executable, "-c", program, inbox.address])
    found = received(inbox, 100)
    assert done.wait(SECONDS) == 0
    assert [m.blocks[0].first for m in found] == list(range(100))
    assert all((m.blocks[0].columns == m.blocks[0].first).all() for m in found)
