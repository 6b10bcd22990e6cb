"""No order of imports lets an engine start that would silently log nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PROGRAM = textwrap.dedent(
    """
    import importlib, sys
    for name in sys.argv[1:]:
        importlib.import_module(name)

    # Earlier than vLLM would load them: before the modules that the plugin patches are imported.
    from vllm.plugins import load_general_plugins
    load_general_plugins()

    from vllm.config import VllmConfig
    from vllm.v1.executor import UniProcExecutor
    from activation_logging.errors import UnsupportedEngineError

    config = VllmConfig()
    print("worker:", config.parallel_config.worker_cls)
    try:
        UniProcExecutor(config)
    except UnsupportedEngineError as error:
        print("refused:", error)
    """
)


@pytest.mark.parametrize("imported", ["vllm", "vllm.v1.worker.worker_base"])
def test_a_plugin_that_is_loaded_early(tmp_path: Path, imported: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, imported],
        capture_output=True,
        text=True,
        env={**os.environ, "ACTIVATION_LMDB_PATH": str(tmp_path / "store.lmdb")},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "worker: vllm.v1.worker." in done.stdout
    assert "refused: an engine with the worker vllm.v1.worker." in done.stdout
