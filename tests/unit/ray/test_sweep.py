"""A sweep on a cluster gives the numbers of one machine, and names what it cannot read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("sklearn", reason="the extra 'detect' is not installed")

from activation_logging import open_store
from activation_logging.cli import _app
from activation_logging.dataset.examples import select_examples
from activation_logging.detectors import DETECTORS
from activation_logging.detectors.splits import make_folds, make_trial
from activation_logging.detectors.sweep import Task, fit_here, fit_sweep
from activation_logging.errors import ClusterError, DatasetError
from activation_logging.progress import silent
from activation_logging.ray import fit_on_ray
from activation_logging.sites import Site
from tests.fixtures.planted import build

pytestmark = pytest.mark.usefixtures("cluster")

POSITIONS = ["prompt_last", "response_mean"]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("planted") / "s"
    return build(path, n=80, signal=2.0, sites={Site("heads", 2): (4, 3)}, dtype="bfloat16")


def task(store: Any, detector: str) -> Task:
    examples = select_examples(store)
    folds = make_folds(examples.y, examples.groups, folds=2)
    trial = make_trial(examples.y, examples.groups, np.arange(len(examples)), seed=1)
    assert trial is not None
    return Task(examples, folds, DETECTORS.get(detector), [trial])


@pytest.mark.parametrize(
    ("detector", "layers"),
    [("linear_probe", [0, 2]), ("best_heads", [f"heads@2.{head}" for head in range(4)])],
)
def test_equal_to_the_last_digit(path: Path, detector: str, layers: list[int | str]) -> None:
    with open_store(path) as store:
        here, there = (
            fit_sweep(task(store, detector), layers, POSITIONS, fit=fit)
            for fit in (fit_here, fit_on_ray())
        )
    assert list(here.scores) == list(there.scores)
    for cell, scores in here.scores.items():
        other = there.scores[cell]
        assert np.array_equal(scores.probability, other.probability)
        assert scores.threshold == other.threshold
        assert scores.validation_auroc == other.validation_auroc
        assert all(map(np.array_equal, scores.validation, other.validation))
        assert scores.tried == other.tried
    assert here.choose() == there.choose()


def test_how_far_it_is(path: Path) -> None:
    told: list[tuple[int, int]] = []
    with open_store(path) as store:
        fit_on_ray()(task(store, "linear_probe"), [2], POSITIONS, lambda _, *n: told.append(n))
    assert (told[0], told[-1]) == ((0, 2), (2, 2))


def test_the_report_fits_where_it_is_told_to(path: Path, tmp_path: Path) -> None:
    out = ["--output", str(tmp_path / "report"), "--layers", "2"]
    done = CliRunner().invoke(_app, ["report", str(path), *out, "--ray-address", "other:1"])
    assert isinstance(done.exception, ClusterError)
    assert "not to other:1" in str(done.exception)
    assert not (tmp_path / "report").exists()


def test_a_state_that_is_not_finite(tmp_path: Path) -> None:
    def spoil(number: int, rows: dict[int, np.ndarray]) -> None:
        if number == 7:
            rows[2][:] = np.nan

    path = build(tmp_path / "s", n=80, change_rows=spoil)
    with open_store(path) as store, pytest.raises(DatasetError, match=r"not finite.*layer 2"):
        fit_on_ray()(task(store, "linear_probe"), [0, 2], POSITIONS, silent)


def test_a_store_that_a_worker_does_not_reach(path: Path) -> None:
    with open_store(path) as store:
        made = task(store, "linear_probe")
        path.rename(path.with_name("elsewhere"))
        try:
            with pytest.raises(ClusterError, match=r"cannot read the store.*no store at"):
                fit_on_ray()(made, [2], POSITIONS, silent)
        finally:
            path.with_name("elsewhere").rename(path)
