"""``AsyncLLM`` in a program of one's own, without vLLM's server around it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from activation_logging import open_store

PROGRAM = textwrap.dedent(
    """
    import asyncio, sys, time
    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.async_llm import AsyncLLM

    async def ask(engine, number):
        params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True,
                                output_kind=RequestOutputKind.FINAL_ONLY)
        async for output in engine.generate(f"Number {number} is", params, f"request-{number}"):
            pass
        assert output.finished

    async def ask_without_end(engine):
        params = SamplingParams(max_tokens=400, ignore_eos=True)
        async for output in engine.generate("On and on", params, "without-end"):
            pass

    async def main():
        args = AsyncEngineArgs(sys.argv[1], enforce_eager=True, dtype="float32",
                               max_model_len=512)
        engine = AsyncLLM.from_engine_args(args)
        endless = asyncio.create_task(ask_without_end(engine))
        await asyncio.gather(*(ask(engine, number) for number in range(4)))
        started = time.monotonic()
        engine.shutdown(**({"timeout": float(sys.argv[2])} if sys.argv[2:] else {}))
        print("SECONDS", time.monotonic() - started)
        endless.cancel()

    if __name__ == "__main__":
        asyncio.run(main())
    """
)


@pytest.mark.parametrize("timeout", [(), ("0",)], ids=["usual", "at once"])
def test_rows_are_there_after_shutdown(
    tmp_path: Path, model_path: Path, timeout: tuple[str, ...]
) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    store = tmp_path / "async.lmdb"
    done = subprocess.run(
        [sys.executable, str(program), str(model_path), *timeout],
        capture_output=True,
        text=True,
        env={**os.environ, "ACTIVATION_LMDB_PATH": str(store), "VLLM_CPU_KVCACHE_SPACE": "1"},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with open_store(store) as opened:
        entries = {entry.request_id: entry for entry in opened.entries()}
        assert set(entries) == {*(f"request-{number}" for number in range(4)), "without-end"}
        assert {name: entry.status for name, entry in entries.items()} == dict.fromkeys(
            entries, "complete"
        )
        assert entries["without-end"].finish_reason == "abort"
        assert (
            len(entries["request-0"].activations) == len(entries["request-0"].prompt_token_ids) + 7
        )
