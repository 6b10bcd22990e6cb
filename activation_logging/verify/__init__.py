"""Checks of a store: every entry is whole, and every row belongs to its token.

The first check needs only the store. The second (:mod:`.alignment`) needs the output head of the
served model.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from activation_logging.errors import EntryNotFound, StoreCorrupt
from activation_logging.progress import Progress, silent, track
from activation_logging.records import NEVER_RAN
from activation_logging.sites import RESID, Site
from activation_logging.store import layout
from activation_logging.store.repair import (
    check_segments,
    find_unmatched,
    page_problems,
    stray_arrays,
)
from activation_logging.store.upgrade import index_problems
from activation_logging.verify.alignment import Aligner, Alignment, Kind, match_model

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

    from activation_logging.records import Status
    from activation_logging.store import Entry, Store
    from activation_logging.verify.lm_head import LMHead

__all__ = ["Alignment", "Problem", "Report", "match_model", "verify", "verify_file"]

ALIGNED_SHARE = 0.99
"""A greedy answer with a smaller share of aligned tokens is a problem."""


class Problem(NamedTuple):
    """A problem of one entry, or of rows without an entry."""

    key: str
    what: str


@dataclass
class Report:
    """What :func:`verify` found."""

    entries: int = 0
    rows: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)
    alignments: list[Alignment] = field(default_factory=list)
    unchecked: list[Problem] = field(default_factory=list)
    """Entries whose alignment could not be checked, with the reason."""

    @property
    def ok(self) -> bool:
        """Whether there are no problems."""
        return not self.problems

    def share(self, kind: Kind) -> float | None:
        """Share of aligned tokens among all tokens of such answers; None without any."""
        chosen = [found for found in self.alignments if found.kind == kind]
        tokens = sum(found.tokens for found in chosen)
        return sum(found.aligned for found in chosen) / tokens if tokens else None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "ok": self.ok,
            "entries": self.entries,
            "rows": self.rows,
            "statuses": dict(self.statuses),
            "greedy_share": self.share("greedy"),
            "problems": [problem._asdict() for problem in self.problems],
            "alignments": [{**asdict(found), "share": found.share} for found in self.alignments],
            "unchecked": [problem._asdict() for problem in self.unchecked],
        }


def verify(
    store: Store,
    head: LMHead | None = None,
    *,
    checks_alignment: Callable[[Entry], bool] | None = None,
    progress: Progress = silent,
) -> Report:
    """Check every entry of a store.

    Args:
        store: the store.
        head: the output head of the model that was served; None leaves alignment out.
        checks_alignment: which entries the head belongs to; None for all.
        progress: told after each entry.
    """
    report = Report()
    aligner = None if head is None else Aligner(head)
    try:
        _check_entries(store, report, aligner, checks_alignment, progress)
        report.problems += _problems_of_rows(store)
    except StoreCorrupt as error:
        # The walk ends here; the problems found before are reported as well.
        report.problems.append(Problem("data.mdb", str(error)))
    return report


def verify_file(path: str | os.PathLike[str]) -> Report | None:
    """Check the pages of a store's file without opening it.

    Returns:
        None where the file cannot be walked through, see :mod:`activation_logging.store.repair`.
    """
    found = page_problems(path)
    return None if found is None else Report(problems=[Problem("data.mdb", w) for w in found])


def _check_entries(
    store: Store,
    report: Report,
    aligner: Aligner | None,
    checks_alignment: Callable[[Entry], bool] | None,
    progress: Progress,
) -> None:
    for key in track(store, "verifying", len(store), progress):
        status: Status | Literal["unreadable"]
        try:
            entry = store[key]
            status, found = entry.status, list(entry_problems(entry))
        except EntryNotFound:
            if layout.entry_key(key.rpartition(":")[2]) is None:
                report.problems.append(Problem(key, "its key is not one of an entry"))
            continue
        except StoreCorrupt as error:
            status, found = "unreadable", [str(error)]
        report.entries += 1
        report.statuses[status] += 1
        report.problems += [Problem(key, what) for what in found]
        if status == "complete" and not found:
            report.rows += len(entry.positions)
            if aligner is not None and (checks_alignment is None or checks_alignment(entry)):
                aligner.add(entry)
    if aligner is not None:
        aligner.finish()
        report.alignments = aligner.found
        report.unchecked = [Problem(key, why) for key, why in aligner.unchecked]
        report.problems += map(_misaligned, filter(_is_off, aligner.found))


def _problems_of_rows(store: Store) -> Iterator[Problem]:
    """The problems of :func:`_problems_of_one` of each of the stores, and those left out."""
    for name, reason in store.problems.items():
        yield Problem(name, reason)
    for name, part in zip(store.names, store.parts, strict=True):
        beside = [other for other in store.parts if other is not part]
        for key, what in _problems_of_one(part, beside):
            yield Problem(f"{name}:{key}" if store.is_many else key, what)


def _problems_of_one(store: Store, beside: Sequence[Store]) -> Iterator[Problem]:
    """Unmatched records, unreferenced or miscounted rows, stray arrays, a wrong order or index."""
    if not store.snapshot().is_ordered:
        yield Problem("~log", "the order of entries does not name as many as there are")
    for key, what in index_problems(store):
        yield Problem(key, f"{what} (activation-logging upgrade --rebuild rebuilds the index)")
    for record in find_unmatched(store, beside):
        yield Problem(record.id, _unmatched_text(record.kind, record.final))
    found = check_segments(store)
    for left in found.unreferenced:
        what = f"{left.nbytes} bytes of rows that no entry uses, from a writer that is gone"
        yield Problem(left.segment.hex(), f"{what} (activation-logging repair removes them)")
    for wrong in found.miscounts:
        what = f"the reference count of its rows is {wrong.counted}, but {wrong.found} refer to it"
        yield Problem(wrong.segment.hex(), what)
    for place in stray_arrays(store):
        key, _, name = place.decode("utf-8", "backslashreplace").partition("\0")
        what = f"the entry of its array {name} is gone (activation-logging repair removes it)"
        yield Problem(key, what)


def entry_problems(entry: Entry) -> Iterator[str]:
    """The problems of one entry, a sentence each. A pending or unkept one has no rows to check.

    Neither has one whose rows are in another store.

    Raises:
        StoreCorrupt: a record is invalid.
    """
    yield from _record_problems(entry)
    status = entry.status
    if status in ("pending", "unkept", "elsewhere"):
        return
    if entry.status_reason == NEVER_RAN:
        return
    if status != "complete":
        yield f"{status}: {entry.status_reason}"
        return
    if not entry.sites:
        yield "it has no layers"
    for site in entry.sites:
        for what in _site_problems(entry, site):
            yield f"{site.words}: {what}"


def _record_problems(entry: Entry) -> Iterator[str]:
    if entry.document["key"] != entry.stored_key:
        yield "it is stored under another entry's key"
    tokens = len(entry.prompt_token_ids), len(entry.response_token_ids)
    if entry.num_tokens != tokens or entry.num_rows_expected != layout.expected_rows(
        entry.document
    ):
        yield "the counts in its head do not match its tokens"
    if layout.prompt_key(entry.prompt) != entry.prompt_key:
        yield "its key is not the SHA-256 of its prompt"
    for name, values in (("logprobs", entry.logprobs), ("response_tokens", entry.response_tokens)):
        if values is None and entry.document.get(name) is not None:
            yield f"its {name} are of the wrong type"
        elif values is not None and len(values) != len(entry.response_token_ids):
            yield f"{len(values)} {name} for {len(entry.response_token_ids)} response tokens"
    if entry.shared_characters is None and entry.document.get("shared_characters") is not None:
        yield "its shared_characters are no places in its response"
    yield from _label_problems(entry)
    yield from _array_problems(entry)


def _label_problems(entry: Entry) -> Iterator[str]:
    try:
        labels = entry.evaluations
    except StoreCorrupt as error:
        yield str(error)
        return
    yield from filter(None, (label.outside(entry.response) for label in labels.values()))


def _array_problems(entry: Entry) -> Iterator[str]:
    try:
        scores = entry.scores
        entry.derived_headers()
    except StoreCorrupt as error:
        yield str(error)
        return
    if entry.status == "complete":
        for name, values in scores.items():
            if len(values) != len(entry.positions):
                yield f"{len(values)} scores by {name} for {len(entry.positions)} rows"


def _site_problems(entry: Entry, site: Site) -> Iterator[str]:
    rows = entry.rows(site)
    expected = (len(entry.positions), entry.shape_of(site).width)
    if rows.shape != expected:
        yield f"its shape is {rows.shape}, not {expected}"
        return
    unfit = {"not finite": ~np.isfinite(rows).all(axis=1)}
    if site == Site(RESID, entry.num_layers):
        # The final norm never gives a zero state, so such a row was never written.
        with np.errstate(invalid="ignore"):
            unfit["all zero"] = ~rows.any(axis=1)
    for name, found in unfit.items():
        if np.any(found):
            yield f"{found.sum()} of {found.size} rows are {name}, row {found.argmax()} the first"


def _is_off(found: Alignment) -> bool:
    return found.kind == "greedy" and found.share < ALIGNED_SHARE


def _misaligned(found: Alignment) -> Problem:
    return Problem(
        found.key,
        f"only {found.aligned} of {found.tokens} tokens of this greedy answer follow from their "
        f"rows; response token {found.first_off} is the first that does not",
    )


def _unmatched_text(kind: str, final: bool) -> str:
    what = "pending: its rows never came" if kind == "entry" else "rows whose entry never came"
    if final:
        return f"{what}; the writer is gone (activation-logging repair removes the record)"
    return f"{what} so far; the writer still runs and may complete it"
