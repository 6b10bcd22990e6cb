"""Benchmarks that make a model hallucinate, as Inspect tasks, and what runs and labels them.

Needs the ``eval`` extra. :func:`run_benchmark` runs one from Python; ``activation-logging eval``
and the scripts under ``tasks/`` are faces of it.
"""

from __future__ import annotations

from activation_logging.extras import require

require("eval", "inspect_ai")

from activation_logging.benchmarks.runs import RunResult, examples, run_benchmark  # noqa: E402
from activation_logging.benchmarks.tasks import nonsense_mixed_entities, short_facts  # noqa: E402
from activation_logging.errors import BenchmarkError  # noqa: E402

__all__ = [
    "BenchmarkError",
    "RunResult",
    "examples",
    "nonsense_mixed_entities",
    "run_benchmark",
    "short_facts",
]
