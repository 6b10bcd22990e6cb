"""What requests may ask of the probes of a server, and what they are told otherwise."""

from __future__ import annotations

import json
from typing import Any

import pytest

from activation_logging.errors import RequestOptionError
from activation_logging.score_options import MAX_STOPS, ScoreOptions, Stop
from activation_logging.settings import RequestOptions, Settings

AFTER = {"probe": "span", "above": 0.9, "tokens": 3}
BEFORE = {"probe": "made_up", "prompt_above": 0}


def parse(**options: Any) -> ScoreOptions:
    extra = {f"activation_{name}": value for name, value in options.items()}
    return RequestOptions.parse(extra, settings=Settings()).scores


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("span", ("span",)),
        (" span , made_up,span", ("span", "made_up")),
        (["span", "made_up"], ("span", "made_up")),
        ("all", ("a", "b")),
        (["span,all"], ("a", "b")),
    ],
)
def test_names(value: Any, names: tuple[str, ...]) -> None:
    assert parse(scores=value).scored(["a", "b"]) == names


def test_nothing_is_asked_by_default() -> None:
    assert not parse()
    assert parse().scored(["a"]) == ()
    assert parse(scores="all")
    assert parse(stop=AFTER)
    assert parse(stop=AFTER).scored(["span"]) == ()


@pytest.mark.parametrize(
    "value", [[AFTER, BEFORE], json.dumps([AFTER, BEFORE]), [json.dumps(AFTER), json.dumps(BEFORE)]]
)
def test_stops_come_as_objects_or_as_json(value: Any) -> None:
    assert parse(stop=value).stops == (Stop("span", 0.9, 3), Stop("made_up", None, 1, 0.0))


def test_one_stop_may_look_twice() -> None:
    both = {"probe": "a", "above": 1, "prompt_above": 0.5}
    assert parse(stop=both).stops == parse(stop=json.dumps(both)).stops == (Stop("a", 1.0, 1, 0.5),)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("", "leaves a name out"),
        ("a,,b", "leaves a name out"),
        ([], "leaves a name out"),
        (3, "3 are not names of probes"),
        (True, "are not names"),
        (["a", 3], "are not names"),
        ({"a": 1}, "are not names"),
        ("x" * 20_000, "are not names"),
        (",".join(f"p{n}" for n in range(1000)), "more than 256 names"),
    ],
)
def test_scores_that_are_none(value: Any, says: str) -> None:
    with pytest.raises(RequestOptionError, match=f"activation_scores: .*{says}"):
        parse(scores=value)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("span", "is not JSON"),
        ("[" * 5000, "is not JSON"),
        ("3", "3 is not an object"),
        ([], "an empty list"),
        ("[]", "an empty list"),
        ("{}", "names no probe"),
        ({"probe": 3, "above": 0.5}, "names no probe"),
        ({"probe": "a"}, "neither above nor prompt_above"),
        ({"probe": "a", "above": 1.01}, "above is 1.01; give a probability, 0 to 1"),
        ({"probe": "a", "above": -0.1}, "above is -0.1"),
        ({"probe": "a", "prompt_above": 7}, "prompt_above is 7"),
        ({"probe": "a", "above": float("nan")}, "above is nan"),
        ('{"probe": "a", "above": NaN}', "above is nan"),
        ({"probe": "a", "above": True}, "above is True"),
        ({"probe": "a", "above": "0.9"}, "above is '0.9'"),
        ({"probe": "a", "above": 0.9, "tokens": 0}, "tokens is 0; give a whole number"),
        ({"probe": "a", "above": 0.9, "tokens": -3}, "tokens is -3"),
        ({"probe": "a", "above": 0.9, "tokens": 1.5}, "tokens is 1.5"),
        ({"probe": "a", "above": 0.9, "tokens": True}, "tokens is True"),
        ({"probe": "a", "prompt_above": 0.9, "tokens": 2}, "give above too"),
        ({"probe": "a", "abov": 0.9}, "unknown field 'abov'; known are probe, above"),
        ([AFTER] * (MAX_STOPS + 1), "more than 64 stops"),
        (json.dumps([AFTER] * 1000), "longer than"),
    ],
)
def test_stops_that_are_none(value: Any, says: str) -> None:
    with pytest.raises(RequestOptionError, match=f"activation_stop: .*{says}"):
        parse(stop=value)


def test_what_is_not_logged_is_not_scored() -> None:
    with pytest.raises(RequestOptionError, match="activation_logging: what is not logged is not"):
        parse(scores="all", logging="off")


@pytest.mark.parametrize(
    ("options", "served", "says"),
    [
        ({"scores": "all"}, (), "activation_scores: this server has no probes; start it with"),
        ({"stop": AFTER}, (), "activation_stop: this server has no probes"),
        ({"scores": "a,x"}, ("b", "a"), "activation_scores: .* no probe 'x'; choose among a, b"),
        ({"stop": AFTER}, ("a",), "activation_stop: .* no probe 'span'; choose among a"),
        ({"scores": "all", "stop": AFTER}, ("a",), "activation_stop: .* no probe 'span'"),
    ],
)
def test_what_a_server_cannot_give(options: Any, served: tuple[str, ...], says: str) -> None:
    with pytest.raises(RequestOptionError, match=says):
        parse(**options).check(served)


def test_what_a_server_can_give() -> None:
    parse().check(())
    parse(scores="all", stop=[AFTER, BEFORE]).check(["made_up", "span"])
