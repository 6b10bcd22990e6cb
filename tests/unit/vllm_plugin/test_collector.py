"""The collector by itself: a scheduler's decisions go in, each request's rows come out.

``tests/schedules`` drives it with vLLM's own scheduler; here each case is one that can be read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from activation_logging import Entry, open_store
from activation_logging.detectors.served_probes import ServedProbes
from activation_logging.records import NEVER_RAN
from activation_logging.settings import Settings
from activation_logging.sites import RowShape
from activation_logging.store import StoreWriter
from activation_logging.vllm_plugin import collector as module
from activation_logging.vllm_plugin.arena import RowArena
from activation_logging.vllm_plugin.captures import Captures
from activation_logging.vllm_plugin.collector import RowCollector
from activation_logging.vllm_plugin.origin import SELF_TEST
from activation_logging.vllm_plugin.scorer import Scorer
from tests.fixtures.answers import make_document
from tests.fixtures.random_probes import probe

BLOCK, BLOCKS, HIDDEN = 4, 16, 3
LAYERS, NUM_LAYERS = (1, 2), 2
SCORED = (0, 2)
"""Layers that probes read, of which one is not logged."""
SHAPE = RowShape((HIDDEN,), "float32")


@dataclass
class New:
    """A request that is scheduled for the first time, as vLLM describes it."""

    req_id: str
    prompt_len: int
    block_ids: tuple[list[int], ...]
    num_computed_tokens: int = 0
    sampling_params: Any = None
    lora_request: Any = None


@dataclass
class Cached:
    """Requests that go on, a place in each list for each."""

    req_ids: list[str] = field(default_factory=list)
    new_block_ids: list[tuple[list[int], ...] | None] = field(default_factory=list)
    num_computed_tokens: list[int] = field(default_factory=list)
    resumed_req_ids: set[str] = field(default_factory=set)


@dataclass
class Step:
    """What the collector reads of vLLM's ``SchedulerOutput``."""

    num_scheduled_tokens: dict[str, int] = field(default_factory=dict)
    scheduled_new_reqs: list[New] = field(default_factory=list)
    scheduled_cached_reqs: Cached = field(default_factory=Cached)
    finished_req_ids: set[str] = field(default_factory=set)
    preempted_req_ids: set[str] | None = None
    kv_cache_block_copies: list[tuple[int, int]] | None = None


@dataclass
class Params:
    extra_args: Mapping[str, Any]


def state(token: int, layer: int) -> list[float]:
    return [token, layer, token * 10 + layer]


class Machine:
    """A collector, its arena and its store, and the block tables that it is told of.

    ``probes`` are those of the server, ``settings`` its other settings.
    """

    def __init__(self, path: Path, probes: ServedProbes | None = None, **settings: Any) -> None:
        self.path = path
        self.writer = StoreWriter(path, role="worker")
        scored = dict.fromkeys(SCORED, SHAPE) if probes is not None else {}
        listed = ",".join(f"{name}=files" for name in probes or ())
        self.arena = RowArena(
            dict.fromkeys(LAYERS, SHAPE),
            num_slots=BLOCK * BLOCKS,
            device=torch.device("cpu"),
            scored=scored,
        )
        self.captures = captures = Captures(
            Settings(layers="1,last", probes=listed, **settings),
            shapes=self.arena.shapes,
            arena=self.arena,
            writer=self.writer,
            num_layers=NUM_LAYERS,
            hidden_size=HIDDEN,
            block_size=BLOCK,
            scorer=None if probes is None else Scorer(probes, scored, self.arena),
        )
        self.collector = RowCollector(captures, kv_group=0)
        self.blocks: dict[str, list[int]] = {}
        self.prompts: dict[str, int] = {}

    def new(
        self,
        name: str,
        tokens: Sequence[int],
        blocks: list[int],
        *,
        computed: int = 0,
        prompt: int | None = None,
        options: Mapping[str, Any] | None = None,
        lora: Any = None,
        **step: Any,
    ) -> None:
        """Compute the first ``tokens`` of a request; ``computed`` more came from the cache."""
        self.blocks[name] = list(blocks)
        self.prompts[name] = prompt or computed + len(tokens)
        params = Params(options) if options else None
        new = New(name, self.prompts[name], (blocks,), computed, params, lora)
        self.step(name, tokens, computed, scheduled_new_reqs=[new], **step)

    def go_on(
        self,
        name: str,
        tokens: Sequence[int],
        computed: int,
        blocks: Sequence[int] = (),
        **step: Any,
    ) -> None:
        """Compute more tokens of a request, with more blocks."""
        resumed = step.pop("resumed", False)
        self.blocks[name] = [*([] if resumed else self.blocks[name]), *blocks]
        added = (list(blocks),) if blocks else None
        cached = Cached([name], [added], [computed], {name} if resumed else set())
        self.step(name, tokens, computed, scheduled_cached_reqs=cached, **step)

    def step(self, name: str, tokens: Sequence[int], computed: int, **step: Any) -> None:
        self.collector.before_step(Step({name: len(tokens)}, **step))
        places = [divmod(computed + place, BLOCK) for place in range(len(tokens))]
        slots = torch.tensor([self.blocks[name][n] * BLOCK + offset for n, offset in places])
        for layer in (0, *LAYERS):
            rows = torch.tensor([state(token, layer) for token in tokens]).float()
            self.arena.write(layer, slots, rows, None)

    def end(self, names: Iterable[str]) -> None:
        """Say that requests have ended, and compute nothing."""
        self.collector.before_step(Step(finished_req_ids=set(names)))

    def entry(self, name: str, tokens: Sequence[int], /, **fields: Any) -> Entry:
        """The entry of a request whose prompt and answer were these tokens, and one more."""
        prompt = self.prompts.get(name, len(tokens))
        ids = {"prompt_ids": tokens[:prompt], "response_ids": [*tokens[prompt:], 0]}
        self.writer.put_entry(make_document(name, **ids, prompt=name, capture=name, **fields))
        self.writer.flush()
        (entry,) = open_store(self.path).for_request(name)
        return entry


