"""What lies where in the LMDB file: names, keys and values, and nothing else.

One environment holds the unnamed main database and a few named ones. Every key is a
byte string, every value JSON (UTF-8) or raw bytes, so that the plain ``lmdb`` package and
ten lines of any language read a store::

    (main)        <sha256 of the prompt>[#n]   -> the entry, JSON
    ~log          sequence number, 8 bytes BE  -> key of the entry, in order of writing
    ~repeats      <sha256>                     -> next n for that prompt, decimal
    ~requests     request id (duplicates)      -> keys of its entries, one per choice
    ~captures     capture id                   -> which rows belong to it, JSON
    ~segments     segment id                   -> number of captures that use it, decimal
    ~rows         segment id + layer, 2 bytes BE -> rows, C order, little endian
    ~evaluations  <entry key> NUL <name>       -> the label, JSON
    ~writers      writer id                    -> who wrote, and its counters, JSON
    ~index        term (duplicates)            -> places of the entries that it is true of
    ~meta         "format"                     -> {"format": ..., "version": ...}
                  "totals"                     -> rows, and bytes by layer, JSON

Entries sit in the main database so that ``txn.get(sha256_hex)`` finds one; the names of
the others begin with ``~``, which sorts behind every hexadecimal key. An entry's JSON begins with
what :class:`Head` names, so that neither reading a layer nor counting parses the rest.
Stores of version 1 have no ``~index`` and no totals; :mod:`.index` says what terms are.

An entry is written by vLLM's front end, a capture and its segments by the worker that ran
the model; ``entry["capture"]`` joins the two. A *segment* is a run of consecutive rows that
one request computed. A capture lists slices of segments, because a prompt served from
vLLM's prefix cache shares the rows of the request that computed it.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

from activation_logging.errors import StoreCorrupt
from activation_logging.strict_json import dumps

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMAT_NAME = "activation-logging"
FORMAT_VERSION = 2
WITHOUT_INDEX = 1
"""The version that activation-logging 0.1 wrote: as this one, but for the index and totals."""

MAIN = b""
META, LOG, REPEATS, REQUESTS = b"~meta", b"~log", b"~repeats", b"~requests"
CAPTURES, SEGMENTS, ROWS = b"~captures", b"~segments", b"~rows"
EVALUATIONS, WRITERS, INDEX = b"~evaluations", b"~writers", b"~index"
DATABASES = (META, LOG, REPEATS, REQUESTS, CAPTURES, SEGMENTS, ROWS, EVALUATIONS, WRITERS, INDEX)
# Not dupfixed as well, which takes less room: compacting such a database kills LMDB 0.9.36.
DUPLICATES = frozenset({REQUESTS, INDEX})

FORMAT_KEY, TOTALS_KEY = b"format", b"totals"


def databases(version: int) -> tuple[bytes, ...]:
    """The databases of a store of that version."""
    return tuple(name for name in DATABASES if version > WITHOUT_INDEX or name != INDEX)


FIRST_NAME = b"~"
"""Where the keys of entries end and the names of databases begin."""

_ENTRY_KEY = re.compile("[0-9a-f]{64}(#[1-9][0-9]{0,18})?")
WRITER_ID_BYTES = 8
"""A segment's id begins with that of its writer."""

_HEAD = re.compile(
    rb'\{"capture":"([\w:.-]+)","rows":(\d{1,18}),"created":([\d.e+]{1,30}),"sequence":(\d{1,20}),'
    rb'"num_prompt":(\d{1,18}),"num_response":(\d{1,18}),(?:"finish_reason":"([a-z_]+)",)?("error":)?'
)
_WORD = re.compile("[a-z_]+")

MAX_KEY = 511
"""LMDB's limit for keys and for duplicate values, in bytes."""


def prompt_key(prompt: str) -> str:
    """Lower-case hex SHA-256 of the prompt's UTF-8 text.

    Lone surrogates, which UTF-8 proper cannot hold, are encoded the way Python's
    ``surrogatepass`` does.
    """
    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()


def entry_key(key: object) -> bytes | None:
    """An entry's key as it lies in the main database; None for what cannot be one."""
    return key.encode() if isinstance(key, str) and _ENTRY_KEY.fullmatch(key) else None


def id_key(identifier: str) -> bytes:
    """A request or capture id as a key; ids too long for LMDB are hashed."""
    raw = identifier.encode("utf-8", "surrogatepass")
    if 0 < len(raw) <= MAX_KEY:
        return raw
    return b"sha256:" + hashlib.sha256(raw).hexdigest().encode()


def sequence_key(number: int) -> bytes:
    """Place in the log, so that numbers sort as bytes do."""
    return struct.pack(">Q", number)


def sequence_number(key: bytes) -> int:
    """The reverse of :func:`sequence_key`.

    Raises:
        StoreCorrupt: it is no such key.
    """
    if len(key) != 8:
        raise StoreCorrupt("the order of entries has a number that cannot be")
    return int.from_bytes(key, "big")


