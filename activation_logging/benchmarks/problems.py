"""What can be wrong with a benchmark run, as one exception with one sentence."""

from __future__ import annotations

from activation_logging.errors import ActivationLoggingError


class BenchmarkError(ActivationLoggingError):
    """A benchmark cannot start or go on; the text says why and what to do."""


def missing_package(error: ImportError) -> BenchmarkError:
    """The sentence for an import that the ``eval`` extra would have satisfied."""
    return BenchmarkError(
        f"the package {error.name!r} is not installed; "
        'pip install "activation-logging[eval]" brings what the benchmarks need'
    )
