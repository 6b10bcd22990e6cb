"""Labels of a task that is not ours: while Inspect runs it on a real server, and from its log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from activation_logging.benchmarks.elsewhere.apply import label_from
from activation_logging.benchmarks.entries import ServerLabels, StoreLabels
from tests.unit.benchmarks.elsewhere.toy_task import toy


@pytest.mark.parametrize("way", ["store", "http"])
def test_an_inspect_run_labels_its_entries(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    from inspect_ai import eval as inspect_eval
    from inspect_ai.model import get_model

    from activation_logging.benchmarks.elsewhere import hook

    assert hook.LabelHook().enabled()
    monkeypatch.delenv("ACTIVATION_LMDB_PATH", raising=False)
    if way == "store":
        monkeypatch.setenv("ACTIVATION_LMDB_PATH", str(server.lmdb_path))
    model = get_model(
        f"openai-api/served/{server.model}",
        base_url=server.base_url,
        api_key="EMPTY",
        memoize=False,
    )
    log = inspect_eval(
        toy(twice=True, epochs=2),
        model=model,
        display="none",
        log_dir=str(tmp_path),
        max_tokens=8,
        temperature=1.0,
    )[0]
    assert log.status == "success", log.error
    with server.store() as store:
        for sample in log.samples:
            (entry,) = store.for_request(sample.output.response_id)
            label = entry.evaluations["includes"]
            right = sample.scores["includes"].value == "C"
            assert label.label == ("correct" if right else "hallucinated")
            assert entry.response == sample.output.completion
            assert entry.messages[-1]["content"] == "Are you sure?"
            assert label.details["epoch"] == sample.epoch
    labels = StoreLabels(server.lmdb_path) if way == "store" else ServerLabels(server.base_url)
    outcome = label_from(Path(log.location), labels, metric="includes", name=f"later-{way}")
    assert (outcome.written, outcome.problems) == (6, [])
