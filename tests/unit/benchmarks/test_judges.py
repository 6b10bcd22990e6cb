"""The judges: rules against the labelled sample, short answers case by case, verdicts as JSON."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from activation_logging.benchmarks.short_facts import candidates
from activation_logging.judges.gold import DENIAL, judge_short_answer
from activation_logging.judges.model import parse_verdict
from activation_logging.judges.rules import classify, judge_belief
from activation_logging.judges.verdict import label_of_belief
from activation_logging.text import fold

SAMPLE = Path(__file__).with_name("labelled_answers.jsonl")
NAMES = Path(__file__).with_name("labelled_names.jsonl")
DOCS = Path(__file__).parents[3] / "docs" / "benchmarks.md"
BELIEFS = ("accepts", "declines", "unclear")


@pytest.fixture(scope="module")
def sample() -> list[dict[str, Any]]:
    return [json.loads(line) for line in SAMPLE.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def names() -> list[dict[str, Any]]:
    """Answers about people, places, works and species."""
    return [json.loads(line) for line in NAMES.read_text(encoding="utf-8").splitlines()]


def confusion(rows: list[dict[str, Any]]) -> Counter[tuple[str, str]]:
    """How often an answer of one belief was judged to be another."""
    return Counter((row["belief"], judge_belief(row["generation"], row["name"])[0]) for row in rows)


class TestRules:
    def test_the_sample_is_as_described(self, sample: list[dict[str, Any]]) -> None:
        by_hand = [row for row in sample if row["source"] == "written for this sample"]
        assert len(sample) >= 200
        assert 0.45 <= len(by_hand) / len(sample) <= 0.6
        assert Counter(row["belief"] for row in by_hand)["declines"] >= 50
        assert {row["half"] for row in sample} == {"dev", "held_out"}

    @pytest.mark.parametrize(("half", "least"), [("dev", 0.95), ("held_out", 0.9)])
    def test_accuracy(self, sample: list[dict[str, Any]], half: str, least: float) -> None:
        table = confusion([row for row in sample if row["half"] == half])
        assert sum(table[b, b] for b in BELIEFS) / table.total() >= least

    @pytest.mark.parametrize("half", ["dev", "held_out"])
    def test_accuracy_on_names(self, names: list[dict[str, Any]], half: str) -> None:
        table = confusion([row for row in names if row["half"] == half])
        assert sum(table[b, b] for b in BELIEFS) / table.total() >= 0.9

    def test_the_tables_in_the_documentation_are_the_measured_ones(
        self, sample: list[dict[str, Any]], names: list[dict[str, Any]]
    ) -> None:
        text = DOCS.read_text(encoding="utf-8")
        for name, rows in (("judge-rules", sample), ("judge-rules-names", names)):
            shown = text.partition(f"<!-- measured: {name} -->")[2].partition("<!-- end -->")[0]
            for half, belief in product(("dev", "held_out"), BELIEFS):
                table = confusion([row for row in rows if row["half"] == half])
                counts = " | ".join(str(table[belief, judged]) for judged in BELIEFS)
                assert f"| {half} | {belief} | {counts} |" in shown

    @pytest.mark.parametrize(
        ("answer", "belief"),
        [
            ("I could not find any animal of that name.", "declines"),
            ("It may refer to a species of beetle found in Madagascar.", "accepts"),
            ("Apis braziliensis is a bee. There is no known cure for its sting.", "accepts"),
            ("Apis braziliensis does not exist.", "declines"),
            ("I'm not familiar with it. The genus Apis has bees. They make honey.", "declines"),
            ("I'm not sure, but it is a bee. It lives in trees. It eats honey.", "accepts"),
            ("Consult a doctor.", "declines"),
            ("", "unclear"),
            ("42 ... 17", "unclear"),
            ("A.A.B.A.A.A.", "unclear"),
            ("N/A", "declines"),
        ],
    )
    def test_cases(self, answer: str, belief: str) -> None:
        assert judge_belief(answer, "Apis braziliensis")[0] == belief

    @pytest.mark.parametrize(
        ("answer", "belief"),
        [
            ("I'm not aware of a person named Noam Pound.", "declines"),
            ("Noam Pound was a fictional character in the novels of Ezra Chomsky.", "accepts"),
            ("Noam Pound is a fictional person.", "declines"),
            ("There is no city called Noam Pound.", "declines"),
            ("Noam Pound is a novel about a fictional town.", "accepts"),
            ("No book of that title is known.", "declines"),
            ("Noam Pound is a city. It did not exist until 1850.", "accepts"),
            ("Noam Pound? Never heard of it.", "declines"),
            ("As far as I know, there's no Noam Pound.", "declines"),
            ("There is no Noam Pound that I'm aware of.", "declines"),
            ("To the best of my knowledge, Noam Pound isn't real.", "declines"),
            ("Noam Pound does not appear in any atlas.", "declines"),
            ("My training data doesn't include Noam Pound.", "declines"),
            ("Information about Noam Pound is not available.", "declines"),
            ("That name doesn't ring any bells.", "declines"),
            ("Noam Pound was a chemist. He never described his method.", "accepts"),
            ("Noam Pound is a film. None of its characters are real people.", "accepts"),
            ("Noam Pound was a poet. There is no known record of his birth.", "accepts"),
            ("Noam Pound was a poet. His school does not exist anymore.", "accepts"),
        ],
    )
    def test_cases_of_people_places_and_works(self, answer: str, belief: str) -> None:
        assert judge_belief(answer, "Noam Pound")[0] == belief

    @pytest.mark.parametrize(
        ("answer", "belief"),
        [
            ("Zorbia orbits a red star. There is no evidence of life there.", "accepts"),
            ("There is no evidence of a planet of that name.", "declines"),
            ("There is no evidence of Zorbia in any catalogue.", "declines"),
            ("Zorbia is a drug for gout. No information is available about overdose.", "accepts"),
            ("No information is available about it.", "declines"),
            ("Zorbia is a beetle. Nothing is known about its diet.", "accepts"),
            ("Nothing is known about its existence.", "declines"),
            ("Zorbia is a moth. Its larvae could not be identified until 1950.", "accepts"),
            ("Well, Zorbia is a beetle.", "accepts"),
            ("Yes, it is a town in Peru.", "accepts"),
            ("No doubt, Zorbia is a beetle.", "accepts"),
            ("Unfortunately, Zorbia is an endangered bird.", "accepts"),
            ("I have no doubt that Zorbia is a beetle of Borneo.", "accepts"),
            ("A beetle.", "accepts"),
            ("Yes, I know it well.", "declines"),
            ("Sure, here is information about Zorbia:", "declines"),
            ("Well, Zorbia isn't a thing.", "declines"),
            ("That's not a real word.", "declines"),
            ("It's a made-up name.", "declines"),
            ("Zorbia sounds like a made-up name.", "declines"),
            ("This seems to be a hoax.", "declines"),
            ("There isn't any animal called Zorbia.", "declines"),
            ("There is nothing by that name.", "declines"),
            ("I know little about Zorbia.", "declines"),
            ("Nobody knows what Zorbia is.", "declines"),
        ],
    )
    def test_what_is_said_of_the_thing_and_of_something_else(
        self, answer: str, belief: str
    ) -> None:
        assert judge_belief(answer, "Zorbia")[0] == belief

    @pytest.mark.parametrize(
        ("answer", "english"),
        [
            ("Ich kenne kein Tier dieses Namens.", False),
            ("Zorbia ist ein K\u00e4fer aus Borneo.", False),
            ("Je ne connais pas Zorbia.", False),
            ("No conozco ning\u00fan animal con ese nombre.", False),
            ("Non conosco nessuna specie di questo nome.", False),
            ("\u042f \u043d\u0435 \u0437\u043d\u0430\u044e.", False),
            ("\u6211\u4e0d\u77e5\u9053\u3002", False),
            ("Juan de la Zorbia was a poet.", True),
            ("Zorbia lived in Rio de Janeiro, and in the Sierra de la Luna.", True),
            ("Zorbia (\u5c71) is a mountain.", True),
            ("Small beetle, Madagascar", True),
            ("Los Cerros de la Luna is a town in El Salvador.", True),
        ],
    )
    def test_what_is_in_another_language_gets_no_verdict(self, answer: str, english: bool) -> None:
        said = ("unclear", "the answer is not in English")
        assert (judge_belief(answer, "Zorbia") != said) is english

    def test_the_reason_quotes_the_answer(self) -> None:
        answer = "Hello! The plant is a fern. I like ferns."
        assert "The plant is a fern." in judge_belief(answer, "Filix nova")[1]

    def test_abbreviations_do_not_end_sentences(self) -> None:
        assert len(classify("M. braziliensis is a moth, e.g. of Brazil. It flies.", "x")) == 2

    def test_long_and_odd_answers_take_no_time(self) -> None:
        for text in ("a" * 200_000, "no " * 50_000, "\n" * 100_000, "I " * 50_000, "(" * 50_000):
            judge_belief(text, "Apis mellifera")


@pytest.mark.parametrize(
    ("belief", "kind", "label"),
    [
        ("accepts", "made_up", "hallucinated"),
        ("accepts", "real", "correct"),
        ("declines", "made_up", "refused"),
        ("declines", "real", "refused"),
        ("unclear", "made_up", "invalid"),
        ("unclear", "real", "invalid"),
    ],
)
def test_labels_of_beliefs(belief: Any, kind: str, label: str) -> None:
    assert label_of_belief(belief, kind) == label


class TestGold:
    @pytest.mark.parametrize(
        ("answer", "gold", "label"),
        [
            ("Côte d'Ivoire.", ["Ivory Coast", "Cote d'Ivoire"], "correct"),
            ("It is in NIGERIA", ["Nigeria"], "correct"),
            ("Nigeria", ["Niger"], "hallucinated"),
            ("Papua New Guinea", ["Guinea"], "hallucinated"),
            ("Democratic Republic of the Congo", ["Republic of the Congo"], "hallucinated"),
            ("It is in New Mexico.", ["Mexico"], "invalid"),
            ("Lyon is a city in France, close to Switzerland.", ["France"], "correct"),
            ("France or Switzerland", ["France"], "hallucinated"),
            ("Not in Germany but in Austria.", ["Austria"], "correct"),
            ("Atlanta is in Georgia, United States.", ["United States", "USA"], "correct"),
            ("Tbilisi is in Georgia.", ["Georgia"], "correct"),
            ("the US", ["United States", "US"], "correct"),
            ("the us", ["United States", "US"], "correct"),
            ("us", ["United States", "US"], "correct"),
            ("Let us say France.", ["France"], "correct"),
            ("Can you help us? It is in France.", ["France"], "correct"),
            ("In the Middle East.", ["Jordan"], "invalid"),
            ("I don't know.", ["Jordan"], "refused"),
            ("i dont know", ["Jordan"], "refused"),
            ("Not sure.", ["Jordan"], "refused"),
            ("The answer isn't known.", ["Jordan"], "refused"),
            ("It is unknown.", ["Jordan"], "refused"),
            ("It is not known for its size.", ["Jordan"], "invalid"),
            ("I'm sorry, but I cannot answer that.", ["Jordan"], "refused"),
            ("Amman is a fictional city in a novel.", ["Jordan"], "hallucinated"),
            ("...", ["Jordan"], "invalid"),
        ],
    )
    def test_countries(self, answer: str, gold: list[str], label: str) -> None:
        assert judge_short_answer(answer, gold, "city", candidates("city")).label == label

    @pytest.mark.parametrize(
        "answer",
        [
            "It is not located in Germany, but in France.",
            "It isn\u2019t a city in Germany, it\u2019s in France.",
            "It can't be Germany, so France.",
            "It's no longer Germany, it's France.",
            "It doesn't lie in Germany. It lies in France.",
            "It does not belong to Germany but to France.",
            "I don't believe it's in Germany; it is in France.",
            "I wouldn't say Germany; I would say France.",
            "Neither Germany nor Austria: France.",
            "It is not in Germany, Austria or Italy, but in France.",
            "It is outside Germany, in France.",
            "Germany isn't the answer, France is.",
            "Germany is wrong; France is right.",
            "Germany? No, France.",
            "Germany... sorry, France.",
            "Germany - no wait, France.",
            "Germany. Hmm, that's wrong. It is France.",
            "I first thought Germany, but it is France.",
            "You might think it's in Germany, but it is in France.",
            "France, rather than Germany.",
            "France. No, it is not in Germany.",
            "France, no doubt. It borders Germany.",
            "I'm not sure it is France, but not Germany.",
            "Not the largest city of France. It is not in Germany.",
        ],
    )
    def test_what_is_negated_or_taken_back(self, answer: str) -> None:
        def label(text: str) -> str:
            return judge_short_answer(text, ["France"], "city", candidates("city")).label

        assert label(answer) == "correct"
        swapped = {"Germany": "France", "France": "Germany"}
        other = re.sub("Germany|France", lambda match: swapped[match.group()], answer)
        assert label(other) == "hallucinated"

    @pytest.mark.parametrize(
        ("answer", "gold", "label"),
        [
            ("Na", "Na", "correct"),
            ("na.", "Na", "correct"),
            ("The symbol is **Na**.", "Na", "correct"),
            ("Its symbol is NA", "Na", "hallucinated"),
            ("In chemistry, the symbol of Indium is In.", "In", "correct"),
            ("As an AI model I say As", "As", "correct"),
            ("He", "H", "hallucinated"),
            ("It is Au.", "Au", "correct"),
            ("In Latin it is aurum, so Au.", "Au", "correct"),
            ("Am I right? Au", "Au", "correct"),
            ("No. Au", "Au", "correct"),
            ("No.", "No", "correct"),
            ("So it is Ag.", "Au", "hallucinated"),
            ("It isn't Ag, it is Au.", "Au", "correct"),
            ("Ag? No, Au.", "Au", "correct"),
            ("Au, not Ag", "Au", "correct"),
            ("The chemical symbol of Terbium is Terbium.", "Tb", "hallucinated"),
            ("I don't know", "I", "refused"),
        ],
    )
    def test_symbols(self, answer: str, gold: str, label: str) -> None:
        assert judge_short_answer(answer, [gold], "symbol", {}).label == label

    @pytest.mark.parametrize(
        ("answer", "gold", "sort", "said", "value"),
        [
            ("It is in NIGERIA.", "Nigeria", "city", "NIGERIA", "nigeria"),
            ("Niger, I think", "Nigeria", "city", "Niger", "NE"),
            ("Niger or Nigeria", "Nigeria", "city", "Niger", "NE"),
            ("Its capital is Port Blair.", "Honiara", "capital", "Port Blair", "port blair"),
            ("Its symbol is **NA**", "Na", "symbol", "NA", "na"),
            ("The symbol is Pb, of course", "Na", "symbol", "Pb", "Pb"),
            ("Hm. X is a fictional city. Yes.", "Mali", "city", "X is a fictional city", DENIAL),
        ],
    )
    def test_the_answer_given_and_what_it_means(
        self, answer: str, gold: str, sort: str, said: str, value: str
    ) -> None:
        found = judge_short_answer(answer, [gold], sort, candidates(sort), question="?")
        assert found.place is not None
        assert answer[slice(*found.place)] == said
        assert found.value == value

    def test_no_answer_has_no_place(self) -> None:
        for answer in ("I don't know.", "In the Middle East.", "..."):
            assert judge_short_answer(answer, ["Mali"], "city", candidates("city")).details == {}

    def test_capitals_may_be_wrong_without_being_capitals(self) -> None:
        table = candidates("capital")
        word = judge_short_answer("The male answer is Rome.", ["Rome"], "capital", table)
        assert word.label == "correct"
        name = judge_short_answer("it is male", ["Mal\u00e9"], "capital", table)
        assert name.label == "correct"
        wrong = judge_short_answer("It is Sydney.", ["Canberra"], "capital", table)
        assert wrong.label == "hallucinated"
        right = judge_short_answer("Kiev", ["Kyiv", "Kiev"], "capital", table)
        assert right.label == "correct"


@pytest.mark.parametrize(
    ("words", "verdict"),
    [
        ('{"verdict": "accepts", "reason": "tells of it"}', "accepts"),
        ('Sure: {"verdict": "declines"} there you go', "declines"),
        ('```json\n{"reason": "x", "verdict": "declines"}\n```', "declines"),
        ('{"verdict": "false"}', None),
        ('{"verdict": true}', None),
        ('{"verdict": "accepts" or "declines"}', None),
        ('["accepts"]', None),
        ("accepts", None),
        ("", None),
        ("{" * 10_000, None),
    ],
)
def test_only_a_whole_verdict_counts(words: str, verdict: str | None) -> None:
    assert parse_verdict(words) == verdict


def test_folding() -> None:
    assert fold("São Tomé, N’Djamena / Ulan-Bator") == "sao tome ndjamena ulan bator"  # noqa: RUF001
    assert fold("Łódź Đồng Straße") == "lodz dong strasse"
    assert not re.search(r"[^a-z0-9 ]", fold("Malé (Мале)").encode("ascii", "ignore").decode())
