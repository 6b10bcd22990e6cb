"""The typed judge, case by case: its label, and which characters it judged."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from activation_logging.judges import JUDGES, Answer
from activation_logging.judges.typed import Finding, judge_value
from activation_logging.records import Evaluation

COUNTRIES = {"germany": "DE", "france": "FR", "new mexico": "", "mexico": "MX"}


def judge(text: str, gold: str, sort: str, name: str = "X", **names: Any) -> Finding:
    answer = Answer("q", "?", name, sort, text, kind="fact", gold=(gold,))
    return judge_value(answer, lambda sort: names)


def said(text: str, found: Finding) -> str | None:
    start, end = (found.details.get(f"answer_{which}") for which in ("start", "end"))
    return None if start is None else text[start:end]


@pytest.mark.parametrize(
    ("text", "label", "words"),
    [
        ("1879", "correct", "1879"),
        ("**1879**", "correct", "1879"),
        ("He was born on March 14, 1879, in Ulm.", "correct", "1879"),
        ("Albert Einstein (1879\u20131955)", "correct", "1879"),
        ("c. 1879", "correct", "1879"),
        ("I'm not sure, but I think 1879.", "correct", "1879"),
        ("He died in 1955 and was born in 1879.", "correct", "1879"),
        ("He won the prize in 1921 and was born in 1879.", "correct", "1879"),
        ("He was not born in 1879 but in 1880.", "hallucinated", "1880"),
        ("not 1880 but 1879", "correct", "1879"),
        ("1880", "hallucinated", "1880"),
        ("1879 or 1880", "hallucinated", "1879"),
        ("1880. No, 1879.", "correct", "1879"),
        ("Born in 1880, but he was actually born in 1879.", "correct", "1879"),
        ("He was born in 1880, but his actual birthday is disputed.", "hallucinated", "1880"),
        ("He was born in the United States in 18", "invalid", None),
        ("79", "hallucinated", "79"),
        ("The 18th century", "hallucinated", "18th century"),
        ("X is fictional and does not exist.", "hallucinated", "X is fictional and does not exist"),
        ("I don't know.", "refused", None),
        ("As of my last update in 2021, I have no information on that.", "refused", None),
        ("In the 1870s", "invalid", "1870s"),
        ("He died in 1955.", "invalid", None),
        ("A physicist", "invalid", None),
        ("...", "invalid", None),
        ("", "invalid", None),
    ],
)
def test_birth_years(text: str, label: str, words: str | None) -> None:
    found = judge(text, "1879", "birth year")
    assert (found.label, said(text, found)) == (label, words)


@pytest.mark.parametrize(
    ("text", "label", "words"),
    [
        ("1955", "correct", "1955"),
        ("He was born in 1879 and died in 1955", "correct", "1955"),
        ("(1879\u20131955)", "correct", "1955"),
        ("He passed away on April 18, 1955", "correct", "1955"),
        ("died at 76 in 1955", "correct", "1955"),
        ("She is still alive.", "hallucinated", "still alive"),
        ("born in 1879", "invalid", None),
    ],
)
def test_death_years(text: str, label: str, words: str | None) -> None:
    found = judge(text, "1955", "death year")
    assert (found.label, said(text, found)) == (label, words)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("He wasn't born in 1880, he was born in 1879.", "correct"),
        ("He wasn\u2019t born in 1880 but in 1879.", "correct"),
        ("It was never 1880; it was 1879.", "correct"),
        ("I would have said 1880, but it was 1879.", "correct"),
        ("1880. Hmm, I think that's wrong. It was 1879.", "correct"),
        ("1879/1880", "hallucinated"),
        ("1879, or possibly 1880", "hallucinated"),
        ("Not 1880 or 1881, but 1879.", "correct"),
        ("1880? No, 1879.", "correct"),
        ("1880, I mean 1879.", "correct"),
        ("Many people think 1880, but it was 1879.", "correct"),
        ("He was not born until 1879.", "correct"),
        ("1879. Sorry, my knowledge ends in 2023.", "correct"),
        ("He wasn't born in 1879 but in 1880.", "hallucinated"),
        ("In 1880, no doubt, like his brother of 1879.", "hallucinated"),
    ],
)
def test_what_is_negated_or_taken_back(text: str, label: str) -> None:
    assert judge(text, "1879", "birth year").label == label


def test_how_far_a_year_is_off() -> None:
    details = judge("It was 1884.", "1879", "work year").details
    assert details["off"] == 5
    assert [details[f"within_{years}"] for years in (1, 5, 10)] == [False, True, True]


def test_years_before_christ() -> None:
    assert judge("44 BC", "44 BC", "death year").label == "correct"
    assert judge("AD 44", "44 BC", "death year").label == "hallucinated"


@pytest.mark.parametrize(
    ("text", "label", "words"),
    [
        ("8,849 m", "correct", "8,849 m"),
        ("8849", "correct", "8849"),
        ("8 849 m", "correct", "8 849 m"),
        ("8.849 m", "correct", "8.849 m"),
        ("8.849,0 m", "correct", "8.849,0 m"),
        ("8\u2019849 m", "correct", "8\u2019849 m"),
        ("8,85 km", "correct", "8,85 km"),
        ("8.611 m", "hallucinated", "8.611 m"),
        ("1. 8,849 m", "correct", "8,849 m"),
        ("1) 8849", "correct", "8849"),
        ("29,032 feet", "correct", "29,032 feet"),
        ("8.849 km", "correct", "8.849 km"),
        ("In 1955 it was measured at 8,848 m (29,029 ft).", "correct", "8,848 m"),
        ("8849 or 8850 m", "correct", "8849"),
        ("8849 or 9900 m", "hallucinated", "8849"),
        ("It isn't 8,000 m, it is 8,849 m.", "correct", "8,849 m"),
        ("8,000 m. No, wait: 8,849 m.", "correct", "8,849 m"),
        ("9,000 m", "hallucinated", "9,000 m"),
        ("I do not know", "refused", None),
        ("8,849 kg", "invalid", None),
        ("very high", "invalid", None),
    ],
)
def test_measures(text: str, label: str, words: str | None) -> None:
    found = judge(text, "8849 m", "height")
    assert (found.label, said(text, found)) == (label, words)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("79", "correct"),
        ("The atomic number of gold is seventy-nine.", "correct"),
        ("80", "hallucinated"),
        ("79.5", "hallucinated"),
        ("Gold has 79 protons and 118 neutrons", "correct"),
    ],
)
def test_counts_are_exact(text: str, label: str) -> None:
    assert judge(text, "79", "atomic number", "gold").label == label


def test_numbers_of_the_question_do_not_count() -> None:
    assert judge("Apollo 11 landed in 1969", "1969", "year", "Apollo 11").label == "correct"
    assert judge("The 20 of Group 20", "19", "count", "Group 20").label == "invalid"


@pytest.mark.parametrize(
    ("text", "label", "words"),
    [
        ("Germany", "correct", "Germany"),
        ("In GERMANY, close to France.", "correct", "GERMANY"),
        ("Not in France, but in Germany.", "correct", "Germany"),
        ("It isn't in France but in Germany.", "correct", "Germany"),
        ("France or Germany", "hallucinated", "France"),
        ("I don't know.", "refused", None),
        ("In New Mexico.", "invalid", None),
        ("In Europe.", "invalid", None),
    ],
)
def test_places(text: str, label: str, words: str | None) -> None:
    found = judge(text, "Germany", "city country", **COUNTRIES)
    assert (found.label, said(text, found)) == (label, words)


def test_a_place_where_any_word_may_be_one() -> None:
    text = " It is Chicago. "
    found = judge(text, "Springfield", "capital")
    assert (found.label, said(text, found)) == ("hallucinated", "Chicago")


@pytest.mark.parametrize(
    ("text", "gold", "sort", "value"),
    [
        ("He was born in 1884.", "1879", "birth year", 1884),
        ("8.9 km", "8849 m", "height", 8900.0),
        ("It is in the Federal Republic.", "Germany", "city country", "germany"),
        ("It is in France.", "Germany", "city country", "FR"),
        ("In Germany.", "Germany", "city country", "germany"),
        ("It does not exist.", "Germany", "city country", "no such thing"),
    ],
)
def test_what_an_answer_means(text: str, gold: str, sort: str, value: Any) -> None:
    found = judge(text, gold, sort, **COUNTRIES, **{"federal republic": "DE"})
    assert found.details["value"] == value


def test_a_question_without_a_right_answer() -> None:
    answer = Answer("q", "?", "X", "birth year", "1879", kind="fact")
    assert judge_value(answer, lambda sort: {}).label == "invalid"


@pytest.mark.parametrize("text", ["1879 " * 10_000, "not " * 20_000, "(" * 20_000, "\n" * 20_000])
def test_long_and_odd_answers_take_no_time(text: str) -> None:
    judge(text, "1879", "birth year")


def test_it_is_a_judge_whose_details_are_json() -> None:
    answer = Answer("q", "?", "X", "birth year", "1880", kind="fact", gold=("1879",))
    verdict = asyncio.run(JUDGES.get("typed")(answer))
    assert (verdict.label, verdict.judge) == ("hallucinated", "typed/4")
    assert json.loads(json.dumps(verdict.details))["off"] == 1


@pytest.mark.parametrize("text", ["9" * 400 + " m", "9 x 10^999 m", "1 x 10^" + "9" * 5000 + " m"])
def test_a_number_too_large_to_be_one_is_wrong_and_can_be_kept(text: str) -> None:
    """A model that repeats a digit stopped the judge, or left a label that no store takes."""
    found = judge(text, "8849 m", "elevation")
    assert found.label == "hallucinated"
    Evaluation.checked("typed", found.label, details=found.details)
    assert judge("0 x 10^999 m", "8849 m", "elevation").label == "hallucinated"
