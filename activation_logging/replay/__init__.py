"""What no server gives out, computed afterwards from an answer's tokens: attention, logit lens.

::

    from activation_logging import open_store
    from activation_logging.replay import plan_replay, run_replay

    with open_store(path, writable=True) as store:
        run_replay(store, plan_replay(store, "path/to/the/model"))
        store[key].derived("replay/lookback").values

Needs the extra ``replay``. What was computed is read without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from activation_logging.lazy import lazy_names

if TYPE_CHECKING:
    from activation_logging.replay.plan import Plan, ReplayOptions, plan_replay
    from activation_logging.replay.registry import QUANTITIES, Quantity
    from activation_logging.replay.run import ReplayReport, run_replay

__all__ = [
    "QUANTITIES",
    "Plan",
    "Quantity",
    "ReplayOptions",
    "ReplayReport",
    "plan_replay",
    "run_replay",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "QUANTITIES": ".registry",
        "Plan": ".plan",
        "Quantity": ".registry",
        "ReplayOptions": ".plan",
        "ReplayReport": ".run",
        "plan_replay": ".plan",
        "run_replay": ".run",
    },
)
