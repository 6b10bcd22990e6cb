"""What a probe says of the answers in a store: as it stands beside them, else from their rows.

A server keeps the scores of every answer, also of those whose rows it does not keep. Scores are a
probe's own where they have its digest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from activation_logging.detectors.fitted_on import is_about, prompt_number
from activation_logging.errors import DatasetError, InputMissing, RowsMissing, StoreCorrupt
from activation_logging.progress import Progress, silent, track
from activation_logging.store.query import Filter, select

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator

    import numpy.typing as npt

    from activation_logging.detectors.saved_probe import SavedProbe
    from activation_logging.store import Entry, Store

FITTED = "to prompts that the probe was fitted on"
ABOUT = "about something that the probe was fitted on"


def scored_answers(
    store: Store,
    probe: SavedProbe,
    name: str,
    wanted: Filter,
    left_out: Counter[str],
    *,
    progress: Progress = silent,
) -> Iterator[tuple[Entry, npt.NDArray[np.float32]]]:
    """The entries that the probe has something to say of, each with its scores, ``[rows]``.

    Answers to prompts that it was fitted on, or about the same things, are left out: its weights
    know them.

    Args:
        store: an open store.
        probe: the probe.
        name: what its scores are called beside the entries.
        wanted: which entries to take; others are counted.
        left_out: counts the others, by reason.
        progress: told how far it is.
    """
    entries = select(store, since=wanted.since, until=wanted.until, evaluator=wanted.evaluator)
    for entry in track(entries, "reading scores", len(store), progress):
        try:
            if reason := _refusal(entry, probe, wanted):
                left_out[reason] += 1
                continue
            scores = rows_said(probe, entry, name)
        except RowsMissing:
            left_out[f"without rows, and without scores of this probe called {name!r}"] += 1
        except DatasetError as error:
            left_out[f"without a usable state ({error})"] += 1
        except StoreCorrupt:
            left_out["that cannot be read"] += 1
        else:
            yield entry, scores


def _refusal(entry: Entry, probe: SavedProbe, wanted: Filter) -> str | None:
    if reason := wanted.why_not(entry):
        return reason
    if entry.model != probe.model:
        return f"by {entry.model}; the probe was fitted on {probe.model}"
    if prompt_number(entry.prompt_key) in probe.known_prompts:
        return FITTED
    return ABOUT if is_about(entry.tags, probe.known_subjects) else None


def rows_said(probe: SavedProbe, entry: Entry, name: str) -> npt.NDArray[np.float32]:
    """The probability at each row of an entry, float32 ``[rows]``; NaN where there is none.

    Raises:
        RowsMissing, InputMissing, ProbeError: there are no scores of that name by this probe, and
            the rows do not give any either; see :meth:`.SavedProbe.score_rows`.
    """
    if entry.score_digests.get(name) == probe.digest:
        return entry.scores[name]
    return probe.score_rows(entry)


def own_rows(entry: Entry) -> slice:
    """The rows that have read a token of the answer, whether they are still there or not.

    Row ``i`` of these has read token ``i``.
    """
    rows, (_, response) = entry.num_rows_expected, entry.num_tokens
    if entry.document.get("tokens") == "prompt":
        return slice(rows, rows)
    return slice(max(rows - response + 1, 0), rows)


def answer_said(probe: SavedProbe, entry: Entry, scores: npt.NDArray[np.float32]) -> float:
    """The probability of an answer, of the scores of its rows.

    Of a probe of tokens that is the highest, as in :meth:`.SavedProbe.score`.

    Raises:
        InputMissing: no row of it has a score.
    """
    mine = scores[own_rows(entry)] if probe.kind == "token" else scores
    found = mine[np.isfinite(mine)]
    if not len(found):
        raise InputMissing("no state: none of its tokens was read by the model")
    return float(found.max())
