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
    refuse_misplaced,
    resolve_sites,
)
from activation_logging.sites import Site, parse_layers, parse_sites

NAMES = (
    *("activation_logging", "activation_tokens", "activation_layers", "activation_sites"),
    "activation_tags",
)
ALL = Settings(layers="all")
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
    """The layers that a request with these ``activation_layers`` logs of a model of 30."""
    settings = Settings(layers=allowed)
    options = RequestOptions.parse(
        {"activation_layers": value}, settings=settings, num_layers=num_layers
    )
    return tuple(site.layer for site in options.chosen(resolve_sites(settings, 30), 30))


def sites(value: Any, server: Settings, num_layers: int | None = 30) -> str:
    options = RequestOptions.parse(
        {"activation_sites": value}, settings=server, num_layers=num_layers
    )
    return " ".join(map(str, options.chosen(resolve_sites(server, 30), 30)))


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
        assert tuple(part.layer for part in parse_layers(text)) == parsed

    @pytest.mark.parametrize("text", [*ENDLESS, *NONSENSE], ids=lambda text: text[:9])
    def test_refused_at_once_wherever_it_stands(self, text: str) -> None:
        tracemalloc.start()
        try:
            with pytest.raises(SettingsError, match=r"^ACTIVATION_LAYERS: ") as of_server:
                Settings(layers=text)
            with pytest.raises(SettingsError):
                parse_layers(text, 30)
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
        def resolved(text: str, num_layers: int) -> list[int]:
            return [site.layer for site in resolve_sites(Settings(layers=text), num_layers)]

        assert resolved("last,3,0-1", 30) == [0, 1, 3, 30]
        assert resolved("all", 2) == [0, 1, 2]
        with pytest.raises(SettingsError, match=r"^layer 31 does not exist: .* 0 to 30"):
            resolved("29-40", 30)

    def test_a_request_takes_a_part_of_the_servers(self) -> None:
        assert layers("1,last", "1,15,last") == (1, 30)
        assert layers([1, "last"], "1,15,last") == (1, 30)
        assert layers(15, "1,15,last", 30) == (15,)
        assert layers("30", "1,15,last", 30) == (30,)
        assert layers("all", "1,15,last", 30) == (1, 15, 30)
        assert layers("0-30", "all", 30) == tuple(range(31))
        assert layers(None, "15,last") == (15, 30)

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


