"""Whatever vLLM's schedulers do, each row is its token's, and each request is accounted for."""

from __future__ import annotations

from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest

from tests.schedules.check import KEEPS
from tests.schedules.engine import SETTINGS, running
from tests.schedules.probes import save_probes
from tests.schedules.run import Outcome, run

REQUESTS = 920
"""Per setting: more than 10,000 in all."""
TRIED = {"preempted", "aborted while waiting", "aborted while running", "flushed", "drained"}


@pytest.fixture(scope="module")
def outcomes(pool: ProcessPoolExecutor) -> dict[str, Future[Outcome]]:
    return {s.name: pool.submit(run, s, REQUESTS, n) for n, s in enumerate(SETTINGS)}


@pytest.mark.parametrize("name", [setting.name for setting in SETTINGS])
def test_every_row_is_its_tokens(outcomes: dict[str, Future[Outcome]], name: str) -> None:
    outcome = outcomes[name].result()
    assert outcome.wrong == []
    happened = {what for what, count in outcome.happened.items() if count}
    assert happened >= TRIED
    assert outcome.rows > 20 * outcome.accepted
    assert outcome.statuses["complete"] > 0.8 * outcome.accepted
    assert set(outcome.statuses) <= {"complete", "dropped"}
    scores = outcome.scores
    assert scores["scores"] > 10 * outcome.accepted
    assert scores["unknown"] == 0
    # Both ways sum in float64, in another order: about one in 10,000,000 rounds otherwise.
    assert scores["last digit"] <= 2
    if "stages" not in name:
        assert scores["told"] > outcome.accepted
        assert scores["stopped"] > 5
        assert scores["told otherwise"] <= 2


@pytest.mark.parametrize("name", ["V1", "V2, async, two stages"])
def test_probes_that_are_replaced(pool: ProcessPoolExecutor, name: str) -> None:
    """No score is by another probe than its digest says; some tokens come before their probe."""
    (setting,) = [setting for setting in SETTINGS if setting.name == name]
    outcome = pool.submit(run, setting, 400, 7, reload=True).result()
    assert outcome.wrong == []
    assert outcome.happened["reloaded"] > 1
    assert outcome.scores["scores"] > 10 * outcome.accepted
    assert 0 < outcome.scores["unknown"] < 0.3 * outcome.scores["scores"]


@pytest.mark.parametrize("name", ["V1", "V2, async, chunked", "V1, async, full and sliding"])
def test_only_some_rows_are_kept(pool: ProcessPoolExecutor, name: str) -> None:
    """By chance, by a probe or by the reason; each answer as its own entry says."""
    (setting,) = [setting for setting in SETTINGS if setting.name == name]
    keep = f"sample:0.2,finish:length,score:{KEEPS.name}>{KEEPS.above}"
    outcome = pool.submit(run, replace(setting, keep=keep), 500, 11).result()
    assert outcome.wrong == []
    assert outcome.statuses["unkept"] > 20
    assert outcome.statuses["complete"] > 0.3 * outcome.accepted
    assert set(outcome.statuses) <= {"complete", "dropped", "unkept"}


def test_a_store_that_may_not_grow(pool: ProcessPoolExecutor) -> None:
    """The collector forgets rows that the writer removes, while others share them."""
    (setting,) = [setting for setting in SETTINGS if setting.name == "V1, async"]
    outcome = pool.submit(run, replace(setting, max_size="24MB"), 2500, 12).result()
    # Where texts take more than half of the room, the oldest entries without rows go whole.
    assert [what for what in outcome.wrong if "have an entry" not in what] == []
    assert outcome.statuses["unkept"] > 0.2 * outcome.accepted
    assert outcome.statuses["complete"] > 100


def test_what_was_driven(outcomes: dict[str, Future[Outcome]]) -> None:
    """Together the settings do what a bench must do to be believed."""
    everything = Outcome()
    for outcome in outcomes.values():
        everything.add(outcome.result())
    assert everything.accepted > 9_000
    for what in ("prefix hits", "chunked prefills", "blocks copied", "resumed"):
        assert everything.happened[what] > 200, what
    for what in ("aborted while preempted", "aborted while prefilling", "reset", "flushed"):
        assert everything.happened[what] > 20, what


