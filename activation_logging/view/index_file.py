"""The file of a search index: where it is, and its tables."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

from activation_logging.errors import ViewError
from activation_logging.view import columns, sketches

if TYPE_CHECKING:
    from activation_logging.locations import Address

SCHEMA = f"""
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE words (id INTEGER PRIMARY KEY, text TEXT UNIQUE);
CREATE TABLE pieces (model INTEGER, token INTEGER, text TEXT, PRIMARY KEY (model, token))
  WITHOUT ROWID;
CREATE TABLE slots (sequence INTEGER PRIMARY KEY, slot INTEGER UNIQUE, key TEXT);
CREATE TABLE IF NOT EXISTS history (
  id INTEGER PRIMARY KEY, evaluator TEXT, key TEXT, before TEXT
);
CREATE VIRTUAL TABLE texts USING fts5(
  prompt, response, tokenize = "unicode61 remove_diacritics 2"
);
{columns.SCHEMA}{sketches.SCHEMA}
"""
"""``history`` is what was labelled by hand; it stays when the rest is made anew."""

TABLES = ("meta", "words", "pieces", "slots", "texts", "columns", *sketches.TABLES)
"""What is made of the store."""


def index_path(store: Path | Address) -> Path:
    """Where the index of a store is: beside it, or in the user's cache where nobody may write.

    That of an address, or of several stores that are not those of one folder, is always there.
    """
    resolved = store.resolve()
    if isinstance(resolved, Path):
        beside = resolved.with_name(f"{resolved.name}.view.sqlite")
        if resolved.is_dir() and os.access(beside if beside.exists() else beside.parent, os.W_OK):
            return beside
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = hashlib.sha256(os.fsencode(resolved)).hexdigest()[:16]
    return cache / "activation-logging" / f"{name}.view.sqlite"


def refusal(path: Path, error: sqlite3.Error) -> ViewError | None:
    """What is to be said of an error; None where the index is broken and has to be made anew."""
    said = str(error)
    if isinstance(error, sqlite3.ProgrammingError):
        return ViewError("the search index is being made anew: reload the page in a moment")
    if not isinstance(error, sqlite3.OperationalError) or "no such" in said:
        return None
    if "lock" in said or "busy" in said:
        return ViewError(f"another process reads the store into {path}: try again")
    return ViewError(f"{path} cannot be used: {said}")


def remove_files(path: Path) -> None:
    """Delete an index, with what SQLite keeps beside it."""
    for ending in ("", "-wal", "-shm"):
        path.with_name(path.name + ending).unlink(missing_ok=True)
