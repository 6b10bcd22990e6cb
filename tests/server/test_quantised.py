"""Quantised models: rows are those of the model that the rounded weights stand for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from activation_logging import open_store
from activation_logging.sites import SITES, Site
from activation_logging.verify import verify
from activation_logging.verify.lm_head import load_lm_head
from bench import docs
from tests.fixtures.architectures import make
from tests.fixtures.offline import Ask, Engine, ask
from tests.fixtures.quantised import round_as, write_quantised
from tests.server.reference import SiteReference, load

SITES_LOGGED = "resid@all,resid_prenorm,attn_out@all,heads@all,mlp_out@all"
KINDS = tuple(site for site in SITES if site != "router")


class Case(NamedTuple):
    """A format, the type that vLLM computes in, and the largest error of a row."""

    format: str
    dtype: str
    tolerance: float


CASES = (
    Case("FP8", "float32", 0.1),
    Case("W8A8", "float32", 0.1),
    Case("W4A16", "float16", 0.01),
    Case("GPTQ", "float16", 0.01),
    Case("AWQ", "float16", 0.01),
)
"""Those that vLLM's CPU kernels take. Float16 keeps 11 bits, which is what limits the last three.

FP8 and W8A8 round what a layer is given, too. Where a number lies halfway between two, its last bit
decides, and a step follows, in every later row and layer. Rows before the first step are exact.
"""
STEPS = {"FP8", "W8A8"}
FIRST = tuple(Site(kind, 1) for kind in ("resid", "attn_out", "heads", "mlp_out"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights before they are rounded."""
    return make(tmp_path_factory.mktemp("plain"), "Llama")


@pytest.fixture(scope="module")
def store(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The answers of all rounded models, from one program."""
    folder = tmp_path_factory.mktemp("rounded")
    calls = [[Ask(f"Who walked on the Moon, as number {n}?") for n in range(3)]]
    engines = [
        Engine(
            write_quantised(plain, folder / case.format, case.format),
            calls,
            options={"dtype": case.dtype, "enforce_eager": True},
        )
        for case in CASES
    ]
    ask(folder / "s.lmdb", SITES_LOGGED, *engines)
    return folder / "s.lmdb"


@pytest.fixture(scope="module")
def rows(request: pytest.FixtureRequest) -> Iterator[list[list[str]]]:
    """The worst errors by format; with ``--docs NAME`` they become a table of the docs."""
    found: list[list[str]] = []
    yield found
    if name := request.config.getoption("--docs"):
        header = ["", "computed in", "layer 1, median", *KINDS, "not rounded, layer 1, median"]
        docs.record_rows(f"{name}-quantised", header, found)


class TestQuantised:
    @pytest.mark.parametrize("case", CASES, ids=lambda case: case.format)
    def test_rows(self, plain: Path, store: Path, case: Case, rows: list[list[str]]) -> None:
        entries = [e for e in open_store(store).entries() if Path(e.model).name == case.format]
        assert len(entries) == 3
        reference = SiteReference(round_as(load(plain), case.format))
        errors, worst = reference.errors(entries), reference.worst(entries)
        assert max(worst.values()) <= case.tolerance, worst
        usual = max(float(np.median(errors[site])) for site in FIRST)
        assert usual < (1e-5 if case.format in STEPS else 3e-3)
        # The model before it was rounded is far off: its rows would be noticed.
        before = SiteReference(load(plain)).errors(entries)
        off = min(float(np.median(before[site])) for site in FIRST)
        assert off > 5 * usual
        figures = [usual, *(worst[kind] for kind in KINDS), off]
        rows.append([case.format, case.dtype, *(f"{figure:.1e}" for figure in figures)])

    def test_tokens_follow_from_their_rows(self, plain: Path, store: Path) -> None:
        """The output head is not rounded: it gives the tokens of every format."""
        report = verify(open_store(store), load_lm_head(plain))
        assert report.ok, report.problems
        assert len(report.alignments) == 3 * len(CASES)
