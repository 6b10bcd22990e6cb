"""Which characters each token of an answer holds, where the reader has no tokenizer."""

from __future__ import annotations

import pytest

from activation_logging.store.offsets import token_offsets, touching

FOX = "\U0001f98a"


def offsets(*args: object) -> list[tuple[int, int]]:
    return [tuple(pair) for pair in token_offsets(*args).tolist()]  # type: ignore[arg-type]


def test_texts_that_add_up() -> None:
    assert offsets("Hi, you", ["", "Hi", ",", " you", ""]) == [
        (0, 0),
        (0, 2),
        (2, 3),
        (3, 7),
        (7, 7),
    ]
    assert offsets("", []) == []


def test_a_character_that_its_own_replacement_follows() -> None:
    """U+FFFD that is in the answer itself is a character as any other."""
    assert offsets("a\ufffdbb", ["a", "\ufffdb", "b"]) == [(0, 1), (1, 3), (3, 4)]


def test_parts_of_characters_as_the_writer_found_them() -> None:
    pieces = ["ok", "", "", f" {FOX}", "", "!"]
    shared = [(1, 2, 4), (2, 3, 4), (3, 3, 4)]
    assert offsets(f"ok {FOX}!", pieces, shared) == [
        (0, 2),
        (2, 4),
        (3, 4),
        (3, 4),
        (4, 4),
        (4, 5),
    ]


def test_without_the_writers_word_it_is_rather_too_many() -> None:
    pieces = ["ok", "", "", f" {FOX}", "", "!", ""]
    assert offsets(f"ok {FOX}!", pieces)[1:] == [(2, 4), (2, 4), (2, 4), (4, 4), (4, 5), (5, 5)]


def test_what_version_01_stored() -> None:
    response, tokens = f"Hi {FOX}!", ["Hi", " \ufffd", "\ufffd", "!", "<eos>"]
    assert offsets(response, tokens) == [(0, 2), (2, 4), (2, 4), (4, 5), (5, 5)]
    # SentencePiece's blank before the first word was left out.
    assert offsets(" one two", ["", "one", " two", ""]) == [(1, 1), (1, 4), (4, 8), (8, 8)]


@pytest.mark.parametrize(
    ("span", "tokens"),
    [((0, 1), [1]), ((1, 3), [1, 2]), ((2, 3), [2]), ((3, 4), [3]), ((0, 7), [1, 2, 3])],
)
def test_touching(span: tuple[int, int], tokens: list[int]) -> None:
    """A token that holds nothing is touched by no span, wherever it stands."""
    found = token_offsets("Hi, you", ["", "Hi", ",", " you", ""])
    assert touching(found, *span).tolist() == tokens
