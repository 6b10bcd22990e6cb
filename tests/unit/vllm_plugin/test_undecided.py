"""Which answers keep their rows: decided on arrival, by a probe, and by how they ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from activation_logging import Entry, open_store
from activation_logging.verify import verify
from activation_logging.vllm_plugin import collector as module
from activation_logging.vllm_plugin.plan import Stored, StoredBlocks
from tests.fixtures.live_probes import probe, serve
from tests.unit.vllm_plugin.test_collector import HIDDEN, LAYERS, NUM_LAYERS, Machine, check

KEPT = {"_activation_logging_kept": True}
ROW = len(LAYERS) * HIDDEN * 4
"""Bytes of one position."""
HIGH = 50
"""The probe says more than a half of tokens above this."""

Make = Callable[..., Machine]


@pytest.fixture
def make(store_path: Path) -> Iterator[Make]:
    """Makes a machine, and closes it at the end."""
    made: list[Machine] = []

    def new(keep: str, **options: Any) -> Machine:
        made.append(Machine(store_path, keep=keep, **options))
        return made[-1]

    yield new
    for machine in made:
        machine.collector.close()
    with open_store(store_path) as store:
        wrong = [found for found in verify(store).problems if not found.what.startswith("dropped")]
        assert not wrong


@pytest.fixture
def make_scored(make: Make) -> Make:
    """The same with a probe of tokens, whose log-odds are the token less :data:`HIGH`."""
    tensors = {"weight": np.eye(HIDDEN)[0], "bias": np.array([-float(HIGH)])}
    served = serve(high=probe(tensors=tensors, num_layers=NUM_LAYERS))
    return lambda keep: make(keep, probes=served)


def unkept(entry: Entry) -> None:
    """It has no rows, and says that nobody wanted them."""
    assert entry.status == "unkept"
    assert "ACTIVATION_KEEP" in str(entry.status_reason)


class TestOnArrival:
    def test_what_is_not_kept_costs_nothing(self, make: Make) -> None:
        machine = make("none")
        machine.new("a", [1, 2, 3, 4, 5], [3, 7])
        machine.end(["a"])
        unkept(machine.entry("a", [1, 2, 3, 4, 5]))
        assert machine.writer.stats.bytes == 0
        assert machine.writer.stats.unkept == 1
        assert machine.writer.stats.dropped == 0

    def test_a_kept_one_brings_the_rows_of_a_prefix_that_was_not(self, make: Make) -> None:
        machine = make("tag:a=b")
        machine.new("a", [1, 2, 3, 4, 5], [3, 7])
        machine.new("b", [8], [3, 5], computed=4, finished_req_ids={"a"}, options=KEPT)
        machine.end(["b"])
        unkept(machine.entry("a", [1, 2, 3, 4, 5]))
        check(machine.entry("b", [1, 2, 3, 4, 8]), [1, 2, 3, 4, 8])

    def test_one_that_is_preempted(self, make: Make) -> None:
        machine = make("none")
        machine.new("a", [1, 2, 3], [3])
        machine.new("b", [4], [3], preempted_req_ids={"a"}, options=KEPT)
        machine.end(["a", "b"])
        unkept(machine.entry("a", [1, 2, 3]))
        check(machine.entry("b", [4]), [4])
        assert machine.collector._held_bytes == 0


class TestByReason:
    def test_told_before_the_worker_knows_of_the_end(self, make: Make) -> None:
        machine = make("finish:length")
        machine.new("a", [1, 2], [3])
        machine.new("b", [3, 4], [5])
        say(machine, b=2)
        say(machine, keeps=True, a=2, unknown=2)
        machine.end(["a", "b"])
        check(machine.entry("a", [1, 2]), [1, 2])
        unkept(machine.entry("b", [3, 4]))

    def test_told_after(self, make: Make) -> None:
        machine = make("finish:length")
        machine.new("a", [1, 2], [3])
        machine.new("b", [3, 4], [5])
        machine.end(["a", "b"])
        assert machine.entry("a", [1, 2]).status == "pending"
        say(machine, b=2)
        say(machine, keeps=True, a=2)
        machine.writer.flush()
        with open_store(machine.path) as store:
            check(store.for_request("a")[0], [1, 2])
        unkept(machine.entry("b", [3, 4]))

    def test_told_after_its_blocks_are_gone(self, make: Make) -> None:
        machine = make("finish:length")
        machine.new("a", [1, 2, 3, 4, 5], [3, 7])
        machine.new("b", [6, 7, 8, 9], [3], finished_req_ids={"a"}, options=KEPT)
        assert machine.collector._held_bytes == 5 * ROW
        machine.go_on("b", [10, 11], 4, [7])
        say(machine, keeps=True, a=5)
        machine.end(["b"])
        check(machine.entry("a", [1, 2, 3, 4, 5]), [1, 2, 3, 4, 5])
        check(machine.entry("b", [6, 7, 8, 9, 10, 11]), [6, 7, 8, 9, 10, 11])
        assert machine.collector._held_bytes == 0

    def test_where_too_much_is_held_rows_are_kept(
        self, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "HELD_BYTES", 3 * ROW)
        machine = make("finish:length")
        machine.new("a", [1, 2, 3, 4, 5], [3, 7])
        machine.new("b", [6], [3], finished_req_ids={"a"})
        machine.end(["b"])
        say(machine, a=5, b=1)
        check(machine.entry("a", [1, 2, 3, 4, 5]), [1, 2, 3, 4, 5])
        unkept(machine.entry("b", [6]))

    def test_choices_share_their_prompt(self, make: Make) -> None:
        machine = make("finish:length")
        machine.new("a", [1, 2, 3, 4, 5], [3, 7])
        machine.new("b", [8], [3, 5], computed=4)
        machine.end(["a", "b"])
        say(machine, keeps=True, a=5, b=5)
        check(machine.entry("a", [1, 2, 3, 4, 5]), [1, 2, 3, 4, 5])
        check(machine.entry("b", [1, 2, 3, 4, 8]), [1, 2, 3, 4, 8])
        assert machine.writer.stats.bytes == (5 + 1) * ROW

    def test_without_a_word_rows_are_kept(self, store_path: Path) -> None:
        machine = Machine(store_path, keep="finish:length")
        machine.new("a", [1, 2], [3])
        machine.end(["a"])
        machine.entry("a", [1, 2])
        machine.collector.close()
        with open_store(store_path) as store:
            check(store.for_request("a")[0], [1, 2])


def say(machine: Machine, keeps: bool = False, **states: int) -> None:
    """What the front end says of answers: the reasons of their ends, and the numbers of states."""
    machine.collector.hear({name: (keeps, number) for name, number in states.items()})


class TestByScore:
    def test_above_and_below(self, make_scored: Make) -> None:
        machine = make_scored("score:high>0.8")
        machine.new("a", [1, 2, 90, 3], [3], prompt=2)
        machine.new("b", [1, 90, 3, 4], [5], prompt=2)
        machine.end(["a", "b"])
        say(machine, a=3, b=3)
        low, entry = machine.entry("b", [1, 90, 3, 4]), machine.entry("a", [1, 2, 90, 3])
        check(entry, [1, 2, 90, 3])
        unkept(low)
        assert list(low.scores) == ["high"]
        assert low.scores["high"][1] == 1
        assert machine.writer.stats.bytes == 4 * ROW

    def test_a_step_too_many_does_not_count(self, make_scored: Make) -> None:
        """The worker ran on, because it knows no stop strings."""
        machine = make_scored("score:high>0.8")
        machine.new("a", [1, 2, 90], [3], prompt=1)
        say(machine, a=2)
        machine.end(["a"])
        unkept(machine.entry("a", [1, 2]))

    def test_a_prompt_by_itself_says_nothing(self, make_scored: Make) -> None:
        machine = make_scored("score:high>0.8")
        machine.new("a", [90, 90], [3], prompt=3)
        machine.end(["a"])
        say(machine, a=0)
        unkept(machine.entry("a", [90, 90]))

    def test_one_that_was_kept_on_arrival_needs_no_score(self, make_scored: Make) -> None:
        machine = make_scored("score:high>0.8,sample:0.5")
        machine.new("a", [1, 2], [3], prompt=1, options=KEPT)
        machine.end(["a"])
        check(machine.entry("a", [1, 2]), [1, 2])

    @pytest.mark.parametrize("token", [90, 10])
    def test_its_blocks_are_gone_before_it_is_judged(self, make_scored: Make, token: int) -> None:
        machine = make_scored("score:high>0.8")
        with machine.writer.planning:  # the writer cannot judge meanwhile
            machine.new("a", [1, token, 2, 3], [3], prompt=1)
            say(machine, a=4)
            machine.new("b", [4, 5, 6, 7], [3], finished_req_ids={"a"}, options=KEPT)
            machine.end(["b"])
        entry = machine.entry("a", [1, token, 2, 3])
        if token > HIGH:
            check(entry, [1, token, 2, 3])
        else:
            unkept(entry)
        check(machine.entry("b", [4, 5, 6, 7]), [4, 5, 6, 7])
        assert machine.collector._held_bytes == 0

    def test_score_and_reason(self, make_scored: Make) -> None:
        machine = make_scored("score:high>0.8,finish:length")
        for number, name in enumerate(("high", "long", "neither")):
            machine.new(name, [1, 90 if name == "high" else 3], [number], prompt=1)
        machine.end(["high", "long", "neither"])
        assert machine.entry("high", [1, 90]).status == "pending"
        say(machine, high=2, neither=2)
        say(machine, keeps=True, long=2)
        machine.writer.flush()
        with open_store(machine.path) as store:
            check(store.for_request("high")[0], [1, 90])
        check(machine.entry("long", [1, 3]), [1, 3])
        unkept(machine.entry("neither", [1, 3]))

    def test_a_full_queue_drops_what_is_not_judged(self, make_scored: Make) -> None:
        machine = make_scored("score:high>0.8")
        machine.writer._policy, machine.writer._limit = "drop", 1
        with machine.writer.planning:
            for name in ("a", "b"):
                machine.new(name, [1, 90], [3 if name == "a" else 4], prompt=1)
                machine.end([name])
            say(machine, a=2, b=2)
        check(machine.entry("a", [1, 90]), [1, 90])
        assert machine.entry("b", [1, 90]).status == "dropped"
        assert not list(machine.collector._undecided)


def test_deleted_rows_of_a_running_server_are_given_up(make: Make) -> None:
    """Another process deletes the only answer that has a block; the next one stores it again."""
    machine = make("all")
    machine.new("a", [1, 2, 3, 4, 5], [3, 7])
    machine.end(["a"])
    key = machine.entry("a", [1, 2, 3, 4, 5]).key
    with open_store(machine.path, writable=True) as store:
        store.delete(key)
        assert store.snapshot().count(b"~segments") == 1
        # The look for unused rows comes after the commit that the first of these waits for.
        for name in ("c", "d"):
            machine.new(name, [6], [9], options={"activation_layers": 1})
            machine.end([name])
            check(machine.entry(name, [6]), [6], [1])
        assert store.snapshot().count(b"~segments") == 2
    machine.new("b", [8], [3, 5], computed=4)
    machine.end(["b"])
    check(machine.entry("b", [1, 2, 3, 4, 8]), [1, 2, 3, 4, 8])


def test_stored_blocks() -> None:
    blocks = StoredBlocks()
    blocks.update({1: Stored(b"x", 0), 2: Stored(b"x", 4), 3: Stored(b"y", 0)})
    blocks.update({2: Stored(b"y", 4)})
    blocks.forget(9)
    blocks.forget_segments([b"x", b"z"])
    assert [blocks.get(number) for number in (1, 2, 3)] == [None, (b"y", 4), (b"y", 0)]
    blocks.forget(3)
    blocks.forget_segments([b"y"])
    assert blocks.get(2) is None
