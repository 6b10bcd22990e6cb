"""What is refused before an engine starts: addresses, options, settings that do not arrive."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from activation_logging.cli import _app
from activation_logging.errors import ClusterError, SettingsError
from activation_logging.ray.bulk import answer_file
from activation_logging.ray.cluster import Node, connected, on_every_node, refuse_silent
from activation_logging.ray.needs import need_of, room_for
from activation_logging.ray.process import EngineProcess, Failed, Job
from activation_logging.ray.variables import Variables

GPUS = [Node("a", "a", {"CPU": 8, "GPU": 4}), Node("b", "b", {"CPU": 8, "GPU": 2})]
CPUS = [Node("a", "a", {"CPU": 8}), Node("b", "b", {"CPU": 1}), Node("c", "c", {})]


def test_nobody_at_the_address() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    told = f"no Ray cluster answers at .*127.0.0.1:{port} .*refused.*ray start --head"
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
        with pytest.raises(ClusterError, match=told):
            refuse_silent(address)
    with pytest.raises(ClusterError, match="HOST:PORT"):
        refuse_silent("nowhere")


@pytest.mark.usefixtures("cluster")
def test_a_second_cluster() -> None:
    told = "connected to the Ray cluster at .*, not to other:1; leave the address out"
    with pytest.raises(ClusterError, match=told), connected("other:1"):
        pass


def test_without_the_extra(tmp_path: Path) -> None:
    code = "import sys; sys.modules['ray'] = None; from activation_logging.cli import app; app()"
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "a"}\n')
    command = [sys.executable, "-c", code, "generate", str(prompts), "--model", "m", "--ray"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'activation-logging[ray]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "a"}\n')
    with pytest.raises(SettingsError, match="engines: 0"):
        answer_file(prompts, model="m", sampling={}, folder=tmp_path, engines=0)
    done = CliRunner().invoke(_app, ["generate", str(prompts), "--model", "m", "--engines", "2"])
    assert isinstance(done.exception, SettingsError)
    assert "add --ray" in str(done.exception)
    monkeypatch.setenv("ACTIVATION_LOGGING", "0")
    with pytest.raises(SettingsError, match="ACTIVATION_LOGGING=0"):
        answer_file(prompts, model="m", sampling={}, folder=tmp_path)


def test_how_many_engines_there_is_room_for() -> None:
    assert room_for(need_of([], GPUS), GPUS) == 6
    assert room_for(need_of(["--tensor_parallel_size=2", "-pp", "2"], GPUS), GPUS) == 1
    assert room_for(need_of(["--tensor-parallel-size", "8"], CPUS), CPUS) == 2
    with pytest.raises(ClusterError, match=r"needs 1 CPU, 8 GPU \(a: 8 CPU, 4 GPU; b: "):
        room_for(need_of(["-tp", "8"], GPUS), GPUS)
    with pytest.raises(SettingsError, match="must be numbers"):
        need_of(["-tp", "many"], GPUS)


def test_variables_reach_an_engine_or_it_does_not_start(tmp_path: Path) -> None:
    environ = {
        "ACTIVATION_LAYERS": "2,last",
        "ACTIVATION_TOKENS": "all",
        "ACTIVATION_LMDB_PATH": "elsewhere",
        "ACTIVATION_PROBES": "a=relative",
        "HF_TOKEN": "hidden",
        "HOME": "/home",
    }
    sent = Variables.of(environ)
    probes = f"a={Path.cwd() / 'relative'}"
    assert sent.shown == {
        "ACTIVATION_LAYERS": "2,last",
        "ACTIVATION_TOKENS": "all",
        "ACTIVATION_PROBES": probes,
    }
    assert sent.secret == {"HF_TOKEN": "hidden"}
    assert "hidden" not in repr(sent)
    assert sent.lost(environ | {"ACTIVATION_PROBES": probes}) is None
    job = Job("m", {}, "run", str(tmp_path / "stores"), (), sent)
    failed = EngineProcess(job).start()
    assert isinstance(failed, Failed)
    assert "ACTIVATION_LAYERS did not reach the engine" in failed.reason
    assert not (tmp_path / "stores").exists()


@pytest.mark.usefixtures("cluster")
def test_a_node_that_fails_is_named() -> None:
    found, problems = on_every_node(json.loads, "nothing")
    assert found == []
    assert problems == [
        f"{socket.gethostname()}: JSONDecodeError: Expecting value: line 1 column 1 (char 0)"
    ]


@pytest.mark.usefixtures("cluster")
def test_engines_that_cannot_write_are_named(tmp_path: Path) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "a"}\n')
    told = (
        f"no engine is left: {socket.gethostname()}: /proc/stores cannot be written on "
        f"{socket.gethostname()}: No such file or directory"
    )
    with pytest.raises(ClusterError, match=told):
        answer_file(prompts, model="m", sampling={}, folder="/proc/stores", engines=2)
