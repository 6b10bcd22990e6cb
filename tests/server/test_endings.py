"""Requests that end in ways of their own: never run, without text, by beam search, in pieces."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, ClassVar

import pytest

from activation_logging import Store, open_store
from activation_logging.records import NEVER_RAN
from tests.fixtures.server import RunningServer


class TestAsync:
    """``AsyncLLM`` with room for one request at a time."""

    PROGRAM = textwrap.dedent(
        """
        import asyncio, sys
        from vllm import SamplingParams
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.engine.protocol import StreamingInput
        from vllm.exceptions import VLLMValidationError
        from vllm.v1.engine.async_llm import AsyncLLM
        from activation_logging import open_store

        async def ask(engine, name, prompt, **options):
            usual = {"max_tokens": 8, "ignore_eos": True}
            params = SamplingParams(temperature=0, **{**usual, **options})
            async for output in engine.generate(prompt, params, name):
                pass

        async def pieces():
            yield StreamingInput(prompt="One ")
            yield StreamingInput(prompt="two ")

        async def main():
            args = AsyncEngineArgs(sys.argv[1], enforce_eager=True, dtype="float32",
                                   max_model_len=512, max_num_seqs=1)
            engine = AsyncLLM.from_engine_args(args)
            long = asyncio.create_task(ask(engine, "long", "On and on", max_tokens=200))
            await asyncio.sleep(1)
            queued = [asyncio.create_task(ask(engine, f"queued-{n}", "Never")) for n in range(3)]
            await asyncio.sleep(0.5)
            for task in queued:
                task.cancel()
            await long
            # Without a flush: a client that leaves tells nobody.
            for _ in range(50):
                await asyncio.sleep(0.1)
                with open_store(sys.argv[2]) as store:
                    if {e.status for e in store.for_prompt("Never")} == {"dropped"}:
                        break
            else:
                raise SystemExit("who left in the queue is not settled")
            await ask(engine, "ids", "The sky is", detokenize=False)
            try:
                await ask(engine, "pieces", pieces())
            except VLLMValidationError as error:
                assert "comes in pieces" in str(error), error
            else:
                raise SystemExit("a prompt in pieces was accepted")
            await ask(engine, "off", pieces(), extra_args={"activation_logging": "off"})
            engine.shutdown()

        if __name__ == "__main__":
            asyncio.run(main())
        """
    )

    @pytest.fixture(scope="class")
    @classmethod
    def store(cls, tmp_path_factory: pytest.TempPathFactory, model_path: Path) -> Store:
        folder = tmp_path_factory.mktemp("endings")
        program, path = folder / "program.py", folder / "store.lmdb"
        program.write_text(cls.PROGRAM)
        done = subprocess.run(
            [sys.executable, str(program), str(model_path), str(path)],
            capture_output=True,
            text=True,
            env={**os.environ, "ACTIVATION_LMDB_PATH": str(path), "VLLM_CPU_KVCACHE_SPACE": "1"},
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return open_store(path)

    def test_who_left_in_the_queue(self, store: Store) -> None:
        entries = store.for_prompt("Never")
        assert len(entries) == 3
        for entry in entries:
            assert (entry.status, entry.status_reason) == ("dropped", NEVER_RAN)
            assert entry.finish_reason == "abort"
        assert store.orphans() == []

    def test_an_answer_that_was_not_to_be_decoded(self, store: Store, reference: Any) -> None:
        (entry,) = store.for_request("ids")
        assert entry.status == "complete"
        assert len(entry.response_token_ids) == 8
        assert entry.response == "".join(entry.response_tokens or ()) != ""
        assert reference.worst_error(entry, 30) < 2e-5

    def test_prompts_in_pieces_are_not_logged(self, store: Store) -> None:
        assert store.for_request("pieces") == []
        assert store.for_request("off") == []


class TestBeamSearch:
    """vLLM makes requests of its own out of one, and forgets its ``vllm_xargs``."""

    BODY: ClassVar = {"use_beam_search": True, "n": 2, "max_tokens": 3, "temperature": 0}

    def test_off_is_off(self, server: RunningServer) -> None:
        server.flush()
        before = len(server.store())
        server.complete("Beams.", **self.BODY, vllm_xargs={"activation_logging": "off"})
        server.flush()
        assert len(server.store()) == before

    def test_options_hold_for_each_of_its_requests(self, server: RunningServer) -> None:
        options = {"activation_tags": {"suite": "beams"}, "activation_tokens": "response"}
        answer = server.complete("More beams.", **self.BODY, vllm_xargs=options)
        entries = server.entries_of(answer)
        assert len(entries) >= 3
        for entry in entries:
            assert entry.tags == {"suite": "beams"}
            assert entry.status == "complete", entry.status_reason
            assert len(entry.response_token_ids) == 1
            assert list(entry.positions) == [len(entry.prompt_token_ids) - 1]
