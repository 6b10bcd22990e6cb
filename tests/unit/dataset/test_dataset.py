from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest

from activation_logging import open_store
from activation_logging.dataset.groups import join_groups
from activation_logging.errors import DatasetError
from tests.fixtures.planted import HIDDEN, MODEL, build


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return build(tmp_path_factory.mktemp("store") / "s.lmdb", n=24, dtype="bfloat16")


def test_features_are_the_rows_of_the_entries(path):
    with open_store(path) as store:
        for position, pick in {
            "prompt_last": lambda e, p: e.layer(2)[p - 1],
            "response_first": lambda e, p: e.layer(2)[p],
            "response_last": lambda e, p: e.layer(2)[-1],
            "response_mean": lambda e, p: e.layer(2)[p:].mean(0, dtype=np.float64),
            "response_max": lambda e, p: e.layer(2)[p:].max(0),
            0: lambda e, p: e.layer(2)[0],
            "-2": lambda e, p: e.layer(2)[-2],
        }.items():
            dataset = store.dataset("facts", layer=2, position=position)
            assert dataset.X.shape == (24, HIDDEN)
            assert dataset.X.dtype == np.float32
            for row, key in zip(dataset.X, dataset.keys, strict=True):
                entry = store[key]
                wanted = pick(entry, len(entry.prompt_token_ids)).astype(np.float32)
                np.testing.assert_array_equal(row, wanted)


def test_labels_tags_groups_and_texts_belong_to_the_keys(path):
    with open_store(path) as store:
        dataset = store.dataset(layer="last")
        assert dataset.layer == 4
        for i, key in enumerate(dataset.keys):
            entry = store[key]
            assert dataset.y[i] == (entry.evaluations["facts"].label == "hallucinated")
            assert dataset.tags[i] == entry.tags
            assert dataset.groups[i] == f"entity: {entry.tags['entity']}"
            assert dataset.prompts[i] == entry.prompt
            assert dataset.responses[i] == entry.response
            assert dataset.logprobs[i] == entry.logprobs
        assert "12 hallucinated, 12 correct; layer 4, response_last" in repr(dataset)


def test_batches_stream_the_same(path):
    with open_store(path) as store:
        dataset = store.dataset(layer=2)
        parts = list(dataset.batches(7))
        assert [len(y) for _, y in parts] == [7, 7, 7, 3]
        np.testing.assert_array_equal(np.concatenate([x for x, _ in parts]), dataset.X)


def test_the_span_position_and_what_lacks_it(path):
    with open_store(path) as store:
        dataset = store.dataset(layer=2, position="answer_span", tags={"domain": "a"})
        assert 0 < len(dataset) < 12
        assert len(dataset) + sum(dataset.left_out.values()) == 24
        for row, key in zip(dataset.X, dataset.keys, strict=True):
            entry = store[key]
            index = [t.strip() for t in entry.response_tokens].index(entry.tags["gold"])
            state = entry.layer(2)[len(entry.prompt_token_ids) + index]
            np.testing.assert_array_equal(row, state)


def test_other_labels_are_counted_never_a_class(tmp_path):
    kinds = ["hallucinated", "correct", "refused", "invalid", None]
    build(tmp_path / "s", n=50, label_of=lambda i: kinds[i % 5])
    with open_store(tmp_path / "s") as store:
        dataset = store.dataset()
        assert dataset.examples.counts() == {"hallucinated": 10, "correct": 10}
        assert dataset.left_out == {
            "labelled refused": 10,
            "labelled invalid": 10,
            "without this label": 10,
        }
        assert store.dataset(negative="refused").examples.counts()["refused"] == 10


def test_filters(path):
    with open_store(path) as store:
        some = store.dataset(tags={"domain": "a"})
        assert len(some) == 12
        assert some.left_out == {"with other tags": 12}
        assert len(store.dataset(model="tiny")) == len(store.dataset(model=MODEL)) == 24


def test_answers_about_the_same_thing_are_one_group():
    about = [
        ["group: na", "entity: sodium", "prompt: 1"],
        ["group: na", "entity: na", "prompt: 2"],
        ["entity: na", "prompt: 3"],
        ["prompt: 3"],
        ["prompt: 4"],
    ]
    groups = join_groups(about)
    assert len(set(groups[:4])) == 1
    assert groups[4] != groups[0]


def test_torch_dataset_reads_the_same_in_workers(path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    with open_store(path) as store:
        dataset = store.dataset(layer=2, position="response_mean")
        states, wanted = dataset.torch(), dataset.X
    # Each worker opens the store by itself.
    loader = torch.utils.data.DataLoader(pickle.loads(pickle.dumps(states)), 8, num_workers=2)
    parts = list(loader)
    np.testing.assert_array_equal(torch.cat([x for x, _ in parts]).numpy(), wanted)
    np.testing.assert_array_equal(torch.cat([y for _, y in parts]).numpy(), dataset.y)


def test_only_the_rows_that_are_needed_are_widened(path, monkeypatch):
    from activation_logging.store import Entry

    seen = []
    real = Entry.rows
    monkeypatch.setattr(
        Entry, "rows", lambda e, layer, a, b: seen.append(b - a) or real(e, layer, a, b)
    )
    monkeypatch.delattr(Entry, "layer")
    with open_store(path) as store:
        assert len(store.dataset(layer=2).X) == 24
    assert set(seen) == {1}


def test_reading_needs_neither_scikit_learn_nor_torch(path):
    code = (
        "import sys; from activation_logging import open_store\n"
        f"print(open_store({str(path)!r}).dataset(layer=2).X.shape)\n"
        "assert not {'torch', 'vllm', 'sklearn', 'scipy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"(24, {HIDDEN})"


def test_a_layer_that_is_not_there(path):
    with open_store(path) as store:
        with pytest.raises(DatasetError, match="0, 2, 4"):
            store.dataset(layer=3)
        with pytest.raises(DatasetError, match="'first' is not 'last', 'all', a number"):
            store.dataset(layer="first")
