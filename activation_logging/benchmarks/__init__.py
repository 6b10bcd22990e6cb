"""Benchmarks that make a model hallucinate, as Inspect tasks, and what runs and labels them.

Needs the ``eval`` extra. :func:`run_benchmark` runs one from Python; ``activation-logging eval``
and the scripts under ``tasks/`` are faces of it.
"""

from __future__ import annotations

try:
    import inspect_ai  # noqa: F401  asked for here to say which extra brings it
except ImportError as _error:
    raise ImportError(
        'the benchmarks need Inspect; pip install "activation-logging[eval]"'
    ) from _error

from activation_logging.benchmarks.problems import BenchmarkError
from activation_logging.benchmarks.runs import RunResult, examples, run_benchmark
from activation_logging.benchmarks.tasks import nonsense_mixed_entities, short_facts

__all__ = [
    "BenchmarkError",
    "RunResult",
    "examples",
    "nonsense_mixed_entities",
    "run_benchmark",
    "short_facts",
]
