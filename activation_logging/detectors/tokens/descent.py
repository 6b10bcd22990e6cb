"""L-BFGS for many problems over the same rows at once, so that a pass over them serves all.

Each problem is a column. A pass over the rows of ``k`` problems is a product of matrices, where
``k`` separate fits would need ``k`` products with a vector and ``k`` readings of the rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Callable

    from activation_logging.arrays import Floats


class _Place(NamedTuple):
    """Numbers ``[p, k]``, the values there ``[k]`` and the gradients ``[p, k]``."""

    x: Floats
    value: Floats
    gradient: Floats


_MEMORY = 10
_ARMIJO = 1e-4
_HALVINGS = 20
_ROUNDING = 1e-8
"""Of a sum over float32 rows, relative."""


def minimise(
    evaluate: Callable[[Floats], tuple[Floats, Floats]],
    start: Floats,
    *,
    tolerance: float = 1e-8,
    max_iter: int = 200,
) -> Floats:
    """The minimum of ``k`` functions of ``p`` numbers each, ``[p, k]``.

    Limited-memory BFGS (Liu and Nocedal 1989) with a backtracking line search, column by column.
    Deterministic: it depends on nothing but its arguments.

    Args:
        evaluate: maps ``[p, k]`` to the values ``[k]`` and the gradients ``[p, k]``.
        start: where to begin, ``[p, k]``.
        tolerance: a column is done where a step promises to lower its value by less than this
            share.
        max_iter: most steps of any column.
    """
    here = _Place(start.copy(), *evaluate(start))
    steps: list[Floats] = []
    changes: list[Floats] = []
    active = np.ones(start.shape[1], bool)
    for _ in range(max_iter):
        direction = -_two_loops(here.gradient, steps, changes)
        slope = (direction * here.gradient).sum(axis=0)
        # What rounding has spoiled goes downhill by the gradient itself.
        spoiled = slope >= 0
        direction[:, spoiled] = -here.gradient[:, spoiled]
        slope = np.where(spoiled, -(here.gradient**2).sum(axis=0), slope)
        active &= -slope > tolerance * np.abs(here.value)
        if not active.any():
            break
        direction[:, ~active] = 0.0
        moved, fell = _search(evaluate, here, direction, np.where(active, slope, 0.0))
        active &= fell
        steps.append(moved.x - here.x)
        changes.append(moved.gradient - here.gradient)
        del steps[:-_MEMORY], changes[:-_MEMORY]
        here = moved
    return here.x


def _search(
    evaluate: Callable[[Floats], tuple[Floats, Floats]],
    here: _Place,
    direction: Floats,
    slope: Floats,
) -> tuple[_Place, npt.NDArray[np.bool_]]:
    """Step down, halving the steps of the columns that do not fall; whether each fell at all."""
    size = np.ones(len(slope))
    for _ in range(_HALVINGS):
        x = here.x + size * direction
        moved = _Place(x, *evaluate(x))
        allowed = here.value + _ARMIJO * size * slope + _ROUNDING * np.abs(here.value)
        good = (slope == 0) | (moved.value <= allowed)
        if good.all():
            return moved, good
        size[~good] /= 2
    # Those that never fell stay where they were: they are as low as rounding lets them be.
    size[~good] = 0.0
    x = here.x + size * direction
    return _Place(x, *evaluate(x)), good


def _two_loops(gradient: Floats, steps: list[Floats], changes: list[Floats]) -> Floats:
    """The gradient times the inverse Hessian that the last steps tell, per column."""
    found = gradient.copy()
    inner = [(step * change).sum(axis=0) for step, change in zip(steps, changes, strict=True)]
    # A column that stood still, or whose slope did not rise, says nothing about curvature.
    rho = [np.divide(1.0, each, out=np.zeros_like(each), where=each > 1e-300) for each in inner]
    alphas = []
    for step, change, one in zip(steps[::-1], changes[::-1], rho[::-1], strict=True):
        alphas.append(one * (step * found).sum(axis=0))
        found -= alphas[-1] * change
    if steps:
        size = (changes[-1] ** 2).sum(axis=0)
        scale = np.divide(
            inner[-1], size, out=np.ones_like(size), where=(size > 0) & (inner[-1] > 0)
        )
        found *= scale
    for step, change, one, alpha in zip(steps, changes, rho, alphas[::-1], strict=True):
        found += (alpha - one * (change * found).sum(axis=0)) * step
    return found
