"""What a study of tokens found, as plain JSON values, and the answers that show it best."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from activation_logging.detectors.held_out import GROUP
from activation_logging.errors import DatasetError
from activation_logging.progress import Progress, silent
from activation_logging.report.examples import PER_KIND, example, first_of_groups
from activation_logging.report.intervals import as_json
from activation_logging.store.statistics import counts

if TYPE_CHECKING:
    from collections.abc import Callable

    from activation_logging.detectors.results import Options
    from activation_logging.detectors.tokens import TokenStudy
    from activation_logging.detectors.tokens.results import LevelResult, TokenResult
    from activation_logging.report.colours import Coloured
    from activation_logging.store import Entry, Store

MAIN = "token_linear"
"""The detector that colours the tokens."""


def study_tokens(
    store: Store, label: str, options: Options, *, progress: Progress = silent
) -> TokenStudy | str:
    """The study of the claims that an evaluator has judged, or why there is none.

    Claims are split by what an answer is about, whatever the folds of answers are by.

    Args:
        store: an open store.
        label: the evaluator's name.
        options: those of the study of answers.
        progress: told what is being done.
    """
    from activation_logging.detectors.tokens import TokenOptions, run_token_study

    if not counts(store, progress).spans.get(label):
        return (
            f"the labels of {label} have no spans; a benchmark that judges claims has "
            "(`activation-logging eval wiki_profiles`)"
        )
    wanted = TokenOptions(
        model=options.model,
        tags=options.tags,
        group=options.group,
        broken=options.broken,
        layers=options.layers,
        folds=options.folds,
        draws=options.draws,
        seed=options.seed,
    )
    try:
        return run_token_study(store, label, wanted, progress=progress)
    except DatasetError as error:
        return str(error)


def probabilities(study: TokenStudy) -> dict[str, list[float | None]]:
    """Per answer's key the probability of each of its tokens, None for those of no judged claim.

    They are log-odds by probes fitted without the answer, through a logistic curve (Platt 1999)
    fitted on the claims: a token's probability is that of a claim of which it is the highest.
    """
    from activation_logging.detectors.operating import calibrate
    from activation_logging.detectors.saved_probe import probability_of
    from activation_logging.detectors.tokens.scored import highest_of

    tokens = study.tokens
    rows, spans = tokens.rows, tokens.spans
    judged = rows.span >= 0
    highest = highest_of(study.held_out[judged], rows.span[judged])
    probability = probability_of(study.held_out, calibrate(highest, spans.y))
    found: dict[str, list[float | None]] = {
        key: [None] * place.num_response
        for key, place in zip(tokens.keys, tokens.places, strict=True)
    }
    for answer, index, value in zip(
        rows.answer.tolist(), rows.token.tolist(), probability.tolist(), strict=True
    ):
        # A token of two claims is there twice, with one state and so one probability.
        found[tokens.keys[answer]][index] = value
    return found


def token_part(study: TokenStudy | str, colour: Callable[[Entry], Coloured]) -> dict[str, Any]:
    """Everything that the page says of tokens; ``{"left_out": why}`` without a study.

    Args:
        study: what :func:`study_tokens` returns.
        colour: what is known of an answer's tokens.
    """
    if isinstance(study, str):
        return {"left_out": study}
    tokens = study.tokens
    return {
        "answers": len(tokens.keys),
        "tokens": len(tokens),
        "claims": tokens.counts(),
        "not_used": dict(tokens.left_out),
        "folds_by": GROUP,
        "probe": MAIN,
        "layer": study.place.layer,
        "chosen": [place.layer for place in study.chosen],
        "detectors": [_detector(result) for result in study.results],
        "detectors_left_out": dict(study.left_out),
        "sweep": [
            {"layer": place.layer, "C": place.C, "validation_auroc": round(auroc, 6)}
            for place, auroc in study.sweep.items()
        ],
        "transfers": [
            {
                "tag": one.tag,
                "sources": list(one.sources),
                "values": list(one.values),
                "auroc": [[as_json(cell) for cell in row] for row in one.auroc],
                "values_left_out": dict(one.left_out),
            }
            for one in study.transfers
        ],
        "to_labels": {name: as_json(auroc) for name, auroc in study.to_labels.items()},
        "examples": _examples(study, colour),
    }


def claim_rows(study: TokenStudy | str) -> list[dict[str, Any]]:
    """Per claim its answer, place, type and class, and what every detector said of it.

    The scores of probes are log-odds; all rise with the likelihood that the claim is contradicted.
    """
    if isinstance(study, str):
        return []
    spans, keys = study.tokens.spans, study.tokens.keys
    fold_of = {int(i): number for number, fold in enumerate(study.folds) for i in fold.test}
    scores = {one.name: one.scores.span for one in study.results if one.scores.span is not None}
    return [
        {
            "key": keys[int(spans.answer[row])],
            "start": int(spans.start[row]),
            "end": int(spans.end[row]),
            "claim": str(spans.type[row]),
            "y": int(spans.y[row]),
            "fold": fold_of[row],
            **{name: round(float(score[row]), 6) for name, score in scores.items()},
        }
        for row in range(len(spans.y))
    ]


def _detector(result: TokenResult) -> dict[str, Any]:
    return {
        "name": result.name,
        "title": result.title,
        "source": result.source,
        "role": result.role,
        "layer": ", ".join(dict.fromkeys(place.layer for place in result.places)),
        "levels": {name: _level(level) for name, level in result.levels.items()},
    }


def _level(level: LevelResult) -> dict[str, Any]:
    return {
        "auroc": as_json(level.auroc),
        "auprc": as_json(level.auprc),
        "aurc": as_json(level.aurc),
        "recall_at": {str(rate): as_json(recall) for rate, recall in level.recall_at.items()},
        "best_control": level.best_control or None,
        "over_best_control": as_json(level.over_best_control),
        "within_types": as_json(level.within_types),
        "best_control_within_types": level.best_control_within_types or None,
        "within_types_over_best_control": as_json(level.within_types_over_best_control),
    }


def _examples(study: TokenStudy, colour: Callable[[Entry], Coloured]) -> list[dict[str, Any]]:
    """Answers on which the probe is ``best``, ``typical`` and ``worst``, by its log-loss.

    The best are looked for among answers with claims of both classes: what is all wrong shows less.
    """
    tokens = study.tokens
    loss, mixed = _losses(study)
    rank = np.argsort(loss, kind="stable")
    from_middle = np.argsort(np.abs(loss - np.median(loss)), kind="stable")
    orders = {"best": rank[mixed[rank]], "typical": from_middle, "worst": rank[::-1]}
    found, taken = [], set()
    for kind, order in orders.items():
        free = np.array([row for row in order.tolist() if row not in taken], np.int64)
        for row in free[first_of_groups(tokens.answer_groups[free])][:PER_KIND].tolist():
            taken.add(row)
            entry = tokens.store[tokens.keys[row]]
            found.append(example(entry, tokens.label, colour, kind=kind, probability=None))
    return found


def _losses(study: TokenStudy) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Per answer the mean log-loss of its claims, and whether it has claims of both classes."""
    score, spans = study.result(MAIN).scores.span, study.tokens.spans
    assert score is not None
    each = np.logaddexp(0, np.where(spans.y == 1, -score, score))
    number = np.bincount(spans.answer)
    wrong = np.bincount(spans.answer, spans.y)
    return np.bincount(spans.answer, each) / number, (wrong > 0) & (wrong < number)
