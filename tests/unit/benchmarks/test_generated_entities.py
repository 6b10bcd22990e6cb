"""``generated_entities`` and the options that only some benchmarks have.

The model is a server whose answers are chosen here; what is asked of it and what becomes of its
answers is the package's own.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from activation_logging import benchmarks
from activation_logging.benchmarks import BenchmarkError, endpoint, run_benchmark
from activation_logging.benchmarks.inventing import is_name, names_in
from activation_logging.benchmarks.nonsense_mixed_entities import nonsense_questions
from activation_logging.benchmarks.registry import BENCHMARKS
from activation_logging.benchmarks.script import parser
from activation_logging.packages import WIKIPEDIA, WORDNET
from tests.fixtures.canned import canned
from tests.fixtures.data import needs

pytestmark = needs(WIKIPEDIA, WORDNET)

ROOT = Path(__file__).parents[3]
COMMAND = "from activation_logging.cli import app; app()"
GENERATED = "generated_entities"
PERSON = "generated_entities_person"
SYLLABLES = ("Or", "Van", "Tres", "Kel", "Mir", "Zan", "Dro", "Quil", "Bex", "Hul")


def invent(body: dict[str, Any]) -> str:
    """Ten texts by the request's seed: two known names, one that is no name, seven new ones."""
    question = body["messages"][-1]["content"]
    if not question.startswith("Invent"):
        return "It is well known and was born long ago."
    seed = body["seed"]
    new = [
        f"{SYLLABLES[seed % 10]}{SYLLABLES[number].lower()} "
        f"{SYLLABLES[seed // 10 % 10]}{SYLLABLES[number - 1].lower()}ix"
        for number in range(1, 8)
    ]
    return json.dumps({"names": ["Orla, a singer", "Albert Einstein", "Marie Curie", *new]})


@pytest.fixture
def server() -> Iterator[Any]:
    with canned(invent) as running:
        yield running


class Done(NamedTuple):
    """A finished run: its folder and result, and what its server was asked."""

    base: Path
    result: Any
    asked: list[dict[str, Any]]

    def again(self, server: Any, base: Path | None = None, **options: Any) -> Any:
        return run(server, base or self.base, **options)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    base = tmp_path_factory.mktemp("done")
    with canned(invent) as running:
        return Done(base, run(running, base), list(running.asked))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    once = {"max_retries": 0, "attempt_timeout": 20}
    monkeypatch.setattr(endpoint, "RETRIES", {"server": once, "judge": once})


def run(server: Any, folder: Path, **options: Any) -> Any:
    given = {"exp": PERSON, "n": 6, "model": server.model, **options}
    return run_benchmark(GENERATED, base_url=server.base_url, output_base_dir=folder, **given)


