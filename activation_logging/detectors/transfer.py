"""Does a probe fitted on one kind of question work on another? Fit on rows, test on columns."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from activation_logging.detectors.linear import LinearProbe
from activation_logging.detectors.metrics import Bootstrap, Interval, auroc
from activation_logging.detectors.splits import MIN_PER_CLASS, check_no_leak
from activation_logging.errors import InputMissing
from activation_logging.tags import TRANSFER_TAGS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from activation_logging.dataset import Examples
    from activation_logging.detectors.results import Options
    from activation_logging.detectors.splits import Fold
    from activation_logging.detectors.sweep import Scores

_UNKNOWN = Interval(float("nan"), float("nan"), float("nan"))


@dataclass
class Transfer:
    """AUROC of a linear probe fitted on ``values[i]``, tested on ``values[j]``.

    The diagonal is cross-validated, on the same folds as everything else. ``shared`` counts the
    answers left out of the fit since their entity is in the test part too.
    """

    tag: str
    values: list[str]
    auroc: list[list[Interval]] = field(default_factory=list)
    shared: list[list[int]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


def transfer_matrix(
    examples: Examples,
    X: npt.NDArray[np.float32],
    within: Scores,
    folds: Sequence[Fold],
    options: Options,
) -> Transfer:
    """Fit on the answers with one value of a tag, test on those with another.

    Args:
        examples: the labelled answers.
        X: their states at one place, ``[n, hidden]``.
        within: the cross-validated scores at that place, for the diagonal.
        folds: the splits of those.
        options: ``transfer_by`` names the tag; without it, the first of :data:`.TRANSFER_TAGS`
            with two usable values counts. ``draws`` and ``seed`` are the bootstrap's.

    Raises:
        InputMissing: no tag has two usable values, the text counts them; or the folds are not by
            group.
    """
    if any(fold.held_out for fold in folds):
        raise InputMissing(
            f"the folds hold out by {options.folds_by}, and the diagonal would not be what a probe "
            "reaches within a kind; see the study with folds by group"
        )
    matrix = _choose_tag(examples, options.transfer_by)
    value_of = _values(examples, matrix.tag)
    for source in matrix.values:
        aurocs, shared = [], []
        for target in matrix.values:
            test = np.flatnonzero(value_of == target)
            train = np.flatnonzero(value_of == source)
            interval = partial(_interval, examples, test, options)
            if source == target:
                parts = [np.flatnonzero(np.isin(test, fold.test)) for fold in folds]
                aurocs.append(interval(within.probability[test], parts))
                shared.append(0)
                continue
            fit = train[~np.isin(examples.groups[train], examples.groups[test])]
            shared.append(len(train) - len(fit))
            aurocs.append(
                interval(_transferred(examples, X, fit, test), [np.arange(len(test))])
                if _enough(examples.y[fit])
                else _UNKNOWN
            )
        matrix.auroc.append(aurocs)
        matrix.shared.append(shared)
    return matrix


def _choose_tag(examples: Examples, tag: str | None) -> Transfer:
    """An empty matrix over the usable values of one tag."""
    y = examples.y
    reasons = []
    for name in [tag] if tag else TRANSFER_TAGS:
        value_of = _values(examples, name)
        counts = Counter(value for value in value_of.tolist() if value)
        left_out = {
            value: f"{int(y[value_of == value].sum())} {examples.positive} and "
            f"{int((1 - y[value_of == value]).sum())} {examples.negative}, "
            f"{MIN_PER_CLASS} of each are needed"
            for value in counts
            if not _enough(y[value_of == value])
        }
        values = sorted(counts.keys() - left_out.keys())
        if len(values) >= 2:
            return Transfer(name, values, left_out=left_out)
        reasons.append(f"{name}: {len(values)} usable of {len(counts)} values")
    raise InputMissing(
        "no tag has two values with enough answers of both classes to transfer between "
        f"({'; '.join(reasons)})"
    )


def _values(examples: Examples, tag: str) -> npt.NDArray[np.str_]:
    return np.array([tags.get(tag, "") for tags in examples.tags])


def _enough(y: npt.NDArray[np.int64]) -> bool:
    return bool(np.bincount(y, minlength=2).min() >= MIN_PER_CLASS)


def _transferred(
    examples: Examples,
    X: npt.NDArray[np.float32],
    fit: npt.NDArray[np.int64],
    test: npt.NDArray[np.int64],
) -> npt.NDArray[np.float64]:
    check_no_leak(examples.groups, fit, test)
    probe = LinearProbe().fit(X[fit], examples.y[fit])
    return np.asarray(probe.predict_proba(X[test])[:, 1])


def _interval(
    examples: Examples,
    test: npt.NDArray[np.int64],
    options: Options,
    score: npt.NDArray[np.float64],
    folds: Sequence[npt.NDArray[np.int64]],
) -> Interval:
    bootstrap = Bootstrap(examples.groups[test], draws=options.draws, seed=options.seed)
    return bootstrap.interval(partial(auroc, examples.y[test], score, folds=folds))
