"""Tokens cut where spans begin and end."""

from __future__ import annotations

import pytest

from activation_logging.report.marking import marked


def example(texts, spans, *, exact=True):
    return {
        "tokens": [{"text": text, "score": None, "logprob": None} for text in texts],
        "spans": [
            {"start": start, "end": end, "label": label, "tokens": tokens}
            for start, end, label, tokens in spans
        ],
        "exact": exact,
    }


def pieces(found):
    return [[tuple(piece) for piece in token.pieces] for token in found]


def test_a_span_cuts_the_tokens_that_it_begins_and_ends_in():
    found = marked(example(["In", " 18", "67."], [(3, 7, "contradicted", [1, 2])]))
    assert pieces(found) == [
        [("In", None, "")],
        [(" ", None, ""), ("18", "contradicted", "")],
        [("67", "contradicted", "1"), (".", None, "")],
    ]
    assert [token.spans for token in found] == [[], [0], [0]]


def test_of_spans_that_overlap_the_worst_gives_the_line_and_both_end():
    spans = [(0, 4, "supported", [0]), (1, 3, "unverifiable", [0]), (2, 4, "contradicted", [0])]
    ((*found,),) = pieces(marked(example(["abcd"], spans)))
    assert found == [
        ("a", "supported", ""),
        ("b", "unverifiable", ""),
        ("c", "contradicted", "2"),
        ("d", "contradicted", "1 3"),
    ]


def test_tokens_without_text_are_not_shown_and_cost_no_place():
    found = marked(example(["", "é", "x", ""], [(1, 2, "supported", [2])]))
    assert pieces(found) == [[("é", None, "")], [("x", "supported", "1")]]


def test_where_texts_do_not_add_up_whole_tokens_are_marked():
    spans = [(1, 3, "supported", [1, 2]), (0, 9, "contradicted", None), (5, 6, "supported", [9])]
    found = marked(example(["one ", "two ", "three"], spans, exact=False))
    assert pieces(found) == [
        [("one ", None, "")],
        [("two ", "supported", "")],
        [("three", "supported", "1")],
    ]


@pytest.mark.parametrize("exact", [True, False])
def test_nothing_is_lost(exact):
    texts = ["\u05d0\u05d1", "", " \U0001f600", "</script>", "\u202e"]
    spans = [(1, 4, "supported", [0, 2]), (4, 8, "contradicted", [3])]
    found = marked(example(texts, spans, exact=exact))
    assert "".join(piece.text for token in found for piece in token.pieces) == "".join(texts)
