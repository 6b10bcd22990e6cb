"""All settings, parsed in one place.

:class:`Settings` is what a server was started with (environment variables and flags),
:class:`RequestOptions` what one request asks for in ``vllm_xargs``. Both are frozen,
both refuse what they do not understand by name.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from activation_logging.errors import RequestOptionError, SettingsError

Tokens = Literal["all", "response", "prompt"]
Dtype = Literal["auto", "float32", "float16", "bfloat16"]
FullPolicy = Literal["block", "drop"]

DEFAULT_LMDB_PATH = "lmdb_data/activations.lmdb"
MAX_TAGS_BYTES = 16 * 1024
MAX_TAGS = 64
MAX_LAYER = 1000
"""No model is deeper, so that a range cannot grow without end."""
MAX_LAYERS_TEXT = 4096
MAX_LAYERS_PARTS = 256
MAX_TOKEN = 4096
TOKEN_FIELD = "auth_token"  # noqa: S105 - the field's name, not a secret

_NUMBERS = re.compile(r"([0-9]{1,40})(?:-([0-9]{1,40}))?")
_TOKEN = re.compile(rf"[!-~]{{1,{MAX_TOKEN}}}")
_OURS = re.compile(r"\s*activation[-_]", re.IGNORECASE)
"""Names that are meant for us, other spellings included: none of them may be ignored."""


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
        try:
            parse_layers(self.layers)
        except SettingsError as error:
            raise SettingsError(f"ACTIVATION_LAYERS: {error}") from None

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
    def parse(
        cls,
        extra_args: Mapping[str, Any] | None,
        *,
        allowed_layers: str,
        num_layers: int | None = None,
    ) -> RequestOptions:
        """Pick the ``activation_*`` arguments out of ``vllm_xargs`` / ``extra_args``.

        Args:
            extra_args: the request's extra arguments; those of others are left alone.
            allowed_layers: the server's own ``layers`` setting; a request may ask for a subset.
            num_layers: the model's decoder layers, where they are known: no layer is beyond them.

        Raises:
            RequestOptionError: an unknown ``activation_*`` name or an invalid value.
        """
        options = {name: value for name, value in (extra_args or {}).items() if _is_ours(name)}
        unknown = options.keys() - _REQUEST_OPTIONS
        if unknown:
            raise RequestOptionError(
                _name(min(unknown)),
                f"unknown option; known are {', '.join(sorted(_REQUEST_OPTIONS))}",
            )
        logging = options.get("activation_logging", "on")
        if logging not in ("on", "off"):
            raise RequestOptionError(
                "activation_logging", f"{_shown(logging)} is not 'on' or 'off'"
            )
        tokens = options.get("activation_tokens")
        if tokens is not None and tokens not in get_args(Tokens):
            raise RequestOptionError(
                "activation_tokens", f"{_shown(tokens)} is not one of {', '.join(get_args(Tokens))}"
            )
        return cls(
            enabled=logging == "on",
            tokens=tokens,
            layers=_request_layers(options.get("activation_layers"), allowed_layers, num_layers),
            tags=_parse_tags(options.get("activation_tags")),
        )


_REQUEST_OPTIONS = frozenset(
    {"activation_logging", "activation_tokens", "activation_layers", "activation_tags"}
)


def refuse_misplaced(body: Mapping[str, Any]) -> None:
    """Refuse ``activation_*`` arguments beside ``vllm_xargs``, where they would be ignored.

    Raises:
        RequestOptionError: there is one at the top level of the body.
    """
    for name in filter(_is_ours, body):
        raise RequestOptionError(
            _name(name),
            "put it into vllm_xargs; at the top level of the body it would be ignored",
        )


def check_token(value: Any) -> str | None:
    """The ``auth_token`` of a request, which must be valid in an HTTP header.

    Raises:
        RequestOptionError: it is invalid; the message does not repeat it.
    """
    if value is None:
        return None
    if not isinstance(value, str) or not _TOKEN.fullmatch(value):
        raise RequestOptionError(
            TOKEN_FIELD,
            f"not a token; give a string of 1 to {MAX_TOKEN} printable ASCII characters "
            "without blanks",
        )
    return value


def parse_layers(text: str) -> tuple[int | Literal["last", "all"], ...]:
    """Parse ``last``, ``all``, or numbers and ranges such as ``8,15-20,last``.

    Raises:
        SettingsError: a part is neither, or no model has that layer; the message names it.
    """
    return _expand(_layer_parts(text), None)


def resolve_layers(text: str, num_layers: int) -> tuple[int, ...]:
    """Numbers of the layers to log, ascending, for a model of ``num_layers`` decoder layers.

    Layer ``k`` is the residual stream after ``k`` decoder layers; ``num_layers`` itself, also
    called ``last``, is after the final norm. That is the numbering of ``hidden_states`` in
    Hugging Face transformers.

    Raises:
        SettingsError: the model has no such layer.
    """
    numbers: set[int] = set()
    for part in _expand(_layer_parts(text), num_layers):
        if part == "all":
            numbers.update(range(num_layers + 1))
        else:
            numbers.add(num_layers if part == "last" else part)
    return tuple(sorted(numbers))


def _layer_parts(text: str) -> list[range | Literal["last", "all"]]:
    """The parts of a text; ranges stay ranges, however long they are.

    Raises:
        SettingsError: a part is invalid, or the text is too long.
    """
    if len(text) > MAX_LAYERS_TEXT or text.count(",") >= MAX_LAYERS_PARTS:
        raise SettingsError(
            f"the list of layers is too long; give up to {MAX_LAYERS_PARTS} numbers or ranges "
            f"in {MAX_LAYERS_TEXT} characters"
        )
    return [_layer_part(raw) for raw in text.split(",")]


def _layer_part(raw: str) -> range | Literal["last", "all"]:
    part = raw.strip().lower()
    if part == "last":
        return "last"
    if part == "all":
        return "all"
    numbers = _NUMBERS.fullmatch(part)
    if numbers:
        first = int(numbers[1])
        end = int(numbers[2] or first)
        if first <= end:
            return range(first, end + 1)
    raise SettingsError(
        f"{_shown(raw)} is not 'last', 'all', a number of a layer, or a range of them such as 15-20"
    )


def _expand(
    parts: Iterable[range | Literal["last", "all"]], num_layers: int | None
) -> tuple[int | Literal["last", "all"], ...]:
    """The parts as numbers, each once.

    Raises:
        SettingsError: the model, or any model if its depth is not known, has no such layer.
    """
    deepest = MAX_LAYER if num_layers is None else num_layers
    found: dict[int | Literal["last", "all"], None] = {}
    for part in parts:
        if not isinstance(part, range):
            found[part] = None
        elif part[-1] <= deepest:
            found.update(dict.fromkeys(part))
        else:
            why = (
                f"no model has more than {MAX_LAYER}"
                if num_layers is None
                else f"this model has layers 0 to {num_layers} ('last' is {num_layers})"
            )
            raise SettingsError(f"layer {max(part[0], deepest + 1)} does not exist: {why}")
    return tuple(found)


def _request_layers(
    value: Any, allowed: str, num_layers: int | None
) -> tuple[int | Literal["last"], ...] | None:
    if value is None:
        return None
    name = "activation_layers"
    try:
        asked = _expand(_layer_parts(_layers_text(value)), num_layers)
    except SettingsError as error:
        raise RequestOptionError(name, str(error)) from None
    server = frozenset(parse_layers(allowed))
    wanted = tuple(part for part in asked if part != "all")
    missing = [part for part in wanted if part not in server]
    if missing and "all" not in server:
        raise RequestOptionError(
            name,
            f"layer {missing[0]} is not logged by this server, which was started with {allowed!r}",
        )
    return None if "all" in asked else wanted


def _layers_text(value: Any) -> str:
    """A request's layers as a text, whether it came as one, as a number, or as a list of both.

    Raises:
        SettingsError: it is something else.
    """
    items = value if isinstance(value, (list, tuple)) else [value]
    if len(items) > MAX_LAYERS_PARTS:
        raise SettingsError(f"more than {MAX_LAYERS_PARTS} numbers or ranges of layers")
    for item in items:
        number = isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 10**40
        if not number and not isinstance(item, str):
            raise SettingsError(f"{_shown(item)} is not the number of a layer; give one such as 15")
    return ",".join(map(str, items))


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
        raise SettingsError(f"{name}={_shown(value)} is not one of {', '.join(allowed)}")


def _is_ours(name: Any) -> bool:
    return isinstance(name, str) and _OURS.match(name) is not None


_MAX_SHOWN = 80


def _name(name: str) -> str:
    """An argument's name as an error shows it: short, and in ASCII."""
    return ascii(name[:_MAX_SHOWN])[1:-1][:_MAX_SHOWN]


def _shown(value: Any) -> str:
    """A value as an error shows it: short, and made of nothing that can be deep or endless."""
    if isinstance(value, str):
        text = repr(value[:_MAX_SHOWN])
        whole = len(value) <= _MAX_SHOWN and len(text) <= _MAX_SHOWN
        return text if whole else f"{text[:_MAX_SHOWN]}..."
    if value is None or isinstance(value, (bool, float)):
        return repr(value)
    if isinstance(value, int) and abs(value) < 10**_MAX_SHOWN:
        return repr(value)
    return f"a value of type {type(value).__name__}"
