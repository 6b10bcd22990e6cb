"""Loads, figures and the plan: everything of the benchmark that needs no server."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest
from rich.console import Console

from activation_logging.bench.compare import COUNTERS, Plan, Results, Storage
from activation_logging.bench.load import Load, Timing, requests_for
from activation_logging.bench.machine import cpu_times, describe
from activation_logging.bench.ratios import RATIOS, Comparison, Measurement, Pair, Spread
from activation_logging.bench.servers import Contestant, Server, ServerOptions
from activation_logging.bench.table import show
from activation_logging.errors import SettingsError

LOAD = Load(concurrency=4, requests=12, prompt_words=10, answer_tokens=3)


def measurement(server: str, throughput: float, others: float = 0.0) -> Measurement:
    return Measurement(server, throughput, 0.2, 0.01, 0.02, 0.001, others, 5.0, 500, 700)


def timing(start: float = 0.1) -> Timing:
    arrivals = [[start, start + 0.02, start + 0.05], [start + 0.1, start + 0.12, start + 0.15]]
    answer = {"seconds": 0.5, "tokens": 6, "prompt_tokens": 20, "arrivals": arrivals}
    return Timing.of(answer)


class TestLoad:
    def test_prompts_are_distinct_and_the_same_every_time(self) -> None:
        prompts = LOAD.prompts("1.0")
        assert len(set(prompts)) == 12
        assert prompts == LOAD.prompts("1.0")
        assert not set(prompts) & set(LOAD.prompts("2.0"))

    def test_every_prompt_has_its_length(self) -> None:
        assert {len(prompt.split()) for prompt in LOAD.prompts("1.0")} == {10}

    def test_a_shared_prefix_is_shared_among_all_series(self) -> None:
        load = Load(concurrency=2, requests=3, prompt_words=5, shared_prefix=40)
        prompts = [*load.prompts("1.0"), *load.prompts("2.0")]
        assert len({" ".join(prompt.split()[:40]) for prompt in prompts}) == 1
        assert len({" ".join(prompt.split()[40:]) for prompt in prompts}) == 6

    def test_no_prompt_repeats_among_concurrencies(self) -> None:
        other = Load(concurrency=8, requests=12, prompt_words=10)
        assert not set(LOAD.prompts("1.0")) & set(other.prompts("1.0"))

    @pytest.mark.parametrize("concurrency", [1, 8, 32, 64, 300])
    def test_a_measurement_has_more_requests_than_are_in_flight(self, concurrency: int) -> None:
        assert requests_for(concurrency) > concurrency

    def test_answers_have_a_fixed_length(self) -> None:
        body = LOAD.body("m")
        assert body["max_tokens"] == 3
        assert body["ignore_eos"] is True


class TestFigures:
    def test_timing_counts_from_the_request_and_between_tokens(self) -> None:
        found = timing()
        assert found.throughput == 12.0
        np.testing.assert_allclose(found.ttft, [0.1, 0.2])
        np.testing.assert_allclose(found.gaps, [0.02, 0.03, 0.02, 0.03])

    def test_measurement(self) -> None:
        found = Measurement.of("plain", timing(), cpu_s=0.6, others_s=0.25)
        assert found.ttft_p50 == pytest.approx(0.15)
        assert found.itl_p50 == pytest.approx(0.025)
        assert found.cpu_per_token == pytest.approx(0.1)
        assert found.others == pytest.approx(0.5)

    def test_one_token_answers_have_no_gaps(self) -> None:
        answer = {"seconds": 1.0, "tokens": 1, "prompt_tokens": 3, "arrivals": [[0.5]]}
        found = Measurement.of("plain", Timing.of(answer), cpu_s=0.1, others_s=0.0)
        assert math.isnan(found.itl_p50)

    def test_ratios_are_of_pairs(self) -> None:
        # Pair by pair 0.9 and 0.9, although the machine was twice as fast the second time.
        slow = Pair(measurement("plain", 100.0), measurement("logging", 90.0))
        fast = Pair(measurement("plain", 200.0), measurement("logging", 180.0))
        found = Comparison("logging", LOAD, (slow, fast)).ratio("throughput")
        assert found == Spread(pytest.approx(0.9), pytest.approx(0.9), pytest.approx(0.9))

    def test_spread(self) -> None:
        assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)

    def test_json_holds_every_measurement(self) -> None:
        pair = Pair(measurement("plain", 100.0), measurement("logging", 90.0))
        found = json.loads(json.dumps(Comparison("logging", LOAD, (pair, pair)).to_json()))
        assert found["ratios"].keys() == set(RATIOS)
        assert [each["candidate"]["throughput"] for each in found["pairs"]] == [90.0, 90.0]


class TestPlan:
    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"rounds": 0}, "rounds"),
            ({"restarts": 0}, "restarts"),
            ({"baseline": "unlogged", "candidates": (Contestant("off"),)}, "unlogged"),
            ({"candidates": ()}, "candidate"),
            ({"answer_tokens": -1}, "tokens"),
            ({"concurrencies": (1, 0)}, "concurrency 0"),
            ({"concurrencies": ()}, "concurrency"),
            ({"requests": 0}, "requests"),
        ],
    )
    def test_numbers_that_cannot_be(self, change: dict, named: str) -> None:
        with pytest.raises(SettingsError, match=named):
            Plan(ServerOptions("m"), **change)

    def test_one_load_per_concurrency(self) -> None:
        plan = Plan(ServerOptions("m"), concurrencies=(2, 3), requests=7)
        assert [(load.concurrency, load.requests) for load in plan.loads()] == [(2, 7), (3, 7)]


class TestServers:
    def test_the_command_is_the_same_for_all(self, tmp_path) -> None:
        options = ServerOptions("m", vllm_args=("--max-model-len", "512"), eager=True)
        commands = []
        for variant in ("plain", "off", "logging"):
            server = Server(Contestant(variant), options, tmp_path)
            port = server.base_url.rpartition(":")[2]
            commands.append(["PORT" if part == port else part for part in server.command()])
        assert commands[0] == commands[1] == commands[2]
        assert "--enforce-eager" in commands[0]
        assert commands[0][-2:] == ["--max-model-len", "512"]

    def test_memory_flag_of_the_user_wins(self, tmp_path) -> None:
        options = ServerOptions("m", vllm_args=("--gpu_memory_utilization=0.2",))
        command = Server(Contestant("plain"), options, tmp_path).command()
        assert "--gpu-memory-utilization" not in command

    def test_servers_share_the_memory(self, tmp_path) -> None:
        options = ServerOptions("m")
        command = Server(Contestant("plain"), options, tmp_path, servers=5).command()
        assert command[command.index("--gpu-memory-utilization") + 1] == "0.16"

    def test_variants_differ_in_the_environment_alone(self, tmp_path) -> None:
        inherited = {"PATH": "/bin", "ACTIVATION_LAYERS": "all", "ACTIVATION_LOGGING": "0"}
        plain, off, logging, sites = (
            Server(Contestant.parse(text), ServerOptions("m"), tmp_path).environment(inherited)
            for text in ("plain", "off", "logging:3,last", "logging:heads@3,resid_prenorm")
        )
        assert "activation_logging" not in plain["VLLM_PLUGINS"].split(",")
        assert not [name for name in plain if name.startswith("ACTIVATION_")]
        assert off["ACTIVATION_LOGGING"] == "0"
        assert logging["ACTIVATION_LOGGING"] == "1"
        assert logging["ACTIVATION_LAYERS"] == "3,last"
        assert sites["ACTIVATION_SITES"] == "heads@3,resid_prenorm"
        assert not {"ACTIVATION_SITES", "ACTIVATION_LAYERS"} <= {*logging} & {*sites}

    @pytest.mark.parametrize("text", ["plain", "off", "logging", "logging:3,last"])
    def test_a_contestant_is_named_as_it_is_asked_for(self, text: str) -> None:
        assert Contestant.parse(text).name == text

    @pytest.mark.parametrize("text", ["", "loging", "plain:3", "off:last"])
    def test_contestants_that_cannot_be(self, text: str) -> None:
        with pytest.raises(SettingsError, match="candidate"):
            Contestant.parse(text)


def test_machine_is_described() -> None:
    found = describe()
    assert found["cores"] >= 1
    assert found["packages"]["numpy"] == np.__version__


def test_processor_time_is_told_apart() -> None:
    import os

    before = cpu_times([os.getpid()])
    sum(number * number for number in range(2_000_000))
    after = cpu_times([os.getpid()])
    assert after.ours - before.ours > 0.02
    assert cpu_times([2**22 + 1]).ours == 0.0


def test_tables_name_all_servers_and_every_counter(capsys: pytest.CaptureFixture[str]) -> None:
    candidates = (Contestant("logging"), Contestant("logging", "3,last"))
    pairs = [
        Pair(measurement("plain", 100.0), measurement(candidate.name, speed))
        for candidate, speed in zip(candidates, (98.0, 95.5), strict=True)
    ]
    counters = dict.fromkeys(COUNTERS, 7)
    storage = Storage(1000, 2_000_000, 1_152_000, {"front end": {**counters, "queue_bytes_max": 9}})
    plan = Plan(ServerOptions("m"), candidates=candidates, concurrencies=(4,), rounds=1)
    comparisons = tuple(
        Comparison(candidate.name, LOAD, (pair,))
        for candidate, pair in zip(candidates, pairs, strict=True)
    )
    results = Results(plan, comparisons, {"logging": storage}, "now")
    show(results, Console(file=sys.stdout, width=100))
    printed = capsys.readouterr().out
    for text in ("0.980", "0.955", "100.0", "98.0", "without the plugin", "logging 3,last"):
        assert text in printed
    for text in ("2000 bytes", "queue_bytes_max"):
        assert printed.count(text) == 1
    found = json.loads(json.dumps(results.to_json()))
    assert [each["candidate"] for each in found["comparisons"]] == ["logging", "logging:3,last"]
