"""Sites besides the residual stream: written, read, merged, checked, deleted; and none at all."""

from __future__ import annotations

import json
import pickle
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest

from activation_logging import Entry, open_store
from activation_logging.errors import RowsMissing, SettingsError, StoreCorrupt, StoreError
from activation_logging.records import Segment, SegmentSlice
from activation_logging.sites import RowShape, Site
from activation_logging.store import StoreWriter, layout
from activation_logging.store.compact import compact
from activation_logging.store.merge import merge
from activation_logging.store.statistics import statistics
from activation_logging.store.upgrade import upgrade
from activation_logging.verify import verify
from tests.fixtures.answers import (
    HIDDEN,
    NUM_LAYERS,
    SITES,
    make_capture,
    make_document,
    make_rows,
    make_segment,
    put_answer,
)

if TYPE_CHECKING:
    from pathlib import Path

LAYERS = (0, 3, NUM_LAYERS)
HEADS = Site("heads", 2)


def written(name: str, site: Site) -> np.ndarray:
    """The four rows that :func:`put_answer` stores of a site, as a reader gets them."""
    row = SITES.get(site, RowShape((HIDDEN,), "float32"))
    rows = make_rows(name, site.code, 4, row.dtype, row.width)
    if row.dtype == "bfloat16":
        rows = rows.view(ml_dtypes.bfloat16).astype(np.float32)
    return rows.reshape(4, *row.shape)


def assert_whole(entry: Entry, name: str) -> None:
    layers = [Site("resid", layer) for layer in LAYERS]
    assert entry.sites == (*layers, *sorted(SITES, key=lambda site: site.code))
    for site in entry.sites:
        found = entry.site(site.name, site.layer)
        assert found.dtype == written(name, site).dtype
        assert np.array_equal(found, written(name, site)), site


@pytest.fixture
def mixed(store_path: Path) -> Path:
    """Two answers with every site, and one with the residual stream alone."""
    writer = StoreWriter(store_path, role="test")
    for name in ("one", "two"):
        put_answer(writer, name, prompt=name, layers=LAYERS, sites=SITES)
    put_answer(writer, "plain", prompt="plain", layers=LAYERS)
    writer.close()
    return store_path


def find(path: Path, name: str) -> Entry:
    return open_store(path).for_prompt(name)[0]


