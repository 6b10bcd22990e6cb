"""Modes that cannot be logged right, and engines that this plugin is left out of: none starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from activation_logging.vllm_plugin import gate

FLAGS: dict[str, tuple[Mapping[str, str], Mapping[str, Any]]] = {
    "--kv-sharing-fast-prefill": ({}, {"kv_sharing_fast_prefill": True}),
    "--kv-offloading-size": ({}, {"kv_offloading_size": 1.0}),
    "--kv-transfer-config": (
        {},
        {"kv_transfer_config": {"kv_connector": "OffloadingConnector", "kv_role": "kv_both"}},
    ),
    "--ec-transfer-config": (
        {},
        {"ec_transfer_config": {"ec_connector": "ECExampleConnector", "ec_role": "ec_consumer"}},
    ),
    "--enable-prompt-embeds": ({}, {"enable_prompt_embeds": True}),
    "--speculative-config": (
        {},
        {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}},
    ),
    "a pooling model": ({}, {"runner": "pooling"}),
    "a diffusion model": ({}, {"diffusion_config": {"canvas_length": 8}}),
    "--distributed-executor-backend": ({}, {"distributed_executor_backend": "external_launcher"}),
    "the worker class vllm.v1.worker.xpu_worker.XPUWorker": (
        {},
        {"worker_cls": "vllm.v1.worker.xpu_worker.XPUWorker"},
    ),
    "unset VLLM_USE_RUST_FRONTEND": ({"VLLM_USE_RUST_FRONTEND": "1"}, {}),
    "unset VLLM_DISABLE_REQUEST_ID_RANDOMIZATION": (
        {"VLLM_DISABLE_REQUEST_ID_RANDOMIZATION": "1"},
        {},
    ),
    "ACTIVATION_FULL_POLICY=block": (
        {"ACTIVATION_LAYERS": "3", "ACTIVATION_FULL_POLICY": "drop"},
        {"pipeline_parallel_size": 2},
    ),
    "give ACTIVATION_KEEP no score: and no finish: term": (
        {"ACTIVATION_KEEP": "sample:0.5,finish:length"},
        {"pipeline_parallel_size": 2},
    ),
    "unset ACTIVATION_MAX_SIZE": (
        {"ACTIVATION_LAYERS": "3", "ACTIVATION_MAX_SIZE": "1GB"},
        {"pipeline_parallel_size": 2},
    ),
}
"""Part of the sentence; the environment and the engine's arguments that it is for."""

FIELDS: dict[str, tuple[Mapping[str, str], Mapping[str, Any]]] = {
    "encoder-decoder": ({}, {"model_config.hf_config.is_encoder_decoder": True}),
    "diffusion": ({}, {"model_config.hf_config.canvas_length": 8}),
    "R-SWA": ({}, {"model_config.model_arch_config.rswa_window": 128}),
    "--no-swa-bounded-replay": ({}, {"model_config._architecture": "DeepseekV41ForCausalLM"}),
    "--mm-encoder-only": ({}, {"model_config.multimodal_config": {"mm_encoder_only": True}}),
    "--ubatch-size": ({}, {"parallel_config.ubatch_size": 2}),
    "--enable-dbo": ({}, {"parallel_config.enable_dbo": True}),
    "--decode-context-parallel-size": ({}, {"parallel_config.decode_context_parallel_size": 2}),
    "--prefill-context-parallel-size": ({}, {"parallel_config.prefill_context_parallel_size": 2}),
    "--enable-elastic-ep": ({}, {"parallel_config.enable_elastic_ep": True}),
    "VLLM_USE_RAY_V2_EXECUTOR_BACKEND": (
        {"VLLM_USE_RAY_V2_EXECUTOR_BACKEND": "0"},
        {"parallel_config.distributed_executor_backend": "ray"},
    ),
}
"""The same where this machine or model has no such mode: fields of a real configuration."""

VALUES: dict[str, str] = {
    "ACTIVATION_LMDB_PATH": "/dev/null/store.lmdb",
    "ACTIVATION_LAYERS": "31",
    "ACTIVATION_SITES": "heads@31",
    "ACTIVATION_PROBES": "made_up=/nowhere",
    "ACTIVATION_PROBE_FOLDER": "/nowhere",
    "ACTIVATION_TOKENS": "some",
    "ACTIVATION_DTYPE": "int8",
    "ACTIVATION_FULL_POLICY": "wait",
    "ACTIVATION_KEEP": "score:made_up>0.5",
    "ACTIVATION_MAX_SIZE": "1KB",
    "ACTIVATION_LOGGING": "yes",
}
"""A value that this model or machine cannot be logged with, for each variable."""

