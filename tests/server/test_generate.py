"""``activation-logging generate`` with the real engine: answers, resuming, bad lines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from activation_logging import open_store
from activation_logging.generate import LINE_TAG, RUN_TAG
from tests.server import live

# With a finalizer registered before vLLM is imported, as many a program has, Python's exit would
# wait forever for an engine that nobody has shut down.
PROGRAM = """
import tempfile
folder = tempfile.TemporaryDirectory()
from activation_logging.cli import app
app()
"""
COMMAND = (sys.executable, "-c", PROGRAM, "generate")
FLAGS = ("--enforce-eager", "--max-model-len", "512", "--gpu-memory-utilization", "0.3")


def start(model: Path, prompts: Path, store: Path, *flags: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, str(prompts), "--model", str(model), *FLAGS, *flags],
        env={**os.environ, "ACTIVATION_LMDB_PATH": str(store), "VLLM_CPU_KVCACHE_SPACE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, dict[str, Any], str]:
    out, err = process.communicate(timeout=300)
    assert out, err
    return process.returncode, json.loads(out), err


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def count(path: Path) -> int:
    if not path.exists():
        return 0
    with open_store(path) as store:
        return len(store)


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def model(folder_of: Callable[[str], Path]) -> Path:
    return folder_of("tiny")


@pytest.mark.parametrize(
    ("name", "flags", "named"),
    [("tiny", ["--nonsense", "3"], "unrecognized arguments: --nonsense 3"), ("-x", [], "'-x'")],
)
def test_what_vllm_does_not_take_is_said_in_a_sentence(
    model: Path, tmp_path: Path, name: str, flags: list[str], named: str
) -> None:
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": "One"}])
    asked = model if name == "tiny" else Path(name)
    _, err = start(asked, prompts, tmp_path / "s.lmdb", *flags).communicate(timeout=300)
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: vLLM does not start: "), err
    assert named in last


@pytest.mark.server
def test_answers_are_logged_and_not_asked_again(model: Path, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    lines: list[dict[str, Any]] = [
        {"prompt": "The capital of France is", "tags": {"split": "train"}},
        {"messages": messages},
        {"prompt": "word " * 3000},
        {"prompt": "The capital of France is"},
    ]
    prompts, path = write(tmp_path / "prompts.jsonl", lines), tmp_path / "s.lmdb"
    code, outcome, err = finish(start(model, prompts, path, "--max-tokens", "8", "--json"))
    # The third is longer than the model's context: named, and the others are answered.
    assert (code, outcome["answered"], list(outcome["refused"])) == (1, 3, ["3"]), err

    with open_store(path) as store:
        entries = list(store.entries())
        assert len(entries) == 3
        assert {entry.status for entry in entries} == {"complete"}
        first = store.for_prompt("The capital of France is")
        assert sorted(entry.tags.get("split", "") for entry in first) == ["", "train"]
        assert len({entry.tags[LINE_TAG] for entry in entries}) == 3
        assert {entry.tags[RUN_TAG] for entry in entries} == {outcome["run"]}
        chat = next(entry for entry in entries if entry.messages)
        assert chat.messages == messages
        assert chat.prompt.startswith("<|im_start|>")
        assert len(chat.positions) == len(chat.prompt_token_ids) + len(chat.response_token_ids) - 1

    write(prompts, [lines[0], {"prompt": "A new one"}, lines[1]])
    code, outcome, err = finish(start(model, prompts, path, "--max-tokens", "8", "--json"))
    assert (code, outcome["answered"], outcome["resumed"]) == (0, 1, 2), err
    with open_store(path) as store:
        assert len(store) == 4


@pytest.mark.server
def test_probes_score_answers_and_end_them(model: Path, tmp_path: Path) -> None:
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": "The capital of France is"}])
    made = live.make_probes("tiny", live.SHAPES["tiny"])
    listed = live.save(made, tmp_path / "probes").split(",")
    probes = [part for one in listed for part in ("--activation-probe", one)]
    named = ("--served-model-name", "tiny", "--json")
    stop = json.dumps({"probe": "token", "above": 0, "tokens": 3})
    flags = (*probes, "--activation-stop", stop, "--activation-layers", "2,last", *named)
    code, outcome, err = finish(start(model, prompts, tmp_path / "s.lmdb", *flags))
    assert (code, outcome["answered"]) == (0, 1), err
    with open_store(tmp_path / "s.lmdb") as store:
        (entry,) = store.entries()
        assert (entry.status, entry.stop_reason) == ("complete", "activation:token")
        assert len(entry.response_token_ids) == 3
        rows = made["token"].score_rows(entry)
        assert np.array_equal(entry.scores["token"], rows, equal_nan=True)


@pytest.mark.server
def test_a_killed_run_goes_on(model_path: Path, tmp_path: Path) -> None:
    # The small model would be done before anybody could kill it.
    lines = [{"prompt": f"Question {number}: what is {number} + 1?"} for number in range(300)]
    prompts, path = write(tmp_path / "prompts.jsonl", lines), tmp_path / "s.lmdb"
    flags = ("--max-tokens", "24", "--max-num-seqs", "16", "--json")
    process = start(model_path, prompts, path, *flags)
    wait_until(lambda: process.poll() is not None or count(path) > 30)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    with open_store(path) as store:
        before = len(store)
    assert 30 < before < 300

    code, outcome, err = finish(start(model_path, prompts, path, *flags))
    assert code == 0, err
    assert outcome["resumed"] > 0
    assert outcome["resumed"] + outcome["answered"] == 300
    with open_store(path) as store:
        whole = {entry.tags[LINE_TAG] for entry in store.entries() if entry.status == "complete"}
    assert len(whole) == 300


@pytest.mark.server
def test_an_engine_that_is_killed_ends_the_command(model_path: Path, tmp_path: Path) -> None:
    """By itself vLLM would wait for it forever."""
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": f"Question {n}"} for n in range(300)])
    path = tmp_path / "s.lmdb"
    flags = ("--max-tokens", "100", "--max-num-seqs", "4", "--json")
    process = start(model_path, prompts, path, *flags)
    wait_until(lambda: process.poll() is not None or count(path) > 0)
    engine = next(
        one for one in psutil.Process(process.pid).children() if "EngineCore" in one.name()
    )
    engine.kill()
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "error: vLLM's engine has died" in err
    assert "Traceback" not in err