class TestReading:
    def test_every_site_comes_back(self, mixed: Path) -> None:
        entry = find(mixed, "one")
        assert_whole(entry, "one")
        assert_whole(pickle.loads(pickle.dumps(entry)), "one")
        assert entry.layers == LAYERS
        assert np.array_equal(entry.layer(3), entry.site("resid", 3))
        assert np.array_equal(entry.activations, entry.site("resid", "last"))
        prenorm = written("one", Site("resid_prenorm", NUM_LAYERS))
        assert np.array_equal(entry.site("resid_prenorm"), prenorm)
        assert np.array_equal(entry.site("resid_prenorm", "last"), prenorm)
        assert np.array_equal(entry.site("heads@2"), entry.site("heads", 2))

    def test_rows_shapes_and_stored_types(self, mixed: Path) -> None:
        entry = find(mixed, "one")
        for site in entry.sites:
            row = SITES.get(site, RowShape((HIDDEN,), "float32"))
            assert entry.shape_of(site) == entry.shape_of(str(site)) == row
            whole = entry.site(site.name, site.layer)
            assert np.array_equal(entry.site_rows(site, 1, 3), whole[1:3])
            assert np.array_equal(entry.site_rows(str(site), -2, 9), whole[-2:])
            stored = make_rows("one", site.code, 4, row.dtype, row.width)
            assert entry.stored(site).tobytes() == stored.tobytes()
        assert entry.stored(HEADS).dtype == np.uint16
        assert np.array_equal(entry.rows(3, 1, 3), entry.layer(3)[1:3])

    def test_what_was_not_logged(self, mixed: Path) -> None:
        entry, plain = find(mixed, "one"), find(mixed, "plain")
        logged = "logged layers: 0, 3, 4 .*logged sites: resid_prenorm, heads@2, heads@3, router@2"
        for ask in (
            lambda: entry.site("heads", 1),
            lambda: entry.site("mlp_out@last"),
            lambda: entry.site_rows("attn_out@2", 0, 1),
            lambda: entry.shape_of(Site("attn_out", 1000)),
            lambda: entry.shape_of(Site("attn_out", 4096 + 2)),
            lambda: entry.layer(2),
            lambda: entry.layer(1 << 14),
            lambda: entry.layer(-1),
            lambda: entry.site("resid_prenorm", 2),
        ):
            with pytest.raises(RowsMissing, match=f"was not logged; {logged}"):
                ask()
        with pytest.raises(RowsMissing, match=r"logged layers: 0, 3, 4 \(last is 4\)$"):
            plain.site("heads", 2)
        assert plain.sites == tuple(Site("resid", layer) for layer in LAYERS)
        for name in ("q_proj", "heads@x", "@3", ""):
            with pytest.raises(SettingsError, match="known sites are resid, resid_prenorm"):
                entry.site(name)

    def test_many_answers_at_once(self, mixed: Path) -> None:
        with open_store(mixed) as store:
            keys = [store.for_prompt(name)[0].key for name in ("two", "one")]
            for site in ("heads@2", HEADS):
                found = store.read(keys, site=site)
                expected = np.concatenate([written(name, HEADS) for name in ("two", "one")])
                assert np.array_equal(found.values, expected.reshape(8, 12))
                assert found.offsets.tolist() == [0, 4, 8]
            last = store.read(keys, site="router@2", position="response_last")
            router = [written(name, Site("router", 2))[-1] for name in ("two", "one")]
            assert np.array_equal(last, np.stack(router))
            mean = store.read(keys, site="heads@2", position="response_mean")
            assert mean.shape == (2, 12)
            layer = store.read(keys, layer=3).values
            assert np.array_equal(store.read(keys, site="resid@3").values, layer)
            with pytest.raises(RowsMissing, match="heads@2 of entry"):
                store.read(list(store), site="heads@2")

    def test_widths_that_differ(self, mixed: Path) -> None:
        writer = StoreWriter(mixed, role="test")
        put_answer(writer, "wide", prompt="wide", sites={HEADS: RowShape((4, 4), "float32")})
        writer.close()
        with open_store(mixed) as store:
            keys = [store.for_prompt(name)[0].key for name in ("one", "wide")]
            with pytest.raises(StoreError, match=r"have 12 elements, those of entry .* 16"):
                store.read(keys, site="heads@2")

    def test_only_sites(self, store_path: Path, store_writer: StoreWriter) -> None:
        """No layer of the residual stream need be there."""
        put_answer(store_writer, "r", layers=(), sites={HEADS: SITES[HEADS]})
        store_writer.flush()
        with open_store(store_path) as store:
            (entry,) = store.entries()
            assert entry.status == "complete"
            assert entry.sites == (HEADS,)
            assert np.array_equal(entry.site("heads", 2), written("r", HEADS))
            with pytest.raises(RowsMissing, match=r"not logged; logged sites: heads@2$"):
                entry.activations  # noqa: B018
            assert verify(store).ok

    def test_rows_in_several_segments(self, store_path: Path, store_writer: StoreWriter) -> None:
        one, two = (make_segment(name, 5, sites=SITES) for name in ("one", "two"))
        slices = [SegmentSlice(one.id, 2, 3), SegmentSlice(two.id, 0, 2)]
        store_writer.put_capture(make_capture("r", [one, two], slices, sites=SITES))
        store_writer.put_entry(make_document("r", prompt_ids=[1, 2, 3, 4], response_ids=[5, 6]))
        store_writer.flush()
        with open_store(store_path) as store:
            (entry,) = store.entries()
            parts = [
                make_rows(name, HEADS.code, 5, "bfloat16", 12)[start:stop]
                for name, start, stop in (("one", 2, 5), ("two", 0, 2))
            ]
            expected = np.concatenate(parts).reshape(5, 4, 3)
            assert np.array_equal(entry.stored("heads@2"), expected)


