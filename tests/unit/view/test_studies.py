"""Studies: in a process of their own, one at a time, stopped, and read as a report."""

from __future__ import annotations

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("sklearn", reason="the extra 'detect' is not installed")

from activation_logging.view.studies import Studies
from tests.fixtures.browser import serving
from tests.fixtures.planted import build
from tests.unit.view.conftest import Pages

DEADLINE_S = 240


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return build(tmp_path_factory.mktemp("studies") / "s.lmdb", n=60)


def wait(studies, name, *states):
    deadline = time.monotonic() + DEADLINE_S
    while (study := studies[name]).state not in states:
        assert time.monotonic() < deadline, study
        time.sleep(0.1)
    return study


ASKED = {"label": "facts", "positive": "hallucinated", "negative": "correct"}


def test_a_study_from_the_form_to_the_report(planted, tab):
    pages = Pages(planted)
    studies = Studies(planted)
    with serving(pages.app) as base:
        tab.goto(f"{base}studies")
        tab.get_by_role("heading", name="Study a label").wait_for()
        tab.locator("select[name=label]").select_option("facts")
        tab.get_by_text("More", exact=True).click()
        tab.get_by_label("Only these layers").fill("2")
        tab.get_by_role("button", name="Begin").click()
        tab.get_by_role("progressbar").wait_for()
        assert tab.get_by_role("button", name="Begin").is_disabled()
        # What can be pressed beside the progress is not replaced with it.
        stop = tab.get_by_role("button", name="Stop it").element_handle()
        tab.locator("#progress").element_handle().wait_for_element_state("hidden")
        assert stop.is_visible()
        # Other pages of the store, as after a restart, know of it too.
        (running,) = studies.all()
        name = running.name
        pages.post("studies", 400, **ASKED)  # one at a time
        pages.post("studies/remove", 400, name=name)
        # The page follows it by itself.
        tab.get_by_role("link", name="Read the report").wait_for(timeout=1000 * DEADLINE_S)
        study = studies[name]
        assert study.state == "done", study.progress
        assert "with AUROC" in tab.locator("#studies").inner_text()
        tab.get_by_role("button", name="Begin").click(trial=True)  # it may be pressed again
        assert f"activation-logging report {planted}" in pages.get("studies")
        tab.get_by_role("link", name="Read the report").click()
        # Its scripts have drawn the charts, and can reach nothing of ours.
        tab.locator("svg.main-svg").first.wait_for()
        assert tab.evaluate("self.origin") == "null"
    report = pages.client.get(f"/activations/studies/{name}/")
    policy = report.headers["content-security-policy"]
    assert policy.startswith("sandbox allow-scripts")
    assert "unsafe-inline" not in re.search(r"script-src [^;]*", policy)[0]
    assert policy.count("sha256-") == 4
    assert report.content == (study.folder / "index.html").read_bytes()
    numbers = pages.client.get(f"/activations/studies/{name}/report.json")
    assert numbers.json()["data"]["label"] == "facts"
    for wrong in ("request.json", "log.txt", "probe.json.bak", "..%2f..%2fs.lmdb", "nothing.csv"):
        assert pages.client.get(f"/activations/studies/{name}/{wrong}").status_code in (400, 404)
    pages.post("studies/remove", name=name)
    assert not study.folder.exists()
    assert pages.client.get(f"/activations/studies/{name}/").status_code == 400


def test_one_that_is_stopped(planted):
    studies = Studies(planted)
    name = studies.start({**ASKED, "draws": 100_000})
    studies.stop(name)
    study = wait(studies, name, "stopped", "done", "failed")
    assert study.state == "stopped"
    studies.stop(name)
    assert studies.start({**ASKED, "label": "no such label"}) != name


def test_one_that_cannot_be_says_why(planted):
    studies = Studies(planted)
    deadline = time.monotonic() + DEADLINE_S
    while any(one.state == "running" for one in studies.all()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    name = studies.start({**ASKED, "label": "no such label"})
    study = wait(studies, name, "failed", "done")
    assert "no such label" in study.progress["error"]
    assert "no such label" in Pages(planted).get("studies")


def test_who_looks_is_not_taken_for_a_study(planted):
    """Several pages ask every second; one that asked while another did saw an old study run."""
    studies = Studies(planted)
    folder = studies.folder / "20190101-000000"
    folder.mkdir(parents=True)
    (folder / "request.json").write_text(json.dumps({"store": str(planted), **ASKED}))
    (folder / "progress.json").write_text(json.dumps({"ended": 1.0}))
    (studies.folder / ".lock").write_text(folder.name)

    def look(_):
        return {Studies(planted)[folder.name].state for _ in range(1000)}

    with ThreadPoolExecutor(3) as threads:
        assert set().union(*threads.map(look, range(3))) == {"done"}


def test_one_whose_process_was_killed_is_not_taken_for_running(planted):
    studies = Studies(planted)
    folder = studies.folder / "20200101-000000"
    folder.mkdir(parents=True)
    (folder / "request.json").write_text(json.dumps({"store": str(planted), **ASKED}))
    (folder / "progress.json").write_text(json.dumps({"pid": 1, "what": "fitting"}))
    (folder / "log.txt").write_text("Killed\n")
    study = studies["20200101-000000"]
    assert (study.state, study.progress["error"]) == ("failed", "its process ended. Killed")
    studies.stop("20200101-000000")  # no process is sent a signal


@pytest.mark.parametrize("name", ["..", "../s.lmdb", "20260101", "", "x" * 300, ".lock"])
def test_no_name_is_a_path(planted, name):
    pages = Pages(planted)
    pages.post("studies/remove", 400, name=name)
    pages.post("studies/stop", 400, name=name)
    assert planted.exists()


def test_bad_requests_are_refused(planted):
    pages = Pages(planted)
    for wrong in ({"positive": "correct"}, {"negative": "x"}, {"tags": "nonsense"}):
        pages.post("studies", 400, **{**ASKED, **wrong})
