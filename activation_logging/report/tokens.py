"""A few answers, token by token: the probe's score as the answer goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from activation_logging.dataset.features import read_rows
from activation_logging.dataset.positions import find_rows
from activation_logging.detectors.linear import LinearProbe
from activation_logging.errors import InputMissing
from activation_logging.tags import ANSWER, GOLD

if TYPE_CHECKING:
    from activation_logging.detectors.results import Study
    from activation_logging.store import Entry

PER_KIND = 3
MAX_TOKENS = 400


def token_examples(study: Study) -> list[dict[str, Any]]:
    """The most telling answers of each kind, with a score for every token that has a state.

    The kinds are ``caught``, ``missed``, ``cleared`` and ``false alarm``. Every answer is scored
    by the probe of the fold that did not fit it. Token ``i`` is scored at its own state, which
    exists for all but the last sampled one.
    """
    X, y = study.states[study.place], study.examples.y
    probability = study.cell_scores[study.place].probability
    probe_of: dict[int, LinearProbe] = {}
    for fold in study.folds:
        probe = LinearProbe().fit(X[fold.train], y[fold.train])
        probe_of.update(dict.fromkeys(fold.test.tolist(), probe))
    chosen = [
        _example(study, row, kind, float(probability[row]), probe_of[row])
        for kind, rows in _choose(y, probability, study.examples.groups).items()
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


def _example(
    study: Study, row: int, kind: str, probability: float, probe: LinearProbe
) -> dict[str, Any] | None:
    examples = study.examples
    entry = examples.store[examples.keys[row]]
    try:
        rows = find_rows("response_mean", examples.places[row])
    except InputMissing:
        return None
    states = read_rows(entry, study.place.layer, rows.start, rows.stop)[:MAX_TOKENS]
    scores = probe.predict_proba(states)[:, 1]
    return {
        "key": entry.key,
        "kind": kind,
        "label": examples.positive if examples.y[row] else examples.negative,
        "probability": round(probability, 4),
        "question": _question(entry),
        "expected": next((entry.tags[n] for n in (ANSWER, GOLD) if n in entry.tags), None),
        "tokens": _tokens(entry, scores),
        "texts_logged": entry.response_tokens is not None,
        "cut": len(entry.response_token_ids) > MAX_TOKENS,
    }


def _tokens(entry: Entry, scores: npt.NDArray[np.float64]) -> list[dict[str, Any]]:
    texts, logprobs = entry.response_tokens or [], entry.logprobs or []
    tokens = []
    for index, token in enumerate(entry.response_token_ids[:MAX_TOKENS]):
        logprob = logprobs[index] if index < len(logprobs) else None
        tokens.append(
            {
                "text": texts[index] if index < len(texts) else f"#{token} ",
                "score": round(float(scores[index]), 4) if index < len(scores) else None,
                "logprob": None if logprob is None else round(max(logprob, -100.0), 4),
            }
        )
    return tokens


def _question(entry: Entry) -> str:
    asked = entry.question
    return asked[-600:] if asked == entry.prompt else asked[:600]
