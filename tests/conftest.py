"""A store's path, a writer on it, what is logged, and which tests are slow."""

from __future__ import annotations

import gc
import logging
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from activation_logging.store import StoreWriter

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SLOW = (
    "test_access_in_browser.py", "test_any_json.py", "test_ceiling.py", "test_chat_in_browser.py",
    "test_cluster.py", "test_default_model.py", "test_engine.py", "test_face.py", "test_faults.py",
    "test_generated_entities.py", "test_held_out.py", "test_in_browser.py", "test_index.py",
    "test_inspect.py", "test_known_names.py", "test_large_model.py", "test_machine.py",
    "test_object_storage.py", "test_outside.py", "test_page_in_browser.py", "test_questions.py",
    "test_ray_dataset.py", "test_replay.py", "test_run.py", "test_stores.py", "test_studies.py",
    "test_study.py", "test_sweep.py", "test_travel.py", "test_wiki_facts.py",
)  # fmt: skip
"""Modules of ``tests/unit`` that ``make test-fast`` leaves out."""


# A test that shares its processors with others may take any time for one example.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--docs", metavar="NAME", help="write docs/measured/NAME-1.json and so on")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name in SLOW:
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """What was imported is no garbage: looked through anew, it takes half a second each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def store_path(tmp_path: Path) -> Path:
    """Where a store may be made; neither it nor its parent is there yet."""
    return tmp_path / "data" / "activations.lmdb"


@pytest.fixture
def our_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Iterator[pytest.LogCaptureFixture]:
    """What the package logs, also once vLLM has been imported, whose loggers hand nothing on."""
    logger = logging.getLogger("vllm.activation_logging")
    monkeypatch.setattr(logger, "propagate", False)
    # Libraries that configure logging while they are imported disable those that are there.
    for name in [logger.name, *logging.root.manager.loggerDict]:
        if name.startswith(logger.name):
            monkeypatch.setattr(logging.getLogger(name), "disabled", False)
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO, logger.name):
        yield caplog
    logger.removeHandler(caplog.handler)


@pytest.fixture
def store_writer(store_path: Path) -> Iterator[StoreWriter]:
    """A writer on ``store_path``, closed at the end."""
    writer = StoreWriter(store_path, role="test")
    yield writer
    writer.close()
