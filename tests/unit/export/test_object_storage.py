"""Exports on object storage: written, appended to, gone on with and read, on a real S3 server."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from activation_logging import open_store
from activation_logging.errors import (
    AddressError,
    DatasetError,
    ExtraMissing,
    NotAStore,
    OutputExists,
    SettingsError,
    StoreCorrupt,
    StoreReadOnly,
)
from activation_logging.export import FORMATS, export_store
from activation_logging.locations import place_of
from activation_logging.report import build_report
from activation_logging.settings import Settings
from activation_logging.sites import Site
from activation_logging.store import StoreWriter
from activation_logging.store.merge import merge
from tests.fixtures.answers import HIDDEN, NUM_LAYERS
from tests.fixtures.planted import build
from tests.fixtures.readers import command, strict
from tests.fixtures.s3 import KEYS, S3

SITES = {Site("heads", 3): (4, 3), Site("resid_prenorm", NUM_LAYERS): (HIDDEN,)}
N = 14
PART_BYTES = 10_000
"""Of rows, so that a small store has several parts."""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return build(tmp_path_factory.mktemp("objects") / "s", n=N, sites=SITES)


@pytest.fixture(scope="module")
def target(s3: S3, store):
    """An export that every test leaves as it is."""
    export(store, f"{s3.bucket}/shared")
    return f"{s3.bucket}/shared"


def export(store, target, name="safetensors", **options):
    return export_store(store, target, format=name, part_bytes=PART_BYTES, **options)


def assert_equal(path, other):
    """Every entry with its rows, its labels and the arrays beside it."""
    with open_store(path) as truth, open_store(other) as found:
        assert list(found) == list(truth)
        pairs = zip(found.entries(), truth.entries(), strict=True)
        for entry, expected in pairs:
            assert entry.document == expected.document
            assert entry.status == expected.status == "complete"
            assert entry.evaluations == expected.evaluations
            assert entry.derived_names == expected.derived_names
            assert entry.sites == expected.sites
            for site in entry.sites:
                rows, right = entry.stored(site), expected.stored(site)
                assert (rows.dtype, rows.shape) == (right.dtype, right.shape)
                assert rows.tobytes() == right.tobytes()
            (same,) = found.for_request(entry.request_id)
            assert same.key == entry.key


@pytest.mark.parametrize("name", FORMATS.names())
def test_what_is_read_is_what_was_stored(s3: S3, store, name):
    pytest.importorskip({"parquet": "pyarrow", "zarr": "zarr"}.get(name, "numpy"))
    target = f"{s3.bucket}/{name}"
    result = export(store, target, name)
    assert (str(result.folder), result.entries) == (target, N)
    assert sum(each.endswith("/part.json") for each in s3.names(name)) > 1
    assert_equal(store, target)
    with open_store(store) as truth, open_store(target) as found:
        keys = list(truth)
        for place in ({"position": "response_mean"}, {"position": -1, "site": "heads@3"}):
            assert np.array_equal(found.read(keys, **place), truth.read(keys, **place))
        right, rows = truth.read(keys, layer=2), found.read(keys, layer=2)
        assert np.array_equal(rows.values, right.values)
        assert np.array_equal(rows.offsets, right.offsets)
        data, expected = (each.dataset("facts", layer=2) for each in (found, truth))
        assert np.array_equal(data.X, expected.X)
        assert np.array_equal(data.y, expected.y)


def test_no_credentials_are_written(s3: S3, store, target):
    for name in s3.names("shared"):
        content = s3.files.cat_file(f"activations/shared/{name}")
        assert not [key for key in KEYS.values() if key.encode() in content]
    with pytest.raises(AddressError, match="with a name or password in it") as refused:
        export(store, "s3://me:hush@activations/quiet")
    assert "hush" not in str(refused.value)


def test_local_folders_and_other_addresses(store, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    export(store, whole)
    export(store, parts, append=True)
    export(store, "memory://somewhere/else")
    for each in (whole, parts, f"file://{parts}", "memory://somewhere/else"):
        assert_equal(store, each)


@pytest.mark.parametrize("is_local", [False, True])
def test_append(s3: S3, tmp_path, is_local):
    """New answers go out, and labels that were made meanwhile; nothing goes out twice."""
    path = build(tmp_path / "s", n=12, label_of=lambda i: None)
    target = tmp_path / "out" if is_local else f"{s3.bucket}/appended"
    export(path, target)
    with open_store(path, writable=True) as store:
        for number, key in enumerate(store):
            label = "correct" if number % 2 else "hallucinated"
            store.put_evaluation(key, name="late", label=label)
    build(path, n=5, prefix="more-")  # the same questions again
    before = set(names(s3, target))
    done = export_store(path, target, append=True, part_bytes=PART_BYTES)
    assert (done.entries, done.there, done.refreshed, done.format) == (5, 12, 12, "safetensors")
    assert before < set(names(s3, target))
    assert_equal(path, target)
    again = export_store(path, target, append=True)
    assert (again.entries, again.there, again.refreshed) == (0, 17, 0)
    assert_equal(path, target)


def names(s3: S3, target):
    if isinstance(target, str):
        return s3.names(target.rpartition("/")[2])
    return [path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()]


KILLED = """
import sys, time
from activation_logging.export import export_store

