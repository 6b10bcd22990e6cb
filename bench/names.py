"""What the words of ``known_names`` give away: how well a text alone tells made-up from real.

    python -m bench.names [--seeds 5] [--docs known-names]

For each rung of each domain: the names that can be asked about, and the AUROC of a logistic
regression on the question's character n-grams (1 to 4), in five folds that cut no pair, over
several seeds of the benchmark. It has to be about 0.5, else the words would do a probe's work.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

import numpy as np
from rich import box
from rich.table import Table
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline

from activation_logging.benchmarks.known_names import DEFAULT_N, known_names_questions, pairs
from activation_logging.benchmarks.sources.pools import DOMAINS, pool
from activation_logging.console import PlainConsole
from bench.docs import add_flag, record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from activation_logging.benchmarks.questions import Question

_FOLDS = 5


def text_only(questions: Sequence[Question]) -> float:
    """The AUROC with which the questions' words tell made-up names from real ones."""
    made_up = np.array([question.kind == "made_up" for question in questions])
    scores = cross_val_predict(
        make_pipeline(
            TfidfVectorizer(analyzer="char", ngram_range=(1, 4)), LogisticRegression(max_iter=300)
        ),
        [question.prompt for question in questions],
        made_up,
        groups=[question.group for question in questions],
        cv=GroupKFold(_FOLDS),
        method="decision_function",
    )
    return float(roc_auc_score(made_up, scores))


def main() -> int:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description="What the words of known_names give away.")
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds of the benchmark")
    add_flag(parser)
    options = parser.parse_args()
    asked: dict[str, list[list[Question]]] = {}
    for seed in range(options.seeds):
        rungs: dict[str, list[Question]] = {}
        for question in known_names_questions(n=DEFAULT_N, seed=seed):
            rungs.setdefault(question.stratum.rpartition("/")[0], []).append(question)
            rungs.setdefault("all", []).append(question)
        for name, questions in rungs.items():
            asked.setdefault(name, []).append(questions)
    table = Table(box=box.SIMPLE)
    table.add_column("names")
    for title in ("two halves", "pairs that fit", "asked about", "text-only AUROC"):
        table.add_column(title, justify="right")
    found = pairs(DOMAINS, 0)
    sizes = {f"{d}/{rung}": (len(pool(d, rung)), len(made)) for (d, rung), made in found.items()}
    sizes["all"] = tuple(np.sum([*sizes.values()], axis=0).tolist())
    for name, (halves, fit) in sizes.items():
        values = [text_only(questions) for questions in asked[name]]
        shown = f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"
        table.add_row(name, str(halves), str(fit), str(len(asked[name][0])), shown)
    PlainConsole().print(table)
    record(options.docs, table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
