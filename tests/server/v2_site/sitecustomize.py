"""vLLM on the CPU as it is on GPUs: its V2 model runner, and asynchronous scheduling.

For tests only. With this folder on PYTHONPATH, Python imports this module when it starts, and some
modules of vLLM are changed as soon as they have been imported:

- vLLM's CPU build takes a Triton without a CPU backend for none at all. With ``TRITON_INTERPRET=1``
  Triton needs no backend: it interprets its kernels, with numpy. So vLLM is told that Triton is
  there. Triton itself is left as it is: torch's compiler would compile for a pretended backend.
  One kernel of vLLM's, for top-k and top-p, is beyond the interpreter; torch does its work.
- vLLM turns asynchronous scheduling off on CPUs, where it gains nothing. What was asked for stays,
  and that is "on" unless ``--no-async-scheduling`` is given.
- On GPUs the V2 model runner warms its kernels up with requests of its own. On the CPU it does the
  same here.

``VLLM_USE_V2_MODEL_RUNNER`` chooses the model runner.
"""

from __future__ import annotations

import os
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType


def _has_triton(importing: ModuleType) -> None:
    importing.HAS_TRITON = os.environ.get("TRITON_INTERPRET") == "1"


def _has_no_triton(module: ModuleType) -> None:
    module.HAS_TRITON = False


def _keep_async_scheduling(cpu: ModuleType) -> None:
    original: Callable[[Any], None] = cpu.CpuPlatform.check_and_update_config

    def check_and_update_config(vllm_config: Any) -> None:
        asked = vllm_config.scheduler_config.async_scheduling
        original(vllm_config)
        vllm_config.scheduler_config.async_scheduling = asked

    cpu.CpuPlatform.check_and_update_config = staticmethod(check_and_update_config)


def _warm_up(cpu_worker: ModuleType) -> None:
    original: Callable[[Any], Any] = cpu_worker.CPUWorker.compile_or_warm_up_model

    def compile_or_warm_up_model(worker: Any) -> Any:
        times = original(worker)
        if worker.use_v2_model_runner:
            from vllm.v1.worker.gpu.warmup import warmup_kernels

            warmup_kernels(worker.model_runner, worker.execute_model, worker.sample_tokens)
        return times

    cpu_worker.CPUWorker.compile_or_warm_up_model = compile_or_warm_up_model


_CHANGES: dict[str, Callable[[ModuleType], None]] = {
    "vllm.triton_utils.importing": _has_triton,
    "vllm.v1.sample.ops.topk_topp_sampler": _has_no_triton,
    "vllm.platforms.cpu": _keep_async_scheduling,
    "vllm.v1.worker.cpu_worker": _warm_up,
}


class _ChangingLoader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        _CHANGES[module.__name__](module)


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _CHANGES:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.origin is not None:
            spec.loader = _ChangingLoader(fullname, spec.origin)
        return spec


sys.meta_path.insert(0, _Finder())
