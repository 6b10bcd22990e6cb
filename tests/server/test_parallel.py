"""Every site with several ranks, tensor-parallel ones and pipeline stages, against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from activation_logging import Entry, open_store
from activation_logging.records import NEVER_RAN
from activation_logging.sites import Site
from tests.fixtures.architectures import LAYERS, make
from tests.fixtures.offline import SEVERAL_WORKERS, execute, told_of, usual
from tests.fixtures.offline import ask as ask_offline
from tests.server import live
from tests.server.reference import EVERYTHING, Reference, SiteTable, SiteTables, check_sites
from tests.server.told import check_told

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


def ask(
    model: Path, tmp_path: Path, sites: str = EVERYTHING, probes: str = "", **options: Any
) -> list[Entry]:
    engine = usual(model, **{"enforce_eager": True, **options})
    env = {**SEVERAL_WORKERS, "ACTIVATION_PROBES": probes}
    return ask_offline(tmp_path / "s.lmdb", sites, engine, env=env)


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

    def test_of_terms_and_few_kv_heads(self, tmp_path: Path, table: SiteTable) -> None:
        model = make(tmp_path / "model", "Falcon", **FALCON)
        entries = ask(model, tmp_path, tensor_parallel_size=2)
        table["Falcon, TP=2"] = check_sites(entries, model)

    def test_of_a_mixture_of_experts(self, tmp_path: Path, table: SiteTable) -> None:
        model = make(tmp_path / "model", "Mixtral")
        entries = ask(model, tmp_path, f"{EVERYTHING},router@all", tensor_parallel_size=2)
        table["Mixtral, TP=2"] = check_sites(entries, model)


# So small a cache that requests are preempted.
TIGHT = {"num_gpu_blocks_override": 18, "max_num_seqs": 6, "block_size": 32}


class TestPipeline:
    """Each stage keeps the rows of its layers, and the last one writes all of them."""

    def test_every_site(self, tmp_path: Path, table: SiteTable) -> None:
        """Layers that give the stream whole, which only the last stage can tell."""
        model = make(tmp_path / "model", "StableLm")
        table["StableLM, PP=2"] = self.crowd(model, tmp_path)
        roles = [record["role"] for record in open_store(tmp_path / "s.lmdb").writers().values()]
        assert sorted(roles) == ["front end", "worker of engine 0"]

    @pytest.mark.compiled
    def test_with_tensor_parallelism(self, tmp_path: Path, table: SiteTable) -> None:
        model = make(tmp_path / "model", "Cohere")
        options = {"tensor_parallel_size": 2, "enforce_eager": False}
        table["Cohere, TP=2 and PP=2, compiled"] = self.crowd(model, tmp_path, **options)

    @staticmethod
    def crowd(model: Path, tmp_path: Path, **options: Any) -> dict[str, float]:
        """Requests are preempted and aborted; those that never ran have no rows.

        Probes read a head and a layer of the first stage, and the last layer.
        """
        options |= {"pipeline_parallel_size": 2, "crowd": True, "scores": True, **TIGHT}
        shape = live.Shape(LAYERS, 192, "heads@1.2", 1)
        probes = live.make_probes(str(model), shape, head=192 // 6)
        listed = live.save(probes, tmp_path / "probes")
        entries = ask(model, tmp_path, probes=listed, **options)
        ran = [entry for entry in entries if entry.status_reason != NEVER_RAN]
        assert {entry.finish_reason for entry in ran} == {"length", "abort"}
        reference = Reference(model)
        scores = live.LiveScores(lambda _, ids: reference.states(ids))
        told = told_of(tmp_path / "s.lmdb")
        assert len(told) == 5
        for entry in ran:
            scores.check(entry, probes)
            if entry.request_id in told:
                check_told(told.pop(entry.request_id), entry)
        assert not told
        assert scores.counts["scores"] > 10 * len(ran)
        return check_sites(ran, model)

    def test_sites_of_the_first_stage_alone(self, tmp_path: Path) -> None:
        model = make(tmp_path / "model", "Llama")
        options = {"pipeline_parallel_size": 2, "part": "heads@1"}
        *whole, part = ask(model, tmp_path, "resid@1,heads@1;2", **options)
        assert whole[0].sites == (Site("resid", 1), Site("heads", 1), Site("heads", 2))
        assert part.sites == (Site("heads", 1),)
        check_sites([*whole, part], model)

    def test_a_site_that_one_stage_lacks(self, tmp_path: Path) -> None:
        """The refusal of one stage ends all of them."""
        model = make(tmp_path / "model", "Llama")
        engine = usual(model, pipeline_parallel_size=2, enforce_eager=True)
        sites = f"resid@1,router@{LAYERS}"
        done = execute(tmp_path / "s.lmdb", sites, engine, env=SEVERAL_WORKERS)
        assert done.returncode
        assert f"has no router@{LAYERS}" in done.stdout + done.stderr
