"""The layout of the LMDB file: names of databases, keys and values.

One environment holds the unnamed main database and several named ones. Every key is a byte string.
Every value is JSON (UTF-8) or raw bytes, so the plain ``lmdb`` package and ten lines of any
language can read a store::

    (main)        <sha256 of the prompt>[#n]   -> the entry, JSON
    ~log          sequence number, 8 bytes BE  -> key of the entry, in order of writing
    ~repeats      <sha256>                     -> next n for that prompt, decimal
    ~requests     request id (duplicates)      -> keys of its entries, one per choice
    ~captures     capture id                   -> which rows belong to it, its live scores, JSON
    ~segments     segment id                   -> number of captures that use it, decimal
    ~rows         segment id + site, 2 bytes BE -> rows, C order, little endian
    ~evaluations  <entry key> NUL <name>       -> the label, JSON
    ~derived      <entry key> NUL <name>       -> an array: a line of JSON, then its bytes
    ~writers      writer id                    -> the writing process and its counters, JSON
    ~index        term (duplicates)            -> places of the entries that it is true of
    ~meta         "format"                     -> {"format": ..., "version": ...}
                  "totals"                     -> rows, and bytes by site, JSON
                  "unused/" + segment id       -> bytes of rows that only their running writer
                                                  may still refer to, decimal

Entries are in the main database, so ``txn.get(sha256_hex)`` finds one. The names of the other
databases begin with ``~``, which sorts after every hexadecimal key. An entry's JSON begins with the
fields of :class:`Head`, so reading a layer and counting do not parse the rest. Stores of version 1
have no ``~index`` and no totals. :mod:`.index` defines terms. Stores that were made before there
were arrays beside entries get ``~derived`` with the first of them; :mod:`.derived` defines these.

vLLM's front end writes entries. The worker that runs the model writes captures and segments.
``entry["capture"]`` joins the two. A *segment* is a run of consecutive rows that one request
computed. A capture lists slices of segments, because a prompt from vLLM's prefix cache shares the
rows of the request that computed it. :attr:`activation_logging.sites.Site.code` is the number of a
site; that of a layer of the residual stream is the layer's.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

from activation_logging.errors import StoreCorrupt
from activation_logging.score_options import STOP_REASON
from activation_logging.strict_json import dumps

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMAT_NAME = "activation-logging"
FORMAT_VERSION = 2
WITHOUT_INDEX = 1
"""The version that activation-logging 0.1 wrote: the same without the index and totals."""

MAIN = b""
META, LOG, REPEATS, REQUESTS = b"~meta", b"~log", b"~repeats", b"~requests"
CAPTURES, SEGMENTS, ROWS = b"~captures", b"~segments", b"~rows"
EVALUATIONS, WRITERS, INDEX, DERIVED = b"~evaluations", b"~writers", b"~index", b"~derived"
DATABASES = (
    *(META, LOG, REPEATS, REQUESTS, CAPTURES, SEGMENTS, ROWS),
    *(EVALUATIONS, WRITERS, INDEX, DERIVED),
)
# Not dupfixed, which needs less space: compacting such a database crashes LMDB 0.9.36.
DUPLICATES = frozenset({REQUESTS, INDEX})

FORMAT_KEY, TOTALS_KEY = b"format", b"totals"
UNUSED = b"unused/"
"""Begins the keys of segments that no capture refers to, while their writer runs."""


def databases(version: int) -> tuple[bytes, ...]:
    """The databases that a store of that version must have; ``~derived`` may come later."""
    optional = {DERIVED} if version > WITHOUT_INDEX else {DERIVED, INDEX}
    return tuple(name for name in DATABASES if name not in optional)


FIRST_NAME = b"~"
"""Sorts after the keys of entries and before the names of databases."""

_ENTRY_KEY = re.compile("[0-9a-f]{64}(#[1-9][0-9]{0,18})?")
WRITER_ID_BYTES = 8
"""Length of a writer's id. A segment's id begins with the id of its writer."""

_HEAD = re.compile(
    rb'\{"capture":"([\w:.-]+)","rows":(\d{1,8}),"created":([\d.e+]{1,30}),"sequence":(\d{1,18}),'
    rb'"num_prompt":(\d{1,8}),"num_response":(\d{1,8}),("unread":0,)?'
    rb'(?:"finish_reason":"([a-z_]+)",)?("error":)?'
)
_WORD = re.compile("[a-z_]+")

MAX_KEY = 511
"""LMDB's limit for keys and for duplicate values, in bytes."""


