"""What was labelled by hand, to be taken back: a table in the search index's file.

It stays when the rest of the index is made anew, and goes when another store is at the path.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from activation_logging.view.index import SearchIndex


def remember(index: SearchIndex, evaluator: str, key: str, before: str | None) -> None:
    """Note what an evaluator's label of an answer was before it was changed, as JSON."""
    with index.file() as file:
        file.execute(
            "INSERT INTO history (evaluator, key, before) VALUES (?, ?, ?)",
            (evaluator, key, before),
        )


def last_changed(index: SearchIndex, evaluator: str) -> tuple[int, str, str | None] | None:
    """The number, key and earlier label of an evaluator's latest change; None without one."""
    with index.file() as file:
        row = file.execute(
            "SELECT id, key, before FROM history WHERE evaluator = ? ORDER BY id DESC LIMIT 1",
            (evaluator,),
        ).fetchone()
    return None if row is None else (row[0], row[1], row[2])


def forget_change(index: SearchIndex, number: int) -> None:
    """Remove a change that was taken back."""
    with index.file() as file:
        file.execute("DELETE FROM history WHERE id = ?", (number,))