def hang(what, done, total):
    if what == "exporting" and done == 12:
        print("hanging", flush=True)
        time.sleep(600)

export_store(sys.argv[1], sys.argv[2], format="npy", part_bytes=10_000, append=True, progress=hang)
"""


def test_a_killed_export_is_gone_on_with(s3: S3, store):
    target = f"{s3.bucket}/killed"
    words = [sys.executable, "-c", KILLED, str(store), target]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"hanging\n"
        child.kill()
    done = {name for name in s3.names("killed") if name.endswith("part.json")}
    assert done
    assert "export.json" not in s3.names("killed")
    with pytest.raises(NotAStore, match=r"export\.json is not there.*`export --append` goes on"):
        open_store(target)
    with pytest.raises(OutputExists, match="an interrupted export is there; go on with it"):
        export(store, target, "npy")
    s3.files.pipe_file("activations/killed/part-00009-half/layer_0.npy", b"half")
    cut = max(done).replace("part.json", "layer_0.npy")
    s3.files.pipe_file(f"activations/killed/{cut}", b"cut")  # which its part.json does not know
    done.remove(max(done))
    result = export(store, target, "npy", append=True)
    assert 0 < result.there < N
    assert result.entries + result.there == N
    assert done < set(s3.names("killed"))
    assert not [name for name in s3.names("killed") if "half" in name or name == cut]
    assert_equal(store, target)


def test_what_a_killed_export_leaves_is_removed_by_the_next(store, tmp_path):
    """And what one that runs has written is not."""
    program = KILLED.replace("append=True, ", "")
    words = [sys.executable, "-c", program, str(store), str(tmp_path / "out")]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"hanging\n"
        (left,) = tmp_path.iterdir()
        export(store, tmp_path / "out")
        assert set(tmp_path.iterdir()) == {left, tmp_path / "out"}
        child.kill()
    export(store, tmp_path / "out", overwrite=True)
    assert_equal(store, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_overwriting_replaces_all(s3: S3, store, tmp_path):
    target = f"{s3.bucket}/replaced"
    export(store, target)
    before = set(s3.names("replaced"))
    with pytest.raises(OutputExists, match=r"already; go on with it with --append, --overwrite it"):
        export(store, target)
    other = build(tmp_path / "s", n=6)
    export(other, target, "npy", overwrite=True)
    assert before & set(s3.names("replaced")) == {"export.json"}
    assert_equal(other, target)
    with pytest.raises(SettingsError, match="give one"):
        export(other, target, overwrite=True, append=True)


def test_what_is_not_ours_is_left_alone(s3: S3, store):
    s3.files.pipe_file("activations/theirs/notes.txt", b"theirs")
    for options in ({}, {"append": True}, {"overwrite": True}):
        with pytest.raises(OutputExists, match="holds something else than an export"):
            export(store, f"{s3.bucket}/theirs", **options)
    assert s3.names("theirs") == ["notes.txt"]


def test_two_exports_at_once(s3: S3, store):
    """The one that ends first stands; nothing of the other's is trusted or left."""
    target = f"{s3.bucket}/both"
    started = []

    def meanwhile(what, done, total):
        if what == "exporting" and done > 5 and not started:
            started.append(True)
            export(store, target, append=True)

    with pytest.raises(OutputExists, match="another export to this place was finished meanwhile"):
        export(store, target, append=True, progress=meanwhile)
    assert_equal(store, target)
    assert export(store, target, append=True).entries == 0
    listed = json.loads(s3.files.cat_file("activations/both/export.json"))
    files = {f"{part['folder']}/{name}" for part in listed["parts"] for name in part["files"]}
    assert set(s3.names("both")) == {"export.json", *files}


@pytest.mark.parametrize("is_local", [False, True])
def test_of_those_that_end_in_the_same_moment_one_stands(s3: S3, tmp_path, is_local):
    place = tmp_path / "moment" if is_local else f"{s3.bucket}/moment"
    for before in (None, b"the first"):
        if before is not None:
            place_of(place).write("export.json", before)
        start = threading.Barrier(6)

        def publish(number, before=before, start=start):
            own = place_of(place)
            start.wait()
            return own.replace("export.json", b"of %d" % number, before)

        with ThreadPoolExecutor(6) as pool:
            (stands,) = np.flatnonzero(list(pool.map(publish, range(6))))
        assert place_of(place).read("export.json") == b"of %d" % stands
        assert not place_of(place).replace("export.json", b"late", before)
        assert not place_of(place).replace("nothing", b"late", b"was there")