EXPORT = "export.json"
"""The file that makes a folder an export, and no store."""


def prompt_key(prompt: str) -> str:
    """Lower-case hex SHA-256 of the prompt's UTF-8 text.

    Lone surrogates, which UTF-8 proper cannot hold, are encoded the way Python's
    ``surrogatepass`` does.
    """
    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()


def entry_key(key: object) -> bytes | None:
    """An entry's key in the main database; None if ``key`` is not a valid key."""
    return key.encode() if isinstance(key, str) and _ENTRY_KEY.fullmatch(key) else None


def id_key(identifier: str) -> bytes:
    """A request or capture id as a key. An id too long for LMDB is hashed."""
    raw = identifier.encode("utf-8", "surrogatepass")
    if 0 < len(raw) <= MAX_KEY:
        return raw
    return b"sha256:" + hashlib.sha256(raw).hexdigest().encode()


def sequence_key(number: int) -> bytes:
    """A sequence number as a key of the log. The keys sort like the numbers."""
    return struct.pack(">Q", number)


def sequence_number(key: bytes) -> int:
    """The reverse of :func:`sequence_key`.

    Raises:
        StoreCorrupt: the key is invalid.
    """
    if len(key) != 8:
        raise StoreCorrupt("the order of entries has an invalid number")
    return int.from_bytes(key, "big")


def rows_key(segment: bytes, code: int) -> bytes:
    """The key of one site of a segment."""
    return segment + struct.pack(">H", code)


def rows_code(key: bytes) -> int:
    """The code of the site of a :func:`rows_key`."""
    return int.from_bytes(key[-2:], "big")


def rows_segment(key: bytes) -> bytes:
    """The segment of a :func:`rows_key`. An id that begins like another's may be longer."""
    return key[:-2]


def beside_key(entry: str, name: str) -> bytes:
    """The key of a label or array beside an entry. An empty name gives the prefix of them all."""
    return f"{entry}\0{name}".encode()


class Head(NamedTuple):
    """The first fields of an entry's record, which are read without parsing the rest.

    ``capture`` is the id of its rows, ``rows`` their largest number. ``place`` is its position in
    the lists of the index. ``lengths`` are the numbers of prompt and response tokens. ``unread`` is
    how many of the response's tokens the model has not read: the last one, or none where a probe
    has ended the answer.
    """

    capture: str
    rows: int
    place: bytes
    lengths: tuple[int, int]
    finish_reason: str | None
    has_error: bool
    unread: int = 1


HEAD_ONLY = frozenset({"rows", "num_prompt", "num_response"})
"""Fields of the head that are derived from other fields of the record."""


def with_head(document: Mapping[str, Any], sequence: int) -> dict[str, Any]:
    """The record of an entry, beginning with the fields that :func:`read_head` reads."""
    body = {name: value for name, value in document.items() if name not in {*HEAD_ONLY, "unread"}}
    prompt, response = _lengths(document)
    front = {
        "capture": document["capture"],
        "rows": expected_rows(document),
        "created": document["created"],
        "sequence": sequence,
        "num_prompt": prompt,
        "num_response": response,
    }
    if not _unread(document):
        front["unread"] = 0
    reason, error = document.get("finish_reason"), document.get("error")
    if isinstance(reason, str) and _WORD.fullmatch(reason):
        front["finish_reason"] = reason
    if error is not None:
        front["error"] = error
    return {**front, **body, "sequence": sequence}


def expected_rows(document: Mapping[str, Any]) -> int:
    """Expected number of rows: ``P + R - 1`` for all tokens, ``R`` (response) or ``P`` (prompt).

    One more but for the prompt's, where a probe has ended the answer: see :class:`Head`.
    """
    prompt, response = _lengths(document)
    read = response - _unread(document)
    tokens = document.get("tokens", "all")
    return {"response": read + 1, "prompt": prompt}.get(tokens, max(prompt + read, 0))