def statuses_of_the_last(name: str) -> list[str]:
    """What the store has of an answer that ends with a stop string, when nothing runs any more."""
    import tempfile

    from vllm import SamplingParams

    from activation_logging import open_store

    (setting,) = [setting for setting in SETTINGS if setting.name == name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s"
        with running(setting, path, save_probes(Path(folder) / "probes", 0)) as engine:
            text, stop = "", None
            for number in range(2):
                params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, stop=stop)
                engine.add_request(str(number), {"prompt_token_ids": [7, 8, 9]}, params)
                while engine.has_unfinished_requests():
                    for output in engine.step():
                        text = output.outputs[0].text
                stop = text[6:12]
            with open_store(path) as store:
                return [f"{one.finish_reason}: {one.status}" for one in store.entries()]


@pytest.mark.parametrize("name", ["V1", "V2, async"])
def test_offline_all_is_stored_when_the_last_answer_has_ended(
    pool: ProcessPoolExecutor, name: str
) -> None:
    """The engine itself does not know that a stop string has ended it."""
    found = pool.submit(statuses_of_the_last, name).result()
    assert found == ["length: complete", "stop: complete"]


# --- that the bench can fail -------------------------------------------------------------

FAULTS = {
    "nothing is held of preempted requests": ("RowCollector.hold", "V1"),
    "a pipeline stage holds nothing of them": ("RowCollector.hold", "V1, two stages"),
    "block copies are not followed": ("RowCollector._copy_blocks", "V1, Mamba, block copies"),
    "blocks are not forgotten": ("RowCollector._forget", "V2, async"),
    "nobody asks about requests that never ran": ("RowCollector.settle", "V1, async"),
    "a finished request is not gathered at once": ("RowCollector.finish", "V1"),
}


def run_broken(what: str) -> Outcome:
    method, name = FAULTS[what]
    (setting,) = [setting for setting in SETTINGS if setting.name == name]
    with patch(f"activation_logging.vllm_plugin.collector.{method}"):
        return run(setting, 300, seed=1)


def run_with_old_columns() -> Outcome:
    (setting,) = [setting for setting in SETTINGS if setting.name == "V1"]
    with patch("activation_logging.vllm_plugin.arena.RowArena.forget"):
        return run(setting, 300, seed=1, reload=True)


def test_the_bench_notices_if_columns_of_another_probe_stay(pool: ProcessPoolExecutor) -> None:
    assert any("scores by" in what for what in pool.submit(run_with_old_columns).result().wrong)


def run_with_lost_scores() -> Outcome:
    (setting,) = [setting for setting in SETTINGS if setting.name == "V1"]
    with patch("activation_logging.vllm_plugin.score_sender.Listeners.advance"):
        return run(setting, 100, seed=1, patience_s=0.01)


def test_the_bench_notices_if_scores_are_lost_on_their_way(pool: ProcessPoolExecutor) -> None:
    assert any("told" in what for what in pool.submit(run_with_lost_scores).result().wrong)


@pytest.mark.parametrize("what", FAULTS)
def test_the_bench_notices_if(pool: ProcessPoolExecutor, what: str) -> None:
    assert pool.submit(run_broken, what).result().wrong


# --- the self-test -----------------------------------------------------------------------


def start_with(fault: dict[str, int]) -> str | None:
    """Start an engine whose model has a fault; the sentence that stops it."""
    import tempfile

    from activation_logging.errors import UnsupportedEngineError

    (setting,) = [setting for setting in SETTINGS if setting.name == "V1"]
    with tempfile.TemporaryDirectory() as folder:
        try:
            probes = save_probes(Path(folder) / "probes", 0)
            with running(setting, Path(folder) / "s", probes, **fault):
                return None
        except UnsupportedEngineError as error:
            return str(error)


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ({"shift": 1}, "not what its tokens are sampled from"),
        ({"width": 6}, "the first step with logging failed"),
        ({"unwritten": 1}, "unwritten in a request of 8 tokens"),
        ({}, None),
    ],
)
def test_a_model_that_cannot_be_logged_does_not_start(
    pool: ProcessPoolExecutor, fault: dict[str, int], named: str | None
) -> None:
    sentence = pool.submit(start_with, fault).result()
    assert (sentence is None) if named is None else named in (sentence or ""), sentence
    if sentence:
        assert "ACTIVATION_LOGGING=0" in sentence
        assert "\n" not in sentence
