"""Every export, read back by its own library, bit for bit."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from activation_logging import Span, open_store
from activation_logging.errors import DatasetError, UnknownName
from activation_logging.export import FORMATS, export_store
from activation_logging.sites import Site
from activation_logging.store.derived import Derived
from tests.fixtures.answers import to_bfloat16
from tests.fixtures.outside import outside_package
from tests.fixtures.planted import build
from tests.fixtures.readers import command, strict

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


def test_spans_go_out_with_every_format(tmp_path):
    path = build(tmp_path / "s", n=3)
    span = Span(0, 3, "contradicted", claim="a \ud800", gold="b")
    with open_store(path, writable=True) as store:
        key = next(iter(store))
        store.put_evaluation(key, name="claims", label="correct", spans=[span])
    whole = {**span.as_json(), "source": None}
    for name in ("npy", "zarr", "safetensors"):
        export_store(path, tmp_path / name, format=name)
        labels = {record["key"]: record["labels"] for record in records(tmp_path / name)}
        assert labels[key]["claims"]["spans"] == [whole]
        assert labels[key]["facts"]["spans"] == []
    parquet = pytest.importorskip("pyarrow.parquet")
    export_store(path, tmp_path / "parquet", format="parquet")
    columns = ["key", "spans_claims"]
    table = parquet.read_table(tmp_path / "parquet" / "data-00000.parquet")
    assert "spans_facts" not in table.column_names
    found = {row["key"]: row["spans_claims"] for row in table.select(columns).to_pylist()}
    assert found.pop(key) == [{**whole, "claim": "a ?"}]
    assert list(found.values()) == [None, None]


def test_scores_go_out_with_every_format(tmp_path):
    path = build(tmp_path / "s", n=2)
    with open_store(path, writable=True) as store:
        one, other = store
        scores = np.linspace(0, 0.9, len(store[one].positions), dtype=np.float32)
        scores[0] = np.nan
        store.put_derived([Derived(one, "score/span", scores, {"digest": "d"})])
    told = [None, *map(float, scores[1:])]
    for name in ("npy", "zarr", "safetensors"):
        export_store(path, tmp_path / name, format=name)
        probes = {record["key"]: record["probes"] for record in records(tmp_path / name)}
        assert probes == {one: {"span": {"digest": "d", "scores": told}}, other: {}}
    parquet = pytest.importorskip("pyarrow.parquet")
    for position, expected in ((None, told), ("response_last", told[-1:]), ("response_mean", None)):
        folder = tmp_path / f"parquet-{position}"
        export_store(path, folder, format="parquet", position=position)
        table = parquet.read_table(folder / "data-00000.parquet").select(["key", "probes"])
        found = {row["key"]: row["probes"] for row in table.to_pylist()}
        span = [{"name": "span", "digest": "d", "scores": expected}] if expected else []
        assert found == {one: span, other: []}


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


SITES = {Site("attn_out", 1): (16,), Site("heads", 3): (4, 3)}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    return build(tmp_path_factory.mktemp("mixed") / "s", n=6, sites=SITES, dtype="float16")


def test_sites_beside_layers(mixed, tmp_path):
    """Every site where nothing is named; a site's rows are flat."""
    result = export_store(mixed, tmp_path / "npy", format="npy")
    assert result.layers == (*LAYERS, "attn_out@1", "heads@3")
    assert result.dtype == "float16"
    described = json.loads((tmp_path / "npy" / "export.json").read_text())
    assert described["layers"] == list(result.layers)
    assert described["sites"] == {"attn_out@1": [16], "heads@3": [4, 3]}
    with open_store(mixed) as store:
        entries = [store[record["key"]] for record in records(tmp_path / "npy")]
        for name, read in {
            "layer_2": lambda entry: entry.layer(2),
            "attn_out@1": lambda entry: entry.site("attn_out", 1),
            "heads@3": lambda entry: entry.site("heads", 3).reshape(-1, 12),
        }.items():
            expected = np.concatenate([read(entry) for entry in entries])
            assert_same_bits(np.load(tmp_path / "npy" / f"{name}.npy"), expected)


