"""Any text may be typed into the search, and what it means is what the help says."""

from __future__ import annotations

import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activation_logging.view.words import matching

TEXTS = {
    1: ("What is the capital of France?", "Paris, of course."),
    2: ("Who painted the capital letters?", "Monks, in Paris and Rome."),
    3: ("Was ist ein Café?", "Ein Haus."),
}


@pytest.fixture(scope="module")
def texts():
    made = sqlite3.connect(":memory:")
    made.execute(
        "CREATE VIRTUAL TABLE t USING fts5("
        'prompt, response, tokenize = "unicode61 remove_diacritics 2")'
    )
    made.executemany(
        "INSERT INTO t (rowid, prompt, response) VALUES (?, ?, ?)",
        [(n, *pair) for n, pair in TEXTS.items()],
    )
    return made


def found(texts, query):
    asked = matching(query)
    if asked is None:
        return None
    ask = "SELECT rowid FROM t WHERE t MATCH ?"
    rows = {row[0] for row in texts.execute(ask, (asked.query,))}
    return TEXTS.keys() - rows if asked.others else rows


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("capital", {1, 2}),
        ("capital paris", {1, 2}),
        ('"the capital of"', {1}),
        ("capit*", {1, 2}),
        ("capital -rome", {1}),
        ("prompt:capital answer:rome", {2}),
        ("prompt:paris", set()),
        ("cafe", {3}),
        ("CAFÉ", {3}),
        ('"open', set()),
        ("", None),
        ("-rome", {1, 3}),
        ("-rome -prompt:france", {3}),
        ('?! "" *', None),
        ("AND OR NOT", set()),
    ],
)  # fmt: skip
def test_what_is_found(texts, query, expected):
    assert found(texts, query) == expected


@given(st.text(max_size=60))
def test_no_text_is_refused(query):
    made = sqlite3.connect(":memory:")
    made.execute("CREATE VIRTUAL TABLE t USING fts5(prompt, response)")
    asked = matching(query.encode("utf-8", "replace").decode())
    if asked is not None:
        made.execute("SELECT rowid FROM t WHERE t MATCH ?", (asked.query,)).fetchall()