PROGRAM = textwrap.dedent(
    """
    import copy, json, os, sys
    from contextlib import contextmanager
    from importlib.util import find_spec

    # Sooner than vLLM would: what the plugin extends is not imported yet.
    from vllm.plugins import load_general_plugins
    load_general_plugins()

    from vllm.config import MultiModalConfig
    from vllm.engine.arg_utils import EngineArgs
    from activation_logging.errors import ActivationLoggingError

    model, flags, fields, values = sys.argv[1], *map(json.loads, sys.argv[2:])

    @contextmanager
    def environment(env):
        before = dict(os.environ)
        os.environ.update(env)
        yield
        os.environ.clear()
        os.environ.update(before)

    def refusal(call, *args, **kwargs):
        try:
            call(*args, **kwargs)
        except ActivationLoggingError as error:
            return str(error)
        except Exception as error:
            return f"vLLM's own {type(error).__name__}: {error}"
        return None

    def configure(**options):
        return EngineArgs(model, enforce_eager=True, **options).create_engine_config()

    def change(config, changes):
        for path, value in changes.items():
            owner, names = config, path.split(".")
            for name in names[:-1]:
                owner = getattr(owner, name)
            owner.__dict__.pop(names[-1], None)
            if isinstance(value, dict):
                value = MultiModalConfig(**value)
            setattr(owner, names[-1], value)
        # What has been asked before is remembered.
        config.model_config.__dict__.pop("is_diffusion", None)
        config.model_config.__dict__.pop("is_encoder_decoder", None)

    def main():
        found = {}
        base = configure()
        ours = base.parallel_config.worker_cls
        found["ours"] = ours
        from activation_logging.settings import Settings
        from activation_logging.vllm_plugin import gate
        settings = Settings.from_env()
        plain = next(name for name, our in gate.WORKERS.items() if ours.endswith(our))
        base.parallel_config.worker_cls = plain
        found["nothing"] = refusal(gate.check_config, base, settings)

        for name, (env, options) in flags.items():
            with environment(env):
                found[name] = refusal(configure, **options)
        for name, value in values.items():
            with environment({name: value}):
                found[name] = refusal(configure)
        for name, (env, changes) in fields.items():
            config = copy.deepcopy(base)
            change(config, changes)
            with environment(env):
                found[name] = refusal(gate.check_config, config, settings)

        from vllm.v1.engine.async_llm import AsyncLLM
        from vllm.v1.engine.llm_engine import LLMEngine
        from vllm.v1.executor import Executor
        executor = Executor.get_class(base)
        found["AsyncLLM"] = refusal(AsyncLLM, base, executor, False)
        found["LLMEngine"] = refusal(LLMEngine, base, executor, False)
        found["Executor"] = refusal(executor, base)

        from vllm.entrypoints.launchers.api_server import entry
        found["server before"] = hasattr(entry.build_app, "__wrapped__")
        configure()
        found["server after"] = hasattr(entry.build_app, "__wrapped__")

        sys.modules["__main__"].__spec__ = find_spec("vllm.snapshot.server")
        found["snapshot"] = refusal(gate.check_config, base, settings)
        print("RESULT", json.dumps(found))

    if __name__ == "__main__":
        main()
    """
)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, model_path: Path) -> dict[str, Any]:
    """What each case came to: the sentence that refuses it, or None."""
    folder = tmp_path_factory.mktemp("refusals")
    program = folder / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, str(program), str(model_path), *map(json.dumps, (FLAGS, FIELDS, VALUES))],
        capture_output=True,
        text=True,
        env={**os.environ, "ACTIVATION_LMDB_PATH": str(folder / "store.lmdb")},
        cwd=folder,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))
    return json.loads(line.removeprefix("RESULT"))


class TestModes:
    @pytest.mark.parametrize("part", [*FLAGS, *FIELDS])
    def test_is_refused_with_the_remedy(self, found: dict[str, Any], part: str) -> None:
        assert part in (found[part] or "")
        assert found[part].endswith("or set ACTIVATION_LOGGING=0 to serve without logging")

    @pytest.mark.parametrize("variable", VALUES)
    def test_a_bad_value_is_refused_by_name(self, found: dict[str, Any], variable: str) -> None:
        assert variable in found[variable]
        assert "vLLM's own" not in found[variable]

    def test_nothing_else_is(self, found: dict[str, Any]) -> None:
        assert found["nothing"] is None

    def test_a_snapshot_is(self, found: dict[str, Any]) -> None:
        assert "use vllm serve" in found["snapshot"]


class TestNothingIsLeftOut:
    @pytest.mark.parametrize("made", ["AsyncLLM", "LLMEngine", "Executor"])
    def test_an_engine_whose_worker_is_not_ours(self, found: dict[str, Any], made: str) -> None:
        assert "would log nothing" in found[made]

    def test_a_plugin_that_is_loaded_early(self, found: dict[str, Any]) -> None:
        assert found["ours"].startswith("activation_logging.vllm_plugin.")

    def test_a_server_that_is_imported_late(self, found: dict[str, Any]) -> None:
        assert (found["server before"], found["server after"]) == (False, True)


class TestThePluginIsLoaded:
    @staticmethod
    def serve(**env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "activation_logging.vllm_serve", "no/model"],
            capture_output=True,
            text=True,
            env={**os.environ, **env},
            timeout=120,
            check=False,
        )

    def test_left_out_of_the_list(self) -> None:
        done = self.serve(VLLM_PLUGINS="lora_filesystem_resolver,other")
        assert done.returncode == 1
        assert done.stderr.startswith("error: VLLM_PLUGINS=lora_filesystem_resolver,other leaves")

    @pytest.mark.parametrize(
        "entry", ["", "[vllm.general_plugins]\nactivation_logging = activation_logging.old:load\n"]
    )
    def test_stale_install(self, tmp_path: Path, entry: str) -> None:
        installed = tmp_path / "activation_logging-0.0.1.dist-info"
        installed.mkdir()
        (installed / "METADATA").write_text("Name: activation-logging\nVersion: 0.0.1\n")
        (installed / "entry_points.txt").write_text(entry)
        done = self.serve(PYTHONPATH=str(tmp_path))
        assert done.returncode == 1
        assert "install it again" in done.stderr
        assert "Traceback" not in done.stderr

    @pytest.mark.parametrize(
        "env",
        [
            {},
            {"VLLM_PLUGINS": "other,activation_logging"},
            {"VLLM_PLUGINS": "other", "ACTIVATION_LOGGING": "0"},
        ],
    )
    def test_nothing_else_is_refused(
        self, env: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        gate.check_plugin_is_loaded()
