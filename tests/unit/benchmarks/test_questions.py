"""The questions: the same everywhere, made up where they say so, and with one right answer."""

from __future__ import annotations

from collections import Counter

import pytest

from activation_logging.benchmarks import BenchmarkError
from activation_logging.benchmarks.nonsense_mixed_entities import (
    DOMAINS,
    TEMPLATES,
    nonsense_questions,
)
from activation_logging.benchmarks.questions import (
    Question,
    balanced,
    read_questions,
    write_questions,
)
from activation_logging.benchmarks.short_facts import SORTS, candidates, short_facts_questions
from activation_logging.benchmarks.sources.drugs import medicines
from activation_logging.benchmarks.sources.ncbi import taxonomy
from activation_logging.benchmarks.sources.places import unambiguous_cities
from activation_logging.text import fold
from tests.fixtures.hash_seeds import printed

PRINT_DIGEST = """
import hashlib
from activation_logging.benchmarks.nonsense_mixed_entities import nonsense_questions
from activation_logging.benchmarks.short_facts import short_facts_questions
asked = nonsense_questions(n=20, seed=7) + short_facts_questions(n=50, seed=7)
print(hashlib.sha256(repr(asked).encode()).hexdigest())
"""


@pytest.fixture(scope="module")
def nonsense() -> list[Question]:
    return nonsense_questions(n=300, seed=3)


@pytest.fixture(scope="module")
def facts() -> list[Question]:
    return short_facts_questions()


def test_the_same_seed_gives_the_same_questions_whatever_the_hash_seed() -> None:
    digests = {printed(PRINT_DIGEST, seed) for seed in ("1", "77")}
    # Stored runs depend on these very questions.
    assert digests == {"1b3f41b5343b7af3dcb7775a6efc0784109d65c8ecff56c022380023d6be9561\n"}


def test_another_seed_gives_others(nonsense: list[Question]) -> None:
    other = {question.prompt for question in nonsense_questions(n=300, seed=4)}
    common = other & {question.prompt for question in nonsense}
    assert len(common) < 0.1 * len(other)


def test_a_smaller_n_asks_the_first_questions_of_a_larger(nonsense: list[Question]) -> None:
    few = {question.id: question.prompt for question in nonsense_questions(n=10, seed=3)}
    many = {question.id: question.prompt for question in nonsense}
    assert few.items() <= many.items()


def test_ids_and_prompts_are_unique(nonsense: list[Question], facts: list[Question]) -> None:
    for questions in (nonsense, facts):
        assert len({question.id for question in questions}) == len(questions)
        assert len({question.prompt for question in questions}) == len(questions)


def test_every_made_up_name_has_its_control(nonsense: list[Question]) -> None:
    kinds = Counter((question.type, question.kind) for question in nonsense)
    assert kinds == {(d, kind): 300 for d in DOMAINS for kind in ("made_up", "real")}
    for made_up, real in zip(nonsense[::2], nonsense[1::2], strict=True):
        assert (made_up.kind, real.kind) == ("made_up", "real")
        assert made_up.prompt.replace(made_up.name, "") == real.prompt.replace(real.name, "")
        assert made_up.group == real.group
        assert made_up.split == real.split


def test_made_up_names_name_nothing_and_carry_their_donors(nonsense: list[Question]) -> None:
    tree, known = taxonomy(), medicines()
    by_id = {medicine.id: medicine for medicine in known.two_words}
    for question in nonsense:
        if question.kind != "made_up":
            continue
        first, second = question.name.split(" ")
        if question.type == "medicine":
            assert question.name not in known.names
            assert by_id[question.details["first_id"]].first == first
            assert by_id[question.details["second_id"]].second == second
        else:
            assert question.name not in tree._by_name
            assert tree.name(int(question.details["genus_id"])) == first
            assert tree.name(int(question.details["epithet_id"])).split(" ")[1] == second


def test_controls_are_real(nonsense: list[Question]) -> None:
    tree, known = taxonomy(), medicines()
    for question in nonsense:
        if question.kind == "real" and question.type == "medicine":
            assert question.name in known.names
        elif question.kind == "real":
            assert tree.name(int(question.details["id"])) == question.name


def test_a_synonym_in_another_gender_counts_as_known() -> None:
    assert taxonomy().knows("Homo", "sapiens")
    assert taxonomy().knows("Staphylococcus", "aurea")  # Staphylococcus aureus
    assert not taxonomy().knows("Homo", "braziliensis")


