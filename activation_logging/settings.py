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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

from activation_logging.errors import (
    ActivationLoggingError,
    RequestOptionError,
    SettingsError,
)
from activation_logging.keep import Keep
from activation_logging.locations import refuse_address
from activation_logging.placeholders import check_placeholders, filled
from activation_logging.probe_list import parse_probes
from activation_logging.score_options import SCORE_OPTIONS, ScoreOptions
from activation_logging.sites import (
    MAX_PARTS,
    Site,
    Wanted,
    not_logged,
    parse_layers,
    parse_sites,
    resolve,
)
from activation_logging.text import parse_size, shown

Tokens = Literal["all", "response", "prompt"]
Dtype = Literal["auto", "float32", "float16", "bfloat16"]
FullPolicy = Literal["block", "drop"]

DEFAULT_LMDB_PATH = "lmdb_data/activations.lmdb"
MAX_TAGS_BYTES = 16 * 1024
MAX_TAGS = 64
MAX_TOKEN = 4096
MIN_MAX_SIZE = 16_000_000
"""Smallest ceiling of a store, bytes: below it, there is room for next to nothing."""
TOKEN_FIELD = "auth_token"  # noqa: S105 - the field's name, not a secret

_TOKEN = re.compile(rf"[!-~]{{1,{MAX_TOKEN}}}")
_OURS = re.compile(r"\s*activation[-_]", re.IGNORECASE)
"""Names that are meant for us, other spellings included: none of them may be ignored."""


@contextmanager
def named(name: str) -> Iterator[None]:
    """Say in an error which setting it is of.

    Raises:
        SettingsError: whatever of ours was raised, after the setting's name.
    """
    try:
        yield
    except ActivationLoggingError as error:
        raise SettingsError(f"{name}: {error}") from None


@dataclass(frozen=True)
class Settings:
    """What a server logs, and where to.

    ``sites`` and ``layers`` keep the text that the user wrote; :func:`resolve_sites` turns it into
    sites once the model's depth is known. ``layers`` counts where ``sites`` is empty. ``lmdb_path``
    may have placeholders, see :meth:`store_path`. ``keep`` and
    ``max_size`` are texts too, see :attr:`keeping` and :attr:`ceiling`. ``probes`` is the list of
    :func:`.parse_probes`, ``probe_folder`` where others may be loaded from while the server runs.
    """

    lmdb_path: str = DEFAULT_LMDB_PATH
    enabled: bool = True
    layers: str = "last"
    sites: str = ""
    tokens: Tokens = "all"
    dtype: Dtype = "auto"
    full_policy: FullPolicy = "block"
    keep: str = "all"
    max_size: str = ""
    probes: str = ""
    probe_folder: str = ""

    def __post_init__(self) -> None:
        _one_of("ACTIVATION_TOKENS", self.tokens, get_args(Tokens))
        _one_of("ACTIVATION_DTYPE", self.dtype, get_args(Dtype))
        _one_of("ACTIVATION_FULL_POLICY", self.full_policy, get_args(FullPolicy))
        if not self.lmdb_path:
            raise SettingsError("ACTIVATION_LMDB_PATH is empty; give the folder of the store")
        with named("ACTIVATION_LMDB_PATH"):
            refuse_address(self.lmdb_path, "a store")
            check_placeholders(self.lmdb_path)
        with named(self.sites_variable):
            self.wanted()
        with named("ACTIVATION_PROBES"):
            parse_probes(self.probes)
        with named("ACTIVATION_KEEP"):
            self.keeping  # noqa: B018 - refuses an invalid one at once
        self.keeping.check_probes(probe.name for probe in parse_probes(self.probes))
        with named("ACTIVATION_MAX_SIZE"):
            self.ceiling  # noqa: B018

    @cached_property
    def keeping(self) -> Keep:
        """Which answers keep their rows."""
        return Keep.parse(self.keep)

    @cached_property
    def ceiling(self) -> int | None:
        """Largest size of the store, bytes; None for none."""
        if not self.max_size:
            return None
        size = parse_size(self.max_size)
        if size < MIN_MAX_SIZE:
            raise SettingsError(
                f"{shown(self.max_size)} has no room for answers; give {MIN_MAX_SIZE // 10**6}MB "
                "or more"
            )
        return size

    def store_path(self, engine: int | None = None) -> str:
        """The store of this host's front end, or of one of its engines; see :func:`.filled`."""
        return filled(self.lmdb_path, engine)

    @property
    def agreed(self) -> dict[str, str]:
        """What every host of a server must have the same, by the names of the variables.

        The paths of probes may differ; what is in them is compared otherwise.
        """
        names = ("LAYERS", "SITES", "TOKENS", "DTYPE", "KEEP")
        return {f"ACTIVATION_{name}": getattr(self, _ENVIRONMENT[name]) for name in names}

    @property
    def sites_variable(self) -> str:
        """The variable that says what is logged."""
        return "ACTIVATION_SITES" if self.sites else "ACTIVATION_LAYERS"

    def wanted(self, num_layers: int | None = None) -> tuple[Wanted, ...]:
        """The list of sites, parsed; see :func:`.parse_sites`."""
        if self.sites:
            return parse_sites(self.sites, num_layers)
        return parse_layers(self.layers, num_layers)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Read the ``ACTIVATION_*`` variables; an empty one counts as not set.

        Raises:
            SettingsError: a variable has a value that is not in the table of the README.
        """
        read = {name: environ.get(f"ACTIVATION_{name}", "").strip() for name in _ENVIRONMENT}
        enabled = read["LOGGING"] or "1"
        _one_of("ACTIVATION_LOGGING", enabled, ("0", "1"))
        if read["SITES"] and read["LAYERS"]:
            raise SettingsError(
                "ACTIVATION_SITES and ACTIVATION_LAYERS are both set; give one: "
                "ACTIVATION_LAYERS=8,last is short for ACTIVATION_SITES=resid@8;last"
            )
        given: dict[str, Any] = {_ENVIRONMENT[name]: value for name, value in read.items() if value}
        return cls(**{**given, "enabled": enabled == "1"})


def given_lmdb_path(environ: Mapping[str, str] = os.environ) -> str | None:
    """The store that ``ACTIVATION_LMDB_PATH`` names; None where it is not set.

    Raises:
        SettingsError: it has an unknown placeholder.
    """
    path = environ.get("ACTIVATION_LMDB_PATH", "").strip()
    return Settings(lmdb_path=path).store_path() if path else None


_ENVIRONMENT = {
    "LMDB_PATH": "lmdb_path",
    "LOGGING": "enabled",
    "LAYERS": "layers",
    "SITES": "sites",
    "TOKENS": "tokens",
    "DTYPE": "dtype",
    "FULL_POLICY": "full_policy",
    "KEEP": "keep",
    "MAX_SIZE": "max_size",
    "PROBES": "probes",
    "PROBE_FOLDER": "probe_folder",
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


def resolve_sites(settings: Settings, num_layers: int) -> tuple[Site, ...]:
    """The sites to log, ascending by code, for a model of ``num_layers`` decoder layers.

    Raises:
        SettingsError: the model has no such layer; the message names it.
    """
    return resolve(settings.wanted(num_layers), num_layers)


@dataclass(frozen=True)
class RequestOptions:
    """What one request asks for; ``None`` means "as the server was started"."""

    enabled: bool = True
    tokens: Tokens | None = None
    sites: tuple[Wanted, ...] | None = None
    tags: Mapping[str, str] | None = None
    scores: ScoreOptions = field(default_factory=ScoreOptions)

    @classmethod
    def parse(
        cls,
        extra_args: Mapping[str, Any] | None,
        *,
        settings: Settings,
        num_layers: int | None = None,
    ) -> RequestOptions:
        """Pick the ``activation_*`` arguments out of ``vllm_xargs`` / ``extra_args``.

        Args:
            extra_args: the request's extra arguments; those of others are left alone.
            settings: the server's own; a request may ask for a part of its sites.
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
            raise RequestOptionError("activation_logging", f"{shown(logging)} is not 'on' or 'off'")
        tokens = options.get("activation_tokens")
        if tokens is not None and tokens not in get_args(Tokens):
            raise RequestOptionError(
                "activation_tokens", f"{shown(tokens)} is not one of {', '.join(get_args(Tokens))}"
            )
        scores = ScoreOptions.parse(options)
        if scores and logging == "off":
            raise RequestOptionError(
                "activation_logging",
                "what is not logged is not scored; leave this out, or activation_scores and "
                "activation_stop",
            )
        return cls(
            enabled=logging == "on",
            tokens=tokens,
            sites=_request_sites(options, settings, num_layers),
            tags=_parse_tags(options.get("activation_tags")),
            scores=scores,
        )

    def chosen(self, logged: Sequence[Site], num_layers: int) -> tuple[Site, ...]:
        """Those of the server's sites that this request logs, in the server's order."""
        if self.sites is None:
            return tuple(logged)
        asked = frozenset(resolve(self.sites, num_layers))
        return tuple(site for site in logged if site in asked)


