"""What settings and requests may say, and that nothing they say grows without end."""

from __future__ import annotations

import json
import math
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activation_logging.errors import RequestOptionError, SettingsError
from activation_logging.settings import (
    MAX_TOKEN,
    RequestOptions,
    Settings,
    check_token,
    parse_layers,
    refuse_misplaced,
    resolve_layers,
)

NAMES = ("activation_logging", "activation_tokens", "activation_layers", "activation_tags")
LONG_MB = 1_000_000
ENDLESS = [
    ",".join(["0-10000"] * 1000),
    ",".join(["0-1000"] * 5000),
    "0-" + "9" * 40,
    "0-" + "9" * 5000,
    "9" * 5000,
    "9" * 4000,
    "1," * 4000 + "1",
    "," * 10_000_000,
]
"""Texts of layers that are refused before they become anything large."""
NONSENSE = ["", ",", "x", "3-1", "-3", "1.5", "last,,", "1e3", "³", "٣", "0x1", "15 - 20", "1--2"]


def layers(value: Any, allowed: str = "all", num_layers: int | None = None) -> Any:
    options = {"activation_layers": value}
    return RequestOptions.parse(options, allowed_layers=allowed, num_layers=num_layers).layers


class TestLayers:
    @pytest.mark.parametrize(
        ("text", "parsed"),
        [
            ("last", ("last",)),
            (" ALL ", ("all",)),
            ("8, 15-17,last,16", (8, 15, 16, 17, "last")),
            ("0-1000", tuple(range(1001))),
            (",".join(map(str, range(200))), tuple(range(200))),
        ],
    )
    def test_parse(self, text: str, parsed: Any) -> None:
        assert parse_layers(text) == parsed

    @pytest.mark.parametrize("text", [*ENDLESS, *NONSENSE], ids=lambda text: text[:9])
    def test_refused_at_once_wherever_it_stands(self, text: str) -> None:
        tracemalloc.start()
        try:
            with pytest.raises(SettingsError, match=r"^ACTIVATION_LAYERS: ") as of_server:
                Settings(layers=text)
            with pytest.raises(SettingsError):
                resolve_layers(text, 30)
            with pytest.raises(RequestOptionError) as of_request:
                layers(text)
            with pytest.raises(RequestOptionError):
                layers(text.split(","), num_layers=30)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        # The split above is the test's own.
        assert peak < LONG_MB + 10 * 8 * len(text)
        assert len(str(of_server.value)) < 300
        assert len(str(of_request.value)) < 300

    def test_the_longest_that_is_taken_costs_little(self) -> None:
        tracemalloc.start()
        try:
            assert len(parse_layers(",".join(["0-1000"] * 256))) == 1001
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < LONG_MB

    def test_resolve(self) -> None:
        assert resolve_layers("last,3,0-1", 30) == (0, 1, 3, 30)
        assert resolve_layers("all", 2) == (0, 1, 2)
        with pytest.raises(SettingsError, match=r"^layer 31 does not exist: .* 0 to 30"):
            resolve_layers("29-40", 30)

    def test_a_request_takes_a_part_of_the_servers(self) -> None:
        assert layers("1,last", "1,15,last") == (1, "last")
        assert layers([1, "last"], "1,15,last") == (1, "last")
        assert layers(15, "1,15,last", 30) == (15,)
        assert layers("all", "1,15,last", 30) is None
        assert layers("0-30", "all", 30) == tuple(range(31))
        assert RequestOptions.parse(None, allowed_layers="last").layers is None

    @pytest.mark.parametrize("value", ["999", "31", 31, "0-31", ["3", "4-99"], "9" * 30, "all,31"])
    def test_beyond_the_model_it_is_told_which_there_are(self, value: Any) -> None:
        with pytest.raises(RequestOptionError, match=r"does not exist: this model has .* 0 to 30"):
            layers(value, "all", 30)

    @pytest.mark.parametrize("value", ["2", "1-2", "all,2", "0-10"])
    def test_what_the_server_does_not_log(self, value: str) -> None:
        with pytest.raises(RequestOptionError, match="not logged by this server"):
            layers(value, "1,15,last", 30)

    @pytest.mark.parametrize(
        "value",
        [True, [True], 1.5, math.nan, -1, 10**5000, {}, {"a": 1}, [[1]], [None], [], [15] * 257],
        ids=lambda value: str(type(value)),
    )
    def test_wrong_types(self, value: Any) -> None:
        with pytest.raises(RequestOptionError) as error:
            layers(value)
        assert error.value.parameter == "activation_layers"
        assert len(str(error.value)) < 300


class TestOptions:
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
    values = st.recursive(
        scalars,
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    )

    @given(name=st.sampled_from(NAMES) | st.text().map("activation_".__add__), value=values)
    def test_any_value_is_taken_or_refused_by_name(self, name: str, value: Any) -> None:
        try:
            RequestOptions.parse({name: value}, allowed_layers="all", num_layers=30)
        except RequestOptionError as error:
            refused = error
        else:
            return
        assert len(str(refused)) < 400
        assert str(refused).startswith(refused.parameter)
        assert refused.parameter.isascii()

    @pytest.mark.parametrize("name", NAMES)
    def test_deep_and_long_values(self, name: str) -> None:
        deep: Any = "x"
        for _ in range(100_000):
            deep = [deep]
        for value in (deep, {"a": deep}, "x" * 10_000_000, "[" * 16_000, 10**5000, [10**5000]):
            with pytest.raises(RequestOptionError) as error:
                RequestOptions.parse({name: value}, allowed_layers="all")
            assert error.value.parameter == name
            assert len(str(error.value)) < 300
        while isinstance(deep, list):
            deep = deep.pop()

    @pytest.mark.parametrize("name", ["Activation_Logging", "activation-logging", " activation_x"])
    def test_other_spellings_are_not_ignored(self, name: str) -> None:
        with pytest.raises(RequestOptionError, match="unknown option"):
            RequestOptions.parse({name: "off"}, allowed_layers="last")
        with pytest.raises(RequestOptionError, match="put it into vllm_xargs"):
            refuse_misplaced({"model": "m", name: "off"})

    def test_other_peoples_names_are_left_alone(self) -> None:
        options = {"something": [], "reactivation_x": 1, "activations": 2, 7: "offline"}
        assert RequestOptions.parse(options, allowed_layers="last") == RequestOptions()
        refuse_misplaced({"activations": 1, "my_activation_x": 2})

    def test_a_long_name_is_shortened(self) -> None:
        with pytest.raises(RequestOptionError) as error:
            RequestOptions.parse({"activation_" + "\ud800" * 10_000: 1}, allowed_layers="last")
        assert len(str(error.value)) < 400
        json.dumps(str(error.value)).encode("ascii")


class TestToken:
    @pytest.mark.parametrize("value", ["x", "hf_" + "a" * 37, "!~", "y" * MAX_TOKEN])
    def test_taken(self, value: str) -> None:
        assert check_token(value) == value
        assert check_token(None) is None

    @pytest.mark.parametrize(
        "value",
        [
            "", " ", "hf_secret\n", "hf_secret\r\nX: y", "hf secret", "hf_secret\0", "hf_sécret",
            "hf_secret\ud800", "y" * (MAX_TOKEN + 1), 7, True, ["hf_secret"], {"hf_secret": 1},
        ],
    )  # fmt: skip
    def test_refused_without_being_repeated(self, value: Any) -> None:
        with pytest.raises(RequestOptionError) as error:
            check_token(value)
        assert error.value.parameter == "auth_token"
        assert "secret" not in str(error.value)
        assert error.value.__context__ is None
