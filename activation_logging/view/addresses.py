"""Addresses that stay: of the pages, and of answers by their keys.

A browser would take the ``#`` of a key for itself.
"""

from __future__ import annotations

PREFIX = "/activations"
"""What the addresses of all pages begin with."""


def address(key: str) -> str:
    """What an entry's page ends with: ``<sha256>`` or ``<sha256>.2``, or ``<store>:<sha256>``."""
    name, colon, own = key.rpartition(":")
    return name + colon + own.replace("#", ".")


def key_of(address: str) -> str:
    """The reverse of :func:`address`."""
    name, colon, own = address.rpartition(":")
    return name + colon + own.replace(".", "#")
