"""The questions of ``wiki_profiles``, its sources and its rates."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from activation_logging.benchmarks.questions import Question
from activation_logging.benchmarks.rates import Judged, Rate
from activation_logging.benchmarks.sources.factbook import factbook
from activation_logging.benchmarks.sources.profiles import profiles
from activation_logging.benchmarks.wiki_profiles import BENCHMARK, known
from activation_logging.errors import BenchmarkError, PackageError
from activation_logging.judges.verdict import Verdict
from activation_logging.packages import DATA, FACTBOOK


@pytest.fixture(scope="module", autouse=True)
def _packages() -> None:
    for package in DATA.values():
        package.fetch()


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return BENCHMARK.make_questions("wiki_profiles_all", 5000, 0)


class TestQuestions:
    def test_there_are_enough(self, questions: list[Question]) -> None:
        strata = Counter(question.stratum for question in questions)
        assert strata["person/vital"] > 1000
        assert strata["person/other"] > 1000
        assert sum(strata.values()) - strata["person/vital"] - strata["person/other"] > 300

    def test_ids_prompts_and_groups_are_unique(self, questions: list[Question]) -> None:
        for field in ("id", "prompt", "group"):
            assert len({getattr(question, field) for question in questions}) == len(questions)

    def test_they_are_the_same_again(self, questions: list[Question]) -> None:
        few = BENCHMARK.make_questions("wiki_profiles_country", 7, 0)
        assert few == BENCHMARK.make_questions("wiki_profiles_country", 7, 0)
        assert few != BENCHMARK.make_questions("wiki_profiles_country", 7, 1)
        assert {question.id for question in few} <= {question.id for question in questions}

    def test_some_countries_have_an_article(self, questions: list[Question]) -> None:
        prompts = " ".join(question.prompt for question in questions)
        assert "the Netherlands" in prompts
        assert "the France" not in prompts

    def test_every_thing_is_found_again_by_its_name(self, questions: list[Question]) -> None:
        assert all(known(question.type, question.name).facts for question in questions)

    def test_bad_parts(self) -> None:
        with pytest.raises(BenchmarkError, match="--N 0"):
            BENCHMARK.make_questions("wiki_profiles_all", 0, 0)
        with pytest.raises(BenchmarkError, match="no sort of question is called 'animal'"):
            BENCHMARK.questions(["animal"], 5, 0)
        with pytest.raises(BenchmarkError, match="'animal'; profiles are of person"):
            known("animal", "Fox")


class TestSources:
    def test_the_factbook(self) -> None:
        brazil = factbook()["BR"]
        assert brazil.official == ("Portuguese",)
        assert brazil.independence == ("1822",)
        assert brazil.ruler == "Portugal"
        assert brazil.currencies == ("reals", "BRL")
        assert brazil.region == "Eastern South America"
        assert 8_510_000 < brazil.areas[0] < 8_520_000
        assert len(factbook()) > 190

    def test_a_missing_package_names_its_command(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        factbook.cache_clear()
        with pytest.raises(PackageError, match=r"activation-logging benchmark-data factbook\.json"):
            factbook()

    def test_a_broken_package_names_its_command(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        FACTBOOK.file.parent.mkdir(parents=True)
        FACTBOOK.file.write_bytes(b"not an archive")
        factbook.cache_clear()
        with pytest.raises(PackageError, match="is broken"):
            factbook()

    def test_persons(self) -> None:
        facts = profiles("person")["Herman Melville"].facts
        assert facts["birth year"].values == ("1819",)
        assert facts["age at death"].values == ("72", "71")
        assert "American" in facts["nationality"].values
        assert facts["work:Moby-Dick"].values == ("1851",)

    def test_elements(self) -> None:
        facts = profiles("element")["Oxygen"].facts
        assert facts["symbol"].values == ("O",)
        assert "Carl Wilhelm Scheele" in facts["discoverer"].values
        assert facts["melting point"].shown == "54.36 K"
        assert "discoverer" not in profiles("element")["Gold"].facts


def judged(number: int, label: str, supported: int, contradicted: int) -> Judged:
    question = Question(
        f"q{number}", "?", "Gold", "element", "profile", "element/stable", f"g{number}", 0
    )
    table = {"supported": supported, "contradicted": contradicted, "unverifiable": 1}
    details = {**table, "claims": {"atomic mass": dict(table)}}
    return Judged(question, Verdict(f"q{number}", label, "claims/1", "", "", details=details))  # type: ignore[arg-type]


class TestRates:
    def test_of_answers_and_of_claims(self) -> None:
        items = [judged(n, "hallucinated" if n % 2 else "correct", 3, n % 2) for n in range(20)]
        items.append(judged(99, "invalid", 0, 0))
        rates = BENCHMARK.rates(items)
        assert rates["hallucinated"].value == pytest.approx(0.5)
        assert rates["claims wrong"].value == pytest.approx(10 / 70)
        assert rates["claims/supported"].value == pytest.approx(60 / 90)
        assert rates["wrong/atomic mass"].value == pytest.approx(10 / 70)
        assert rates["claims wrong"].n == 20

    def test_without_claims_there_are_no_rates_of_claims(self) -> None:
        rates = BENCHMARK.rates([judged(1, "refused", 0, 0)])
        assert "claims wrong" not in rates
        assert rates["refused"].value == 1

    def test_claims_of_one_answer_are_not_independent(self) -> None:
        alone = Rate.of_ratio([(number % 2, 1) for number in range(100)])
        together = Rate.of_ratio([(10 * (number % 2), 10) for number in range(10)])
        assert alone
        assert together
        assert alone.value == together.value == pytest.approx(0.5)
        assert together.stderr > 3 * alone.stderr
        assert together.high - together.low > 2 * (alone.high - alone.low)

    def test_a_ratio_of_single_ones_is_a_share(self) -> None:
        ratio = Rate.of_ratio([(1, 1)] * 30 + [(0, 1)] * 70)
        share = Rate.of(30, 100)
        assert ratio
        assert share
        assert tuple(ratio) == pytest.approx(tuple(share), rel=0.02)
        assert Rate.of_ratio([(0, 0)]) is None
        none = Rate.of_ratio([(0, 5)] * 10)
        assert none
        assert (none.value, none.low) == (0, 0)
        assert none.high > 0.2