def inventing(asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [b for b in asked if b["messages"][-1]["content"].startswith("Invent")]


class TestQuestions:
    def test_what_is_known_or_no_name_is_dropped(self, done: Done) -> None:
        questions = list(done.result.questions.values())
        made_up = [q for q in questions if q.kind == "made_up"]
        assert len(made_up) == 6 == len(questions) - 6
        assert all(q.name.endswith("ix") for q in made_up)
        assert {q.details["inventor"] for q in made_up} == {"org/tiny"}
        assert {q.tags(GENERATED)["fame"] for q in questions} == {"made_up", "famous"}
        assert made_up[0].tags(GENERATED)["inventor"] == "org/tiny"
        assert made_up[0].details["invented_with"].startswith("seed ")
        assert done.result.results["counts"]["hallucinated"] == 6
        assert done.result.results["metrics"]["false_refusal_famous"]["value"] == 0
        record = json.loads((done.result.folder / "run.json").read_text())
        assert record["settings"] == {"generator": "org/tiny"}

    def test_inventing_is_sampled_and_not_logged(self, done: Done) -> None:
        bodies = inventing(done.asked)
        assert len({body["seed"] for body in bodies}) == len(bodies) > 0
        assert {body["temperature"] for body in bodies} == {1.0}
        assert {body["vllm_xargs"]["activation_logging"] for body in bodies} == {"off"}

    def test_a_run_that_goes_on_invents_nothing(self, server: Any, done: Done) -> None:
        second = done.again(server)
        assert server.asked == []
        assert second.questions == done.result.questions

    def test_several_models_take_turns(self, server: Any, tmp_path: Path) -> None:
        with canned(lambda body: invent({**body, "seed": body["seed"] + 50})) as other:
            other.model = "org/other"
            named = [f"{each.model}@{each.base_url}" for each in (server, other)]
            result = run(server, tmp_path, n=5, generator=named)
        inventors = [
            q.details["inventor"] for q in result.questions.values() if q.kind == "made_up"
        ]
        assert inventors == ["org/tiny", "org/other"] * 2 + ["org/tiny"]
        # The other one is gone, and is not needed any more.
        assert run(server, tmp_path, n=5, generator=named).questions == result.questions


class TestBadInput:
    def test_a_generator_that_does_not_answer(self, server: Any, tmp_path: Path) -> None:
        with pytest.raises(BenchmarkError, match=r"no generator answers at http://127.0.0.1:9/v1"):
            run(server, tmp_path, generator=["m@http://127.0.0.1:9/v1"])
        with pytest.raises(BenchmarkError, match="does not serve the model 'm'"):
            run(server, tmp_path, generator=[f"m@{server.base_url}"])

    @pytest.mark.parametrize("named", ["model", "model@localhost:8000", "@http://localhost/v1"])
    def test_what_is_no_generator(self, server: Any, tmp_path: Path, named: str) -> None:
        with pytest.raises(BenchmarkError, match="is not MODEL@URL"):
            run(server, tmp_path, generator=[named])

    def test_nobody_to_invent(self) -> None:
        with pytest.raises(BenchmarkError, match="--generator is missing"):
            benchmarks.generated_entities(n=1)

    def test_nothing_usable_is_said_with_the_reasons(self, tmp_path: Path) -> None:
        said = json.dumps({"names": ["I am happy to help you.", "Albert Einstein"]})
        with (
            canned(lambda body: said) as dull,
            pytest.raises(BenchmarkError, match=r"only 0 usable names .* \d+ are known") as raised,
        ):
            run(dull, tmp_path)
        assert "lower --N" in str(raised.value)
        assert not list(tmp_path.rglob("prompts.jsonl"))

    def test_a_server_that_fails(self, server: Any, tmp_path: Path) -> None:
        server.reply = lambda body: 400
        with pytest.raises(BenchmarkError, match="failed while it invented names"):
            run(server, tmp_path)

    def test_too_many(self, server: Any, tmp_path: Path) -> None:
        with pytest.raises(BenchmarkError, match=r"--N 9000: there are only \d+ famous names"):
            run(server, tmp_path, n=9000)
        assert server.asked == []

    def test_another_generator(self, server: Any, done: Done) -> None:
        with pytest.raises(BenchmarkError, match=r"not made with .*--generator org/other"):
            done.again(server, generator=[f"org/other@{server.base_url}"])

    def test_a_broken_file_of_questions(self, server: Any, done: Done, tmp_path: Path) -> None:
        shutil.copytree(done.base, tmp_path / "copy")
        (prompts,) = tmp_path.rglob("prompts.jsonl")
        prompts.write_text(prompts.read_text()[:-30])
        with pytest.raises(BenchmarkError, match=r"prompts.jsonl line 12 is not a question"):
            done.again(server, tmp_path / "copy")


@pytest.mark.parametrize(
    ("text", "domain", "good"),
    [
        ("Orla Vantresk", "person", True),
        ("Jean de la Motte", "person", True),
        ("Orla", "person", False),
        ("3. Orla Vantresk", "person", False),
        ("Orla Vantresk - a singer", "person", False),
        ("The name of the town is Zel", "place", False),
        ("The Ash of Morrow", "work", True),
        ("silver-backed marsh fox", "species", True),
        ("Zantrivol", "medicine", True),
        ("", "medicine", False),
    ],
)
def test_what_is_just_a_name(text: str, domain: str, good: bool) -> None:
    assert is_name(text, domain) is good


@pytest.mark.parametrize(
    "answer", ["", "Orla", "[1]", '{"names": "Orla"}', '{"names": [1]}', "[" * 9999]
)
def test_answers_that_are_no_list(answer: str) -> None:
    assert names_in(answer) is None


class TestControls:
    """``--controls`` of ``nonsense_mixed_entities``."""

    def test_famous_controls_leave_the_made_up_names_as_they_are(self) -> None:
        sibling = nonsense_questions(n=30, seed=3)
        famous = nonsense_questions(n=30, seed=3, controls="famous")
        made_up = [[q.prompt for q in asked if q.kind == "made_up"] for asked in (sibling, famous)]
        assert made_up[0] == made_up[1]
        real = [q for q in famous if q.kind == "real"]
        assert Counter(q.type for q in real).most_common()[-1][1] == 30
        assert {q.details["fame"] for q in real} == {"famous"}
        assert len({q.prompt for q in famous}) == len(famous)
        assert "Escherichia coli" in {q.name for q in real}
        assert not any("fame" in q.tags("x") for q in sibling)

    def test_a_few_famous_ones_are_asked_about_in_every_template(self) -> None:
        asked = nonsense_questions(("bacteria",), n=1500, seed=3, controls="famous")
        real = [q for q in asked if q.kind == "real"]
        assert len({q.prompt for q in real}) == len(real) == 10 * len({q.name for q in real})

    def test_a_run_keeps_its_controls(self, server: Any, tmp_path: Path) -> None:
        given: dict[str, Any] = {
            "exp": "nonsense_medicine", "n": 3, "model": server.model,
            "base_url": server.base_url, "output_base_dir": tmp_path,
        }  # fmt: skip
        nonsense = "nonsense_mixed_entities"
        first = run_benchmark(nonsense, controls="famous", **given)
        assert json.loads((first.folder / "run.json").read_text())["settings"] == {
            "controls": "famous"
        }
        with pytest.raises(BenchmarkError, match="made with --seed 0 --controls sibling"):
            run_benchmark(nonsense, **given)
        with pytest.raises(BenchmarkError, match="with controls 'famous', not 'sibling'"):
            run_benchmark(nonsense, **given, do_generate_prompt=True)
        again = run_benchmark(nonsense, controls="famous", **given, do_generate_prompt=True)
        assert again.results["counts"] == first.results["counts"]

    def test_what_a_benchmark_does_not_have(self, server: Any, tmp_path: Path) -> None:
        with pytest.raises(BenchmarkError, match="'donors' is neither 'sibling' nor 'famous'"):
            nonsense_questions(n=1, controls="donors")
        with pytest.raises(BenchmarkError, match="generated_entities has no --controls"):
            run(server, tmp_path, controls="famous")


def test_scripts_have_the_flags_of_their_benchmark_only() -> None:
    has = {
        name: {
            flag for flag in ("--controls", "--generator") if flag in parser(about).format_help()
        }
        for name in BENCHMARKS.names()
        for about in [BENCHMARKS.get(name)]
    }
    assert has["nonsense_mixed_entities"] == {"--controls"}
    assert has[GENERATED] == {"--generator"}
    assert has["known_names"] == has["short_facts"] == set()


def test_the_script_takes_several_generators(server: Any, tmp_path: Path) -> None:
    with canned(lambda body: invent({**body, "seed": body["seed"] + 50})) as other:
        other.model = "org/other"
        named = [
            part for s in (server, other) for part in ("--generator", f"{s.model}@{s.base_url}")
        ]
        script = ROOT / "tasks" / "refusal_test" / "generated_entities.py"
        command = [sys.executable, str(script), "--do_generate_prompt", "--exp", PERSON, "--N", "2"]
        where = ["--output_base_dir", str(tmp_path)]
        ended = subprocess.run(
            [*command, *named, *where], capture_output=True, text=True, check=False
        )
    assert ended.returncode == 0, ended.stderr
    (prompts,) = tmp_path.rglob("prompts.jsonl")
    asked = [json.loads(line) for line in prompts.read_text().splitlines()]
    assert {q["details"].get("inventor") for q in asked} == {"org/tiny", "org/other", None}


def test_so_does_the_command(server: Any, tmp_path: Path) -> None:
    command = ["eval", GENERATED, "--model", "org/tiny", "--base-url", server.base_url]
    named = ["--generator", "a@http://localhost:1/v1", "--generator", "second"]
    ended = subprocess.run(
        [sys.executable, "-c", COMMAND, *command, *named, "--output-dir", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert "--generator 'second' is not MODEL@URL" in " ".join(ended.stderr.split())
