"""Lists of probes as a server is started with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from activation_logging.errors import SettingsError
from activation_logging.probe_list import ProbeFile, absolute, parse_probe, parse_probes
from activation_logging.settings import Settings


def test_a_list() -> None:
    found = parse_probes("made_up=probes/made_up, span = /p/s=1.json:shadow")
    assert found == (
        ProbeFile("made_up", "probes/made_up"),
        ProbeFile("span", "/p/s=1.json", shadow=True),
    )
    assert parse_probes("  ") == ()
    assert [parse_probe(str(one)) for one in found] == list(found)


def test_another_folder_reads_the_same_files() -> None:
    (found,) = parse_probes(absolute(parse_probes("a=probes/a:shadow")))
    assert found == ProbeFile("a", str(Path("probes/a").absolute()), shadow=True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("probes/a", "is not a probe: write NAME=PATH"),
        ("a=", "is not a probe"),
        ("a=:shadow", "is not a probe"),
        ("a=x,", "is not a probe"),
        ("=x", "is not the name of a probe"),
        ("all=x", "is not 'all'"),
        ("ü=x", "is not the name"),
        ("a/b=x", "is not the name"),
        ("x" * 65 + "=x", "has 1 to 64 letters"),
        ("a=x,a=y", "two probes are called a"),
    ],
)
def test_what_is_no_list(text: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        parse_probes(text)
    with pytest.raises(SettingsError, match=f"ACTIVATION_PROBES: .*{says}"):
        Settings.from_env({"ACTIVATION_PROBES": text})


def test_settings() -> None:
    assert Settings.from_env({}).probes == ""
    assert Settings.from_env({"ACTIVATION_PROBES": "a=x"}).probes == "a=x"