class TestSites:
    MIXED = Settings(sites="resid@8;last, HEADS@12-13;last,resid_prenorm,router@all")

    def test_resolve(self) -> None:
        found = resolve_sites(self.MIXED, 14)
        assert [str(site) for site in found[:6]] == [
            *("resid@8", "resid@14", "resid_prenorm", "heads@12", "heads@13", "heads@14")
        ]
        assert found[6:] == tuple(Site("router", layer) for layer in range(1, 15))
        assert [site.code for site in found] == sorted(site.code for site in found)
        assert all(Site.from_code(site.code) == site for site in found)
        assert found[2] == Site("resid_prenorm", 14)

    def test_layers_are_short_for_resid(self) -> None:
        short, long = Settings(layers="8,15-20,last"), Settings(sites="resid@8;15-20;last")
        assert resolve_sites(short, 30) == resolve_sites(long, 30)

    @pytest.mark.parametrize(
        ("text", "named"),
        [
            ("resid", "'resid' names no layer; write resid@LAYERS"),
            ("heads@0", "heads@0 does not exist"),
            ("attn_out@31", "attn_out@31 does not exist: this model has layers 1 to 30"),
            ("attn_out@29-31", "attn_out@31 does not exist"),
            ("resid@31", "layer 31 does not exist: this model has layers 0 to 30"),
            ("q_proj@3", "'q_proj@3' is not a site.*resid, resid_prenorm, attn_out"),
            ("8,last", "'8' is not a site"),
            ("heads@3,mlp_out@1,heads@3", "heads@3 is given twice"),
            ("heads@3-5;3-5", "heads@3-5 is given twice"),
            ("heads@all,heads@all", "heads@all is given twice"),
            ("heads@3,", "'' is not a site"),
            ("heads@3;", "'' is not 'last'"),
            ("heads@3-1", "'3-1' is not 'last'"),
            ("resid_prenorm@30", "write it without '@'"),
            ("heads@" + ";".join(["1-1000"] * 300), "too long"),
            ("heads@1-" + "9" * 40, "heads@31 does not exist"),
        ],
        ids=lambda text: text[:20],
    )
    def test_refused_by_name(self, text: str, named: str) -> None:
        with pytest.raises(SettingsError, match=named) as error:
            parse_sites(text, 30)
        assert len(str(error.value)) < 300
        with pytest.raises(RequestOptionError, match=r"^activation_sites: "):
            sites(text, Settings(sites="resid@all,heads@all,attn_out@all,mlp_out@all"))

    def test_the_depth_need_not_be_known(self) -> None:
        assert [str(part) for part in parse_sites("resid@1000,heads@last,resid_prenorm")] == [
            *("layer 1000", "heads@last", "resid_prenorm")
        ]
        for text in ("heads@0", "heads@1001", "resid@0-1001"):
            with pytest.raises(SettingsError, match="does not exist"):
                Settings(sites=text)

    def test_from_the_environment(self) -> None:
        assert Settings.from_env({"ACTIVATION_SITES": "heads@3"}).sites == "heads@3"
        with pytest.raises(SettingsError, match=r"^ACTIVATION_SITES: 'x' is not a site"):
            Settings.from_env({"ACTIVATION_SITES": "x"})
        both = {"ACTIVATION_SITES": "heads@3", "ACTIVATION_LAYERS": "last"}
        with pytest.raises(SettingsError, match="are both set; give one"):
            Settings.from_env(both)

    def test_a_request_takes_a_part_of_the_servers(self) -> None:
        assert sites("heads@13,resid@last", self.MIXED) == "resid@30 heads@13"
        assert sites(["heads@13", "resid@last"], self.MIXED, None) == "resid@30 heads@13"
        assert sites("heads@all", self.MIXED) == "heads@12 heads@13 heads@30"
        assert sites("router@7", self.MIXED, None) == "router@7"
        assert sites("resid_prenorm", self.MIXED) == "resid_prenorm"
        assert sites("resid@last", Settings()) == "resid@30"
        options = RequestOptions.parse(
            {"activation_layers": "last"}, settings=self.MIXED, num_layers=30
        )
        assert options.chosen(resolve_sites(self.MIXED, 30), 30) == (Site("resid", 30),)

    @pytest.mark.parametrize("num_layers", [None, 30])
    @pytest.mark.parametrize("value", ["heads@14", "attn_out@all", "resid@2", "heads@12-14"])
    def test_what_the_server_does_not_log(self, value: str, num_layers: int | None) -> None:
        with pytest.raises(RequestOptionError, match=r"not logged by this server.*HEADS@12-13"):
            sites(value, self.MIXED, num_layers)

    def test_not_both(self) -> None:
        both = {"activation_layers": "last", "activation_sites": "resid@last"}
        with pytest.raises(RequestOptionError, match="give this or activation_layers"):
            RequestOptions.parse(both, settings=ALL)


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
            RequestOptions.parse({name: value}, settings=ALL, num_layers=30)
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
                RequestOptions.parse({name: value}, settings=ALL)
            assert error.value.parameter == name
            assert len(str(error.value)) < 300
        while isinstance(deep, list):
            deep = deep.pop()

    @pytest.mark.parametrize("name", ["Activation_Logging", "activation-logging", " activation_x"])
    def test_other_spellings_are_not_ignored(self, name: str) -> None:
        with pytest.raises(RequestOptionError, match="unknown option"):
            RequestOptions.parse({name: "off"}, settings=Settings())
        with pytest.raises(RequestOptionError, match="put it into vllm_xargs"):
            refuse_misplaced({"model": "m", name: "off"})

    def test_other_peoples_names_are_left_alone(self) -> None:
        options = {"something": [], "reactivation_x": 1, "activations": 2, 7: "offline"}
        assert RequestOptions.parse(options, settings=Settings()) == RequestOptions()
        refuse_misplaced({"activations": 1, "my_activation_x": 2})

    def test_a_long_name_is_shortened(self) -> None:
        with pytest.raises(RequestOptionError) as error:
            RequestOptions.parse({"activation_" + "\ud800" * 10_000: 1}, settings=Settings())
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
