"""The server under test, looked at before anything is generated."""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from activation_logging.errors import BenchmarkError
from activation_logging.extras import require
from activation_logging.text import brief

if TYPE_CHECKING:
    from inspect_ai.model import Model
    from openai import OpenAI

Role = Literal["server", "judge", "generator"]

RETRIES: dict[Role, dict[str, Any]] = {
    "server": {"max_retries": 4, "attempt_timeout": 900},
    "judge": {"max_retries": 4, "attempt_timeout": 120, "timeout": 300},
}
"""How long Inspect tries before a request counts as failed; seconds."""
SERVICE = "served"
"""Inspect's name for the endpoint: models are ``openai-api/served/<model>``."""

_KEYS: dict[Role, str] = {
    "server": "VLLM_API_KEY",
    "judge": "JUDGE_API_KEY",
    "generator": "GENERATOR_API_KEY",
}
_TIMEOUT_S = 15.0
_PROBE_TIMEOUT_S = 600.0  # a server that loads models on request may load one now


class Endpoint(NamedTuple):
    """An OpenAI-compatible server and what it turned out to be.

    ``is_vllm``: it takes ``request_id`` and ``vllm_xargs``, which other servers may refuse.
    """

    base_url: str
    model: str
    is_vllm: bool


def api_key(role: Role = "server") -> str:
    """The key for a server behind one; each goes to its own server and to no other."""
    return os.environ.get(_KEYS[role]) or "EMPTY"


def openai_package() -> Any:
    """The package ``openai``.

    Raises:
        ExtraMissing: it is not installed.
    """
    require("eval", "openai")
    import openai

    return openai


def client(
    base_url: str,
    *,
    role: Role = "server",
    key: str | None = None,
    timeout: float = _TIMEOUT_S,
    retries: int = 1,
) -> OpenAI:
    """OpenAI's own client, for the few calls that Inspect does not make.

    ``key`` is the server's, where it is not the role's.

    Raises:
        BenchmarkError: the address is invalid.
        ExtraMissing: the package is not installed.
    """
    if not base_url.startswith(("http://", "https://")):
        raise BenchmarkError(f"{base_url!r} is not an address such as http://localhost:8000/v1")
    return openai_package().OpenAI(
        base_url=base_url, api_key=key or api_key(role), timeout=timeout, max_retries=retries
    )


def inspect_model(name: str, **options: Any) -> Model:
    """Inspect's handle of a model.

    The first one that a process makes lists Inspect's hooks on standard output. It goes to
    standard error, because ``--json`` prints for machines.

    Raises:
        ExtraMissing: Inspect is not installed.
    """
    require("eval", "inspect_ai")
    from inspect_ai.model import get_model

    with redirect_stdout(sys.stderr):
        return get_model(name, **options)


def served_model(
    model: str, base_url: str, *, role: Role = "server", max_connections: int | None = None
) -> Model:
    """Inspect's handle of a model on an OpenAI-compatible server.

    Raises:
        ExtraMissing: Inspect is not installed.
    """
    require("eval", "inspect_ai")
    from inspect_ai.model import GenerateConfig

    return inspect_model(
        f"openai-api/{SERVICE}/{model}",
        base_url=base_url,
        api_key=api_key(role),
        config=GenerateConfig(max_connections=max_connections, **RETRIES[role]),
        memoize=False,
        max_retries=0,  # of OpenAI's client: retrying is Inspect's
    )


def check_endpoint(base_url: str, model: str, *, role: Role = "server") -> Endpoint:
    """Make sure that the server answers and serves this model.

    Args:
        base_url: ending in ``/v1``.
        model: as requests will name it.
        role: what the sentence calls it, and whose key is sent.

    Raises:
        BenchmarkError: it does not, in one sentence that says what to do.
    """
    openai = openai_package()
    try:
        listed = list(client(base_url, role=role).models.list())
    except openai.APIConnectionError:
        remedy = f"; start one with: python -m activation_logging.vllm_serve --model {model}"
        raise BenchmarkError(
            f"no {role} answers at {base_url}{remedy if role == 'server' else ''}"
        ) from None
    except openai.AuthenticationError:
        raise BenchmarkError(
            f"the {role} at {base_url} wants an API key; set {_KEYS[role]}"
        ) from None
    except openai.APIError as error:
        raise BenchmarkError(
            f"the {role} at {base_url} does not list its models: {brief(error)}"
        ) from None
    names = [entry.id for entry in listed]
    is_vllm = any(entry.owned_by == "vllm" for entry in listed)
    if model not in names:
        _probe(base_url, model, names, role, is_vllm=is_vllm)
    return Endpoint(base_url, model, is_vllm)


def _probe(base_url: str, model: str, names: list[str], role: Role, *, is_vllm: bool) -> None:
    """Ask an unlisted model for one token: some servers load what they are asked for."""
    openai = openai_package()
    extra: dict[str, Any] = {"vllm_xargs": {"activation_logging": "off"}} if is_vllm else {}
    try:
        client(base_url, role=role, timeout=_PROBE_TIMEOUT_S, retries=0).chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "Hello"}],
            max_tokens=1,
            extra_body=extra,
        )
    except openai.APIError as error:
        serves = f"it serves {', '.join(names)}" if names else "it lists none"
        raise BenchmarkError(
            f"the {role} at {base_url} does not serve the model {model!r}: {serves} "
            f"({brief(error)})"
        ) from None
