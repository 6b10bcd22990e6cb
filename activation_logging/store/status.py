"""The status of an entry, from its own record and the record of its rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from activation_logging.records import Status
    from activation_logging.store.layout import Head


def status_of(head: Head, capture: Mapping[str, Any] | None) -> Status:
    """The status of an entry.

    Args:
        head: the entry's head.
        capture: the record of its rows; None if they have not arrived.
    """
    if head.has_error:
        return "failed"
    if capture is None:
        return "pending"
    if capture.get("rows_in"):
        return "elsewhere"
    if capture.get("dropped"):
        return "dropped"
    if capture.get("unkept"):
        return "unkept"
    if head.finish_reason != "abort" and rows_stored(capture) < head.rows:
        return "failed"
    return "complete"


def rows_stored(capture: Mapping[str, Any] | None) -> int:
    """Number of rows of a capture."""
    return 0 if capture is None else sum(part[2] for part in capture["slices"])


def why_no_rows(capture: Mapping[str, Any]) -> str | None:
    """Why a capture has no rows; None if it has some, or should have."""
    return capture.get("dropped") or capture.get("unkept")
