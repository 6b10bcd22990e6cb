"""Where a request comes from: our front end, another one, or vLLM's own warm-up.

An engine may serve front ends that this plugin is not in: those of a ``--headless`` engine, for
one. Of their requests nobody writes an entry, so no rows are kept either. Our front end marks
what it accepts, and the mark travels with the request's sampling parameters.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllm import SamplingParams

_MARK = "_activation_logging_accepted"
SELF_TEST = "_activation_logging_warmup_"
"""The request of :mod:`.self_test`."""
_WARM_UP = re.compile(r"_\w*warmup_")


def mark_accepted(params: SamplingParams, options: Mapping[str, Any]) -> None:
    """Mark a request as ours, and give it the ``activation_*`` options that hold for it."""
    params.extra_args = {**(params.extra_args or {}), **options, _MARK: True}


def is_own(name: str) -> bool:
    """Whether an extra argument of a request is this package's."""
    return name.startswith("activation_") or name == _MARK


def is_accepted(extra_args: Mapping[str, Any] | None) -> bool:
    """Whether our front end has accepted a request with these arguments."""
    return bool(extra_args and extra_args.get(_MARK))


def is_warm_up(request_id: str) -> bool:
    """Whether a worker has made this request up itself, to warm up its kernels or to test rows."""
    return _WARM_UP.match(request_id) is not None
