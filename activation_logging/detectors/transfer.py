"""Does a probe fitted on one kind of question work on another? Fit on rows, test on columns."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from activation_logging.detectors.metrics import Bootstrap, Interval, auroc
from activation_logging.detectors.probes import LinearProbe
from activation_logging.detectors.splits import MIN_PER_CLASS, check_no_leak

if TYPE_CHECKING:
    import numpy.typing as npt

    from activation_logging.dataset import Examples
    from activation_logging.detectors.sweep import Scores

TRANSFER_TAGS = ("benchmark", "domain", "stratum", "type")
"""Tags that may tell kinds of questions apart, in the order in which they are tried."""


@dataclass
class Transfer:
    """AUROC of a linear probe fitted on ``values[i]``, tested on ``values[j]``.

    The diagonal is cross-validated, on the same folds as everything else. ``shared`` counts the
    answers left out of the fit since their entity is in the test part too.
    """

    tag: str
    values: list[str]
    auroc: list[list[Interval]]
    shared: list[list[int]]
    left_out: dict[str, str] = field(default_factory=dict)


def transfer_matrix(
    examples: Examples,
    X: npt.NDArray[np.float32],
    within: Scores,
    folds: list[npt.NDArray[np.int64]],
    *,
    tag: str | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> Transfer | str:
    """Fit on the answers with one value of a tag, test on those with another.

    Args:
        examples: the labelled answers.
        X: their states at one place, ``[n, hidden]``.
        within: the cross-validated scores at that place, for the diagonal.
        folds: the test parts of those.
        tag: which tag; else the first of :data:`TRANSFER_TAGS` with two usable values.
        draws: bootstrap draws.
        seed: of the bootstrap.

    Returns:
        The matrix, or the reason why there is none.
    """
    y = examples.y
    reasons = []
    for name in [tag] if tag else TRANSFER_TAGS:
        value_of = np.array([tags.get(name, "") for tags in examples.tags])
        counts = Counter(value for value in value_of.tolist() if value)
        left_out = {
            value: f"{int(y[value_of == value].sum())} {examples.positive} and "
            f"{int((1 - y[value_of == value]).sum())} {examples.negative}, "
            f"{MIN_PER_CLASS} of each are needed"
            for value in counts
            if np.bincount(y[value_of == value], minlength=2).min() < MIN_PER_CLASS
        }
        values = sorted(counts.keys() - left_out.keys())
        if len(values) >= 2:
            break
        reasons.append(f"{name}: {len(values)} usable of {len(counts)} values")
    else:
        return (
            "no tag has two values with enough answers of both classes to transfer between "
            f"({'; '.join(reasons)})"
        )
    matrix = Transfer(name, values, [], [], left_out)
    for source in values:
        figures, shared = [], []
        for target in values:
            test = np.flatnonzero(value_of == target)
            if source == target:
                score, train = within.probability[test], test
                parts = [np.flatnonzero(np.isin(test, fold)) for fold in folds]
            else:
                every = np.flatnonzero(value_of == source)
                train = every[~np.isin(examples.groups[every], examples.groups[test])]
                if np.bincount(y[train], minlength=2).min() < MIN_PER_CLASS:
                    nan = float("nan")
                    figures.append(Interval(nan, nan, nan))
                    shared.append(len(every) - len(train))
                    continue
                check_no_leak(examples.groups, train, test)
                probe = LinearProbe().fit(X[train], y[train])
                score, parts = probe.predict_proba(X[test])[:, 1], [np.arange(len(test))]
            bootstrap = Bootstrap(examples.groups[test], draws=draws, seed=seed)
            figures.append(bootstrap.interval(partial(auroc, y[test], score, folds=parts)))
            shared.append(0 if source == target else int((value_of == source).sum()) - len(train))
        matrix.auroc.append(figures)
        matrix.shared.append(shared)
    return matrix
