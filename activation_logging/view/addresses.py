"""Addresses of answers that stay: the key, whose ``#`` a browser would take for itself."""

from __future__ import annotations


def address(key: str) -> str:
    """What an entry's page ends with: ``<sha256>`` or ``<sha256>.2``."""
    return key.replace("#", ".")


def key_of(address: str) -> str:
    """The reverse of :func:`address`."""
    return address.replace(".", "#")
