"""From an answer to its sample in Inspect's viewer; no label becomes an address of its own."""

from __future__ import annotations

import pytest

from activation_logging.errors import SettingsError
from activation_logging.view.addresses import address
from activation_logging.view.inspect_link import InspectSample, checked_viewer, samples_of
from tests.unit.view.conftest import HOSTILE, Pages
from tests.unit.view.test_pages import Elements

LOG = "2026-11-26T01-39-07-00-00_short-facts_58toVs7h.eval"
DETAILS = {"inspect_log": LOG, "sample_id": "capital/what? 3", "epoch": 2}
VIEWER = "http://127.0.0.1:7575"


def put(store, number, name="inspect", **changes):
    (entry,) = store.for_request(f"request-{number}")
    store.put_evaluation(entry.key, name=name, label="correct", details=DETAILS | changes)
    return store[entry.key]


def test_an_answer_links_to_its_sample(path, store):
    entry = put(store, 2)
    put(store, 2, name="another scorer")
    assert samples_of(store[entry.key]) == [InspectSample(LOG, "capital/what? 3", 2)]
    pages = Pages(path, inspect=VIEWER)
    pages.state.index.build()
    page = Elements(pages.get(f"entry/{address(entry.key)}"))
    # As Inspect's own viewer writes it.
    link = f"{VIEWER}/#/logs/{LOG}/samples/sample/capital%2Fwhat%3F%203/2/"
    assert [a for a in page.all("a") if "7575" in a["href"]] == [
        {"href": link, "rel": "noreferrer"}
    ]
    assert "sample capital/what? 3, epoch 2" in page.text


def test_without_a_viewer_the_sample_is_named(pages, store):
    entry = put(store, 2)
    page = Elements(pages.get(f"entry/{address(entry.key)}"))
    assert f"epoch 2 of {LOG}" in page.text
    assert "--inspect" in page.text
    assert not [a for a in page.all("a") if "#/logs" in a["href"]]


@pytest.mark.parametrize(
    "changes",
    [
        {"inspect_log": f"../../{LOG}"},
        {"inspect_log": f"//evil.example/{LOG}"},
        {"inspect_log": f"javascript:alert(1)//{LOG}"},
        {"inspect_log": "log"},
        {"inspect_log": 3},
        {"sample_id": ""},
        {"sample_id": ["x"]},
        {"sample_id": "x" * 301},
        {"epoch": "1"},
        {"epoch": True},
        {"epoch": 0},
    ],
)
def test_details_that_name_no_sample_are_no_link(store, changes):
    assert samples_of(put(store, 2, **changes)) == []


def test_a_hostile_sample_stays_after_the_hash(path, store):
    entry = put(store, 2, sample_id=f"{HOSTILE}\udc80/../..//evil.example")
    pages = Pages(path, inspect=VIEWER)
    pages.state.index.build()
    page = Elements(pages.get(f"entry/{address(entry.key)}"))
    (link,) = [a["href"] for a in page.all("a") if "7575" in a["href"]]
    assert link.startswith(f"{VIEWER}/#/logs/{LOG}/samples/sample/%3C%2Fp%3E%3Cscript%3E")
    assert link.count("/") == f"{VIEWER}/#/logs/l/samples/sample/i/2/".count("/")
    assert not page.all("img")


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:7575", "javascript:alert(1)", "file:///etc", "http://", "http://[::", "http://a/?b",
     "http://me:secret@a/", "http://a/#/logs"],
)  # fmt: skip
def test_what_is_no_viewer_is_refused(address):
    with pytest.raises(SettingsError, match="give the address that `inspect view` prints"):
        checked_viewer(address)


def test_a_viewer_may_be_below_a_path():
    assert checked_viewer(" https://host/inspect/ ") == "https://host/inspect"
