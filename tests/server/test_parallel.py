"""Every site with several ranks, tensor-parallel ones and pipeline stages, against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from activation_logging import Entry, open_store
from activation_logging.sites import Site
from tests.fixtures.architectures import LAYERS, make
from tests.fixtures.offline import SEVERAL_WORKERS, execute, run
from tests.server.reference import EVERYTHING, SiteTable, SiteTables, check_sites

ONE_KV_HEAD = {"num_key_value_heads": 1}
FALCON = {
    "new_decoder_architecture": False,
    "multi_query": True,
    "parallel_attn": True,
    "bias": True,
}
"""Attention and MLP in parallel, one KV head, and biases that the layer adds."""


@pytest.fixture(scope="module")
def table(site_tables: SiteTables) -> SiteTable:
    return site_tables["parallel"]


def ask(model: Path, tmp_path: Path, sites: str = EVERYTHING, **options: Any) -> list[Entry]:
    usual = {"enforce_eager": True, "env": SEVERAL_WORKERS}
    return run(model, tmp_path / "s.lmdb", sites, **usual | options)


class TestTensorParallel:
    """One rank writes. Heads are joined; terms of a sum, which one reduction ends, are summed."""

    def test_of_the_default_model(self, tmp_path: Path, model_path: Path, table: SiteTable) -> None:
        sites = "resid@0;15;last,resid_prenorm,attn_out@1;15,heads@15;last,mlp_out@15"
        *whole, part = ask(model_path, tmp_path, sites, tensor_parallel_size=3)
        worst = check_sites(whole, model_path)
        table["the default model, TP=3"] = worst
        assert worst.keys() == {"resid", "resid_prenorm", "attn_out", "heads", "mlp_out"}
        assert whole[0].site("heads", 15).shape[1:] == (9, 64)
        assert part.sites == (Site("attn_out", 1),)

    @pytest.mark.parametrize(
        ("kind", "sizes"),
        [("Llama", ONE_KV_HEAD), ("GPTJ", {"rotary_dim": 32}), ("Cohere", {}), ("Falcon", FALCON)],
    )
    def test_of_other_architectures(
        self, tmp_path: Path, kind: str, sizes: dict[str, Any], table: SiteTable
    ) -> None:
        """With fewer KV heads than ranks, and with attention and MLP in parallel."""
        model = make(tmp_path / "model", kind, **sizes)
        entries = ask(model, tmp_path, tensor_parallel_size=2)
        table[f"{kind}, TP=2"] = check_sites(entries, model)

    @pytest.mark.parametrize("by_expert", [False, True])
    def test_of_a_mixture_of_experts(
        self, tmp_path: Path, by_expert: bool, table: SiteTable
    ) -> None:
        model = make(tmp_path / "model", "Mixtral", num_local_experts=6)
        options = {"tensor_parallel_size": 2, "enable_expert_parallel": by_expert}
        entries = ask(model, tmp_path, f"{EVERYTHING},router@all", **options)
        how = "experts divided" if by_expert else "TP=2"
        table[f"Mixtral, {how}"] = check_sites(entries, model)

    @pytest.mark.compiled
    def test_in_a_compiled_graph(self, tmp_path: Path, table: SiteTable) -> None:
        model = make(tmp_path / "model", "Cohere")
        entries = ask(model, tmp_path, tensor_parallel_size=2, enforce_eager=False)
        table["Cohere, TP=2, compiled"] = check_sites(entries, model)


# So small a cache that requests are preempted.
TIGHT = {"num_gpu_blocks_override": 20, "max_num_seqs": 6, "block_size": 32}


class TestPipeline:
    """Each stage keeps the rows of its layers, and the last one writes all of them."""

    @pytest.mark.parametrize("kind", ["Llama", "StableLm"])
    def test_every_site(self, tmp_path: Path, kind: str, table: SiteTable) -> None:
        """Also of layers that give the stream whole, which only the last stage can tell."""
        model = make(tmp_path / "model", kind)
        entries = ask(model, tmp_path, pipeline_parallel_size=2, crowd=True, **TIGHT)
        assert {entry.finish_reason for entry in entries} >= {"length", "abort"}
        table[f"{kind}, PP=2"] = check_sites(entries, model)
        roles = [record["role"] for record in open_store(tmp_path / "s.lmdb").writers().values()]
        assert sorted(roles) == ["front end", "worker of engine 0"]

    def test_sites_of_the_first_stage_alone(self, tmp_path: Path) -> None:
        model = make(tmp_path / "model", "Llama")
        options = {"pipeline_parallel_size": 2, "part": "heads@1"}
        *whole, part = ask(model, tmp_path, "resid@1,heads@1;2", **options)
        assert whole[0].sites == (Site("resid", 1), Site("heads", 1), Site("heads", 2))
        assert part.sites == (Site("heads", 1),)
        check_sites([*whole, part], model)

    @pytest.mark.compiled
    def test_with_tensor_parallelism(self, tmp_path: Path, table: SiteTable) -> None:
        model = make(tmp_path / "model", "Cohere")
        options = {"pipeline_parallel_size": 2, "tensor_parallel_size": 2}
        entries = ask(model, tmp_path, enforce_eager=False, crowd=True, **options, **TIGHT)
        table["Cohere, TP=2 and PP=2, compiled"] = check_sites(entries, model)

    def test_a_site_that_one_stage_lacks(self, tmp_path: Path) -> None:
        """The refusal of one stage ends all of them."""
        model = make(tmp_path / "model", "Llama")
        options = {"pipeline_parallel_size": 2, "enforce_eager": True, "env": SEVERAL_WORKERS}
        done = execute(model, tmp_path / "s.lmdb", f"resid@1,router@{LAYERS}", **options)
        assert done.returncode
        assert f"has no router@{LAYERS}" in done.stdout + done.stderr