def test_a_folder_that_another_export_has_made_meanwhile(store, tmp_path):
    started = []

    def meanwhile(what, done, total):
        if what == "exporting" and not started:
            started.append(True)
            export(store, tmp_path / "out")

    with pytest.raises(OutputExists, match="is there already"):
        export(store, tmp_path / "out", "npy", progress=meanwhile)
    assert_equal(store, tmp_path / "out")
    assert [one.name for one in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        *((kind, "half") for kind in ("part.json", "records.jsonl", ".safetensors", "export.json")),
        *((kind, "flipped") for kind in ("part.json", "records.jsonl", ".safetensors")),
        *((kind, "gone") for kind in (".safetensors", "export.json")),
    ],
)
def test_damaged_files_are_refused_by_name(s3: S3, store, target, kind, damage):
    name = next(each for each in s3.names("shared") if each.endswith(kind))
    path = f"activations/shared/{name}"
    right = s3.files.cat_file(path)
    content = bytearray(right)
    if damage == "gone":
        s3.files.rm(path)
    elif damage == "half":
        s3.files.pipe_file(path, bytes(content[: len(content) // 2]))
    else:
        content[len(content) // 2] ^= 0xFF
        s3.files.pipe_file(path, bytes(content))
    try:
        with pytest.raises((StoreCorrupt, NotAStore), match=name):
            assert_equal(store, target)
        if kind == ".safetensors" and damage != "flipped":
            with pytest.raises(StoreCorrupt, match=name):
                export(store, target, append=True)
    finally:
        s3.files.pipe_file(path, right)


@pytest.mark.parametrize("name", ["../../.bashrc", "/etc/passwd", "a/../../b", "."])
def test_a_manifest_that_leads_elsewhere(store, tmp_path, name):
    export(store, tmp_path / "out")
    path = tmp_path / "out" / "export.json"
    record = json.loads(path.read_text())
    (part,) = record["parts"]
    part["files"][name] = part["files"]["index.json"]
    path.write_text(json.dumps(record))
    with pytest.raises(StoreCorrupt, match="a name that leads elsewhere"):
        open_store(tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "npy"}, "another format"),
        ({"sites": ["heads@3"]}, "its layers is"),
        ({"layers": [2]}, "its layers is"),
        ({"position": "response_last"}, "another position"),
        ({"label": "facts"}, "another label"),
    ],
)
def test_appending_something_else(s3: S3, grown, target, options, said):
    before = s3.names("shared")
    with pytest.raises(DatasetError, match=said):
        export(grown, target, append=True, **options)
    assert s3.names("shared") == before


@pytest.fixture(scope="module")
def grown(store, tmp_path_factory):
    """The store that was exported, with more answers since."""
    path = tmp_path_factory.mktemp("grown") / "s"
    shutil.copytree(store, path)
    return build(path, n=3, prefix="more-", sites=SITES)


@pytest.mark.parametrize("prompts", ["the same", "others"])
def test_appending_another_store(store, target, tmp_path, prompts):
    def change(i, document):
        if prompts == "others":
            document["prompt"] += " Now."

    other = build(tmp_path / "s", n=3, prefix="x", sites=SITES, change=change)
    with pytest.raises(DatasetError, match="of another store"):
        export(other, target, append=True)
    assert_equal(store, target)


def test_addresses_that_refuse(s3: S3, store, target, tmp_path, monkeypatch):
    with s3.refusing():
        for attempt in (lambda: export(store, f"{target}-2"), lambda: open_store(target)):
            with pytest.raises(AddressError, match="environment's credentials have no right"):
                attempt()
    with pytest.raises(AddressError, match="no such bucket"):
        export(store, "s3://nobody-has-this/x")
    with pytest.raises(NotAStore, match="s3://nobody-has-this/x is no export"):
        open_store("s3://nobody-has-this/x")
    with pytest.raises(AddressError, match="names no folder"):
        open_store("s3://")
    with pytest.raises(AddressError, match="nosuch"):
        open_store("nosuch://folder/x")
    with pytest.raises(AddressError, match=r"No such file.*absent\.zip"):
        open_store(f"zip://inside::file://{tmp_path}/absent.zip")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ExtraMissing, match=r"'s3fs'.*pip install 'activation-logging\[s3\]'"):
        export(store, target)


