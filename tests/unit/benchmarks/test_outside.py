"""A benchmark and a judge of another package: one module with entry points, nothing of ours."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from activation_logging import open_store
from activation_logging.store import StoreWriter
from tests.fixtures.answers import make_document
from tests.fixtures.canned import canned
from tests.fixtures.outside import outside_package

SOURCE = """
from activation_logging.benchmarks import Benchmark
from activation_logging.benchmarks.questions import Question
from activation_logging.benchmarks.rates import present, share, valid
from activation_logging.judges import Judge, Verdict
from activation_logging.judges.gold import GOLD


def questions(parts, n, seed):
    return [
        Question(
            id=f"{part}-{i}", prompt=f"{part} {i}?", name=f"{i}", type=part, kind="fact",
            stratum=part, group=part, seed=seed, gold=(f"{2 * i}",),
        )
        for part in parts
        for i in range(n)
    ]


async def decide(answer):
    digits = any(char.isdigit() for char in answer.generation)
    return Verdict.on(answer, "correct" if digits else "refused", "digits/3", "looked for a digit")


SUMS = Benchmark(
    name="sums",
    description="Double a number.",
    evaluator="arithmetic",
    max_tokens=7,
    default_n=2,
    unit="operation",
    experiments={"sums_all": ("double", "twice"), "sums_double": ("double",)},
    questions=questions,
    judge=GOLD,
    rates=lambda items: present({"right": share("correct", valid(items))}),
    group_of=lambda question: question.type,
    packages=("outside",),
)
DIGITS = Judge("digits/3", decide)
ODD = Judge("odd/1", lambda answer: Verdict.on(answer, "correct", "even/1", "another's"))
BROKEN = "no judge"
"""
POINTS = {
    "activation_logging.benchmarks": {"sums": "SUMS", "alias": "SUMS"},
    "activation_logging.judges": {"digits": "DIGITS", "odd": "ODD", "broken": "BROKEN"},
    # Once Inspect knows a hook, it prints the list of its hooks.
    "inspect_ai": {"labels": "activation_logging.benchmarks.elsewhere.hook:LabelHook"},
}
COMMAND = [sys.executable, "-c", "from activation_logging.cli import app; app()", "eval"]


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {**outside_package(tmp_path / "site", SOURCE, POINTS), "COLUMNS": "200"}


class Logging:
    """A server whose answers are in a store, as one that logs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.writer = StoreWriter(path, role="test")

    def reply(self, body: dict[str, Any]) -> str:
        said = "It is 2, I think." if "1?" in body["messages"][-1]["content"] else "I don't know."
        name = f"chatcmpl-{body['request_id']}"
        ended = {"response": said, "finish_reason": "stop"}
        self.writer.put_entry({**make_document(name, prompt=name, request_id=name), **ended})
        return said


@pytest.fixture
def logging(tmp_path: Path) -> Iterator[Logging]:
    made = Logging(tmp_path / "s.lmdb")
    made.writer.flush()
    yield made
    made.writer.close()


def evaluate(
    env: dict[str, str], *flags: object, code: int = 0
) -> subprocess.CompletedProcess[str]:
    ended = subprocess.run(
        [*COMMAND, *map(str, flags)], env=env, capture_output=True, text=True, check=False
    )
    assert ended.returncode == code, ended.stdout + ended.stderr
    return ended


def ask(env: dict[str, str], logging: Logging, *flags: object) -> dict[str, Any]:
    with canned(logging.reply) as server:
        said = evaluate(
            env, *flags, "--json", "--model", server.model, "--base-url", server.base_url,
            "--lmdb-path", logging.path, "--output-dir", logging.path.parent / "out",
        )  # fmt: skip
    printed: dict[str, Any] = json.loads(said.stdout)
    return printed


def test_help_lists_it(env: dict[str, str]) -> None:
    said = evaluate(env, "--help").stdout
    assert "sums: Double a number. (sums_all, sums_double)" in said
    assert "short_facts_city" in said


def test_its_own_judge_labels_its_answers(env: dict[str, str], logging: Logging) -> None:
    printed = ask(env, logging, "sums")
    folder = Path(printed["folder"])
    assert folder.parent.name == "sums_all_0_2"
    assert printed["judge"] == "gold/5"
    assert printed["metrics"]["right"]["value"] == 0.5
    assert printed["groups"].keys() == {"double", "twice"}
    assert json.loads((folder / "run.json").read_text())["versions"]["outside"] == "1.0"
    with open_store(logging.path) as store:
        labels = [entry.evaluations["arithmetic"] for entry in store.entries()]
    assert {label.details["sample_id"]: label.label for label in labels} == {
        "double-0": "refused", "double-1": "correct", "twice-0": "refused", "twice-1": "correct",
    }  # fmt: skip


@pytest.mark.parametrize("benchmark", ["sums", "nonsense_mixed_entities"])
def test_its_judge_judges_any_benchmark(
    env: dict[str, str], logging: Logging, benchmark: str
) -> None:
    printed = ask(env, logging, benchmark, "--n", 1, "--judge", "digits")
    assert printed["judge"] == "digits/3"
    assert printed["counts"]["refused"] == printed["n"] == printed["labels_written"] > 0
    with open_store(logging.path) as store:
        judges = {label.judge for e in store.entries() for label in e.evaluations.values()}
    assert judges == {"digits/3"}


@pytest.mark.parametrize(
    ("benchmark", "judge", "message"),
    [
        ("alias", "rules", "'alias' is offered under a name that is not its own"),
        ("sums", "odd", "the judge 'odd/1' gave a verdict of 'even/1'"),
        ("sums", "broken", "the judge 'broken' of outside 1.0 is a str"),
    ],
)
def test_what_is_unusable_is_named(
    env: dict[str, str], tmp_path: Path, benchmark: str, judge: str, message: str
) -> None:
    with canned(lambda body: "4") as server:
        ended = evaluate(
            env, benchmark, "--judge", judge, "--model", server.model,
            "--base-url", server.base_url, "--output-dir", tmp_path, code=1,
        )  # fmt: skip
    assert message in " ".join(ended.stderr.split())