def test_a_pool_smaller_than_n_is_asked_again_in_other_words() -> None:
    size = len(medicines().two_words)
    questions = nonsense_questions(domains=("medicine",), n=2 * size, seed=0)
    assert len({question.prompt for question in questions}) == len(questions)
    with pytest.raises(BenchmarkError, match="yields only"):
        nonsense_questions(domains=("medicine",), n=size * len(TEMPLATES) + 1)


@pytest.mark.parametrize("n", [0, -3])
def test_n_below_one_is_refused(n: int) -> None:
    with pytest.raises(BenchmarkError, match=f"--N {n}"):
        nonsense_questions(n=n)
    with pytest.raises(BenchmarkError, match=f"--N {n}"):
        short_facts_questions(n=n)


def test_unknown_domains_are_named() -> None:
    with pytest.raises(BenchmarkError, match=r"'fungus'.*animal, plant"):
        nonsense_questions(domains=("fungus",), n=1)
    with pytest.raises(BenchmarkError, match=r"'rivers'.*capital"):
        short_facts_questions(sorts=("rivers",))


def test_there_are_several_thousand_facts_in_all_strata(facts: list[Question]) -> None:
    strata = Counter(question.stratum for question in facts)
    assert len(facts) > 3500
    assert set(strata) == {
        "capital", "city/1m", "city/300k", "city/100k", "city/15k",
        "element/symbol", "element/name",
    }  # fmt: skip
    assert min(strata.values()) > 100
    assert {question.type for question in facts} == {*SORTS, "symbol"}


def test_cities_are_unambiguous_and_do_not_give_their_country_away(facts: list[Question]) -> None:
    unambiguous = {city["geonameid"] for city in unambiguous_cities()}
    names = {question.name for question in facts if question.type == "city"}
    assert "London" not in names  # also in Canada
    assert "Mexico City" not in names
    for question in facts:
        if question.type == "city":
            assert int(question.id.removeprefix("city-")) in unambiguous
            assert not any(
                f" {fold(gold)} " in f" {fold(question.name)} " for gold in question.gold
            )


def test_every_right_answer_is_a_possible_one(facts: list[Question]) -> None:
    for question in facts:
        if question.type != "symbol":
            assert fold(question.gold[0]) in candidates(question.type)


def test_elements_are_asked_both_ways() -> None:
    asked = short_facts_questions(sorts=("element",))
    by_id = {question.id: question for question in asked}
    assert by_id["symbol-Fe"].gold == ("Fe",)
    assert by_id["element-Fe"].gold == ("Iron",)
    assert "Aluminum" in by_id["element-Al"].gold
    assert len(asked) == 2 * 118


@pytest.mark.parametrize("limit", [7, 20, 100])
def test_a_limit_is_balanced_over_strata(facts: list[Question], limit: int) -> None:
    chosen = balanced(facts, limit)
    assert len(chosen) == limit
    counts = Counter(question.stratum for question in chosen)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_a_limit_below_one_is_refused(facts: list[Question]) -> None:
    with pytest.raises(BenchmarkError, match="--limit 0"):
        balanced(facts, 0)


def test_splits_hold_about_a_fifth_for_testing(facts: list[Question]) -> None:
    share = sum(question.split == "test" for question in facts) / len(facts)
    assert 0.15 < share < 0.25


def test_questions_survive_their_file(tmp_path, facts: list[Question]) -> None:
    path = tmp_path / "deep" / "prompts.jsonl"
    write_questions(path, facts[:50])
    assert read_questions(path) == facts[:50]


def test_a_broken_question_is_named_by_its_line(tmp_path, facts: list[Question]) -> None:
    path = tmp_path / "prompts.jsonl"
    write_questions(path, facts[:3])
    path.write_text(path.read_text() + '{"id": "x"}\n')
    with pytest.raises(BenchmarkError, match="line 4"):
        read_questions(path)
    write_questions(path, [facts[0], facts[0]])
    with pytest.raises(BenchmarkError, match="twice"):
        read_questions(path)


def test_tags_are_texts_that_the_server_takes(facts: list[Question]) -> None:
    from activation_logging.settings import RequestOptions, Settings

    for question in facts[::500]:
        tags = question.tags("short_facts")
        options = RequestOptions.parse({"activation_tags": tags}, settings=Settings())
        assert options.tags == tags
        assert {"benchmark", "sample_id", "domain", "seed", "split", "entity", "gold"} <= set(tags)
