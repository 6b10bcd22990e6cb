"""Labels and their spans: what is valid, and what an error says."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest

from activation_logging import Evaluation, Span
from activation_logging.errors import LabelError
from activation_logging.records import MAX_SPANS, checked_spans

GOOD = {"start": 2, "end": 5, "label": "supported"}


def test_objects_and_mappings_become_spans_in_order() -> None:
    later = Span(4, 9, "contradicted", claim="birth year", gold="1867", source="a list")
    given = [later, {**GOOD, "gold": None}, {**GOOD, "end": np.int64(3), "start": np.array(1)}]
    found = checked_spans(iter(given))
    assert found == (Span(1, 3, "supported"), Span(2, 5, "supported"), later)
    assert [type(value) for value in (found[0].start, found[0].end)] == [int, int]
    assert checked_spans(None) == checked_spans([]) == ()
    assert Evaluation.checked("e", "correct", spans=given).spans == found


def test_overlaps_stay_and_repetitions_go() -> None:
    one, other = Span(0, 4, "supported"), Span(2, 6, "supported")
    named = Span(0, 4, "supported", claim="year")
    assert checked_spans([other, one, named, one]) == (one, named, other)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"start": 5}, "spans[1] starts at 5 and ends at 5: the end comes after"),
        ({"start": 7}, "spans[1] starts at 7 and ends at 5"),
        ({"start": -1}, "spans[1].start is -1: it is no place in a text"),
        ({"end": 1 << 31}, "spans[1].end is 2147483648: it is no place in a text"),
        ({"end": 10**400}, "spans[1].end is a value of type int: it is no place in a text"),
        ({"start": True}, "spans[1].start is a whole number, not a bool"),
        ({"start": np.bool_(True)}, "spans[1].start is a whole number, not a bool"),
        ({"start": 2.0}, "spans[1].start is a whole number, not a float"),
        ({"start": math.nan}, "spans[1].start is a whole number, not a float"),
        ({"end": "5"}, "spans[1].end is a whole number, not a str"),
        ({"end": None}, "spans[1].end is a whole number, not a NoneType"),
        ({"label": "true"}, "spans[1].label 'true' is not one of supported, contradicted, unver"),
        ({"label": ["supported"]}, "spans[1].label is text, not a list"),
        ({"claim": 5}, "spans[1].claim is text, not a int"),
        ({"gold": ["a"]}, "spans[1].gold is text, not a list"),
        ({"score": 1}, "spans[1] has an unknown field 'score'; a span has start, end, label, "),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(LabelError, match=re.escape(said)):
        checked_spans([GOOD, {**GOOD, **change}])


@pytest.mark.parametrize(
    ("spans", "said"),
    [
        ("text", "spans is a list of spans, not a str"),
        (GOOD, "spans is a list of spans, not a dict"),
        (Span(0, 1, "supported"), "spans is a list of spans, not a Span"),
        (5, "spans is a list of spans, not a int"),
        ([(0, 1)], "spans[0] is a Span or a mapping, not a tuple"),
        ([{"start": 0, "end": 1}], "spans[0] has no label"),
        ([GOOD] * (MAX_SPANS + 1), "spans: more than 10000 spans"),
        (({**GOOD, "start": n, "end": n + 1} for n in range(100_000)), "more than 10000 spans"),
        ([{**GOOD, "claim": "x" * (1 << 20)}], "spans: longer than 1048576 bytes of JSON"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_no_list_of_spans(spans: Any, said: str) -> None:
    with pytest.raises(LabelError, match=re.escape(said)):
        Evaluation.checked("e", "correct", spans=spans)
