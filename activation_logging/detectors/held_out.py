"""What a study holds out besides the things that it asks about, as its options say.

``folds_by``:

========= ========================================================================================
group     answers about one thing are never on both sides
template  neither is a question's wording, see :mod:`activation_logging.dataset.templates`
tag:NAME  each value of a tag is a test side by itself, such as each domain of questions
========= ========================================================================================

``match_length`` gives both classes the same lengths, so that length tells nothing.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from activation_logging.dataset.templates import template_of
from activation_logging.detectors.splits import MIN_PER_CLASS, Fold, Index, make_folds
from activation_logging.errors import DatasetError
from activation_logging.tags import NAME_TAGS, TEMPLATE

if TYPE_CHECKING:
    from activation_logging.dataset import Examples
    from activation_logging.detectors.results import Options

GROUP, TAG = "group", "tag:"
MOST_VALUES = 20
"""A tag with more values would take as many folds."""

SAME_LENGTH = 1.1
"""Lengths in the same step of 10 % count as equal; below ten tokens only equal ones do."""


def split(examples: Examples, options: Options) -> tuple[Examples, list[Fold]]:
    """The answers that can be split as the options say, and the folds.

    Raises:
        DatasetError: they cannot; says why, and what to do.
    """
    if options.match_length:
        examples = _match_lengths(examples, options.seed)
    units = None
    if options.folds_by != GROUP:
        examples, units = _units(examples, options.folds_by)
    folds = options.folds
    if units is not None:
        number = len(np.unique(units))
        folds = number if options.folds_by.startswith(TAG) else min(folds, number)
    return examples, make_folds(
        examples.y, examples.groups, units=units, folds=folds, seed=options.seed
    )


def same_lengths(
    y: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], seed: int
) -> npt.NDArray[np.int64]:
    """Rows of as many answers of either class in every step of length; others drawn by lot.

    Args:
        y: classes 0 and 1, ``[n]``.
        lengths: tokens of each answer, ``[n]``, at least 1.
        seed: the same seed draws the same answers.
    """
    rng = np.random.default_rng(seed)
    step = np.floor(np.log(lengths) / np.log(SAME_LENGTH) + 1e-9).astype(np.int64)
    kept = []
    for one in np.unique(step):
        rows = [np.flatnonzero((step == one) & (y == value)) for value in (0, 1)]
        count = min(map(len, rows))
        kept += [rng.permutation(part)[:count] for part in rows]
    return np.sort(np.concatenate(kept))


def _match_lengths(examples: Examples, seed: int) -> Examples:
    lengths = np.array([place.num_response for place in examples.places])
    rows = same_lengths(examples.y, lengths, seed)
    if len(rows) < 2 * MIN_PER_CLASS:
        raise DatasetError(
            f"the classes differ too much in length to be matched: {len(rows) // 2} answers of "
            f"each have a counterpart, {MIN_PER_CLASS} are needed; ask more questions, or leave "
            "the lengths as they are"
        )
    return examples.take(rows, why="without an answer of the other class of their length")


def _units(examples: Examples, folds_by: str) -> tuple[Examples, npt.NDArray[np.str_]]:
    """The answers that belong to some unit, and the unit of each, ``[n]``."""
    if folds_by == TEMPLATE:
        units, what = _templates(examples), "template"
    elif folds_by.removeprefix(TAG) and folds_by.startswith(TAG):
        what = folds_by.removeprefix(TAG)
        units = np.array([own.get(what, "") for own in examples.tags])
        examples, units = _with_both_classes(examples, units, what)
    else:
        raise DatasetError(
            f"folds by {folds_by!r} are not known; choose group, template or tag:NAME, such as "
            "tag:domain"
        )
    number = len(np.unique(units))
    if number < 2:
        raise DatasetError(
            f"only {number} {what} has answers of both classes, and two are needed to hold one "
            "out; choose other folds, or ask about more"
        )
    if folds_by.startswith(TAG) and number > MOST_VALUES:
        raise DatasetError(
            f"the tag {what} has {number} values, and each would be a fold; choose a tag with at "
            f"most {MOST_VALUES}"
        )
    return examples, units


def _templates(examples: Examples) -> npt.NDArray[np.str_]:
    found = [
        template_of(entry.question, own)
        for entry, own in zip(examples.entries(), examples.tags, strict=True)
    ]
    missing = [key for key, template in zip(examples.keys, found, strict=True) if template is None]
    if missing:
        raise DatasetError(
            f"the template of {len(missing)} of {len(examples)} questions cannot be told (the "
            f"first: {missing[0]}): no tag {' or '.join(NAME_TAGS)} has a text that is in the "
            f"question; tag the questions with their {TEMPLATE}, or choose other folds"
        )
    units = np.array(found)
    if len(np.unique(units)) == len(units):
        raise DatasetError(
            f"no two of the {len(units)} questions share a template; tag them with their "
            f"{TEMPLATE}, or choose other folds"
        )
    return units


def _with_both_classes(
    examples: Examples, units: npt.NDArray[np.str_], tag: str
) -> tuple[Examples, npt.NDArray[np.str_]]:
    """Without the answers of values that cannot be a test side."""
    if not units.astype(bool).any():
        names = Counter(name for own in examples.tags for name in own)
        raise DatasetError(
            f"no answer has the tag {tag}; the tags are {', '.join(sorted(names)) or 'none'}"
        )
    keep: Index = np.flatnonzero(units != "")
    examples, units = examples.take(keep, why=f"without the tag {tag}"), units[keep]
    mixed = [u for u in np.unique(units) if len(np.unique(examples.y[units == u])) == 2]
    keep = np.flatnonzero(np.isin(units, mixed))
    return examples.take(keep, why=f"of a {tag} with one class only"), units[keep]
