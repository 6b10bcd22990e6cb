"""The nearest answers by state are those that the states themselves say."""

from __future__ import annotations

import re
import time

import numpy as np
import pytest

from activation_logging import open_store
from activation_logging.errors import ViewError
from activation_logging.store import StoreWriter
from activation_logging.view.addresses import address
from activation_logging.view.index import SearchIndex
from activation_logging.view.near import SHOWN, Near
from activation_logging.view.sketches import AXES, Frame, Place, Sketches
from tests.fixtures.answers import make_document, put_answer
from tests.unit.view.conftest import HOSTILE

LAST = Place("org/model", "resid@4", "response_last")


@pytest.fixture
def near(index):
    return Near(index)


def entry_of(store, request_id):
    (found,) = store.for_request(request_id)
    return found


def expected(store, own, site, position="response_last"):
    """Keys and cosines, from all states at once."""
    there = [e for e in store.entries() if e.model == own.model and e.status == "complete"]
    rows = np.stack([store.read([e.key], site=site, position=position)[0] for e in there])
    rows = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    at = [e.key for e in there].index(own.key)
    prompt = own.key[:64]
    found = [
        (e.key, cosine)
        for e, cosine in zip(there, rows @ rows[at], strict=True)
        if e.key[:64] != prompt
    ]
    return sorted(found, key=lambda one: -one[1])[:SHOWN]


@pytest.mark.parametrize("site", ["resid@2", "resid@4"])
@pytest.mark.parametrize("position", ["response_last", "prompt_last", "response_mean"])
def test_the_nearest_have_the_largest_cosines(near, store, site, position):
    own = entry_of(store, "request-2")
    place = Place(own.model, site, position)
    assert near.find(own, place) is None
    near.build(place)
    found = near.find(own, place)
    right = expected(store, own, site, position)
    assert [one.entry.key for one in found.found] == [key for key, _ in right]
    np.testing.assert_allclose(
        [one.cosine for one in found.found], [c for _, c in right], atol=1e-5
    )
    # All answers of the model; that of the other model is not among them.
    assert (found.among, found.missing) == (11, 0)
    assert near.known("org/model") == [(site, position)]
    assert near.known(HOSTILE) == []


def test_answers_to_the_same_prompt_are_left_out(near, store):
    near.build(LAST)
    own = entry_of(store, "request-0")
    again = entry_of(store, "request-10")
    assert again.key.startswith(own.key)
    assert again.key not in {one.entry.key for one in near.find(own, LAST).found}


def test_new_answers_are_read_and_deleted_ones_are_gone(near, index, store, path):
    near.build(LAST)
    own = entry_of(store, "request-2")
    first = near.find(own, LAST).found[0].entry
    store.delete(first.key)
    writer = StoreWriter(path, role="test")
    # The same rows as those of the answer itself.
    document = make_document("twin", prompt="twin", prompt_ids=(1, 2, 3), response_ids=range(4, 9))
    document["capture"] = "request-2-internal"
    writer.put_entry(document)
    put_answer(writer, "far", prompt="far", layers=(2, 4), response_ids=(4, 5, 6, 7, 8))
    put_answer(writer, "other layers", prompt="other", layers=(2,), response_ids=(4, 5, 6))
    writer.put_entry(make_document("pending", prompt="pending"))
    writer.close()
    index.keep_up()
    found = near.find(own, LAST)
    twin, *others = found.found
    assert twin.entry.request_id == "twin"
    assert twin.cosine == pytest.approx(1, abs=1e-5)
    assert first.key not in {one.entry.key for one in others}
    assert "far" in {one.entry.request_id for one in others}
    # Those without a state there are not read again and again.
    assert near.find(own, LAST).missing == 0
    assert found.among == 13


def test_another_process_finds_what_one_has_read(near, index, store):
    near.build(LAST)
    own = entry_of(store, "request-2")
    other_index = SearchIndex(store, index.path)
    other = Near(other_index)
    both = [[one.entry.key for one in each.find(own, LAST).found] for each in (near, other)]
    assert both[0] == both[1] != []
    # Both have read the same answers: they count once.
    with index.file(writing=True) as file:
        file.execute("INSERT INTO near (frame, slots, sketches, lacking) "
                     "SELECT frame, slots, sketches, lacking FROM near")  # fmt: skip
    assert other.find(own, LAST).among == 11
    other_index.close()


