"""What strangers could see: whether they reach the server, and whether a token shows in a text."""

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
"""So many characters of a token in a row are too many to be shown."""


def without_token(text: str, token: str | None) -> str:
    """A text, or a sentence in its place where it shows the token or a piece of it."""
    if token is None or not _shows(text, token):
        return text
    return f"the reason is withheld, because its text would show the {TOKEN_FIELD}"


def _shows(text: str, token: str) -> bool:
    """Whether a text has a piece of the token, be it quoted, escaped or encoded."""
    plain, raw = _unescaped(text), token.encode()
    if token in text or _unescaped(token) in plain:
        return True
    # What base64 makes of a token depends on what stands before it; its ends also on what is near.
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
    """A text as it was before it was quoted for a URL, once or twice, or by repr or JSON."""
    return unquote_plus(unquote_plus(text)).replace("\\", "")


def warn_if_open(host: str | None, *, has_key: bool, logger: Logger) -> None:
    """Log a warning if the server listens on more than this machine and asks for no key.

    Args:
        host: the address that it listens on; None or an empty one stands for all.
        has_key: whether it asks for an API key.
        logger: where the warning goes.
    """
    if has_key or is_loopback(host):
        return
    logger.warning(
        "no API key on %s: whoever reaches this address can ask the model, and read and label "
        "every prompt, answer and activation that is logged, under /v1/activations. Set "
        "VLLM_API_KEY, or listen on 127.0.0.1",
        host or "all addresses",
    )


def is_loopback(host: str | None) -> bool:
    """Whether an address can be reached from this machine alone."""
    if not host:
        return False
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def uvicorn_host(
    argv: Sequence[str] = sys.argv, environment: Mapping[str, str] = os.environ
) -> str | None:
    """The address that ``uvicorn`` was told to listen on, which an application is not told of.

    A Unix socket counts as loopback.
    """
    found = environment.get("UVICORN_HOST", "127.0.0.1")
    for index, part in enumerate(argv):
        name, equals, value = part.partition("=")
        if name == "--uds":
            return "127.0.0.1"
        if name == "--host":
            found = value if equals else "".join(argv[index + 1 : index + 2])
    return found
