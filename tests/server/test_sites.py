"""Every site of a layer, captured inside the model's graph, against hooks on transformers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from activation_logging import Entry
from activation_logging.sites import SITES, Site
from bench import docs
from tests.fixtures.offline import Ask, Engine, ask
from tests.fixtures.tiny import make_architecture
from tests.server.reference import SiteReference, load

Table = dict[str, dict[str, float]]
TOLERANCE = 5e-5
"""Of what an MLP gives, which is small beside the states that it is computed from: 3.3e-5 of the
default model's; of the residual stream, 2e-5."""


def run(model: Path, store: Path, sites: str, **options: Any) -> list[Entry]:
    """Ask for a prompt, for the same one again beside others, and for one with other sites."""
    shared = "One should know who walked on the Moon, when that was, and what for. " * 5
    prompts = [f"{shared}Who walked there as number {n}?" for n in range(3)]
    part = Ask("In which year?", max_tokens=3, arguments={"activation_sites": "attn_out@1"})
    calls = [[Ask(prompts[0])], list(map(Ask, prompts)), [part]]
    return ask(store, sites, Engine(model, calls, options=options))


def check(entries: list[Entry], model: Path) -> dict[str, float]:
    """Compare every row of every site; the worst error by kind of site."""
    worst = SiteReference(load(model)).worst(entries)
    assert max(worst.values()) <= TOLERANCE, worst
    return worst


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[Table]:
    """The worst errors by model; with ``--docs NAME`` they become a table of the docs."""
    found: Table = {}
    yield found
    if name := request.config.getoption("--docs"):
        rows = [
            [model, *(f"{worst[site]:.1e}" if site in worst else "" for site in SITES)]
            for model, worst in found.items()
        ]
        docs.record_rows(f"{name}-sites", ["", *SITES], rows)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    return tmp_path


EVERYTHING = "resid@all,resid_prenorm,attn_out@all,heads@all,mlp_out@all"


class TestSites:
    def test_of_the_default_model(self, folder: Path, model_path: Path, table: Table) -> None:
        sites = "resid@0;15;last,resid_prenorm,attn_out@1;15,heads@15;last,mlp_out@15"
        entries = run(model_path, folder / "s.lmdb", sites, enforce_eager=True)
        *whole, part = entries
        worst = table["the default model"] = check(whole, model_path)
        assert worst.keys() == {"resid", "resid_prenorm", "attn_out", "heads", "mlp_out"}
        assert whole[0].site("heads", 15).shape == (len(whole[0].positions), 9, 64)
        assert np.array_equal(whole[0].site("resid", 15), whole[0].layer(15))
        assert part.sites == (Site("attn_out", 1),)
        check([part], model_path)

    @pytest.mark.parametrize("kind", ["StableLm", "Starcoder2", "Olmo2"])
    def test_of_other_architectures(self, folder: Path, kind: str, table: Table) -> None:
        """One whose layers give the stream whole, and two that vLLM has from transformers."""
        model = make_architecture(folder / "model", kind)
        entries = run(model, folder / "s.lmdb", EVERYTHING, enforce_eager=True)
        table[kind] = check(entries, model)

    def test_of_a_mixture_of_experts(self, folder: Path, table: Table) -> None:
        model = make_architecture(folder / "model", "Mixtral")
        sites = f"{EVERYTHING},router@all"
        entries = run(model, folder / "s.lmdb", sites, enforce_eager=True)
        table["Mixtral"] = check(entries, model)
        assert "router" in table["Mixtral"]
        assert entries[0].site("router", 2).shape[1:] == (5,)

    @pytest.mark.compiled
    def test_in_a_compiled_graph(self, folder: Path, table: Table) -> None:
        """One graph without a break, as the program says."""
        model = make_architecture(folder / "model", "Llama")
        entries = run(model, folder / "s.lmdb", EVERYTHING)
        table["Llama, compiled"] = check(entries, model)