def test_a_few_answers_at_first_give_way_to_a_better_sample(near, index, store, path):
    near.build(LAST)
    with index.file(writing=True) as file:
        file.execute("UPDATE near_frames SET asked = 2")
    fresh = Near(index)
    assert fresh.find(entry_of(store, "request-2"), LAST).missing == 0
    while fresh.progress(LAST) is not None:  # it is read anew in the background
        time.sleep(0.01)
    with index.file() as file:
        assert file.execute("SELECT asked FROM near_frames").fetchone() == (11,)
        assert file.execute("SELECT count(*) FROM near").fetchone() == (1,)


def test_an_index_that_is_made_anew_forgets_them(near, index, store):
    near.build(LAST)
    index.path.unlink()
    index.close()
    again = SearchIndex(store, index.path)
    again.build()
    assert Near(again).find(entry_of(store, "request-2"), LAST) is None
    again.close()


def test_a_place_that_nobody_has_is_said(near, store):
    own = entry_of(store, "request-2")
    for place in (LAST._replace(site="resid@3"), LAST._replace(model="nobody")):
        with pytest.raises(ViewError, match="too few to compare"):
            near.build(place)
    near.build(LAST)
    store.transact(lambda change, txn: change.unkeep(txn, own.key, "it was removed"))
    with pytest.raises(ViewError, match="has no state there"):
        near.find(store[own.key], LAST)


def test_states_that_are_not_numbers_are_left_out():
    states = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    frame = Frame.of(states, 50)
    assert not frame.centred(frame.mean[None]).any()
    assert frame.axes.shape == (8, 8)
    assert Frame.of(np.stack([states[0], states[0] + 1]), 2).axes.shape == (8, 1)


def test_sketches_choose_the_right_candidates():
    """In 256 dimensions, of which the first differ most, as in models."""
    chance = np.random.default_rng(0)
    states = (chance.normal(size=(4000, 256)) / np.sqrt(1 + np.arange(256)) + 3).astype(np.float32)
    frame = Frame.of(states[::4], 1000)
    assert frame.axes.shape == (256, AXES)
    units = frame.centred(states)
    made = Sketches(frame)
    for start in range(0, 4000, 1500):
        part = np.arange(start, min(start + 1500, 4000), dtype=np.int32)
        made.add(part, frame.sketch(units[part]), np.zeros(0, np.int32))
    assert len(made) == 4000
    hits = 0
    for own in range(0, 4000, 400):
        right = np.argsort(-(units @ units[own]))[:10]
        hits += len(set(right) & set(made.best(units[own], 100).tolist()))
    assert hits > 90


# --- the page ------------------------------------------------------------------------------


def test_the_page_asks_before_it_reads_and_then_shows_them(pages, store):
    own = entry_of(store, "request-2")
    where = f"entry/{address(own.key)}/near"
    assert f'hx-get="/activations/{where}"' in pages.get(f"entry/{address(own.key)}")
    page = pages.get(where)
    assert "Find the nearest answers" in page
    # The middle one of two layers, and the last state that there is.
    assert '<option value="resid@4" selected>' in page
    answer = pages.post(where, site="resid@2", position="prompt_last")
    assert answer.url.path == f"/activations/{where}"
    while pages.state.near.progress(Place("org/model", "resid@2", "prompt_last")):
        pass
    page = pages.get(where)
    # What has been read is shown, where nothing is asked for.
    assert '<option value="resid@2" selected>' in page
    right = expected(store, own, "resid@2", "prompt_last")
    assert [float(n) for n in re.findall(r"<b>(-?[\d.]+)</b>", page)] == pytest.approx(
        [cosine for _, cosine in right], abs=6e-4
    )
    assert [k for k in re.findall(r'entry/([\w.]+)">', page) if k != own.key] == [
        address(key) for key, _ in right
    ]
    assert "rules</bdi>: correct" in page


def test_what_is_wrong_is_said(pages, store, path):
    where = f"entry/{address(entry_of(store, 'request-2').key)}/near"
    for query in ("site=resid@3", "position=nowhere", "site=%3Cscript%3E"):
        assert "That did not work" in pages.get(f"{where}?{query}", status=400)
    pages.post(where, 400, site="resid@3", position="")
    pages.get(f"entry/{'0' * 64}/near", status=404)
    alone = f"entry/{address(entry_of(store, 'request-6').key)}/near"
    said = pages.post(alone).text
    while pages.state.near._progress:
        pass
    # It is said once: then one may try again.
    said += pages.get(alone)
    assert said.count("of 1 answers that were looked at, 1 have a state there") == 1
    assert "Find the nearest answers" in pages.get(alone)
    writer = StoreWriter(path, role="test")
    writer.put_entry(make_document("pending", prompt="pending"))
    writer.close()
    (entry,) = open_store(path).for_prompt("pending")
    assert "Nothing of this answer was logged" in pages.get(f"entry/{entry.key}/near")