@pytest.fixture
def machine(store_path: Path) -> Iterator[Machine]:
    made = Machine(store_path)
    yield made
    made.collector.close()


def check(entry: Entry, tokens: Sequence[int], layers: Sequence[int] = LAYERS) -> None:
    """Each row of each layer is its token's."""
    assert entry.status == "complete", entry.status_reason
    assert entry.layers == tuple(layers)
    for layer in layers:
        assert np.array_equal(entry.layer(layer), [state(token, layer) for token in tokens])


def test_a_prompt_in_chunks_on_scattered_blocks(machine: Machine) -> None:
    tokens = list(range(100, 111))
    machine.new("r", tokens[:6], [9, 2], prompt=10)
    machine.go_on("r", tokens[6:10], 6, [14])
    machine.go_on("r", tokens[10:], 10)
    machine.end(["r"])
    check(machine.entry("r", tokens), tokens)


def test_requests_that_share_a_block_share_its_rows(machine: Machine) -> None:
    common = [1, 2, 3, 4]
    machine.new("a", [*common, 5, 6], [3, 7])
    machine.new("b", [8], [3, 5], computed=4, finished_req_ids={"a"})
    # Its first block is in the store already: only what comes after is written again.
    machine.new("c", [9], [3, 6], computed=4, finished_req_ids={"b"})
    machine.end(["c"])
    for name, rest in (("a", [5, 6]), ("b", [8]), ("c", [9])):
        check(machine.entry(name, [*common, *rest]), [*common, *rest])
    assert machine.writer.stats.bytes == (6 + 1 + 1) * len(LAYERS) * HIDDEN * 4


def test_a_block_that_another_request_gets_is_forgotten(machine: Machine) -> None:
    machine.new("a", [1, 2, 3, 4], [3])
    machine.new("b", [5, 6, 7, 8], [3], finished_req_ids={"a"})
    machine.new("c", [9], [3, 4], computed=4, finished_req_ids={"b"})
    machine.end(["c"])
    check(machine.entry("a", [1, 2, 3, 4]), [1, 2, 3, 4])
    check(machine.entry("b", [5, 6, 7, 8]), [5, 6, 7, 8])
    check(machine.entry("c", [5, 6, 7, 8, 9]), [5, 6, 7, 8, 9])


def test_one_that_ends_while_it_is_preempted(machine: Machine) -> None:
    machine.new("a", [1, 2, 3, 4, 5], [3, 4])
    machine.new("b", [6, 7, 8, 9, 10], [3, 4], preempted_req_ids={"a"})
    machine.end(["a", "b"])
    check(machine.entry("a", [1, 2, 3, 4, 5]), [1, 2, 3, 4, 5])
    check(machine.entry("b", [6, 7, 8, 9, 10]), [6, 7, 8, 9, 10])


def test_one_that_is_computed_again_on_other_blocks(machine: Machine) -> None:
    machine.new("a", [1, 2, 3], [3])
    machine.new("b", [6, 7, 8], [3], preempted_req_ids={"a"})
    machine.go_on("a", [1, 2, 3, 4, 5], 0, [8, 9], resumed=True)
    machine.end(["a", "b"])
    check(machine.entry("a", [1, 2, 3, 4, 5]), [1, 2, 3, 4, 5])


