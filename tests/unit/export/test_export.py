"""Every export, read back by its own library, bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from activation_logging import open_store
from activation_logging.errors import UnknownName
from activation_logging.export import FORMATS, export_store
from tests.fixtures.answers import to_bfloat16
from tests.fixtures.outside import outside_package
from tests.fixtures.planted import build

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


def test_every_format_is_registered_under_its_name():
    assert [found.name for found in FORMATS] == list(FORMATS.names())


def test_unknown_format(store, tmp_path):
    with pytest.raises(UnknownName, match="known are parquet, safetensors, npy, zarr"):
        export_store(store[0], tmp_path / "x", format="csv")
    assert not list(tmp_path.iterdir())


MEANS = """
from activation_logging.export import Format

def write(plan, folder, progress):
    with (folder / "means.csv").open("w") as file:
        for item, entry in plan.entries(progress):
            mean = float(plan.array(entry, item, 4).mean())
            print(item.key, mean, sep=",", file=file)

FORMAT = Format("means", "One mean per entry.", write)
"""


def beside_package(folder, points, *words):
    """Run the command line where a package is installed that offers formats."""
    env = outside_package(folder, MEANS, {"activation_logging.export_formats": points}, "means")
    return subprocess.run(
        [sys.executable, "-c", "from activation_logging.cli import app; app()", *map(str, words)],
        capture_output=True,
        text=True,
        env={**env, "COLUMNS": "200"},
        timeout=120,
        check=False,
    )


def test_a_format_of_another_package(store, tmp_path):
    words = ("export", store[0], "--output", tmp_path / "out", "--format", "means", "--json")
    done = beside_package(tmp_path / "packages", {"means": "FORMAT"}, *words)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["dtype"] == ("float16" if store[1] == "float16" else "float32")
    lines = (tmp_path / "out" / "means.csv").read_text().splitlines()
    found = {key: float(mean) for key, _, mean in (line.partition(",") for line in lines)}
    assert found == {key: float(layers[4].mean()) for key, layers in store[2].items()}


def test_help_lists_every_format(tmp_path):
    done = beside_package(tmp_path / "packages", {"means": "FORMAT"}, "export", "--help")
    assert done.returncode == 0, done.stderr
    for found in FORMATS:
        assert f"{found.name}: {found.description}" in done.stdout
    assert "means: One mean per entry." in done.stdout


@pytest.mark.parametrize(("format_", "code"), [("broken", 1), ("npy", 0)])
def test_a_broken_format_of_another_package(store, tmp_path, format_, code):
    words = ("export", store[0], "--output", tmp_path / "out", "--format", format_)
    done = beside_package(tmp_path / "packages", {"broken": "absent:FORMAT"}, *words)
    assert done.returncode == code
    assert ("'broken' of means 1.0 cannot be loaded" in " ".join(done.stderr.split())) == bool(code)
