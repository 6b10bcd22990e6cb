"""All settings, parsed in one place.

:class:`Settings` is what a server was started with (environment variables and flags),
:class:`RequestOptions` what one request asks for in ``vllm_xargs``. Both are frozen,
both refuse what they do not understand by name.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from activation_logging.errors import RequestOptionError, SettingsError

Tokens = Literal["all", "response", "prompt"]
Dtype = Literal["auto", "float32", "float16", "bfloat16"]
FullPolicy = Literal["block", "drop"]

DEFAULT_LMDB_PATH = "lmdb_data/activations.lmdb"
MAX_TAGS_BYTES = 16 * 1024
MAX_TAGS = 64


@dataclass(frozen=True)
class Settings:
    """What a server logs, and where to.

    ``layers`` keeps the text that the user wrote; :func:`resolve_layers` turns it into
    numbers once the model's depth is known.
    """

    lmdb_path: str = DEFAULT_LMDB_PATH
    enabled: bool = True
    layers: str = "last"
    tokens: Tokens = "all"
    dtype: Dtype = "auto"
    full_policy: FullPolicy = "block"

    def __post_init__(self) -> None:
        _one_of("ACTIVATION_TOKENS", self.tokens, get_args(Tokens))
        _one_of("ACTIVATION_DTYPE", self.dtype, get_args(Dtype))
        _one_of("ACTIVATION_FULL_POLICY", self.full_policy, get_args(FullPolicy))
        if not self.lmdb_path:
            raise SettingsError("ACTIVATION_LMDB_PATH is empty; give the folder of the store")
        parse_layers(self.layers)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Read the ``ACTIVATION_*`` variables; an empty one counts as not set.

        Raises:
            SettingsError: a variable has a value that is not in the table of the README.
        """
        read = {name: environ.get(f"ACTIVATION_{name}", "").strip() for name in _ENVIRONMENT}
        enabled = read["LOGGING"] or "1"
        _one_of("ACTIVATION_LOGGING", enabled, ("0", "1"))
        given: dict[str, Any] = {_ENVIRONMENT[name]: value for name, value in read.items() if value}
        return cls(**{**given, "enabled": enabled == "1"})

    def to_json(self) -> str:
        """For the journey to worker processes, where the environment does not always follow."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """The settings that :meth:`to_json` wrote."""
        return cls(**json.loads(text))


_ENVIRONMENT = {
    "LMDB_PATH": "lmdb_path",
    "LOGGING": "enabled",
    "LAYERS": "layers",
    "TOKENS": "tokens",
    "DTYPE": "dtype",
    "FULL_POLICY": "full_policy",
}


DEFAULT_MODEL = "mistralai/Mistral-7B-Instruct-v0.2"


@dataclass(frozen=True)
class ServerSettings:
    """What ``uvicorn activation_logging.server:app`` may load, and how.

    ``preload`` is loaded at once; ``default`` is for requests that name no model. ``allowed``
    is None where any model may be asked for. ``vllm_args`` are flags as for ``vllm serve``.
    """

    preload: str | None = None
    allowed: frozenset[str] | None = None
    vllm_args: tuple[str, ...] = ()
    api_keys: tuple[str, ...] = ()

    @property
    def default(self) -> str:
        return self.preload or DEFAULT_MODEL

    def allows(self, model: str) -> bool:
        return self.allowed is None or model in self.allowed or model == self.preload

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> ServerSettings:
        """Read ``ACTIVATION_MODEL`` and its like.

        ``ACTIVATION_ALLOWED_MODELS`` is separated by commas, ``ACTIVATION_VLLM_ARGS`` split as a
        shell would; ``VLLM_API_KEY`` is vLLM's own.

        Raises:
            SettingsError: the arguments have an open quote.
        """
        names = environ.get("ACTIVATION_ALLOWED_MODELS", "").split(",")
        allowed = frozenset(name.strip() for name in names if name.strip())
        try:
            arguments = tuple(shlex.split(environ.get("ACTIVATION_VLLM_ARGS", "")))
        except ValueError as error:
            raise SettingsError(f"ACTIVATION_VLLM_ARGS: {error}") from None
        if any(part.replace("_", "-").startswith("--api-key") for part in arguments):
            raise SettingsError(
                "ACTIVATION_VLLM_ARGS: --api-key would guard a model once it is loaded, and "
                "nothing before; set VLLM_API_KEY"
            )
        key = environ.get("VLLM_API_KEY")
        return cls(
            preload=environ.get("ACTIVATION_MODEL", "").strip() or None,
            allowed=allowed or None,
            vllm_args=arguments,
            api_keys=(key,) if key else (),
        )


@dataclass(frozen=True)
class RequestOptions:
    """What one request asks for; ``None`` means "as the server was started"."""

    enabled: bool = True
    tokens: Tokens | None = None
    layers: tuple[int | Literal["last"], ...] | None = None
    tags: Mapping[str, str] | None = None

    @classmethod
    def parse(cls, extra_args: Mapping[str, Any] | None, *, allowed_layers: str) -> RequestOptions:
        """Pick the ``activation_*`` arguments out of ``vllm_xargs`` / ``extra_args``.

        Args:
            extra_args: the request's extra arguments; those of others are left alone.
            allowed_layers: the server's own ``layers`` setting; a request may ask for a subset.

        Raises:
            RequestOptionError: an unknown ``activation_*`` name or a value that makes no sense.
        """
        options = {k: v for k, v in (extra_args or {}).items() if k.startswith("activation_")}
        unknown = options.keys() - _REQUEST_OPTIONS
        if unknown:
            name = min(unknown)
            raise RequestOptionError(
                name, f"unknown option; known are {', '.join(sorted(_REQUEST_OPTIONS))}"
            )
        logging = options.get("activation_logging", "on")
        if logging not in ("on", "off"):
            raise RequestOptionError(
                "activation_logging", f"{_brief(logging)} is not 'on' or 'off'"
            )
        tokens = options.get("activation_tokens")
        if tokens is not None and tokens not in get_args(Tokens):
            raise RequestOptionError(
                "activation_tokens", f"{_brief(tokens)} is not one of {', '.join(get_args(Tokens))}"
            )
        return cls(
            enabled=logging == "on",
            tokens=tokens,
            layers=_request_layers(options.get("activation_layers"), allowed_layers),
            tags=_parse_tags(options.get("activation_tags")),
        )


_REQUEST_OPTIONS = frozenset(
    {"activation_logging", "activation_tokens", "activation_layers", "activation_tags"}
)


def parse_layers(text: str) -> tuple[int | Literal["last", "all"], ...]:
    """Parse ``last``, ``all``, or numbers and ranges such as ``8,15-20,last``.

    Raises:
        SettingsError: a part is neither; the message names it.
    """
    parts: list[int | Literal["last", "all"]] = []
    for raw in str(text).split(","):
        part = raw.strip().lower()
        first, dash, end = part.partition("-")
        if part == "last":
            parts.append("last")
        elif part == "all":
            parts.append("all")
        elif first.isdecimal() and not dash:
            parts.append(int(first))
        elif first.isdecimal() and end.isdecimal() and int(first) <= int(end) <= 10_000:
            parts.extend(range(int(first), int(end) + 1))
        else:
            raise SettingsError(
                f"layers: {_brief(raw)} is not 'last', 'all', a number or a range such as 15-20"
            )
    return tuple(dict.fromkeys(parts))


def resolve_layers(text: str, num_layers: int) -> tuple[int, ...]:
    """Numbers of the layers to log, ascending, for a model of ``num_layers`` decoder layers.

    Layer ``k`` is the residual stream after ``k`` decoder layers; ``num_layers`` itself, also
    called ``last``, is after the final norm. That is the numbering of ``hidden_states`` in
    Hugging Face transformers.

    Raises:
        SettingsError: the model has no such layer.
    """
    numbers: set[int] = set()
    for part in parse_layers(text):
        if part == "all":
            numbers.update(range(num_layers + 1))
        elif part == "last":
            numbers.add(num_layers)
        elif part <= num_layers:
            numbers.add(part)
        else:
            raise SettingsError(
                f"layer {part} does not exist: this model has layers 0 to {num_layers} "
                f"('last' is {num_layers})"
            )
    return tuple(sorted(numbers))


def _request_layers(value: Any, allowed: str) -> tuple[int | Literal["last"], ...] | None:
    if value is None:
        return None
    try:
        parts = parse_layers(",".join(map(str, value)) if isinstance(value, list) else value)
    except SettingsError as error:
        raise RequestOptionError("activation_layers", str(error)) from None
    server = parse_layers(allowed)
    if "all" in parts:
        return None
    wanted = tuple(part for part in parts if part != "all")
    if "all" not in server:
        missing = [part for part in wanted if part not in server]
        if missing:
            raise RequestOptionError(
                "activation_layers",
                f"layer {missing[0]} is not logged by this server, which was started with "
                f"{allowed!r}",
            )
    return wanted


def _parse_tags(value: Any) -> Mapping[str, str] | None:
    if value is None:
        return None
    name = "activation_tags"
    if isinstance(value, str):
        if len(value) > MAX_TAGS_BYTES:
            raise RequestOptionError(name, f"longer than {MAX_TAGS_BYTES} bytes")
        try:
            value.encode()
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise RequestOptionError(name, "not valid JSON; give an object of strings") from None
    if not isinstance(value, Mapping):
        raise RequestOptionError(name, "not a JSON object of strings")
    if not all(isinstance(k, str) and isinstance(v, str) for k, v in value.items()):
        raise RequestOptionError(name, "every key and value must be a string")
    if len(value) > MAX_TAGS:
        raise RequestOptionError(name, f"more than {MAX_TAGS} tags")
    try:
        size = sum(len(k.encode()) + len(v.encode()) for k, v in value.items())
    except UnicodeEncodeError:
        raise RequestOptionError(name, "half a character (a lone surrogate) is no text") from None
    if size > MAX_TAGS_BYTES:
        raise RequestOptionError(name, f"longer than {MAX_TAGS_BYTES} bytes")
    return dict(value)


def _one_of(name: str, value: str, allowed: Iterable[str]) -> None:
    if value not in allowed:
        raise SettingsError(f"{name}={_brief(value)} is not one of {', '.join(allowed)}")


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