def test_an_export_is_only_read(store, target, tmp_path):
    export(store, tmp_path / "out")
    with pytest.raises(AddressError, match="a store lies on a disk of this machine"):
        open_store(target, writable=True)
    with pytest.raises(StoreReadOnly, match="is an export, which is only read"):
        open_store(tmp_path / "out", writable=True)
    with (
        open_store(target) as opened,
        pytest.raises(StoreReadOnly, match=r"is only read: change the store.*export --append"),
    ):
        opened.put_evaluation(next(iter(opened)), name="x", label="correct")
    with pytest.raises(SettingsError, match="ACTIVATION_LMDB_PATH: a store lies on a disk"):
        Settings(lmdb_path=target)
    export(store, tmp_path / "one", position="response_last")
    with pytest.raises(DatasetError, match=r"one row of each answer only \(response_last\)"):
        open_store(tmp_path / "one")


def test_a_report_is_that_of_the_store(s3: S3, tmp_path):
    """To the last digit, and it may itself lie at an address."""
    pytest.importorskip("sklearn")
    pytest.importorskip("plotly")
    path = build(tmp_path / "s", n=60, dtype="bfloat16", signal=2.0)
    export_store(path, f"{s3.bucket}/studied", format="npy")
    options = {"layers": [2], "positions": ["response_last"], "draws": 100}
    truth = build_report(path, tmp_path / "report", **options)
    found = build_report(f"{s3.bucket}/studied", f"{s3.bucket}/report", **options)
    assert str(found.page) == f"{s3.bucket}/report/index.html"
    assert s3.names("report") == sorted(file.name for file in truth.files)
    figures = json.loads(s3.files.cat_file("activations/report/report.json"))
    right = json.loads((tmp_path / "report" / "report.json").read_text())
    for each in (figures, right):
        each.pop("created")
        each["data"].pop("store")
    assert figures == right


def test_several_stores_in_one_export(tmp_path):
    """Answers to the same prompts get the next numbers, and none is lost or taken for another."""
    stores, target = tmp_path / "stores", f"memory://{tmp_path.name}/union"
    for number, name in enumerate("ab"):
        build(stores / name, n=5, samples=2, seed=number)
    assert export(stores, target).entries == 20
    with open_store(stores) as truth, open_store(target) as found:
        pairs = list(zip(truth.entries(), found.entries(), strict=True))
        for right, entry in pairs:
            assert entry.prompt_key == right.prompt_key
            assert entry.evaluations == right.evaluations
            assert np.array_equal(entry.layer(2), right.layer(2))
        assert len({entry.key for _, entry in pairs}) == 20
        assert {entry.key.partition("#")[2] for _, entry in pairs} == {"", "1", "2", "3"}
        assert np.array_equal(found.dataset(layer=2).X, truth.dataset(layer=2).X)
    build(stores / "c", n=2, seed=3)
    done = export(stores, target, append=True)
    assert (done.there, done.entries, done.refreshed) == (20, 2, 0)


def test_an_export_becomes_a_store_again(store, target, tmp_path):
    done = merge([target], tmp_path / "again")
    assert (done.entries, done.unreadable) == (N, {})
    assert_equal(store, tmp_path / "again")
    assert merge([target], store).duplicates == N


def test_by_the_command_line(s3: S3, store):
    target = f"{s3.bucket}/by-hand"
    said = strict(command("export", store, "-o", target, "-f", "npy", "--json"))
    assert (said["folder"], said["entries"]) == (target, N)
    said = strict(command("export", store, "-o", target, "--append", "--json"))
    assert (said["there"], said["entries"], said["format"]) == (N, 0, "npy")
    assert strict(command("stats", target, "--json"))["entries"] == N
    assert len(strict(command("ls", target, "--json"))) == N
    assert strict(command("verify", target, "--json"))["problems"] == []
    with open_store(target) as opened:
        assert not opened.orphans()
    with pytest.raises(AssertionError) as refused:
        command("prune", target, "--older-than", "1d")
    assert isinstance(refused.value.__cause__, NotAStore)
    assert f"{target} is an address" in str(refused.value.__cause__)


def test_a_folder_of_an_export_is_no_store(store, tmp_path):
    """Commands that change or check files say what it is, and nobody writes a store into it."""
    target = tmp_path / "out"
    export(store, target)
    said = "is an export, which is read by itself and never written to"
    for words in (
        ("repair", target, "--yes"),
        ("compact", target),
        ("upgrade", target),
        ("merge", store, "-o", target),
    ):
        with pytest.raises(AssertionError) as refused:
            command(*words)
        assert said in str(refused.value.__cause__)
    with pytest.raises(NotAStore, match=said):
        StoreWriter(target, role="test")
    assert not (target / "data.mdb").exists()
    checked = strict(command("verify", target, "--json"))
    assert (checked["problems"], checked["unchecked"]) == ([], [])
