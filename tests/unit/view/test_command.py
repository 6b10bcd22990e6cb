"""`activation-logging view`: where it listens, who gets in, and what it refuses in one sentence."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from activation_logging import open_store
from tests.unit.view.test_pages import probe

CODE = "from activation_logging.cli import app; app()"


def refused(*words: object) -> str:
    command = [sys.executable, "-c", CODE, "view", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stderr
    return " ".join(done.stderr.split())


def test_for_others_the_address_has_a_token(path: Path, tmp_path: Path) -> None:
    probe().save(tmp_path / "claims")
    command = [sys.executable, "-c", CODE, "view", str(path), "--host", "0.0.0.0", "--port", "0"]
    command += ["--probe", f"mine={tmp_path / 'claims'}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            printed = process.stdout.readline().strip().replace("0.0.0.0", "127.0.0.1")
            address, _, token = printed.partition("?token=")
            assert len(token) >= 32
            assert httpx.get(address).status_code == 401
            assert httpx.get(f"{address}?token={token[:-1]}").status_code == 401
            with httpx.Client(follow_redirects=True) as client:
                page = client.get(printed)
                assert "number 7" in page.text
                assert token not in str(page.url)
                with open_store(path) as store:
                    key = next(e.key for e in store.entries() if e.model == "org/model")
                assert "probe mine" in client.get(f"{address}entry/{key}").text
        finally:
            process.terminate()


def test_an_address_that_is_no_viewer(path: Path) -> None:
    assert "--inspect 7575: give the address" in refused(path, "--inspect", "7575")


def test_a_port_that_is_taken(path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refused(path, "--port", port)
    assert f"--port {port}" in said
    # It is said before the store is read, which may take minutes.
    assert not path.with_name(f"{path.name}.view.sqlite").exists()
    assert "choose others" in said


@pytest.mark.parametrize("host", ["no.such.host.invalid", "999.1.1.1"])
def test_an_address_that_is_none(path: Path, host: str) -> None:
    assert f"--host {host}" in refused(path, "--host", host)


def test_what_is_no_store(tmp_path: Path) -> None:
    assert "there is no store at" in refused(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    (tmp_path / "file").write_text("x")
    assert "is a file; a store is a folder" in refused(tmp_path / "file")


def test_probes_that_cannot_be(path: Path, tmp_path: Path) -> None:
    probe().save(tmp_path / "p")
    assert "p.safetensors" in refused(path, "--probe", tmp_path / "none" / "p")
    twice = refused(path, "--probe", tmp_path / "p", "--probe", f"p={tmp_path / 'p'}")
    assert "a name of its own" in twice