class TestUpkeep:
    def test_merge_copies_every_site(self, mixed: Path, tmp_path: Path) -> None:
        """Twice: the second merge adds nothing. Ids of segments that are taken get others."""
        target = tmp_path / "merged"
        writer = StoreWriter(target, role="test")
        segment = make_segment("one", 4, sites={HEADS: RowShape((4, 4), "float32")})
        other = {HEADS: RowShape((4, 4), "float32")}
        writer.put_capture(make_capture("other", [segment], sites=other))
        writer.put_entry(make_document("other", prompt="other"))
        writer.close()
        for entries in (3, 0):
            assert merge([mixed], target).entries == entries
            for name in ("one", "two"):
                assert_whole(find(target, name), name)
            assert find(target, "other").site("heads@2").shape == (4, 4, 4)
            assert find(target, "plain").sites == find(mixed, "plain").sites
        with open_store(target) as store:
            assert verify(store).ok

    def test_counted_deleted_and_compacted(self, mixed: Path) -> None:
        layer = 3 * 4 * HIDDEN * 4
        heads, router = 2 * 4 * 12 * 2, 2 * 4 * 5 * 2
        sites = {"resid_prenorm": layer * 2 // 3, "heads@2": heads, "heads@3": heads}
        with open_store(mixed, writable=True) as store:
            found = statistics(store)
            assert found.layer_bytes == dict.fromkeys(LAYERS, layer)
            assert found.site_bytes == {**sites, "router@2": router}
            assert found.rows_bytes == found.as_dict()["rows_bytes"]
            assert found.rows_bytes == 3 * layer + sum(found.site_bytes.values())
            store.delete(store.for_prompt("one")[0].key)
            assert statistics(store).site_bytes["heads@2"] == heads // 2
            assert verify(store).ok
            store.delete(store.for_prompt("two")[0].key)
            assert not statistics(store).site_bytes
        del store
        compact(mixed)
        with open_store(mixed) as store:
            assert [entry.prompt for entry in store.entries()] == ["plain"]
            assert verify(store).ok

    def test_the_index_is_made_anew(self, mixed: Path) -> None:
        with open_store(mixed) as store:
            before = statistics(store).site_bytes
        upgrade(mixed, rebuild=True)
        with open_store(mixed) as store:
            assert statistics(store).site_bytes == before

    def test_verify_names_the_site(self, store_path: Path, store_writer: StoreWriter) -> None:
        segment = make_segment("r", 4, layers=LAYERS, sites=SITES)
        segment.rows[Site("router", 2).code][2, 1] = np.nan
        segment.rows[Site("heads", 3).code][:] = 0
        store_writer.put_capture(make_capture("r", [segment], layers=LAYERS, sites=SITES))
        store_writer.put_entry(make_document("r"))
        store_writer.flush()
        with open_store(store_path) as store:
            (problem,) = verify(store).problems
            assert problem.what == "router@2: 1 of 4 rows are not finite, row 2 the first"

    def test_verify_finds_rows_that_are_missing(
        self, store_path: Path, store_writer: StoreWriter
    ) -> None:
        whole = make_segment("r", 4, sites=SITES)
        kept = {code: rows for code, rows in whole.rows.items() if code != HEADS.code}
        kept[Site("router", 2).code] = kept[Site("router", 2).code][:3]
        store_writer.put_capture(
            make_capture("r", [Segment(whole.id, kept, whole.nbytes)], sites=SITES)
        )
        store_writer.put_entry(make_document("r"))
        store_writer.flush()
        with open_store(store_path) as store:
            (entry,) = store.entries()
            with pytest.raises(StoreCorrupt, match="rows of heads@2 that are missing"):
                entry.site("heads@2")
            with pytest.raises(StoreCorrupt, match=r"router@2 of entry .* has an invalid length"):
                entry.site("router@2")
            assert not verify(store).ok


class TestRecords:
    @pytest.mark.parametrize(
        ("sites", "named"),
        [
            ({"65535": {"shape": [4], "dtype": "float32"}}, "site 65535 is unknown"),
            ({"24577": {"shape": [4], "dtype": "float32"}}, "site 24577 is unknown"),
            ({"8192": {"shape": [4], "dtype": "float32"}}, "site 8192 is unknown"),
            ({"3": {"shape": [4], "dtype": "float32"}}, "'3', which is no site"),
            ({"x": {"shape": [4], "dtype": "float32"}}, "'x', which is no site"),
            ({"012290": {"shape": [4], "dtype": "float32"}}, "'012290', which is no site"),
            ({"12290": {"shape": [], "dtype": "float32"}}, "is invalid"),
            ({"12290": {"shape": [0], "dtype": "float32"}}, "is invalid"),
            ({"12290": {"shape": [2, 2, 2, 2], "dtype": "float32"}}, "is invalid"),
            ({"12290": {"shape": [1 << 25], "dtype": "float32"}}, "is invalid"),
            ({"12290": {"shape": [1 << 13, 1 << 13], "dtype": "float32"}}, "more than 16777216"),
            ({"12290": {"shape": [4], "dtype": "float64"}}, "is invalid"),
            ({"12290": {"shape": [4]}}, "is invalid"),
            ([12290], "is invalid"),
        ],
    )
    def test_forged(self, sites: Any, named: str, mixed: Path) -> None:
        entry = find(mixed, "one")
        key = layout.id_key(entry.document["capture"])

        def forge(change: Any, txn: Any) -> None:
            database = store.environment.database(layout.CAPTURES)
            record = json.loads(bytes(txn.get(key, db=database)))
            txn.put(key, json.dumps({**record, "sites": sites}).encode(), db=database)

        with open_store(mixed, writable=True) as store:
            store.transact(forge)
            with pytest.raises(StoreCorrupt, match=named):
                store[entry.key].sites  # noqa: B018
            assert not verify(store).ok

    def test_without_other_sites_the_record_is_as_it_was(self, mixed: Path) -> None:
        with open_store(mixed) as store:
            records = [
                json.loads(bytes(raw))
                for _, raw in store.snapshot().starting_with(layout.CAPTURES, b"")
            ]
        assert sorted("sites" in record for record in records) == [False, True, True]
        (plain,) = (record for record in records if "sites" not in record)
        assert plain.keys() == {
            *("layers", "num_layers", "hidden_size", "dtype", "first", "slices", "writer")
        }
        heads = next(record for record in records if "sites" in record)["sites"]["12290"]
        assert heads == {"shape": [4, 3], "dtype": "bfloat16"}
