"""The origin of a request: our front end, another front end, or vLLM's own warm-up.

An engine may serve front ends without this plugin, for example a ``--headless`` engine. Such a
front end writes no entries, so the worker keeps no rows of its requests. Our front end marks the
requests that it accepts. The mark travels with the request's sampling parameters.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllm import SamplingParams

_MARK = "_activation_logging_accepted"
_SCORES_TO = "_activation_logging_scores_to"
_KEPT = "_activation_logging_kept"
SELF_TEST = "_activation_logging_warmup_"
"""Id of the request of :mod:`.self_test`."""
_WARM_UP = re.compile(r"_\w*warmup_")


def mark_accepted(
    params: SamplingParams,
    options: Mapping[str, Any],
    scores_to: str | None = None,
    *,
    kept: bool = True,
) -> None:
    """Mark a request as ours, and set the ``activation_*`` options that apply to it.

    Args:
        params: the request's.
        options: see above.
        scores_to: the address of this front end's :class:`.ScoreInbox`, if it has probes.
        kept: whether its rows are kept, whatever the answer will be.
    """
    mark: dict[str, Any] = {_MARK: True, _KEPT: kept}
    if scores_to is not None:
        mark[_SCORES_TO] = scores_to
    params.extra_args = {**(params.extra_args or {}), **options, **mark}


def is_own(name: str) -> bool:
    """Whether an extra argument of a request belongs to this package."""
    return name.startswith("activation_") or name in {_MARK, _SCORES_TO, _KEPT}


def is_accepted(extra_args: Mapping[str, Any] | None) -> bool:
    """Whether our front end has accepted a request with these arguments."""
    return bool(extra_args and extra_args.get(_MARK))


def is_kept(extra_args: Mapping[str, Any] | None) -> bool:
    """Whether the rows of a request with these arguments are kept, whatever the answer will be."""
    return bool((extra_args or {}).get(_KEPT))


def scores_to(extra_args: Mapping[str, Any] | None) -> str | None:
    """Where the scores of a request with these arguments go; None for a server without probes."""
    return (extra_args or {}).get(_SCORES_TO)


def is_warm_up(request_id: str) -> bool:
    """Whether the worker itself created this request: a warm-up of kernels, or the self-test."""
    return _WARM_UP.match(request_id) is not None