@pytest.mark.parametrize("name", ["parquet", "safetensors", "zarr"])
def test_chosen_sites_in_every_format(mixed, tmp_path, name):
    result = export_store(mixed, tmp_path / name, format=name, sites=["heads@3", "heads@3.1"])
    assert result.layers == ("heads@3", "heads@3.1")
    whole, head = [], []
    with open_store(mixed) as store:
        entries = list(store.entries())
        for entry in entries:
            whole.append(entry.site("heads@3").reshape(-1, 12))
            head.append(entry.site("heads@3")[:, 1])
    for column, expected in (("heads@3", whole), ("heads@3.1", head)):
        if name == "parquet":
            parquet = pytest.importorskip("pyarrow.parquet")
            table = parquet.read_table(tmp_path / name / "data-00000.parquet")
            found = [np.array(rows, np.float16) for rows in table[column].to_pylist()]
        elif name == "zarr":
            zarr = pytest.importorskip("zarr")
            root = zarr.open_group(str(tmp_path / name), mode="r")
            found = np.split(root[column][:], root["offsets"][1:-1])
        else:
            shard = load_file(tmp_path / name / "activations-00000.safetensors")
            found = [shard[f"{entry.key}/{column}"] for entry in entries]
        for rows, truth in zip(found, expected, strict=True):
            assert_same_bits(rows, truth)


def test_sites_that_not_every_entry_has(mixed, tmp_path):
    path = build(tmp_path / "s", n=2, sites=SITES)
    build(path, n=2, prefix="plain-")
    with pytest.raises(DatasetError, match=r"\(0, 2, 4, attn_out@1, heads@3: 2; 0, 2, 4: 2\)"):
        export_store(path, tmp_path / "out", format="npy")
    with pytest.raises(DatasetError, match="layer 3 is not there for all 4 answers"):
        export_store(path, tmp_path / "out", format="npy", layers=[2, 3])
    assert export_store(path, tmp_path / "out", format="npy", layers=["all"]).layers == LAYERS
    said = command("export", mixed, "-o", tmp_path / "two", "-f", "npy", "--json")
    assert strict(said)["layers"] == [*LAYERS, "attn_out@1", "heads@3"]
    chosen = ("--layers", "last", "--sites", "attn_out@all", "--position", "response_mean")
    said = command("export", mixed, "-o", tmp_path / "three", "-f", "npy", "--json", *chosen)
    assert strict(said)["layers"] == [4, "attn_out@1"]


@pytest.mark.parametrize("name", ["npy", "safetensors"])
def test_entries_without_what_is_named_are_left_out(tmp_path, name):
    """A request may log fewer layers than the server; the answers to the others go out."""
    path = build(tmp_path / "s", n=2, sites=SITES, layers=(0, 2))
    build(path, n=3, prefix="fewer-", layers=(2,))
    first = export_store(path, tmp_path / "out", format=name, layers=[0, 2], sites=["heads@3.1"])
    assert (first.entries, first.layers) == (2, (0, 2, "heads@3.1"))
    assert first.left_out == {"without layer 0": 3}
    build(path, n=1, prefix="late-", sites=SITES, layers=(0, 2))
    build(path, n=1, prefix="without-a-head-", layers=(0, 2))
    more = export_store(path, tmp_path / "out", append=True)
    assert (more.entries, more.there) == (1, 2)
    assert more.left_out == {"without layer 0": 3, "without heads@3": 1}
    none = export_store(path, tmp_path / "out", append=True)
    assert (none.entries, none.there, none.left_out) == (0, 3, more.left_out)
    with pytest.raises(DatasetError, match=r"has all of 4, heads@3; name fewer"):
        build(path, n=1, prefix="last-")
        export_store(path, tmp_path / "none", format=name, layers=[4], sites=["heads@3"])


@pytest.mark.parametrize("name", FORMATS.names())
def test_narrower_numbers_are_appended_to_wider_ones(tmp_path, name):
    path = build(tmp_path / "s", n=2, dtype="float32")
    build(path, n=2, prefix="half-", dtype="float16")
    export_store(path, tmp_path / "out", format=name)
    build(path, n=2, prefix="more-", dtype="float16")
    assert export_store(path, tmp_path / "out", append=True).entries == 2
    with open_store(path) as store, open_store(tmp_path / "out") as found:
        assert len(found) == 6
        for entry in store.entries():
            assert_same_bits(found[entry.key].layer(2), entry.layer(2))


def test_labels_of_copies_do_not_take_turns(tmp_path):
    """Copies of a store that are exported as one keep the labels that each has."""
    stores = tmp_path / "stores"
    build(stores / "a", n=3)
    shutil.copytree(stores / "a", stores / "b")
    assert export_store(stores, tmp_path / "out", format="npy").entries == 6
    with open_store(stores / "b", writable=True) as store:
        key = next(iter(store))
        store.put_evaluation(key, name="late", label="correct")
    for refreshed in (1, 0, 0):
        done = export_store(stores, tmp_path / "out", append=True)
        assert (done.entries, done.there, done.refreshed) == (0, 6, refreshed)
    with open_store(tmp_path / "out") as found:
        assert ["late" in found[name].evaluations for name in (key, f"{key}#1")] == [False, True]
