"""One plain JSON document with everything that the page shows."""

from __future__ import annotations

import platform
import time
from typing import TYPE_CHECKING, Any

from activation_logging import __version__
from activation_logging.detectors.results import COVERAGES
from activation_logging.extras import version_of
from activation_logging.report import chart_data
from activation_logging.report.examples import answer_examples
from activation_logging.report.intervals import as_json
from activation_logging.report.tokens import token_part
from activation_logging.text import brief

if TYPE_CHECKING:
    from collections.abc import Callable

    from activation_logging.detectors.results import Result, Study
    from activation_logging.detectors.saved_probe import SavedProbe
    from activation_logging.detectors.tokens import TokenStudy
    from activation_logging.report.colours import Coloured
    from activation_logging.store import Entry

FORMAT = "activation-logging report"
VERSION = 2


def make_document(
    study: Study,
    of_tokens: TokenStudy | str,
    probe: SavedProbe,
    colour: Callable[[Entry], Coloured],
) -> dict[str, Any]:
    """Everything about a study but its activations; only ``created`` differs between runs.

    Args:
        study: the study of answers.
        of_tokens: the study of tokens, or why there is none.
        probe: the linear probe fitted on all answers, whose thresholds are shown.
        colour: what is known of an answer's tokens.
    """
    examples = study.examples
    return {
        "format": FORMAT,
        "version": VERSION,
        "created": time.time(),
        "provenance": _provenance(study),
        "data": {
            "store": str(examples.store.path),
            "model": examples.model,
            "label": examples.label,
            "positive": examples.positive,
            "negative": examples.negative,
            "answers": len(examples),
            "counts": examples.counts(),
            "entities": len(set(examples.groups.tolist())),
            "grouped_by": dict(examples.grouped_by),
            "left_out": dict(examples.left_out),
            "layers": list(examples.layers),
            "num_layers": examples.num_layers,
            "hidden_size": examples.hidden_size,
            "dtypes": dict(examples.dtypes),
        },
        "folds": [
            {
                f"{side} {name}": int((examples.y[part] == value).sum())
                for side, part in (("train", fold.train), ("test", fold.test))
                for value, name in ((1, examples.positive), (0, examples.negative))
            }
            | ({"held out": brief(" | ".join(fold.held_out), 300)} if fold.held_out else {})
            for fold in study.folds
        ],
        "place": study.place._asdict(),
        "chosen": [cell._asdict() for cell in study.chosen],
        "detectors": [_detector(result) for result in study.results],
        "detectors_left_out": study.detectors_left_out,
        "positions_left_out": study.positions_left_out,
        "sweep": [
            {
                **cell._asdict(),
                "auroc": as_json(interval),
                "validation_auroc": [round(v, 6) for v in study.cell_scores[cell].validation_auroc],
            }
            for cell, interval in study.cells.items()
        ],
        "curves": {r.name: chart_data.curves(study, r) for r in study.results},
        "calibration": {r.name: chart_data.calibration(study, r) for r in study.results},
        "histograms": {r.name: chart_data.histogram(study, r) for r in study.results},
        "pca": chart_data.principal_components(study),
        "transfer": _transfer(study),
        "trust": _trust(study),
        "operating_points": [point._asdict() for point in probe.operating_points],
        "examples": answer_examples(study, colour),
        "tokens": token_part(of_tokens, colour),
    }


def score_rows(study: Study) -> list[dict[str, Any]]:
    """Per answer its key, class, group, fold and every detector's out-of-fold probability."""
    examples = study.examples
    fold_of = {int(i): number for number, fold in enumerate(study.folds) for i in fold.test}
    return [
        {
            "key": key,
            "y": int(examples.y[row]),
            "group": str(examples.groups[row]),
            "fold": fold_of[row],
            **{r.name: round(float(r.scores.probability[row]), 6) for r in study.results},
        }
        for row, key in enumerate(examples.keys)
    ]


def _detector(result: Result) -> dict[str, Any]:
    return {
        "name": result.name,
        "title": result.title,
        "source": result.source,
        "layer": result.layer,
        "position": result.position,
        "auroc": as_json(result.auroc),
        "auprc": as_json(result.auprc),
        "accuracy": as_json(result.accuracy),
        "ece": as_json(result.ece),
        "recall_at": {str(rate): as_json(found) for rate, found in result.recall_at.items()},
        "risk_coverage": {
            "coverage": [round(float(share), 6) for share in COVERAGES],
            "risk": [round(float(risk), 6) for risk in result.risk_coverage.risk],
            "aurc": as_json(result.risk_coverage.aurc),
        },
        "over_text": as_json(result.over_text),
        "over_best_control": as_json(result.over_best_control),
        "over_prompt": as_json(result.over_prompt),
        "role": result.role,
        "control": result.control,
        "before_answer": result.before_answer,
        "in_curves": result.in_curves,
    }


def _transfer(study: Study) -> dict[str, Any]:
    transfer = study.transfer
    if transfer is None:
        return {"left_out": study.transfer_left_out}
    return {
        "tag": transfer.tag,
        "values": transfer.values,
        "places": [{"layer": one.layer, "position": one.position} for one in transfer.places],
        "auroc": [[as_json(cell) for cell in row] for row in transfer.auroc],
        "shared_entities_left_out": transfer.shared,
        "values_left_out": transfer.left_out,
    }


def _trust(study: Study) -> dict[str, Any]:
    trust, examples = study.trust, study.examples
    class_of = {"flagged": examples.negative, "missed": examples.positive}
    return {
        "controls": list(trust.controls),
        "best_control": trust.best_control,
        "prompt_control": trust.prompt_control,
        "probe": trust.probe,
        "shuffled": {**trust.shuffled._asdict(), "auroc": as_json(trust.shuffled.auroc)},
        "conformal": [
            {
                **promise._asdict(),
                "of": class_of[promise.mistake],
                "share": as_json(promise.share),
                "told": as_json(promise.told),
                "kept": promise.is_kept,
            }
            for promise in trust.promises
        ],
        "learning_curves": {
            name: [{**point._asdict(), "auroc": as_json(point.auroc)} for point in points]
            for name, points in trust.learning_curves.items()
        },
    }


def _provenance(study: Study) -> dict[str, Any]:
    options = study.options
    return {
        "activation-logging": __version__,
        "python": platform.python_version(),
        **{name: version_of(name) for name in ("numpy", "scipy", "scikit-learn", "plotly")},
        "seed": options.seed,
        "folds": len(study.folds),
        "folds_by": options.folds_by,
        "match_length": options.match_length,
        "bootstrap_draws": options.draws,
        "tags": dict(options.tags),
        "group": list(options.group),
        "broken": options.broken,
    }
