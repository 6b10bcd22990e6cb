"""Protection from exposure: servers that anyone can reach, and tokens in texts."""

from __future__ import annotations

import ipaddress
import os
import sys
from base64 import b64encode, urlsafe_b64encode
from typing import TYPE_CHECKING
from urllib.parse import unquote_plus

from activation_logging.settings import TOKEN_FIELD

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from logging import Logger


_PIECE = 8
"""Number of consecutive characters of a token that a text must not contain."""


def without_token(text: str, token: str | None) -> str:
    """The text, or a replacement if it contains the token or a piece of it."""
    if token is None or not _shows(text, token):
        return text
    return f"the reason is withheld, because its text would show the {TOKEN_FIELD}"


def _shows(text: str, token: str) -> bool:
    """Whether a text contains a piece of the token: plain, quoted, escaped or base64-encoded."""
    plain, raw = _unescaped(text), token.encode()
    if token in text or _unescaped(token) in plain:
        return True
    # The base64 form of a token depends on its offset modulo 3. Its ends also depend on the
    # characters around the token, so they are left out.
    encoded = [
        encode(b" " * before + raw).decode()[4:-4]
        for encode in (b64encode, urlsafe_b64encode)
        for before in range(3)
    ]
    hidden = _pieces(token, _unescaped(token), *encoded)
    return not hidden.isdisjoint(_pieces(text, plain))


def _pieces(*texts: str) -> set[str]:
    return {
        text[start : start + _PIECE] for text in texts for start in range(len(text) - _PIECE + 1)
    }


def _unescaped(text: str) -> str:
    """The text without URL quoting (up to two levels) and without backslash escapes."""
    return unquote_plus(unquote_plus(text)).replace("\\", "")


def warn_if_open(host: str | None, *, has_key: bool, logger: Logger) -> None:
    """Log a warning if other machines can reach the server and it requires no API key.

    Args:
        host: the address that it listens on; None or an empty text for all addresses.
        has_key: whether it requires an API key.
        logger: receives the warning.
    """
    if has_key or is_loopback(host):
        return
    logger.warning(
        "no API key on %s: anyone who reaches this address can query the model, and can read and "
        "label every logged prompt, answer and activation under /v1/activations. Set "
        "VLLM_API_KEY, or listen on 127.0.0.1",
        host or "all addresses",
    )


def is_loopback(host: str | None) -> bool:
    """Whether only this machine can reach an address."""
    if not host:
        return False
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def uvicorn_host(
    argv: Sequence[str] = sys.argv, environment: Mapping[str, str] = os.environ
) -> str | None:
    """The address that ``uvicorn`` listens on, from its command line and environment.

    uvicorn does not tell it to the application. A Unix socket counts as loopback.
    """
    found = environment.get("UVICORN_HOST", "127.0.0.1")
    for index, part in enumerate(argv):
        name, equals, value = part.partition("=")
        if name == "--uds":
            return "127.0.0.1"
        if name == "--host":
            found = value if equals else "".join(argv[index + 1 : index + 2])
    return found
