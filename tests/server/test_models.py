"""A dozen architectures of ``python -m bench.models``: every row of every site that they have."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.models import environment, is_verified

V1 = (
    *("mistral_window", "gemma2", "gemma3n", "gpt2", "falcon", "stablelm", "starcoder2", "olmo2"),
    *("cohere", "mixtral", "qwen3_moe", "minicpm3", "granitemoehybrid", "nemotron_h"),
)
NAMES = {
    "attn_out": ("attn", "attention", "mixer"),
    "heads": ("attn", "attention", "mixer"),
    "mlp_out": ("mlp", "moe", "feed_forward", "mixer", "dropout"),
    "router": ("gate", "router"),
}
"""What the modules of transformers are called that the rows are found in."""
V2 = ("mistral_window", "olmo2", "mixtral")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def run(folder: Path, runner: str, names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    command = [sys.executable, "-m", "bench.models", *names]
    subprocess.run(
        [*command, "--runner", runner, "--folder", str(folder)],
        env=environment(runner),
        check=True,
        timeout=600,
    )
    return {name: json.loads((folder / runner / f"{name}.json").read_text()) for name in names}


@pytest.fixture(scope="module")
def v1(folder: Path) -> dict[str, dict[str, Any]]:
    return run(folder, "v1", V1)


@pytest.fixture(scope="module")
def v2(folder: Path) -> dict[str, dict[str, Any]]:
    return run(folder, "v2", V2)


@pytest.mark.parametrize("name", V1)
def test_every_site(v1: dict[str, dict[str, Any]], name: str) -> None:
    check(v1[name])


@pytest.mark.parametrize("name", V2)
def test_every_site_with_the_second_runner(v2: dict[str, dict[str, Any]], name: str) -> None:
    check(v2[name])


def check(found: dict[str, Any]) -> None:
    assert is_verified(found), found
    assert found["rows"] > 500
    assert found["own"] == found["tokens"] == "32/32"
    assert found["sites"]["resid"]["layers"] == 5
    for kind, words in NAMES.items():
        if kind in found["sites"]:
            assert any(word in found["sites"][kind]["module"] for word in words), kind
