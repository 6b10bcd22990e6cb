"""A few answers, token by token: what the probe thinks as the answer goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from sklearn.base import clone

from activation_logging.dataset.positions import find_rows
from activation_logging.detectors.linear import LinearProbe
from activation_logging.errors import InputMissing

if TYPE_CHECKING:
    from activation_logging.detectors.results import Study
    from activation_logging.store import Entry

PER_KIND = 3
MAX_TOKENS = 400

KINDS = {
    "caught": "The probe is right: a positive answer that it is sure of",
    "missed": "The probe is wrong: a positive answer that it takes for the other class",
    "cleared": "The probe is right: a negative answer that it is sure of",
    "false alarm": "The probe is wrong: a negative answer that it takes for the other class",
}


def token_examples(study: Study) -> list[dict[str, Any]]:
    """The most telling answers of each kind, with a score for every token that has a state.

    Every answer is scored by the probe of the fold that did not fit it. Token ``i`` is scored at
    its own state, which exists for all but the last sampled one.
    """
    p = study.cell_scores[study.place].probability
    probes = _fold_probes(study)
    fold_of = np.zeros(len(p), dtype=np.int64)
    for number, fold in enumerate(study.folds):
        fold_of[fold.test] = number
    chosen = [
        _example(study, int(row), kind, float(p[row]), probes[fold_of[row]])
        for kind, rows in _choose(study.examples.y, p, study.examples.groups).items()
        for row in rows
    ]
    return [example for example in chosen if example is not None]


def _choose(
    y: npt.NDArray[np.int64], p: npt.NDArray[np.float64], groups: npt.NDArray[np.str_]
) -> dict[str, list[int]]:
    chosen = {}
    for kind, positive, rising in (
        ("caught", 1, False),
        ("missed", 1, True),
        ("cleared", 0, True),
        ("false alarm", 0, False),
    ):
        rows = np.flatnonzero(y == positive)
        order = rows[np.argsort(p[rows] if rising else -p[rows], kind="stable")]
        # One answer per entity: six capitals of one country would show nothing more.
        _, first = np.unique(groups[order], return_index=True)
        chosen[kind] = order[np.sort(first)][:PER_KIND].tolist()
    return chosen


def _fold_probes(study: Study) -> list[LinearProbe]:
    X, y = study.states[study.place], study.examples.y
    probe = LinearProbe()
    return [clone(probe).fit(X[fold.train], y[fold.train]) for fold in study.folds]


def _example(
    study: Study, row: int, kind: str, probability: float, probe: LinearProbe
) -> dict[str, Any] | None:
    examples = study.examples
    entry = examples.store[examples.keys[row]]
    try:
        rows = find_rows("response_mean", examples.places[row])
    except InputMissing:
        return None
    states = entry.rows(study.place.layer, rows.start, rows.stop)[:MAX_TOKENS]
    scores = probe.predict_proba(states)[:, 1]
    texts = entry.response_tokens
    ids = entry.response_token_ids[:MAX_TOKENS]
    logprobs = entry.logprobs or []
    tokens = []
    for index, token in enumerate(ids):
        logprob = logprobs[index] if index < len(logprobs) else None
        tokens.append(
            {
                "text": texts[index] if texts is not None and index < len(texts) else f"#{token} ",
                "score": round(float(scores[index]), 4) if index < len(scores) else None,
                "logprob": None if logprob is None else round(max(logprob, -100.0), 4),
            }
        )
    return {
        "key": entry.key,
        "kind": kind,
        "label": examples.positive if examples.y[row] else examples.negative,
        "probability": round(probability, 4),
        "question": _question(entry),
        "expected": next((entry.tags[n] for n in ("answer", "gold") if n in entry.tags), None),
        "tokens": tokens,
        "texts_logged": texts is not None,
        "cut": len(entry.response_token_ids) > MAX_TOKENS,
    }


def _question(entry: Entry) -> str:
    for message in reversed(entry.messages or []):
        content = message.get("content")
        if message.get("role") == "user" and isinstance(content, str):
            return content[:600]
    return entry.prompt[-600:]
