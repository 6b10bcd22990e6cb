"""Every site of a layer, captured inside the model's graph, against hooks on transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from activation_logging import Entry, open_store
from activation_logging.sites import SITES, Site
from bench import docs
from tests.fixtures import tokenizers

Table = dict[str, dict[str, float]]
LAYERS = 4
TOLERANCE = 5e-5
"""Of what an MLP gives, which is small beside the states that it is computed from: 3.3e-5 of the
default model's; of the residual stream, 2e-5."""

PROGRAM = textwrap.dedent(
    """
    import json, sys
    from vllm import LLM, SamplingParams

    def main():
        options = json.loads(sys.argv[1])
        llm = LLM(dtype="float32", max_model_len=512, max_num_seqs=4, seed=0, **options)
        shared = "One should know who walked on the Moon, when that was, and what for. " * 5
        prompts = [f"{shared}Who walked there as number {n}?" for n in range(3)]
        usual = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
        llm.generate(prompts[:1], usual, use_tqdm=False)
        llm.generate(prompts, usual, use_tqdm=False)
        part = SamplingParams(max_tokens=3, extra_args=json.loads(sys.argv[2]), ignore_eos=True)
        llm.generate(["In which year?"], part, use_tqdm=False)
        from torch._dynamo.utils import counters
        print("BREAKS", json.dumps(dict(counters["graph_break"])))

    if __name__ == "__main__":
        main()
    """
)


def make(folder: Path, kind: str) -> Path:
    """Write a model of an architecture, with random weights and four layers."""
    import transformers

    sizes: dict[str, Any] = {
        "vocab_size": tokenizers.save("byte-level", folder),
        "hidden_size": 192,
        "intermediate_size": 160,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.1,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    if kind == "Mixtral":
        sizes |= {"num_local_experts": 5, "num_experts_per_tok": 2}
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**sizes)
    getattr(transformers, f"{kind}ForCausalLM")(config).save_pretrained(folder)
    return folder


def run(
    model: Path, store: Path, sites: str, *, part: str = "attn_out@1", **options: Any
) -> list[Entry]:
    """Ask offline: a prompt, the same one again beside others, and one with other sites."""
    program = store.with_suffix(".py")
    program.write_text(PROGRAM)
    given = {"model": str(model), "max_num_batched_tokens": 64, **options}
    env = {
        **os.environ,
        "ACTIVATION_LMDB_PATH": str(store),
        "ACTIVATION_SITES": sites,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
    done = subprocess.run(
        [sys.executable, program, json.dumps(given), json.dumps({"activation_sites": part})],
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "BREAKS {}" in done.stdout
    return list(open_store(store).entries())


class Reference:
    """What transformers computes at every site, a whole sequence at a time."""

    def __init__(self, model: Path) -> None:
        from transformers import AutoModelForCausalLM

        self._model: Any = AutoModelForCausalLM.from_pretrained(
            model, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self._found: dict[Site, torch.Tensor] = {}
        inner = self._model.model
        for layer, block in enumerate(inner.layers, 1):
            projection = block.self_attn.o_proj
            self._keep(projection, Site("attn_out", layer), lambda args, output: output)
            self._keep(projection, Site("heads", layer), lambda args, output: args[0])
            self._keep(block.mlp, Site("mlp_out", layer), lambda args, output: output)
            if hasattr(block.mlp, "gate"):
                weight = block.mlp.gate.weight
                self._keep(
                    block.mlp.gate,
                    Site("router", layer),
                    lambda args, output, weight=weight: args[0] @ weight.T,
                )
        depth = len(inner.layers)
        self._keep(inner.norm, Site("resid_prenorm", depth), lambda args, output: args[0])

    def _keep(self, module: Any, site: Site, pick: Any) -> None:
        def hook(_: Any, args: Any, output: Any) -> None:
            value = pick(args, output)
            self._found[site] = value[0] if isinstance(value, tuple) else value

        module.register_forward_hook(hook)

    def __call__(self, ids: Sequence[int]) -> dict[Site, np.ndarray]:
        with torch.inference_mode():
            states = self._model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        found = {**self._found, **{Site("resid", n): state for n, state in enumerate(states)}}
        return {site: value.reshape(len(ids), -1).numpy() for site, value in found.items()}


def check(entries: list[Entry], model: Path) -> dict[str, float]:
    """Compare every row of every site; the worst error by kind of site."""
    reference = Reference(model)
    worst: dict[str, float] = {}
    for entry in entries:
        assert entry.status == "complete", entry.status_reason
        ids = [*entry.prompt_token_ids, *entry.response_token_ids]
        assert list(entry.positions) == list(range(len(ids) - 1))
        expected = reference(ids)
        for site in entry.sites:
            rows = entry.site(
                site.name, None if site.name == "resid_prenorm" else site.layer
            ).reshape(len(entry.positions), -1)
            known = expected[site][: len(rows)]
            error = np.linalg.norm(rows - known, axis=1) / np.linalg.norm(known, axis=1)
            worst[site.name] = max(worst.get(site.name, 0.0), float(error.max()))
    assert worst, "nothing was compared"
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


@pytest.mark.core
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
        model = make(folder / "model", kind)
        entries = run(model, folder / "s.lmdb", EVERYTHING, enforce_eager=True)
        table[kind] = check(entries, model)

    def test_of_a_mixture_of_experts(self, folder: Path, table: Table) -> None:
        model = make(folder / "model", "Mixtral")
        sites = f"{EVERYTHING},router@all"
        entries = run(model, folder / "s.lmdb", sites, enforce_eager=True)
        table["Mixtral"] = check(entries, model)
        assert "router" in table["Mixtral"]
        assert entries[0].site("router", 2).shape[1:] == (5,)

    @pytest.mark.compiled
    def test_in_a_compiled_graph(self, folder: Path, table: Table) -> None:
        """One graph without a break, as the program says."""
        model = make(folder / "model", "Llama")
        entries = run(model, folder / "s.lmdb", EVERYTHING)
        table["Llama, compiled"] = check(entries, model)
