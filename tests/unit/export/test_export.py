"""Every export, read back by its own library, bit for bit."""

from __future__ import annotations

import json

import numpy as np
import pytest

from activation_logging import open_store
from activation_logging.export import export_store
from tests.unit.analysis.planted import build
from tests.unit.answers import to_bfloat16

LAYERS = (0, 2, 4)


@pytest.fixture(scope="module", params=["float32", "float16", "bfloat16"])
def store(request, tmp_path_factory):
    path = build(tmp_path_factory.mktemp("x") / "s", n=30, dtype=request.param)
    with open_store(path) as opened:
        truth = {
            entry.key: {layer: np.array(entry.layer(layer)) for layer in LAYERS}
            for entry in opened.entries()
        }
    return path, request.param, truth


def export(store, folder, name):
    result = export_store(store[0], folder / name, format=name)
    assert result.entries == len(store[2]) == 30
    return folder / name


def assert_same_bits(found, expected):
    found = np.asarray(found)
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert found.tobytes() == np.ascontiguousarray(expected).tobytes()


def records(folder):
    return [json.loads(line) for line in (folder / "entries.jsonl").read_text().splitlines()]


def test_npy(store, tmp_path):
    folder = export(store, tmp_path, "npy")
    for layer in LAYERS:
        rows = np.load(folder / f"layer_{layer}.npy", mmap_mode="r")
        for record in records(folder):
            expected = store[2][record["key"]][layer]
            assert_same_bits(rows[record["start"] : record["start"] + len(expected)], expected)


def test_zarr(store, tmp_path):
    zarr = pytest.importorskip("zarr")
    folder = export(store, tmp_path, "zarr")
    root = zarr.open_group(str(folder), mode="r")
    offsets = root["offsets"][:]
    for layer in LAYERS:
        rows = root[f"layer_{layer}"]
        for number, record in enumerate(records(folder)):
            part = rows[int(offsets[number]) : int(offsets[number + 1])]
            assert_same_bits(part, store[2][record["key"]][layer])


def test_safetensors(store, tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    _, dtype, truth = store
    folder = export(store, tmp_path, "safetensors")
    index = json.loads((folder / "index.json").read_text())
    assert set(index) == set(truth)
    shards = {name: load_file(folder / name) for name in set(index.values())}
    for key, name in index.items():
        for layer in LAYERS:
            tensor = shards[name][f"{key}/{layer}"]
            assert tensor.dtype == getattr(torch, dtype)
            if dtype == "bfloat16":
                bits = tensor.view(torch.uint16).numpy()
                assert_same_bits(bits, to_bfloat16(truth[key][layer]))
            else:
                assert_same_bits(tensor.numpy(), truth[key][layer])


def test_parquet(store, tmp_path):
    datasets = pytest.importorskip("datasets")
    folder = export(store, tmp_path, "parquet")
    loaded = datasets.load_dataset(
        "parquet",
        data_files=str(folder / "*.parquet"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    ).with_format("numpy")
    seen = set()
    for row in loaded:
        key = str(row["key"])
        seen.add(key)
        assert str(row["label_facts"]) in {"hallucinated", "correct"}
        for layer in LAYERS:
            # The numpy format of datasets widens float16, which loses nothing.
            assert_same_bits(row[f"layer_{layer}"], store[2][key][layer].astype(np.float32))
    assert seen == set(store[2])
