"""Modules that moved between version 0.1 and 0.2: their old names work, with a DeprecationWarning.

To be removed with version 0.3.
"""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.abc import Loader
    from types import ModuleType

_PACKAGE = "activation_logging"
MOVED: dict[str, str | tuple[str, ...]] = {
    "alignment": "verify.alignment",
    "bench.figures": "bench.ratios",
    "benchmarks.facts": "benchmarks.short_facts",
    "benchmarks.medicines": "benchmarks.sources.drugs",
    "benchmarks.metrics": "benchmarks.rates",
    "benchmarks.nonsense": "benchmarks.nonsense_mixed_entities",
    "benchmarks.problems": "errors",
    "benchmarks.runs": "benchmarks.run",
    "benchmarks.tasks": "benchmarks.task",
    "benchmarks.taxonomy": "benchmarks.sources.ncbi",
    "cli.analysis": "cli.learn",
    "cli.choosing": "cli.options",
    "cli.integrity": "cli.check",
    "cli.serving": "cli.serve",
    "cli.stores": "cli.browse",
    "cli.upkeep": "cli.change",
    "dataset.progress": "progress",
    "demo_model": "default_model",
    "detectors.catalog": "detectors.registry",
    "detectors.findings": "detectors.results",
    "detectors.probe_file": ("detectors.saved_probe", "detectors.probe_format"),
    "detectors.probes": ("detectors.linear", "detectors.distance", "detectors.network"),
    "detectors.scoring": "detectors.store_scores",
    "export.formats": "export.registry",
    "judges.text": "text",
    "lm_head": "verify.lm_head",
    "report.figures": "report.chart_data",
    "report.wording": "report.headline",
    "store.address_space": "store.engine.address_space",
    "store.compaction": "store.compact",
    "store.environment": "store.engine.environment",
    "store.exclusive": "store.engine.locks",
    "store.filesystem": "store.engine.filesystem",
    "store.filters": "store.query",
    "store.halves": "store.repair",
    "store.leftovers": "store.repair",
    "store.liveness": "store.engine.liveness",
    "store.merging": "store.merge",
    "store.opening": "store.engine.opening",
    "store.pages": "store.engine.pages",
    "store.reader": ("store.open", "store.store"),
    "store.readers": "store.engine.reader_watch",
    "store.structure": "store.repair",
    "store.upgrading": "store.upgrade",
}
"""Old names and new ones, below ``activation_logging``; several where a module was divided."""


class _Finder:
    """Asked last, so only for names that no file has."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        new = MOVED.get(fullname.removeprefix(f"{_PACKAGE}."))
        if new is None or not fullname.startswith(f"{_PACKAGE}."):
            return None
        homes = (new,) if isinstance(new, str) else new
        loader = _Loader([f"{_PACKAGE}.{home}" for home in homes])
        return ModuleSpec(fullname, cast("Loader", loader))


class _Loader:
    """Fills a module of the old name with what the new one holds.

    It is no subclass of ``importlib.abc.Loader``, which takes eight milliseconds to import.
    """

    def __init__(self, new: Sequence[str]) -> None:
        self._new = new

    def create_module(self, spec: ModuleSpec) -> None:
        """The usual module will do."""

    def exec_module(self, module: ModuleType) -> None:
        warnings.warn(
            f"{module.__name__} is now {', '.join(self._new)}; the old name goes with version 0.3",
            DeprecationWarning,
            stacklevel=2,
        )
        for home in self._new:
            new = vars(import_module(home))
            vars(module).update({name: new[name] for name in new if not name.startswith("__")})


def install() -> None:
    """Make the old names importable; once is enough."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