def test_too_much_held_is_dropped_and_said(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HELD_BYTES", 3 * len(LAYERS) * HIDDEN * 4)
    machine.new("a", [1, 2, 3], [3])
    machine.new("b", [4, 5, 6], [4], preempted_req_ids={"a"})
    machine.new("c", [7], [5], preempted_req_ids={"b"})
    machine.end(["a", "b", "c"])
    check(machine.entry("a", [1, 2, 3]), [1, 2, 3])
    dropped = machine.entry("b", [4, 5, 6])
    assert dropped.status == "dropped"
    assert "preempted" in (dropped.status_reason or "")


def test_a_copied_block_brings_its_rows(machine: Machine) -> None:
    # What the block held before is in the store, and is not what it holds afterwards.
    machine.new("old", [20, 21, 22, 23], [5])
    machine.new("a", [1, 2, 3, 4], [3], finished_req_ids={"old"})
    machine.new("b", [7, 8], [5], computed=2, kv_cache_block_copies=[(3, 5)])
    machine.end(["a", "b"])
    check(machine.entry("a", [1, 2, 3, 4]), [1, 2, 3, 4])
    check(machine.entry("b", [1, 2, 7, 8]), [1, 2, 7, 8])


@pytest.mark.parametrize(
    ("options", "first", "stop", "layers"),
    [
        ({"activation_tokens": "response"}, 4, 7, LAYERS),
        ({"activation_tokens": "prompt"}, 0, 5, LAYERS),
        ({"activation_layers": "last"}, 0, 7, (2,)),
        ({"activation_layers": "1"}, 0, 7, (1,)),
    ],
)
def test_what_a_request_asks_for(
    machine: Machine, options: dict[str, str], first: int, stop: int, layers: tuple[int, ...]
) -> None:
    tokens = list(range(50, 57))
    machine.new("r", tokens[:5], [2, 3], options=options)
    machine.go_on("r", tokens[5:], 5)
    machine.end(["r"])
    entry = machine.entry("r", tokens, tokens=options.get("activation_tokens", "all"))
    assert entry.positions.tolist() == list(range(first, stop))
    check(entry, tokens[first:stop], layers)


def test_what_is_not_logged(machine: Machine) -> None:
    machine.new("off", [1, 2], [2], options={"activation_logging": "off"})
    machine.new(f"{SELF_TEST}1", [1, 2], [3])
    machine.end(["off", f"{SELF_TEST}1", "unknown"])
    for name in ("off", f"{SELF_TEST}1", "unknown"):
        assert machine.entry(name, [1, 2]).status == "pending"


def test_one_that_never_ran(machine: Machine) -> None:
    machine.new("running", [1, 2], [2])
    machine.collector.flush([], unseen=["running", "never"])
    never = machine.entry("never", [1])
    assert (never.status, never.status_reason) == ("dropped", NEVER_RAN)
    machine.end(["running"])
    check(machine.entry("running", [1, 2]), [1, 2])


def test_the_end_writes_what_is_in_flight(store_path: Path) -> None:
    machine = Machine(store_path)
    machine.new("r", [1, 2, 3], [2])
    document = make_document("r", prompt_ids=[1, 2, 3], response_ids=[0], capture="r")
    machine.writer.put_entry(document)
    machine.collector.close()
    check(open_store(store_path).for_request("r")[0], [1, 2, 3])


# --- scores ------------------------------------------------------------------------------

PROBES = {
    "token": probe("linear", HIDDEN, kind="token", sources=(0,)),
    "pool": probe("attention", 2 * HIDDEN, sources=(0, 2)),
    "prompt": probe("multimax", HIDDEN, sources=(2,), position="prompt_last"),
}


def served(**probes: Any) -> ServedProbes:
    return ServedProbes((name, one, False) for name, one in probes.items())


@pytest.fixture
def scoring(store_path: Path) -> Iterator[Machine]:
    made = Machine(store_path, served(**PROBES))
    yield made
    made.collector.close()


def check_scores(entry: Entry, prompt: int, tokens: Sequence[int]) -> None:
    """Each probe has said of these tokens what it must say."""
    rows = {k: np.array([state(token, k) for token in tokens], np.float32) for k in SCORED}
    nothing = [np.full(len(tokens), np.nan) for _ in PROBES]
    token, pool, last = nothing
    token[prompt - 1 :] = PROBES["token"].of_tokens(rows[0][prompt - 1 :])
    if len(tokens) > prompt:
        both = np.concatenate([rows[0], rows[2]], axis=1)
        pool[-1] = PROBES["pool"].of_answer(both[prompt:])
    last[prompt - 1] = PROBES["prompt"].of_answer(rows[2][prompt - 1 : prompt])
    assert entry.scores.keys() == PROBES.keys()
    for name, expected in zip(PROBES, nothing, strict=True):
        assert entry.scores[name] == pytest.approx(expected, rel=1e-6, nan_ok=True), name
    assert entry.score_digests == {name: one.digest for name, one in PROBES.items()}


def test_scores_of_an_answer_with_a_cached_prefix(scoring: Machine) -> None:
    common = [1, 2, 3, 4]
    scoring.new("a", [*common, 5], [3, 7])
    scoring.new("b", [8], [3, 5], computed=4, finished_req_ids={"a"})
    scoring.go_on("b", [9], 5)
    scoring.go_on("b", [10], 6)
    scoring.end(["b"])
    check_scores(scoring.entry("a", [*common, 5]), 5, [*common, 5])
    check_scores(scoring.entry("b", [*common, 8, 9, 10]), 5, [*common, 8, 9, 10])


def test_scores_of_one_that_ends_while_it_is_preempted(scoring: Machine) -> None:
    scoring.new("a", [1, 2, 3], [3, 4])
    scoring.go_on("a", [4, 5], 3)
    scoring.new("b", [6, 7, 8, 9, 10], [3, 4], preempted_req_ids={"a"})
    scoring.end(["a", "b"])
    check_scores(scoring.entry("a", [1, 2, 3, 4, 5]), 3, [1, 2, 3, 4, 5])
    check_scores(scoring.entry("b", [6, 7, 8, 9, 10]), 5, [6, 7, 8, 9, 10])


def test_scores_stay_where_rows_are_dropped(
    scoring: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HELD_BYTES", 1)
    scoring.new("a", [1, 2, 3], [3, 4])
    scoring.go_on("a", [4, 5], 3)
    scoring.new("b", [6], [3], preempted_req_ids={"a"})
    scoring.end(["a", "b"])
    entry = scoring.entry("a", [1, 2, 3, 4, 5])
    assert entry.status == "dropped"
    check_scores(entry, 3, [1, 2, 3, 4, 5])
    assert scoring.collector._held_bytes == 0


def test_scores_of_a_request_that_logs_a_part(scoring: Machine) -> None:
    """Not even the layer that a probe reads."""
    options = {"activation_tokens": "response", "activation_layers": "1"}
    scoring.new("r", [1, 2, 3], [3, 4], options=options)
    scoring.go_on("r", [4], 3)
    scoring.end(["r"])
    entry = scoring.entry("r", [1, 2, 3, 4], tokens="response")
    assert entry.positions.tolist() == [2, 3]
    assert np.isfinite(entry.scores["token"]).all()
    assert np.isfinite(entry.scores["pool"]).tolist() == [False, True]


def test_an_adapter_is_another_model(scoring: Machine) -> None:
    scoring.new("r", [1, 2, 3], [3], lora="adapter")
    scoring.end(["r"])
    entry = scoring.entry("r", [1, 2, 3])
    assert (entry.status, entry.scores) == ("complete", {})


def test_one_that_ends_in_its_prompt_has_no_scores(scoring: Machine) -> None:
    scoring.new("r", [1, 2], [3], prompt=3)
    scoring.end(["r"])
    entry = scoring.entry("r", [1, 2, 3], finish_reason="abort")
    assert (len(entry.positions), entry.scores) == (2, {})


def test_probes_that_are_replaced(scoring: Machine) -> None:
    """What was asked for before is as it was; what began before has scores from then on."""
    scoring.new("a", [1, 2, 3], [3, 4])
    scoring.new("b", [4, 5, 6], [5, 6])
    scoring.end(["a"])
    other = probe("multimax", HIDDEN, kind="token", sources=(2,))
    scoring.collector.load_probes(served(token=other, prompt=PROBES["prompt"]))
    scoring.go_on("b", [7], 3)
    scoring.end(["b"])
    check_scores(scoring.entry("a", [1, 2, 3]), 3, [1, 2, 3])
    entry = scoring.entry("b", [4, 5, 6, 7])
    assert entry.scores.keys() == {"token", "prompt"}
    assert entry.score_digests["token"] == other.digest
    expected = other.of_tokens(np.array([state(7, 2)]))
    assert entry.scores["token"] == pytest.approx([np.nan] * 3 + [*expected], nan_ok=True)
    assert np.isfinite(entry.scores["prompt"]).tolist() == [False, False, True, False]
