"""Which characters are the answer given, where no list knows it."""

from __future__ import annotations

import pytest

from activation_logging.judges.given import given_answer, given_denial

CAPITAL = "What is the capital city of Laos? Answer with only the name of the city."


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Port Royal", "Port Royal"),
        ("**Port Royal**.", "Port Royal"),
        ('\n\n"Port Royal"\nIt is big.', "Port Royal"),
        ("The capital city of Laos is Port Royal.", "Port Royal"),
        ("The capital city of Laos is called Port Royal, a town by the sea.", "Port Royal"),
        ("The capital of Laos was Saint-Barth\u00e9lemy (since 1900).", "Saint-Barth\u00e9lemy"),
        ("Laoistan is the capital city of Laos.", "Laoistan"),
        ("Laos is the capital city of Laos.", "Laos"),
        ("The capital city of Laos is Laos.", "Laos"),
        ("Laos is a country in Asia, near China.", "a country in Asia"),
        ("Port Royal, the pearl of Asia", "Port Royal"),
        ("!!! 7", "7"),
    ],
)
def test_the_side_that_does_not_say_the_question_again(text: str, said: str) -> None:
    assert text[slice(*given_answer(text, CAPITAL))] == said


def test_a_denial_is_the_sentence_that_denies() -> None:
    text = "Good question. Laos does not exist. Sorry."
    assert text[slice(*given_denial(text))] == "Laos does not exist"


@pytest.mark.parametrize("text", ["is " * 30_000, "a" * 100_000, "x, " * 30_000, "x\n" * 50_000])
def test_long_and_odd_answers_take_no_time(text: str) -> None:
    start, end = given_answer(text, CAPITAL)
    assert 0 <= start < end <= len(text)