def rows_key(segment: bytes, layer: int) -> bytes:
    """Where one layer of a segment lies."""
    return segment + struct.pack(">H", layer)


def rows_layer(key: bytes) -> int:
    """The layer of a :func:`rows_key`."""
    return int.from_bytes(key[-2:], "big")


def evaluation_key(entry: str, name: str) -> bytes:
    """Where one evaluator's label of an entry lies; an empty name gives the prefix of all."""
    return f"{entry}\0{name}".encode()


class Head(NamedTuple):
    """What stands in front of an entry's record, read without parsing the rest.

    ``capture`` names its rows, ``rows`` says how many there are at most. ``place`` is where it
    stands in every list of the index, ``lengths`` the numbers of its prompt's and its response's
    tokens.
    """

    capture: str
    rows: int
    place: bytes
    lengths: tuple[int, int]
    finish_reason: str | None
    has_error: bool


HEAD_ONLY = frozenset({"rows", "num_prompt", "num_response"})
"""What a record has in front that follows from its other fields."""


def with_head(document: Mapping[str, Any], sequence: int) -> dict[str, Any]:
    """The record of an entry, with what :func:`read_head` looks for in front."""
    body = {name: value for name, value in document.items() if name not in HEAD_ONLY}
    prompt, response = _lengths(document)
    front = {
        "capture": document["capture"],
        "rows": expected_rows(document),
        "created": document["created"],
        "sequence": sequence,
        "num_prompt": prompt,
        "num_response": response,
    }
    reason, error = document.get("finish_reason"), document.get("error")
    if isinstance(reason, str) and _WORD.fullmatch(reason):
        front["finish_reason"] = reason
    if error is not None:
        front["error"] = error
    return {**front, **body, "sequence": sequence}


def expected_rows(document: Mapping[str, Any]) -> int:
    """All tokens have ``P + R - 1`` rows, the response has ``R``, the prompt ``P``."""
    prompt, response = _lengths(document)
    tokens = document.get("tokens", "all")
    return {"response": response, "prompt": prompt}.get(tokens, max(prompt + response - 1, 0))


def _lengths(document: Mapping[str, Any]) -> tuple[int, int]:
    return len(document["prompt_token_ids"]), len(document["response_token_ids"])


def head_of(document: Mapping[str, Any]) -> Head:
    """The head of a whole record, which may be one of version 1."""
    return Head(
        document["capture"],
        document["rows"] if "rows" in document else expected_rows(document),
        place(document["created"], document["sequence"]),
        _lengths(document),
        document.get("finish_reason"),
        document.get("error") is not None,
    )


def read_head(raw: bytes | memoryview) -> Head | None:
    """The head of an entry's JSON; None if the record has to be parsed whole.

    Records of version 1 have to be, and those with a capture id of unusual characters.
    """
    found = _HEAD.match(raw)
    if found is None:
        return None
    capture, rows, created, sequence, prompt, response, finish_reason, error = found.groups()
    try:
        where = place(float(created), int(sequence))
    except ValueError:
        return None
    reason = None if finish_reason is None else finish_reason.decode()
    lengths = int(prompt), int(response)
    return Head(capture.decode(), int(rows), where, lengths, reason, error is not None)


_PLACE_BYTES = 16
_MAX_SECONDS = 1e13


def place(created: float, sequence: int) -> bytes:
    """Where an entry stands in the lists of the index: by time of asking, then of writing.

    Args:
        created: seconds since the epoch.
        sequence: its number in the order of writing.
    """
    microseconds = int(created * 1e6) if 0 <= created <= _MAX_SECONDS else 0
    return struct.pack(">QQ", microseconds, sequence)


def sequence_of(where: bytes) -> int:
    """The number in the order of writing of who stands at a :func:`place`.

    Raises:
        StoreCorrupt: it is no place.
    """
    if len(where) != _PLACE_BYTES:
        raise StoreCorrupt("the index names a place that cannot be")
    return int.from_bytes(where[8:], "big")


def dump(value: Mapping[str, Any]) -> bytes:
    """Strict JSON with ASCII escapes: any text survives, lone surrogates and NUL included.

    A number that is not finite, such as the log-probability of what cannot be, is null.
    """
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")
    except ValueError:
        return dumps(value).encode("ascii")


def load(raw: bytes | memoryview, what: str) -> dict[str, Any]:
    """Parse one JSON record.

    Raises:
        StoreCorrupt: it is not a JSON object; ``what`` names it.
    """
    try:
        value = json.loads(bytes(raw))
    except (ValueError, RecursionError) as error:
        raise StoreCorrupt(f"{what} is not readable JSON: {error}") from None
    if not isinstance(value, dict):
        raise StoreCorrupt(f"{what} is not a JSON object")
    return value