_SITE_OPTIONS: Mapping[str, Callable[[str, int | None], tuple[Wanted, ...]]] = {
    "activation_layers": parse_layers,
    "activation_sites": parse_sites,
}
_REQUEST_OPTIONS = frozenset(
    {"activation_logging", "activation_tokens", "activation_tags", *_SITE_OPTIONS, *SCORE_OPTIONS}
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


def _request_sites(
    options: Mapping[str, Any], settings: Settings, num_layers: int | None
) -> tuple[Wanted, ...] | None:
    given = [name for name in _SITE_OPTIONS if options.get(name) is not None]
    if not given:
        return None
    name = given[-1]
    if len(given) > 1:
        raise RequestOptionError(name, f"give this or {given[0]}, which is short for it")
    try:
        asked = _SITE_OPTIONS[name](_sites_text(options[name]), num_layers)
    except SettingsError as error:
        raise RequestOptionError(name, str(error)) from None
    missing = not_logged(asked, settings.wanted(num_layers))
    if missing is not None:
        started = shown(settings.sites or settings.layers)
        raise RequestOptionError(
            name, f"{missing} is not logged by this server, which was started with {started}"
        )
    return asked


def _sites_text(value: Any) -> str:
    """A request's layers or sites as a text, whether it came as one, a number, or a list of both.

    Raises:
        SettingsError: it is something else.
    """
    items = value if isinstance(value, (list, tuple)) else [value]
    if len(items) > MAX_PARTS:
        raise SettingsError(f"more than {MAX_PARTS} numbers or ranges of layers")
    for item in items:
        number = isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 10**40
        if not number and not isinstance(item, str):
            raise SettingsError(f"{shown(item)} is not the number of a layer; give one such as 15")
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
        raise SettingsError(f"{name}={shown(value)} is not one of {', '.join(allowed)}")


def _is_ours(name: Any) -> bool:
    return isinstance(name, str) and _OURS.match(name) is not None


_MAX_SHOWN = 80


def _name(name: str) -> str:
    """An argument's name as an error shows it: short, and in ASCII."""
    return ascii(name[:_MAX_SHOWN])[1:-1][:_MAX_SHOWN]
