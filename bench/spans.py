"""How often the judge of claims is right, on answers whose claims were labelled by hand.

    python -m bench.spans [--docs NAME] [--half unseen] [--wrong]

``tests/unit/judges/labelled_claims.jsonl`` has answers of models, one a line, with the claims that
a reader found in each: its words, what it claims, and whether it is true as far as the reader knows
for sure. The rules were written with the ``dev`` half in view; the ``unseen`` half was drawn and
labelled before they met it, and they were not changed after.

A claim of the reader and one of the rules are the same if they share a character.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.table import Table

from activation_logging.benchmarks.sources.world import world
from activation_logging.benchmarks.wiki_profiles import known
from activation_logging.judges.claims import read_claims
from activation_logging.records import SPAN_LABELS, Span
from bench import docs

if TYPE_CHECKING:
    from collections.abc import Iterator

SAMPLE = Path(__file__).parent.parent / "tests" / "unit" / "judges" / "labelled_claims.jsonl"
HALVES = ("dev", "unseen")
MISSED = "not found"
COLUMNS = (*SPAN_LABELS, MISSED)


class Compared(NamedTuple):
    """One claim of a text as the reader and as the rules have it; None where one has it not."""

    text: str
    by_hand: Span | None
    by_rules: Span | None


def sample(half: str | None = None) -> list[dict[str, Any]]:
    """The labelled answers, of one half or of both."""
    lines = SAMPLE.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [row for row in rows if half in {None, row["half"]}]


def by_hand(row: dict[str, Any]) -> list[Span]:
    """The claims that the reader found, in the order of the text.

    Raises:
        ValueError: the words of one are not in the text behind those of the one before.
    """
    spans, behind = [], 0
    for words, claim, label in row["claims"]:
        whole = re.compile(rf"(?<!\w){re.escape(words)}(?!\w)")
        place = whole.search(row["generation"], behind)
        if place is None:
            raise ValueError(f"{row['id']}: {words!r} is not in the text behind {behind}")
        behind = place.end()
        spans.append(Span(place.start(), behind, label, claim))
    return spans


def compare(row: dict[str, Any]) -> Iterator[Compared]:
    """Every claim of one answer, the reader's first, then those that the rules alone have."""
    text = row["generation"]
    cut = row["finish_reason"] == "length"
    found = list(read_claims(text, known(row["type"], row["name"]), world(), cut=cut))
    for mine in by_hand(row):
        same = [one for one in found if one.start < mine.end and mine.start < one.end]
        for one in same:
            found.remove(one)
        yield Compared(text[mine.start : mine.end], mine, same[0] if same else None)
    for one in found:
        yield Compared(text[one.start : one.end], None, one)


def confusion(half: str) -> Counter[tuple[str, str]]:
    """(label by hand, label by rules) -> how many; :data:`MISSED` where one of them has none."""
    table: Counter[tuple[str, str]] = Counter()
    for row in sample(half):
        for _, mine, theirs in compare(row):
            table[mine.label if mine else MISSED, theirs.label if theirs else MISSED] += 1
    return table


def as_table() -> Table:
    """Both halves: rows are the labels by hand, columns those of the rules."""
    made = Table(title="Claims by hand, and what the rules say of them")
    for header in ("half", "by hand", *COLUMNS):
        made.add_column(header)
    for half in HALVES:
        table = confusion(half)
        for label in COLUMNS:
            counts = [str(table[label, other]) for other in COLUMNS[: 3 if label == MISSED else 4]]
            made.add_row(half, label, *counts, *([""] if label == MISSED else []))
    return made


def main() -> int:
    """Print the table; with ``--wrong`` every claim on which the two differ."""
    parser = argparse.ArgumentParser(description="How often the judge of claims is right.")
    parser.add_argument("--wrong", action="store_true", help="list what the two differ on")
    parser.add_argument("--half", choices=HALVES, help="list those of this half only")
    docs.add_flag(parser)
    options = parser.parse_args()
    if options.wrong:
        for row in sample(options.half):
            for words, mine, theirs in compare(row):
                if (mine and mine.label) != (theirs and theirs.label):
                    hand = f"{mine.claim}: {mine.label}" if mine else "-"
                    rules = f"{theirs.claim}: {theirs.label} ({theirs.gold})" if theirs else "-"
                    docs.terminal.print(f"{row['id']}: {words!r}: {hand} / {rules}")
    table = as_table()
    docs.terminal.print(table)
    docs.record(options.docs, table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
