"""The three launchers and offline use, and everything that has to stop at the start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from activation_logging import open_store
from activation_logging.process import free_port, tail
from tests.fixtures.server import UVICORN, RunningServer, running

ROOT = Path(__file__).parent.parent.parent
SECRET = "hf_anotherSecretThatNobodyMaySee"
KEY = "sk-theKeyThatNobodyMaySee"
OPEN = "no API key on"
FAST = "--enforce-eager --max-model-len 512 --dtype float32"


class TestCheckScript:
    """``activation_logging/test_lmdb_logging.py``, run by its path from another folder."""

    @staticmethod
    def run(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        script = ROOT / "activation_logging" / "test_lmdb_logging.py"
        return subprocess.run(
            [sys.executable, str(script), *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=120,
            check=False,
        )

    def test_passes(self, server: RunningServer, tmp_path: Path) -> None:
        port = server.root_url.rpartition(":")[2]
        done = self.run(tmp_path, "--port", port, "--lmdb_path", str(server.lmdb_path))
        assert done.returncode == 0, done.stderr
        assert "rows belong to their tokens" in done.stdout

    def test_no_server(self, tmp_path: Path) -> None:
        done = self.run(tmp_path, "--port", str(free_port()))
        assert done.returncode == 1
        assert "no server answers" in done.stderr

    def test_wrong_store(self, server: RunningServer, tmp_path: Path) -> None:
        from activation_logging.store import StoreWriter

        StoreWriter(tmp_path / "other.lmdb", role="test").close()
        port = server.root_url.rpartition(":")[2]
        done = self.run(tmp_path, "--port", port, "--lmdb_path", str(tmp_path / "other.lmdb"))
        assert done.returncode == 1
        assert "nothing was logged" in done.stderr

    def test_shifted_rows_are_noticed(self) -> None:
        import numpy as np

        from activation_logging.test_lmdb_logging import CheckFailed, compare

        rows = np.random.default_rng(0).standard_normal((9, 8))
        assert compare(rows, rows + 1e-6, 1e-3) < 1e-5
        with pytest.raises(CheckFailed, match="do not belong"):
            compare(rows[1:], rows[:-1], 1e-3)


class TestModule:
    """``python -m activation_logging.vllm_serve``."""

    def test_flags_and_identical_answers(
        self, server: RunningServer, tmp_path: Path, model_path: Path
    ) -> None:
        store = tmp_path / "from_flag.lmdb"
        command = [
            *(sys.executable, "-m", "activation_logging.vllm_serve", "--model", str(model_path)),
            *("--lmdb_path", str(store), "--activation-layers", "3", "--activation-dtype"),
            *("float16", "--activation-tokens", "response", "--auth_token", SECRET),
            *("--served-model-name", "smol", "--enforce-eager", "--max-model-len", "512"),
            *("--dtype", "bfloat16"),
        ]
        with running(command, tmp_path, model="smol", key=KEY) as started:
            check_guarded(started, "/v1/models")
            answer = started.complete("A short one.", max_tokens=6)
            started.flush()
            (entry,) = open_store(store).for_request(answer["id"])
            assert entry.layers == (3,)
            assert entry.dtype == "float16"
            assert entry.positions[0] == len(entry.prompt_token_ids) - 1
            metrics = started.get("/metrics").text
        for secret in (SECRET, KEY):
            assert secret not in started.log.read_text()
            assert secret not in metrics
            assert secret.encode() not in (store / "data.mdb").read_bytes()
        # It listens on all addresses, and asks for a key.
        assert OPEN not in started.log.read_text()


def check_guarded(server: RunningServer, *paths: str) -> None:
    """Nothing is told or done without the key, or with another; ``server`` itself has it."""
    entries = "/v1/activations"
    assert server.get(entries).status_code == 200
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}):
        url = server.root_url
        for path in (entries, f"{entries}/counters", f"{entries}/{'0' * 64}/tensor", *paths):
            assert httpx.get(f"{url}{path}", headers=headers).status_code == 401, path
        for path in (f"{entries}/flush", f"{entries}/{'0' * 64}/evaluations"):
            body = {"name": "x", "label": "correct"}
            answer = httpx.post(f"{url}{path}", json=body, headers=headers)
            assert answer.status_code == 401, path


@pytest.mark.core
class TestUvicorn:
    """``uvicorn activation_logging.server:app``: models come and go by request."""

    @pytest.fixture(scope="class")
    @classmethod
    def app(
        cls, tmp_path_factory: pytest.TempPathFactory, model_path: Path
    ) -> Iterator[RunningServer]:
        folder = tmp_path_factory.mktemp("uvicorn")
        other = folder / "other"
        other.symlink_to(model_path)
        broken = folder / "broken"
        broken.mkdir()
        for file in model_path.iterdir():
            if not file.name.endswith(".safetensors"):
                (broken / file.name).symlink_to(file)
        env = {
            "ACTIVATION_VLLM_ARGS": FAST,
            "ACTIVATION_ALLOWED_MODELS": f"{model_path},{other},{broken},{folder / 'missing'},--x://y",
        }
        command = [*UVICORN, "--host", "0.0.0.0"]
        with running(command, folder, model=str(model_path), env=env) as started:
            yield started

    def test_without_a_key_it_warns(self, app: RunningServer) -> None:
        assert f"{OPEN} 0.0.0.0" in app.log.read_text()

    def test_nothing_loaded_yet(self, app: RunningServer) -> None:
        assert app.get("/health").status_code == 200
        assert app.model in [model["id"] for model in app.get("/v1/models").json()["data"]]
        assert "loading" not in app.log.read_text()

    @pytest.mark.parametrize("model", ["/etc", "no/such-model", "missing", "--x", "--x://y"])
    def test_unknown_models(self, app: RunningServer, model: str) -> None:
        if model == "missing":
            model = str(Path(app.log).parent / "missing")
        answer = app.post("/v1/completions", {"model": model, "prompt": "x"})
        assert answer.status_code == 404
        assert answer.json()["error"]["type"] == "NotFoundError"
        assert answer.json()["error"]["param"] == "model"

    def test_loads_swaps_and_survives_a_failed_load(self, app: RunningServer) -> None:
        first = app.complete("One.", auth_token=SECRET)
        other, broken = (str(app.log.parent / name) for name in ("other", "broken"))
        failed = app.post("/v1/completions", {"model": broken, "prompt": "x", "auth_token": SECRET})
        assert failed.status_code == 503
        assert SECRET not in failed.text
        second = app.complete("One.", model=other)
        assert second["model"] == other
        assert second["choices"][0]["text"] == first["choices"][0]["text"]
        assert [model["id"] for model in app.get("/v1/models").json()["data"]] == [other]
        (a,), (b,) = app.entries_of(first), app.entries_of(second)
        assert (a.model, b.model) == (app.model, other)
        assert (a.status, b.status) == ("complete", "complete")
        assert SECRET.encode() not in (app.lmdb_path / "data.mdb").read_bytes()
        assert SECRET not in app.log.read_text()


class TestOffline:
    """``vllm.LLM`` in a process where the plugin is active."""

    PROGRAM = textwrap.dedent(
        """
        import json, sys
        from vllm import LLM, SamplingParams
        from vllm.exceptions import VLLMValidationError

        def main():
            llm = LLM(sys.argv[1], enforce_eager=True, dtype="float32", max_model_len=512)
            from activation_logging import open_store
            greedy = SamplingParams(temperature=0, max_tokens=8,
                                    extra_args={"activation_tags": {"run": "offline"}})
            prompts = ["The sky is", "Grass is", "The sky is"]
            texts = [out.outputs[0].text for out in llm.generate(prompts, greedy)]
            chat = llm.chat([{"role": "user", "content": "Hi"}],
                            SamplingParams(n=2, max_tokens=4, stop=["a"]))
            try:
                llm.generate("x", SamplingParams(extra_args={"activation_nonsense": 1}))
            except VLLMValidationError as error:
                assert "activation_nonsense" in str(error)
            else:
                raise SystemExit("a bad option was accepted")
            # What generate() returned is in the store by then, rows included.
            with open_store(sys.argv[2]) as store:
                entries = list(store.entries())
                assert len(entries) == 5, entries
                assert all(entry.status == "complete" for entry in entries), entries
                assert {entry.response for entry in entries[:3]} == set(texts)
                assert entries[0].tags == {"run": "offline"}
                assert len(store.for_prompt("The sky is")) == 2

        if __name__ == "__main__":
            main()
        """
    )

    @pytest.mark.parametrize("multiprocessing", ["1", "0"])
    def test_generate_and_chat(
        self, tmp_path: Path, model_path: Path, reference: Any, multiprocessing: str
    ) -> None:
        program = tmp_path / "offline.py"
        program.write_text(self.PROGRAM)
        store = tmp_path / "offline.lmdb"
        env = {
            **os.environ,
            "ACTIVATION_LMDB_PATH": str(store),
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": multiprocessing,
        }
        done = subprocess.run(
            [sys.executable, str(program), str(model_path), str(store)],
            capture_output=True,
            text=True,
            env=env,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        with open_store(store) as opened:
            assert all(reference.worst_error(entry, 30) < 2e-5 for entry in opened.entries())


class TestRefusedAtStart:
    """One clear sentence, before a model is loaded."""

    CASES = (
        ({"ACTIVATION_LAYERS": "31"}, {}, "layer 31 does not exist"),
        ({"ACTIVATION_LAYERS": "first"}, {}, "'first'"),
        ({"ACTIVATION_DTYPE": "int8"}, {}, "ACTIVATION_DTYPE='int8'"),
        ({"ACTIVATION_TOKENS": "some"}, {}, "ACTIVATION_TOKENS='some'"),
        ({"ACTIVATION_LOGGING": "yes"}, {}, "ACTIVATION_LOGGING='yes'"),
        ({"ACTIVATION_FULL_POLICY": "panic"}, {}, "ACTIVATION_FULL_POLICY='panic'"),
        ({"ACTIVATION_LMDB_PATH": "/proc/nowhere/store"}, {}, "/proc/nowhere/store"),
        ({"ACTIVATION_LMDB_PATH": "{file}"}, {}, "is a file"),
        ({"ACTIVATION_LMDB_PATH": "{foreign}"}, {}, "something else"),
        ({"ACTIVATION_LMDB_PATH": "{future}"}, {}, "format version 99"),
        ({"VLLM_DISABLE_REQUEST_ID_RANDOMIZATION": "1"}, {}, "request ids must be unique"),
        (
            {},
            {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}},
            "--speculative-config",
        ),
        (
            {"ACTIVATION_LAYERS": "3,last", "ACTIVATION_FULL_POLICY": "drop"},
            {"pipeline_parallel_size": 2},
            "ACTIVATION_FULL_POLICY=block",
        ),
    )
    PROGRAM = textwrap.dedent(
        """
        import json, os, sys
        from vllm.engine.arg_utils import EngineArgs
        from activation_logging.errors import ActivationLoggingError

        found = []
        for env, options in json.loads(sys.argv[2]):
            before = dict(os.environ)
            os.environ.update(env)
            try:
                EngineArgs(model=sys.argv[1], enforce_eager=True, **options).create_engine_config()
                found.append(None)
            except ActivationLoggingError as error:
                found.append(str(error))
            os.environ.clear()
            os.environ.update(before)
        print("RESULT", json.dumps(found))
        """
    )

    @pytest.fixture(scope="class")
    @classmethod
    def sentences(
        cls, tmp_path_factory: pytest.TempPathFactory, model_path: Path
    ) -> list[str | None]:
        folder = tmp_path_factory.mktemp("refused")
        paths = {name: folder / name for name in ("file", "foreign", "future")}
        paths["file"].write_text("not a store")
        make_foreign_store(paths["foreign"], {})
        make_foreign_store(
            paths["future"],
            {b"format": json.dumps({"format": "activation-logging", "version": 99}).encode()},
        )
        cases = [
            ({name: value.format(**paths) for name, value in env.items()}, options)
            for env, options, _ in cls.CASES
        ]
        done = subprocess.run(
            [sys.executable, "-c", cls.PROGRAM, str(model_path), json.dumps(cases)],
            capture_output=True,
            text=True,
            env={**os.environ, "ACTIVATION_LMDB_PATH": str(folder / "new.lmdb")},
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        (line,) = [x for x in done.stdout.splitlines() if x.startswith("RESULT ")]
        found: list[str | None] = json.loads(line.removeprefix("RESULT "))
        return found

    @pytest.mark.parametrize("number", range(len(CASES)))
    def test_one_sentence(self, sentences: list[str | None], number: int) -> None:
        sentence = sentences[number]
        assert sentence is not None, self.CASES[number]
        assert self.CASES[number][2] in sentence
        assert "\n" not in sentence

    @pytest.mark.parametrize("launcher", ["vllm serve", "vllm_serve"])
    def test_launchers_print_it_without_a_traceback(
        self, tmp_path: Path, model_path: Path, launcher: str
    ) -> None:
        bin_folder = Path(sys.executable).parent
        command = {
            "vllm serve": [str(bin_folder / "vllm"), "serve", str(model_path)],
            "vllm_serve": [
                *(sys.executable, "-m", "activation_logging.vllm_serve"),
                *("--model", str(model_path)),
            ],
        }[launcher]
        env = {"ACTIVATION_LMDB_PATH": str(tmp_path / "a.lmdb"), "ACTIVATION_LAYERS": "31"}
        done = subprocess.run(
            [*command, "--enforce-eager", "--port", str(free_port())],
            capture_output=True,
            text=True,
            env={**os.environ, **env},
            timeout=300,
            check=False,
        )
        assert done.returncode == 1
        assert done.stderr.count("error: ACTIVATION_LAYERS: layer 31 does not exist") == 1, (
            done.stderr[-2000:]
        )
        assert "Traceback" not in done.stderr


def make_foreign_store(path: Path, meta: Mapping[bytes, bytes]) -> None:
    import lmdb

    path.mkdir()
    with lmdb.open(str(path), max_dbs=2, lib_version=0) as env, env.begin(write=True) as txn:
        txn.put(b"key", b"value")
        if meta:
            database = env.open_db(b"~meta", txn=txn)
            for key, value in meta.items():
                txn.put(key, value, db=database)


def test_logs_show_where_it_logs(server: RunningServer) -> None:
    assert "logging activations of layers 1,15,last" in server.log.read_text(), tail(server.log)
    # It listens on this machine alone.
    assert OPEN not in server.log.read_text()
