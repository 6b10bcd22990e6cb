"""Claims of profiles: found, compared, placed; hard texts; the labelled sample."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter

import pytest

from activation_logging.benchmarks.sources.world import world
from activation_logging.benchmarks.wiki_profiles import BENCHMARK, known
from activation_logging.judges.claims import read_claims
from activation_logging.judges.claims.model import Quoted, parse_claims, placed
from activation_logging.judges.verdict import Answer
from activation_logging.packages import DATA
from bench import spans as measured


@pytest.fixture(scope="module", autouse=True)
def _packages() -> None:
    for package in DATA.values():
        package.fetch()


def claims(sort: str, name: str, text: str, *, cut: bool = False) -> list[tuple[str, str, str]]:
    """(claim, words, label) of what the judge finds."""
    spans = read_claims(text, known(sort, name), world(), cut=cut)
    for before, after in itertools.pairwise(spans):
        assert before.end <= after.start
    return [(span.claim or "", text[span.start : span.end], span.label) for span in spans]


def label(sort: str, name: str, text: str) -> str:
    answer = Answer("x", "?", name, sort, text, kind="profile")
    return asyncio.run(BENCHMARK.judge(answer)).label


class TestPersons:
    def test_years_of_a_life_in_a_parenthesis(self) -> None:
        text = "Albert Einstein (14 March 1879 \u2013 1956) lived."
        found = claims("person", "Albert Einstein", text)
        assert ("birth year", "1879", "supported") in found
        assert ("birth day", "14 March", "unverifiable") in found
        assert ("death year", "1956", "contradicted") in found

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("He was born in Ulm, Germany, in 1879.", ("birth year", "1879", "supported")),
            ("He was born in 1880.", ("birth year", "1880", "contradicted")),
            ("- **Born:** March 14, 1880", ("birth year", "1880", "contradicted")),
            ("Einstein died in 1955.", ("death year", "1955", "supported")),
            ("In 1955, he died in Princeton.", ("death year", "1955", "supported")),
            ("He died in 1955 at the age of 86.", ("age at death", "86", "contradicted")),
            ("He was born in Paris, France.", ("birthplace", "France", "unverifiable")),
            ("He was born in Tokyo, Japan.", ("birthplace", "Japan", "contradicted")),
            ("Einstein was a Brazilian painter.", ("nationality", "Brazilian", "contradicted")),
            ("Einstein was a Brazilian painter.", ("occupation", "painter", "contradicted")),
            (
                "Einstein was a physicist and violinist.",
                ("occupation", "violinist", "unverifiable"),
            ),
            ("In 1870, he moved to Bern.", ("year", "1870", "contradicted")),
            ("In 1905, he moved to Bern.", ("year", "1905", "unverifiable")),
        ],
    )
    def test_claims(self, text: str, expected: tuple[str, str, str]) -> None:
        assert expected in claims("person", "Albert Einstein", text)

    @pytest.mark.parametrize(
        "text",
        [
            "His father was born in 1847 and died in 1902.",
            "He married Mileva Maric, who was born in 1875.",
            "His son Eduard was born in 1910.",
        ],
    )
    def test_relatives_are_not_the_person(self, text: str) -> None:
        found = claims("person", "Albert Einstein", text)
        assert {label for _, _, label in found} == {"unverifiable"}

    def test_years_of_works(self) -> None:
        found = claims("person", "Herman Melville", "He wrote *Moby-Dick* (1851), Typee (1836).")
        assert ("year of a work", "1851", "supported") in found
        assert ("year of a work", "1836", "contradicted") in found

    def test_a_living_person_has_no_year_of_death(self) -> None:
        found = claims("person", "Hayao Miyazaki", "Miyazaki died in 2003.")
        assert found == [("death year", "2003", "contradicted")]


class TestCountries:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("Its capital is Kathmandu.", ("capital", "Kathmandu", "supported")),
            ("Pokhara is the capital of Nepal.", ("capital", "Pokhara", "contradicted")),
            ("It has an area of 147,516 km².", ("area", "147,516 km²", "supported")),
            ("It covers 56,956 square miles.", ("area", "56,956 square miles", "supported")),
            ("It covers 347,516 sq km.", ("area", "347,516 sq km", "contradicted")),
            ("Its population is 30 million.", ("population", "30 million", "supported")),
            ("Its population is 130 million.", ("population", "130 million", "contradicted")),
            ("It borders China and Bhutan.", ("neighbour", "Bhutan", "contradicted")),
            ("It is bordered by India.", ("neighbour", "India", "supported")),
            ("Its currency is the Nepalese rupee.", ("currency", "Nepalese rupee", "supported")),
            ("Its currency is the Indian rupee.", ("currency", "Indian rupee", "contradicted")),
            ("The currency is the dollar.", ("currency", "dollar", "contradicted")),
            ("The official language is Nepali.", ("official language", "Nepali", "supported")),
            ("The official language is Dutch.", ("official language", "Dutch", "contradicted")),
            ("Nepal is a country in Africa.", ("region", "Africa", "contradicted")),
            ("Nepal is a country in Asia.", ("region", "Asia", "supported")),
        ],
    )
    def test_claims(self, text: str, expected: tuple[str, str, str]) -> None:
        assert expected in claims("country", "Nepal", text)

    def test_independence(self) -> None:
        text = "Kenya gained independence from France in 1963."
        found = claims("country", "Kenya", text)
        assert ("independence year", "1963", "supported") in found
        assert ("independence from", "France", "contradicted") in found

    def test_a_shared_seat_of_government_is_nothing_to_contradict(self) -> None:
        found = claims("country", "South Africa", "The capital of South Africa is Cape Town.")
        assert found == [("capital", "Cape Town", "unverifiable")]


class TestElements:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("Gold has the symbol Au.", ("symbol", "Au", "supported")),
            ("Gold has the symbol Ag.", ("symbol", "Ag", "contradicted")),
            ("Its atomic number is 79.", ("atomic number", "79", "supported")),
            ("Its atomic number is 80.", ("atomic number", "80", "contradicted")),
            ("The atomic mass is 196.97 u.", ("atomic mass", "196.97 u", "supported")),
            ("The atomic mass is 107.9.", ("atomic mass", "107.9", "contradicted")),
            ("It melts at 1,064 °C.", ("melting point", "1,064 °C", "supported")),
            ("Melting point: 1337 K", ("melting point", "1337 K", "supported")),
            ("It boils at 1,064 °C.", ("boiling point", "1,064 °C", "contradicted")),
            ("The density is 19.3 g/cm³.", ("density", "19.3 g/cm³", "supported")),
            ("Gold is a noble gas.", ("category", "noble gas", "contradicted")),
        ],
    )
    def test_claims(self, text: str, expected: tuple[str, str, str]) -> None:
        assert expected in claims("element", "Gold", text)

    def test_discovery(self) -> None:
        text = "It was discovered by Joseph Priestley in 1774 and by Marie Curie."
        found = claims("element", "Oxygen", text)
        assert ("discoverer", "Joseph Priestley", "supported") in found
        assert ("discovery year", "1774", "supported") in found
        wrong = claims("element", "Oxygen", "It was discovered by Isaac Newton in 1700.")
        assert [label for _, _, label in wrong] == ["contradicted", "contradicted"]


class TestAnswers:
    def test_labels(self) -> None:
        assert label("element", "Gold", "Gold has the symbol Au.") == "correct"
        assert label("element", "Gold", "Its symbol is Au, its atomic number 78.") == "hallucinated"
        assert label("person", "Albert Einstein", "I do not know this person.") == "refused"
        assert label("person", "Albert Einstein", "A great man.") == "invalid"
        assert label("person", "Albert Einstein", "") == "invalid"
        assert label("country", "Nepal", "Le Népal est un pays.") == "invalid"

    def test_of_an_unknown_thing_nothing_is_known(self) -> None:
        found = claims("person", "Zyx Qwv", "Zyx Qwv was a French painter, born in 1900.")
        assert found
        assert {label for _, _, label in found} == {"unverifiable"}

    def test_half_a_number_at_the_cut_is_no_claim(self) -> None:
        text = "Its symbol is Au and its atomic number is 7"
        assert [c for c, _, _ in claims("element", "Gold", text, cut=True)] == ["symbol"]
        assert len(claims("element", "Gold", text)) == 2

    def test_details_count_the_claims(self) -> None:
        answer = Answer(
            "x", "?", "Gold", "element", "Au: symbol Au, atomic number 78.", kind="profile"
        )
        details = asyncio.run(BENCHMARK.judge(answer)).details or {}
        assert (details["supported"], details["contradicted"]) == (1, 1)
        assert details["claims"]["atomic number"] == {"contradicted": 1}

    @pytest.mark.parametrize("unit", ["1900 ", "born in 1900 and ", "(", "1,000 km2 ", "\n- ", "*"])
    def test_long_texts_take_linear_time(self, unit: str) -> None:
        took = []
        for length in (10_000, 80_000):
            begin = time.process_time()
            for type_, name in (("person", "Albert Einstein"), ("country", "Nepal")):
                claims(type_, name, unit * (length // len(unit)))
            took.append(time.process_time() - begin)
        assert took[1] < 40 * took[0] + 0.5  # eight times as long; quadratic would be 64 times


class TestSample:
    def test_it_is_as_described(self) -> None:
        for half in measured.HALVES:
            assert sum(len(row["claims"]) for row in measured.sample(half)) >= 100
        assert {row["type"] for row in measured.sample("unseen")} == {
            "person",
            "country",
            "element",
        }

    def test_what_the_rules_decide_is_right(self) -> None:
        for half, most in (("dev", 0.02), ("unseen", 0.1)):
            table = measured.confusion(half)
            wrong = table["supported", "contradicted"] + table["contradicted", "supported"]
            right = table["supported", "supported"] + table["contradicted", "contradicted"]
            assert right >= 30
            assert wrong <= most * (right + wrong)


class TestModelJudge:
    def test_quotes_have_places(self) -> None:
        text = "Born in 1879, he died in 1955. In 1879 again."
        said = [
            Quoted("1879", "birth year", "supported"),
            Quoted("1955", "death year", "contradicted"),
            Quoted("1879", "year", "unverifiable"),
            Quoted("Ulm", "birthplace", "supported"),
            Quoted("", "x", "supported"),
        ]
        spans, lost = placed(said, text, known("person", "Albert Einstein"), "judge")
        assert [(text[s.start : s.end], s.start) for s in spans] == [
            ("1879", 8),
            ("1955", 25),
            ("1879", 34),
        ]
        assert lost == 2
        assert [span.gold for span in spans] == ["1879", "1955", None]

    @pytest.mark.parametrize(
        ("words", "count"),
        [
            ('{"claims": []}', 0),
            ('Here: {"claims": [{"quote": "a", "claim": "b", "verdict": "supported"}]}', 1),
            ('{"claims": [{"quote": "a", "claim": "b", "verdict": "true"}]}', None),
            ('{"claims": [{"quote": 1, "claim": "b", "verdict": "supported"}]}', None),
            ('{"claims": [7]}', None),
            ('{"claims": {}}', None),
            ("[]", None),
            ("", None),
            ('{"claims": [{"quote": "a"', None),
        ],
    )
    def test_replies(self, words: str, count: int | None) -> None:
        found = parse_claims(words)
        assert (None if found is None else len(found)) == count


def test_labels_by_hand_are_of_all_three_sorts() -> None:
    labels = Counter(span.label for row in measured.sample() for span in measured.by_hand(row))
    assert min(labels.values()) >= 20