def _unread(document: Mapping[str, Any]) -> int:
    reason = document.get("stop_reason")
    return 0 if isinstance(reason, str) and reason.startswith(STOP_REASON) else 1


def _lengths(document: Mapping[str, Any]) -> tuple[int, int]:
    return len(document["prompt_token_ids"]), len(document["response_token_ids"])


def head_of(document: Mapping[str, Any]) -> Head:
    """The head of a parsed record, also of version 1."""
    return Head(
        document["capture"],
        document["rows"] if "rows" in document else expected_rows(document),
        place(document["created"], document["sequence"]),
        _lengths(document),
        document.get("finish_reason"),
        document.get("error") is not None,
        _unread(document),
    )


def read_head(raw: bytes | memoryview) -> Head | None:
    """The head of an entry's JSON; None if the whole record must be parsed.

    That is the case for records of version 1, for capture ids with unusual characters, and for
    numbers that no entry has.
    """
    found = _HEAD.match(raw)
    if found is None:
        return None
    capture, rows, created, sequence, prompt, response, read, finish_reason, error = found.groups()
    try:
        where = place(float(created), int(sequence))
    except ValueError:
        return None
    reason = None if finish_reason is None else finish_reason.decode()
    lengths = int(prompt), int(response)
    unread = 1 if read is None else 0
    return Head(capture.decode(), int(rows), where, lengths, reason, error is not None, unread)


_PLACE_BYTES = 16
_MAX_SECONDS = 1e13


def place(created: float, sequence: int) -> bytes:
    """An entry's position in the lists of the index, which sort by arrival, then by writing.

    Args:
        created: arrival of the request, seconds since the epoch.
        sequence: the entry's number in the order of writing.
    """
    microseconds = int(created * 1e6) if 0 <= created <= _MAX_SECONDS else 0
    return struct.pack(">QQ", microseconds, sequence)


def sequence_of(where: bytes) -> int:
    """The sequence number of the entry at a :func:`place`.

    Raises:
        StoreCorrupt: the place is invalid.
    """
    if len(where) != _PLACE_BYTES:
        raise StoreCorrupt("the index has an invalid place")
    return int.from_bytes(where[8:], "big")


PART_BITS = 48
"""Of an entry of several stores, these bits of the sequence number are the number in its store."""


def part_sequence(part: int, sequence: int) -> int:
    """The sequence number that an entry of the store with this number has among several stores."""
    return part << PART_BITS | sequence


def part_of(sequence: int) -> tuple[int, int]:
    """The reverse of :func:`part_sequence`: the number of the store, and the number in it."""
    return sequence >> PART_BITS, sequence & ((1 << PART_BITS) - 1)


def part_place(part: int, where: bytes) -> bytes:
    """The :func:`place` that an entry of the store with this number has among several stores."""
    return where[:8] + struct.pack(">Q", part_sequence(part, sequence_of(where)))


def change(number: int, sequence: int) -> bytes:
    """A change of an entry as the index lists it; they sort by number."""
    return struct.pack(">QQ", number, sequence)


def change_of(raw: bytes) -> tuple[int, int]:
    """The reverse of :func:`change`.

    Raises:
        StoreCorrupt: it is invalid.
    """
    if len(raw) != _PLACE_BYTES:
        raise StoreCorrupt("the index has an invalid change")
    number, sequence = struct.unpack(">QQ", raw)
    return number, sequence


def dump(value: Mapping[str, Any]) -> bytes:
    """Strict JSON with ASCII escapes. Any text survives, including lone surrogates and NUL.

    A number that is not finite, such as the log-probability of an impossible token, becomes null.
    """
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")
    except ValueError:
        return dumps(value).encode("ascii")


def load(raw: bytes | memoryview, what: str) -> dict[str, Any]:
    """Parse one JSON record.

    Raises:
        StoreCorrupt: the record is not a JSON object; ``what`` names the record.
    """
    try:
        value = json.loads(bytes(raw))
    except (ValueError, RecursionError) as error:
        raise StoreCorrupt(f"{what} is not readable JSON: {error}") from None
    if not isinstance(value, dict):
        raise StoreCorrupt(f"{what} is not a JSON object")
    return value
