"""LoRA adapters: each answer's rows are those of its own adapter, and `model` names it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from activation_logging import Entry, open_store
from activation_logging.sites import SITES
from activation_logging.verify import verify
from activation_logging.verify.lm_head import load_lm_head
from bench import docs
from tests.fixtures.adapters import merge, write_adapter
from tests.fixtures.architectures import make
from tests.fixtures.offline import Ask, Engine, ask
from tests.fixtures.server import RunningServer, running
from tests.server.reference import SiteReference, load

TOLERANCE = 5e-5
"""As of the sites of a model without adapters."""
SITES_LOGGED = "resid@all,resid_prenorm,attn_out@all,heads@all,mlp_out@all"
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
WHO = (None, "first", "second")
OPTIONS: Mapping[str, Any] = {"enable_lora": True, "max_loras": 3, "max_lora_rank": 8}
"""One slot more than adapters: vLLM's CPU kernels give those of the last one to the base model."""

Table = dict[str, dict[str, float]]


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[Table]:
    """The worst errors by model and adapter; with ``--docs NAME`` they become a table."""
    found: Table = {}
    yield found
    if name := request.config.getoption("--docs"):
        sites = [site for site in SITES if any(site in worst for worst in found.values())]
        rows = [
            [label, *(f"{worst[site]:.1e}" if site in worst else "" for site in sites)]
            for label, worst in found.items()
        ]
        docs.record_rows(f"{name}-adapters", ["", *sites], rows)


class Adapted:
    """A model of random weights and two adapters, with transformers' merged models of each."""

    def __init__(self, folder: Path, kind: str, targets: Sequence[str]) -> None:
        self.model = folder / "model"
        self.model.mkdir()
        make(self.model, kind)
        self.adapters = {
            name: write_adapter(folder / name, self.model, seed=seed, targets=targets)
            for seed, name in enumerate(filter(None, WHO))
        }

    def reference(self, name: str | None) -> SiteReference:
        model = load(self.model)
        return SiteReference(model if name is None else merge(model, self.adapters[name]))

    def ask(self, label: str, folder: Path, **options: Any) -> Table:
        """Ask offline: the base model and both adapters in one batch, and once more; checked."""
        shared = "One should know who walked on the Moon, when that was, and what for. " * 5
        batch = [Ask(f"{shared}Who was number {n}?", name) for n in range(2) for name in WHO]
        engine = Engine(self.model, [batch, batch], self.adapters, {**OPTIONS, **options})
        entries = ask(folder / "s.lmdb", SITES_LOGGED, engine)
        report = verify(open_store(folder / "s.lmdb"), load_lm_head(self.model))
        assert report.ok, report.problems
        assert len(report.alignments) == len(entries)
        names = {name or str(self.model): name for name in WHO}
        assert [entry.model for entry in entries] == [*names] * 4
        return self.check(label, entries, names)

    def check(self, label: str, entries: Sequence[Entry], names: Mapping[str, str | None]) -> Table:
        """Compare each entry with the adapter that its ``model`` names; the worst errors."""
        found: Table = {}
        for model, name in names.items():
            own = [entry for entry in entries if entry.model == model]
            found[f"{label}, {name or 'base'}"] = worst = self.reference(name).worst(own)
            assert max(worst.values()) <= TOLERANCE, f"{model}: {worst}"
            # What another adapter makes of the same tokens is far from it: a mistake would show.
            other = next(each for each in WHO if each != name)
            far = self.reference(other).errors(own)
            assert min(errors.min() for site, errors in far.items() if site.layer) > 0.01
        return found


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    return Adapted(tmp_path_factory.mktemp("llama"), "Llama", PROJECTIONS)


class TestAdapters:
    def test_of_one_batch_in_a_compiled_graph(
        self, llama: Adapted, tmp_path: Path, table: Table
    ) -> None:
        table |= llama.ask("Llama, compiled", tmp_path)

    def test_of_the_transformers_backend(self, tmp_path: Path, table: Table) -> None:
        """Where some wrappers call what they wrap, and others do its work themselves."""
        bitnet = Adapted(tmp_path, "BitNet", PROJECTIONS)
        table |= bitnet.ask("BitNet", tmp_path, enforce_eager=True)


class TestServer:
    @pytest.fixture(scope="class")
    @classmethod
    def serving(
        cls, llama: Adapted, tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[RunningServer]:
        """A server that knows the first adapter, and may be told of the second."""
        command = [
            *(str(Path(sys.executable).parent / "vllm"), "serve", str(llama.model)),
            *("--served-model-name", "base", "--host", "127.0.0.1", "--dtype", "float32"),
            *("--max-model-len", "512", "--enforce-eager", "--enable-lora", "--max-loras", "3"),
            *("--max-lora-rank", "8", "--lora-modules", f"first={llama.adapters['first']}"),
        ]
        env = {"ACTIVATION_SITES": SITES_LOGGED, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
        folder = tmp_path_factory.mktemp("server")
        with running(command, folder, model="base", env=env) as started:
            yield started

    def test_rows(self, serving: RunningServer, llama: Adapted, table: Table) -> None:
        told = {"lora_name": "second", "lora_path": str(llama.adapters["second"])}
        answer = serving.post("/v1/load_lora_adapter", told)
        assert answer.status_code == 200, answer.text
        prompt = "One should know who walked on the Moon, when that was, and what for. " * 5
        hits = serving.metric("vllm:prefix_cache_hits_total")
        names = ("base", "first", "second")
        answers = [serving.complete(prompt, model=name) for name in names]
        assert serving.metric("vllm:prefix_cache_hits_total") == hits, "an adapter shared rows"
        answers += [serving.complete(prompt, model=name) for name in names]
        assert serving.metric("vllm:prefix_cache_hits_total") > hits
        answers += [serving.chat("Who walked there?", model=name) for name in names]
        entries = [entry for answer in answers for entry in serving.entries_of(answer)]
        assert [entry.model for entry in entries] == list(names) * 3
        table |= llama.check("Llama, server", entries, dict(zip(names, WHO, strict=True)))
