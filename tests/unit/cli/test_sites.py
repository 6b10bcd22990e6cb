"""What the command line shows of sites besides the residual stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

from activation_logging.sites import Site
from tests.fixtures.planted import build
from tests.fixtures.readers import command, read_quickly, strict

if TYPE_CHECKING:
    from pathlib import Path


def test_show_stats_and_ls(tmp_path: Path) -> None:
    path = build(tmp_path / "s", n=2, sites={Site("heads", 3): (4, 3)}, dtype="float16")
    read_quickly(path)
    shown = strict(command("show", path, "req-0-0", "--json"))
    assert [found["layer"] for found in shown["layers"]] == [0, 2, 4, "heads@3"]
    heads = shown["layers"][-1]
    assert heads["shape"][1:] == [4, 3]
    assert heads["dtype"] == "float16"
    assert heads["mean_norm"] > 0
    assert f"{heads['shape'][0]} x 4 x 3" in command("show", path, "req-0-0")
    rows = sum(entry["rows"] for entry in strict(command("ls", path, "--json")))
    assert strict(command("ls", path, "--json"))[0]["sites"][-1] == "heads@3"
    counted = strict(command("stats", path, "--json"))
    assert counted["site_bytes"] == {"heads@3": rows * 12 * 2}
    assert "heads@3" in command("stats", path)
