"""Which answers keep their rows: what the terms mean, and what is refused."""

from __future__ import annotations

import math

import pytest

from activation_logging.errors import SettingsError
from activation_logging.keep import PRUNING, Keep
from activation_logging.settings import Settings
from activation_logging.text import parse_size


class TestTerms:
    def test_any_is_enough(self) -> None:
        keep = Keep.parse("score:made_up>0.8, score:span>0.5,tag:split=test,finish:length,none")
        assert keep.by_scores({"made_up": 0.81, "span": 0.1})
        assert keep.by_scores({"span": 0.51})
        assert not keep.by_scores({"made_up": 0.8, "span": 0.5})
        assert not keep.by_scores({"made_up": math.nan, "other": 1.0})
        assert keep.on_arrival("id", {"split": "test", "x": "y"})
        assert not keep.on_arrival("id", {"split": "train"})
        assert not keep.on_arrival("id", None)
        assert keep.finish == {"length"}
        assert keep.probes == {"made_up", "span"}

    def test_all_and_none(self) -> None:
        assert Keep.parse("all").on_arrival("id", None)
        assert Keep.parse("none,all").on_arrival("id", None)
        assert not Keep.parse("none").on_arrival("id", {"a": "b"})
        assert Keep.parse("sample:1").on_arrival("id", None)
        assert not Keep.parse("sample:0").on_arrival("id", None)

    def test_a_sample_is_that_share_and_the_same_again(self) -> None:
        keep = Keep.parse("sample:0.01,sample:0.1")
        chosen = [keep.on_arrival(f"cmpl-{number}", None) for number in range(20_000)]
        assert 0.09 < sum(chosen) / len(chosen) < 0.11
        assert chosen == [keep.on_arrival(f"cmpl-{number}", None) for number in range(20_000)]

    def test_a_value_may_have_signs(self) -> None:
        keep = Keep.parse("tag:url=http://a=b,score:a>b>0.25")
        assert keep.on_arrival("id", {"url": "http://a=b"})
        assert keep.by_scores({"a>b": 0.3})

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("score:made_up>1.5", "'1.5' is not a number from 0 to 1"),
            ("score:made_up>-0.1", "'-0.1' is not a number from 0 to 1"),
            ("score:made_up>nan", "not a number from 0 to 1"),
            ("score:made_up>", "not a number from 0 to 1"),
            ("score:made_up", "is not score:NAME>0.8"),
            ("score:>0.5", "is not score:NAME>0.8"),
            ("score:made_up<0.5", "is not score:NAME>0.8"),
            ("sample:1.01", "'1.01' is not a number from 0 to 1"),
            ("sample:1%", "'1%' is not a number from 0 to 1"),
            ("tag:split", "is not tag:KEY=VALUE"),
            ("tag:=x", "is not tag:KEY=VALUE"),
            ("finish:tool_calls", "is not one of stop, length, abort, error, repetition"),
            ("all,", "'' is not one of the terms all, none, score:NAME>0.8"),
            ("all:", "is not one of the terms"),
            ("score", "is not one of the terms"),
            ("labelled", "is not one of the terms"),
            ("everything", "'everything' is not one of the terms"),
        ],
    )
    def test_refused(self, text: str, said: str) -> None:
        with pytest.raises(SettingsError) as caught:
            Keep.parse(text)
        assert said in str(caught.value)
        with pytest.raises(SettingsError, match=r"^ACTIVATION_KEEP: "):
            Settings.from_env({"ACTIVATION_KEEP": text})

    def test_pruning_knows_other_terms(self) -> None:
        assert Keep.parse("labelled,tag:a=b", PRUNING).labelled
        with pytest.raises(SettingsError, match="is not one of the terms labelled, score:NAME"):
            Keep.parse("sample:0.5", PRUNING)


class TestSizes:
    @pytest.mark.parametrize(
        ("text", "size"),
        [
            ("200GB", 200 * 10**9),
            ("1.5 gib", 3 << 29),
            ("16000KB", 16_000_000),
            ("16000000B", 16_000_000),
            ("2TiB", 2 << 40),
        ],
    )
    def test_units(self, text: str, size: int) -> None:
        assert parse_size(text) == size
        assert Settings.from_env({"ACTIVATION_MAX_SIZE": text}).ceiling == size

    @pytest.mark.parametrize("text", ["200", "GB", "-1GB", "1e3GB", "1iB", "٣GB", "1 G B", "1Gb/s"])
    def test_refused(self, text: str) -> None:
        with pytest.raises(SettingsError, match=r"^ACTIVATION_MAX_SIZE: .* with its unit"):
            Settings.from_env({"ACTIVATION_MAX_SIZE": text})

    def test_too_small(self) -> None:
        with pytest.raises(SettingsError, match="16MB or more"):
            Settings.from_env({"ACTIVATION_MAX_SIZE": "1MB"})

    def test_none_by_default(self) -> None:
        settings = Settings.from_env({})
        assert settings.ceiling is None
        assert settings.keeping.everything


@pytest.mark.parametrize(
    ("probes", "says"),
    [("", "this server has none: see ACTIVATION_PROBES"), ("y=files", "this server has y: see")],
)
def test_a_term_needs_its_probe(probes: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        Settings(keep="score:x>0.8", probes=probes)
