"""The Pythons of `make setup`: a lock for each, the same packages in all, and no others."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load_bootstrap():
    spec = importlib.util.spec_from_file_location("bootstrap", ROOT / "packaging" / "bootstrap.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


bootstrap = load_bootstrap()


@pytest.mark.parametrize("python", bootstrap.PYTHONS)
def test_has_the_versions_that_the_first_has(python):
    # So that the figures in the docs hold for each of them.
    first, here = (
        dict(pin.split("==") for pin in bootstrap.locked_pins(one))
        for one in (bootstrap.PYTHONS[0], python)
    )
    assert len(here) > 200
    assert {name: first.get(name, pin) for name, pin in here.items()} == here
    assert f"for Python {python} on Linux" in bootstrap.lock_file(python).read_text()
    bootstrap.refuse_other_pythons(python)


@pytest.mark.parametrize("python", ["3.8", "3.9", "3.10", "3.14", "3.1"])
def test_another_is_told_what_to_do(python):
    with pytest.raises(
        bootstrap.SetupError, match=rf"This is Python {python}\b.*make setup PYTHON="
    ):
        bootstrap.refuse_other_pythons(python)


def test_is_named_where_users_look():
    *some, last = bootstrap.PYTHONS
    named = f"Python {', '.join(some)} or {last}"
    for name in ("README.md", "CONTRIBUTING.md", "Makefile"):
        assert named in " ".join((ROOT / name).read_text().split()), name
    described = (ROOT / "pyproject.toml").read_text()
    for python in ("3.10", *bootstrap.PYTHONS):
        assert f'"Programming Language :: Python :: {python}"' in described
