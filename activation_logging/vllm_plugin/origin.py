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
SELF_TEST = "_activation_logging_warmup_"
"""Id of the request of :mod:`.self_test`."""
_WARM_UP = re.compile(r"_\w*warmup_")


def mark_accepted(params: SamplingParams, options: Mapping[str, Any]) -> None:
    """Mark a request as ours, and set the ``activation_*`` options that apply to it."""
    params.extra_args = {**(params.extra_args or {}), **options, _MARK: True}


def is_own(name: str) -> bool:
    """Whether an extra argument of a request belongs to this package."""
    return name.startswith("activation_") or name == _MARK


def is_accepted(extra_args: Mapping[str, Any] | None) -> bool:
    """Whether our front end has accepted a request with these arguments."""
    return bool(extra_args and extra_args.get(_MARK))


def is_warm_up(request_id: str) -> bool:
    """Whether the worker itself created this request: a warm-up of kernels, or the self-test."""
    return _WARM_UP.match(request_id) is not None
