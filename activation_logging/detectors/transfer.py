"""Does a probe fitted on one kind of question work on another? Fit on rows, test on columns."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from activation_logging.detectors.linear import LinearProbe
from activation_logging.detectors.metrics import Bootstrap, Interval, auroc
from activation_logging.detectors.splits import MIN_PER_CLASS, check_no_leak, make_trial
from activation_logging.errors import InputMissing
from activation_logging.tags import TRANSFER_TAGS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from activation_logging.dataset import Examples
    from activation_logging.detectors.results import Options
    from activation_logging.detectors.splits import Fold, Trial
    from activation_logging.detectors.sweep import Cell, Scores

_UNKNOWN = Interval(float("nan"), float("nan"), float("nan"))


@dataclass
class Transfer:
    """AUROC of a linear probe fitted on ``values[i]``, tested on ``values[j]``.

    Answers about something that the test part is about, too, are left out of the fit; ``shared``
    counts them. The place of a probe is chosen within the answers that it is fitted on: the first
    ``trials`` divide all of each value's, and ``places`` is what came out. The others, numbered by
    ``apart`` for a pair of values, divide what is left of a value where answers are left out. The
    diagonal is cross-validated, on the same folds as everything else, at the place of each fold.
    """

    tag: str
    values: list[str]
    trials: list[Trial]
    apart: dict[tuple[str, str], int] = field(default_factory=dict)
    places: list[Cell] = field(default_factory=list)
    auroc: list[list[Interval]] = field(default_factory=list)
    shared: list[list[int]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


def plan_transfer(examples: Examples, folds: Sequence[Fold], options: Options) -> Transfer:
    """An empty matrix over the usable values of one tag.

    Args:
        examples: the labelled answers.
        folds: the splits of the study.
        options: ``transfer_by`` names the tag; without it, the first of :data:`.TRANSFER_TAGS`
            with two usable values counts. ``seed`` is that of the trials.

    Raises:
        InputMissing: no tag has two usable values, the text counts them; or the folds are not by
            group.
    """
    if any(fold.held_out for fold in folds):
        raise InputMissing(
            f"the folds hold out by {options.folds_by}, and the diagonal would not be what a probe "
            "reaches within a kind; see the study with folds by group"
        )
    y, reasons = examples.y, []
    for name in [options.transfer_by] if options.transfer_by else TRANSFER_TAGS:
        value_of = _values(examples, name)
        rows = {value: np.flatnonzero(value_of == value) for value in np.unique(value_of)}
        rows.pop("", None)
        trials, left_out = {}, {}
        for value, own in rows.items():
            trial = make_trial(y, examples.groups, own, options.seed)
            if trial is not None and _enough(y[own]):
                trials[str(value)] = trial
            else:
                left_out[str(value)] = _counted(examples, own)
        if len(trials) >= 2:
            found = Transfer(name, list(trials), list(trials.values()), left_out=left_out)
            _plan_apart(found, examples, options.seed)
            return found
        reasons.append(f"{name}: {len(trials)} usable of {len(rows)} values")
    raise InputMissing(
        "no tag has two values with enough answers of both classes to transfer between "
        f"({'; '.join(reasons)})"
    )


def fill_transfer(
    matrix: Transfer,
    examples: Examples,
    *,
    places: Sequence[Cell],
    states: Mapping[Cell, npt.NDArray[np.float32]],
    within: Scores,
    folds: Sequence[Fold],
    options: Options,
) -> None:
    """Fit on the answers with one value of a tag, test on those with another.

    Args:
        matrix: what :func:`plan_transfer` gave.
        examples: the labelled answers.
        places: where a probe reads, as each trial has chosen.
        states: those of the answers at these places, ``[n, hidden]``.
        within: the cross-validated scores at the place of each fold, for the diagonal.
        folds: the splits of those.
        options: ``draws`` and ``seed`` are the bootstrap's.
    """
    value_of = _values(examples, matrix.tag)
    matrix.places.extend(places[: len(matrix.values)])
    for source, usual in zip(matrix.values, matrix.places, strict=True):
        aurocs, shared = [], []
        for target in matrix.values:
            test = np.flatnonzero(value_of == target)
            interval = partial(_interval, examples, test, options)
            if source == target:
                parts = [np.flatnonzero(np.isin(test, fold.test)) for fold in folds]
                aurocs.append(interval(within.probability[test], parts))
                shared.append(0)
                continue
            fit, left_out = _apart(examples, value_of, source, target)
            shared.append(left_out)
            number = matrix.apart.get((source, target))
            if left_out and number is None:
                aurocs.append(_UNKNOWN)
                continue
            X = states[usual if number is None else places[number]]
            aurocs.append(interval(_transferred(examples, X, fit, test), [np.arange(len(test))]))
        matrix.auroc.append(aurocs)
        matrix.shared.append(shared)


def _plan_apart(matrix: Transfer, examples: Examples, seed: int) -> None:
    """Trials of the values that share things with another, where enough answers are left."""
    value_of = _values(examples, matrix.tag)
    for source, target in permutations(matrix.values, 2):
        fit, left_out = _apart(examples, value_of, source, target)
        if not left_out or not _enough(examples.y[fit]):
            continue
        trial = make_trial(examples.y, examples.groups, fit, seed)
        if trial is not None:
            matrix.apart[source, target] = len(matrix.trials)
            matrix.trials.append(trial)


def _apart(
    examples: Examples, value_of: npt.NDArray[np.str_], source: str, target: str
) -> tuple[npt.NDArray[np.int64], int]:
    """The answers of one value about nothing that another's are about, and how many others."""
    train, test = (np.flatnonzero(value_of == value) for value in (source, target))
    fit = train[~np.isin(examples.groups[train], examples.groups[test])]
    return fit, len(train) - len(fit)


def _counted(examples: Examples, rows: npt.NDArray[np.int64]) -> str:
    """Why answers cannot be transferred from or to."""
    ones, things = int(examples.y[rows].sum()), len(np.unique(examples.groups[rows]))
    return (
        f"{ones} {examples.positive} and {len(rows) - ones} {examples.negative} about {things} "
        f"things, {MIN_PER_CLASS} of each class are needed"
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
