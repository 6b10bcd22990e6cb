"""Everything that reads a store, as a user would call it: each command, and each GET."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from activation_logging import open_store, routes
from activation_logging.cli import _app


def strict(text: str | bytes) -> Any:
    """What any JSON parser would take, read."""

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def command(*arguments: object, codes: tuple[int, ...] = (0,)) -> str:
    """Run a command of the command line, in this process; its standard output."""
    done = CliRunner().invoke(_app, [str(part) for part in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise AssertionError(arguments) from done.exception
    assert done.exit_code in codes, (arguments, done.output)
    return done.stdout


@contextmanager
def http(path: Path) -> Iterator[TestClient]:
    """A client of the routes, over the store at ``path``."""
    app = FastAPI()
    routes.add_to(app, str(path))
    with TestClient(app) as client:
        yield client


def read_quickly(path: Path) -> None:
    """Each way to look at entries, for people and for programs."""
    command("ls", path, "--limit", 1000)
    command("stats", path)
    command("verify", path, codes=(0, 1))
    strict(command("stats", path, "--json"))
    check_rows(path)
    listed = strict(command("ls", path, "--json", "--limit", 1000))
    with open_store(path) as store:
        assert {found["key"] for found in listed} == set(store)
        for entry in store.entries():
            repr(entry)
    requests = {found["request_id"] for found in listed}
    for request in requests:
        command("show", path, request)
        strict(command("show", path, request, "--json"))
    with http(path) as client:
        page = get(client, "/v1/activations", limit=1000)["data"]
        assert {found["key"] for found in page} == {found["key"] for found in listed}
        for found in page:
            key = quote(found["key"])
            get(client, f"/v1/activations/{key}")
            assert client.get(f"/v1/activations/{key}/tensor").status_code == 200
        for request in requests:
            again = get(client, "/v1/activations", request_id=request, limit=1000)["data"]
            assert len(again) == sum(found["request_id"] == request for found in listed)
        get(client, "/v1/activations/counters")


def check_rows(path: Path) -> None:
    """`verify` finds nothing but fields that no client fills, which a test has."""
    for problem in strict(command("verify", path, "--json", codes=(0, 1)))["problems"]:
        assert "logprobs" in problem["what"] or "response_tokens" in problem["what"], problem


def get(client: TestClient, path: str, **query: Any) -> Any:
    answer = client.get(path, params=query)
    assert answer.status_code == 200, (path, query, answer.text)
    return strict(answer.content)


def read_slowly(path: Path, folder: Path) -> None:
    """What goes through a whole store and writes files: exports, a copy, a report, scores."""
    for kind in ("parquet", "npy", "safetensors", "zarr"):
        command("export", path, "-o", folder / kind, "--format", kind, "--json")
    command("export", path, "-o", folder / "spans", "--format", "npy", "--position", "prompt_last")
    command("merge", path, "-o", folder / "merged", "--json")
    check_rows(folder / "merged")
    probe = folder / "probe"
    options = ("--label", "facts", "--positions", "prompt_last,response_last,answer_span")
    said = command(
        *("report", path, "-o", folder / "report", *options, "--draws", 100),
        *("--save-probe", probe, "--json"),
    )
    strict(said)
    strict(command("score", path, "--probe", probe, "--json", "--output", folder / "scores.csv"))
    for file in folder.rglob("*.json"):
        strict(file.read_bytes())
    for file in folder.rglob("*.jsonl"):
        for line in file.read_text("utf-8").splitlines():
            strict(line)
