"""One engine, one store, so many requests; then every row is looked at."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

from tests.schedules.check import check
from tests.schedules.engine import Setting, running
from tests.schedules.probes import KINDS, make_probe, save_probes
from tests.schedules.traffic import Traffic


@dataclass
class Outcome:
    """What was done to engines of one setting, and what their stores hold."""

    accepted: int = 0
    rows: int = 0
    steps: int = 0
    happened: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    scores: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        self.accepted += other.accepted
        self.rows += other.rows
        self.steps += other.steps
        self.happened += other.happened
        self.statuses += other.statuses
        self.scores += other.scores
        self.wrong += other.wrong


def processes(number: int) -> ProcessPoolExecutor:
    """Fresh processes for engines: what vLLM leaves behind in one is nobody else's."""
    return ProcessPoolExecutor(number, multiprocessing.get_context("spawn"))


def run(
    setting: Setting, requests: int, seed: int, *, reload: bool = False, patience_s: float = 60.0
) -> Outcome:
    """Send ``requests`` requests through an engine of its own, and check its store.

    Args:
        setting: how to run it.
        requests: how many, and their choices count as one each.
        seed: of everything that is drawn.
        reload: whether its probes are replaced now and then.
        patience_s: how long scores are waited for. A busy machine is no mistake.
    """
    patience = patch("activation_logging.vllm_plugin.scored_outputs.PATIENCE_S", patience_s)
    with tempfile.TemporaryDirectory() as folder, patience:
        store = Path(folder) / "activations.lmdb"
        probes = [make_probe(name, number) for number in range(2) for name in KINDS]
        lists = [save_probes(Path(folder) / str(number), number) for number in range(2)]
        with running(setting, store, lists[0]) as engine:
            # The stages of this bench run ahead of their outputs, which vLLM's do not.
            live = not reload and "stages" not in setting.name
            traffic = Traffic(engine, seed, lists if reload else lists[:1], live=live)
            traffic.run(requests)
            traffic.leave()
        driven = traffic.driven
        served = {probe.digest: probe for probe in probes}
        found = check(store, driven.accepted, served, traffic.told)
    return Outcome(
        driven.accepted,
        found.rows,
        driven.steps,
        driven.happened,
        found.statuses,
        found.scores,
        found.wrong,
    )
