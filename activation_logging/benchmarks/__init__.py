"""Benchmarks that make a model hallucinate, as Inspect tasks, and what runs and labels them.

:func:`run_benchmark` runs one from Python; ``activation-logging eval`` and the scripts under
``tasks/`` are faces of it. Whatever asks or judges needs the ``eval`` extra; names, options and
help texts do not.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

# A benchmark's file has the name of its Inspect task. Once the files are imported, their names are
# free for `__getattr__`, which gives the tasks.
from activation_logging.benchmarks import (
    generated_entities,
    known_names,
    nonsense_mixed_entities,
    short_facts,
    wiki_facts,
    wiki_profiles,
)
from activation_logging.extras import require
from activation_logging.lazy import lazy_names

del generated_entities, known_names, nonsense_mixed_entities, short_facts, wiki_facts, wiki_profiles

if TYPE_CHECKING:
    from activation_logging.benchmarks.options import RunOptions
    from activation_logging.benchmarks.registry import BENCHMARKS, Benchmark
    from activation_logging.benchmarks.result import RunResult, examples
    from activation_logging.benchmarks.run import run_benchmark
    from activation_logging.errors import BenchmarkError

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "BenchmarkError",
    "RunOptions",
    "RunResult",
    "examples",
    "generated_entities",
    "known_names",
    "nonsense_mixed_entities",
    "run_benchmark",
    "short_facts",
    "wiki_facts",
    "wiki_profiles",
]

_TASKS = (
    "generated_entities",
    "known_names",
    "nonsense_mixed_entities",
    "short_facts",
    "wiki_facts",
    "wiki_profiles",
)
_get, __dir__ = lazy_names(
    __name__,
    {
        "BENCHMARKS": ".registry",
        "Benchmark": ".registry",
        "BenchmarkError": "..errors",
        "RunOptions": ".options",
        "RunResult": ".result",
        "examples": ".result",
        "run_benchmark": ".run",
    },
)


def __getattr__(name: str) -> Any:
    if name in _TASKS:
        require("eval", "inspect_ai")
        return import_module(f"{__name__}.task").TASKS[name]
    return _get(name)
