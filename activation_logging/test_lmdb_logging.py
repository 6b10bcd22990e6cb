"""Check a running server: send a request, and prove that it was logged correctly.

    python activation_logging/test_lmdb_logging.py [--port 8000] [--lmdb_path PATH]

The proof needs no copy of the model. The answer's tokens are sent again as a prompt that may not
use the prefix cache. The rows of the first entry were computed token by token during the answer,
those of the second in one prefill. Each row must equal the row of the same token in the second
entry, and be closer to it than to the rows of the neighbouring tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Python puts this script's folder first on the import path. Replace it by the package's parent.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np

from activation_logging import Entry, open_store
from activation_logging.errors import ActivationLoggingError
from activation_logging.placeholders import filled
from activation_logging.printable import lines
from activation_logging.settings import DEFAULT_LMDB_PATH

PROMPT = "Please tell me, in a few words, what the capital of France is. (check {})\nAnswer:"
MAX_TOKENS = 16
WAIT_S = 30
MODEL_WAIT_S = 1800
"""A server that loads models on request may have to download the model first."""

TOLERANCES = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1}
"""Largest relative difference per row between the two computations, by stored type."""


class CheckFailed(Exception):
    """A check failed. The text says what is wrong."""


def main() -> int:
    args = _parser().parse_args()
    try:
        check(args)
    except (CheckFailed, ActivationLoggingError) as error:
        print(f"FAILED: {lines(error)}", file=sys.stderr)
        return 1
    return 0


def check(args: argparse.Namespace) -> None:
    """Run all checks, and print each one that passes.

    Raises:
        CheckFailed: a check failed. The later ones are not run.
    """
    url = f"http://{args.host}:{args.port}/v1"
    model = args.model or _first_model(url)
    prompt = PROMPT.format(uuid.uuid4().hex[:8])
    body: dict[str, Any] = {"model": model, "prompt": prompt, "max_tokens": MAX_TOKENS}
    if args.auth_token:
        body["auth_token"] = args.auth_token
    answer = _post(f"{url}/completions", {**body, "temperature": 0})
    text = answer["choices"][0]["text"]
    print(f"ok: {lines(model)} answered {text!r}")

    entry = _find(args.lmdb_path, answer["id"])
    if entry.prompt != prompt or entry.response != text:
        raise CheckFailed(f"the entry of {answer['id']} holds another prompt or answer")
    if not any(e.key == entry.key for e in _entries_for(args.lmdb_path, prompt)):
        raise CheckFailed("the entry's key is not the SHA-256 of its prompt")
    print(f"ok: logged under {entry.key}")

    rows = entry.activations
    expected = len(entry.prompt_token_ids) + len(entry.response_token_ids) - 1
    if list(entry.positions) != list(range(expected)):
        raise CheckFailed(
            f"{len(entry.positions)} rows, expected {expected}; this check needs a server that "
            "logs all tokens (ACTIVATION_TOKENS=all)"
        )
    if rows.shape != (expected, entry.hidden_size):
        raise CheckFailed(f"the activations have shape {rows.shape}")
    if not np.isfinite(rows).all():
        raise CheckFailed("some activations are not finite")
    print(f"ok: {rows.shape[0]} rows of {rows.shape[1]}, {entry.dtype}, all finite")

    ids = [*entry.prompt_token_ids, *entry.response_token_ids]
    again = {**body, "prompt": ids, "max_tokens": 1, "cache_salt": uuid.uuid4().hex}
    second = _find(args.lmdb_path, _post(f"{url}/completions", again)["id"])
    worst = compare(rows, second.activations[:expected], TOLERANCES[entry.dtype])
    print(f"ok: rows belong to their tokens (computed again: relative difference {worst:.1e})")
    print("activation logging works")


def compare(rows: Any, again: Any, tolerance: float) -> float:
    """The largest relative difference between rows and the same positions computed again.

    Args:
        rows: ``[rows, hidden]``.
        again: the same positions from the second computation, ``[rows, hidden]``.
        tolerance: largest allowed relative difference per row.

    Raises:
        CheckFailed: a row differs by more, or is as close to the next token's row.
    """
    rows, again = rows.astype(np.float64), again.astype(np.float64)
    norms = np.linalg.norm(again, axis=1)
    own = np.linalg.norm(rows - again, axis=1) / norms
    if own.max() > tolerance:
        raise CheckFailed(
            f"row {int(own.argmax())} differs by {own.max():.1e} from the same token computed "
            "again: the rows do not belong to these tokens"
        )
    neighbours = np.linalg.norm(rows[:-1] - again[1:], axis=1) / norms[1:]
    if (neighbours <= own[:-1]).any():
        raise CheckFailed("a row is as close to the next token as to its own: rows are shifted")
    return float(own.max())


def _find(path: str, request_id: str) -> Entry:
    """Wait for the complete entry of a request. The server writes it shortly after the answer."""
    deadline = time.monotonic() + WAIT_S
    problem = f"nothing was logged for {request_id} within {WAIT_S} s"
    while time.monotonic() < deadline:
        try:
            store = open_store(path)
        except FileNotFoundError as error:
            problem = f"{error}; give the server's ACTIVATION_LMDB_PATH as --lmdb_path"
        else:
            for entry in store.for_request(request_id):
                if entry.status == "complete":
                    return entry
                problem = f"the entry of {request_id} is {entry.status}: {entry.status_reason}"
        time.sleep(0.1)
    raise CheckFailed(problem)


def _entries_for(path: str, prompt: str) -> list[Entry]:
    with open_store(path) as store:
        return store.for_prompt(prompt)


def _first_model(url: str) -> str:
    request = urllib.request.Request(f"{url}/models")  # noqa: S310 - http
    models = _request(request, timeout=30)["data"]
    return str(models[0]["id"])


def _post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)  # noqa: S310 - http
    return _request(request, timeout=MODEL_WAIT_S)


def _request(request: urllib.request.Request, timeout: float) -> dict[str, Any]:
    key = os.environ.get("VLLM_API_KEY") or os.environ.get("OPENAI_API_KEY")
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:  # noqa: S310 - http
            found: dict[str, Any] = json.load(answer)
            return found
    except urllib.error.HTTPError as error:
        text = error.read().decode(errors="replace")[:500]
        raise CheckFailed(f"{request.full_url} answered {error.code}: {text}") from None
    except (OSError, ValueError) as error:
        raise CheckFailed(
            f"no server answers at {request.full_url} ({error}); start one, or give --host and "
            "--port"
        ) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", help="model to ask (default: the served one)")
    parser.add_argument(
        "--auth_token", help="Hugging Face token, for a server that loads gated models on request"
    )
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument(
        "--lmdb_path",
        default=filled(os.environ.get("ACTIVATION_LMDB_PATH") or DEFAULT_LMDB_PATH),
        help="the server's store (default: ACTIVATION_LMDB_PATH, else %(default)s)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
