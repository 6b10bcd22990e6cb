"""Several reports beside each other: which studies there are, the page, the files, refusals."""

from __future__ import annotations

import csv
import json
import re

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the extra 'detect' is not installed")

from activation_logging import open_store
from activation_logging.detectors import SavedProbe
from activation_logging.errors import DatasetError, OutputExists, ProbeError
from activation_logging.report import build_comparison
from activation_logging.report.colours import load_token_probe
from activation_logging.report.comparison import plan
from activation_logging.report.comparison_data import claim_lines
from tests.fixtures.answers import HIDDEN
from tests.fixtures.planted import build
from tests.fixtures.readers import command
from tests.unit.report.test_page import HOSTILE, Page

OPTIONS = {"draws": 100, "layers": [2], "positions": ["response_last"]}


def of_model(name):
    def change(_i, document):
        document["model"] = name

    return change


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Two stores of one model, one of another, and a few answers that nothing can be learned from.

    The first has a second evaluator, who judged a few of its answers only.
    """
    folder = tmp_path_factory.mktemp("stores")
    found = {
        "one": build(folder / "a" / "s", n=40),
        "two": build(folder / "b" / "s", n=40, signal=0.0),
        "other": build(folder / "c" / "s", n=40, change=of_model("org/other")),
    }
    with open_store(found["one"], writable=True) as store:
        for key in list(store)[:10]:
            store.put_evaluation(key, name=f"few {HOSTILE}"[:80], label="correct")
    return found


@pytest.fixture(scope="module")
def compared(stores, tmp_path_factory):
    out = tmp_path_factory.mktemp("compared")
    labels = ["facts", f"few {HOSTILE}"[:80]]
    return build_comparison([stores["one"], stores["two"]], out, labels=labels, **OPTIONS)


def test_every_study_has_a_report_and_a_column(compared):
    assert list(compared.reports) == ["facts · a/s", "facts · b/s"]
    page = Page(compared.page.read_text("utf-8"))
    links = set(page.values("href"))
    assert len(links) == 2
    for link in links:
        assert (compared.page.parent / link).is_file()
    for title, report in compared.reports.items():
        assert title in page.text
        assert report.headline in page.text
        assert report.page.is_file()
    shown = re.findall(r"Linear probe\s+([01]\.\d{3})", page.text)
    wanted = [f"{one.table[0].auroc:.3f}" for one in compared.reports.values()]
    assert wanted[0] in shown
    assert "script" not in {tag for tag, at in page.elements if "src" in at}


def test_what_cannot_be_studied_is_left_out_with_its_reason(compared):
    ((title, reason),) = compared.left_out.items()
    assert title.startswith("few ")
    assert "none of the 10 answers is hallucinated" in reason
    page = Page(compared.page.read_text("utf-8"))
    assert title in page.text
    assert not any(name.startswith("on") for _, at in page.elements for name in at)
    assert {tag for tag, _ in page.elements}.isdisjoint({"img", "iframe"})


def test_the_files_have_every_number(compared):
    document = json.loads((compared.page.parent / "comparison.json").read_bytes())
    assert [study["title"] for study in document["studies"]] == list(compared.reports)
    with (compared.page.parent / "comparison.csv").open(encoding="utf-8") as file:
        rows = {(row["study"], row["name"]): row for row in csv.DictReader(file)}
    for title, report in compared.reports.items():
        for row in report.document["detectors"]:
            assert float(rows[title, row["name"]]["auroc"]) == row["auroc"]["value"]
            assert rows[title, row["name"]]["model"] == "org/tiny"
    assert set(compared.files) <= set(compared.page.parent.iterdir())


def test_the_page_names_the_best_control_of_each_study(compared):
    document = json.loads((compared.page.parent / "comparison.json").read_bytes())
    studies = compared.page.read_text("utf-8").partition('id="detectors"')[0]
    for study, report in zip(document["studies"], compared.reports.values(), strict=True):
        assert study["best_control"] == report.document["trust"]["best_control"]
        best = report.document["trust"]["best_control"]
        (row,) = (row for row in report.document["detectors"] if row["name"] == best)
        cells = studies.partition(study["headline"])[2].partition("</tr>")[0]
        assert row["title"] in cells
        assert f"{row['auroc']['value']:.3f}" in cells


def test_models_are_compared_when_they_are_named(stores):
    paths = [stores["one"], stores["other"]]
    asked = plan(paths, ["facts"], ["tiny", "org/other"])
    assert [(one.store, one.model) for one in asked] == list(
        zip(paths, ["tiny", "org/other"], strict=True)
    )
    assert [one.title for one in asked] == ["tiny · a/s", "other · c/s"]
    assert [one.name for one in asked] == ["tiny-a-s", "other-c-s"]


def test_titles_of_studies_cannot_collide(tmp_path):
    one = build(tmp_path / "x", n=4, change=of_model("a/m"))
    two = build(tmp_path / "y", n=4, change=of_model("b/m"))
    with open_store(two, writable=True) as store:
        store.put_evaluation(next(iter(store)), name="more", label="correct")
    asked = plan([one, two], ["facts"], ["a/m", "b/m"])
    assert [each.title for each in asked] == ["a/m · x", "b/m · y"]
    assert [each.name for each in asked] == ["a-m-x", "b-m-y"]
    # One store, however it is named.
    again = [two, two / ".." / "y"]
    assert [each.title for each in plan(again, ["facts", "more"], [])] == ["facts", "more"]


def test_a_probe_of_another_model_leaves_out_that_study_alone(stores, tmp_path):
    store = build(tmp_path / "s", n=40)
    with open_store(stores["one"]) as opened:
        model = next(opened.entries()).model
    probe = SavedProbe(
        kind="token",
        form="linear",
        tensors={"weight": np.ones(HIDDEN), "bias": np.zeros(1)},
        sources=(2,),
        position=None,
        threshold=0.5,
        model=model,
        num_layers=4,
        label="profiles",
        positive="contradicted",
        negative="supported",
    )
    probe.save(tmp_path / "probe")
    made = build_comparison(
        [store, stores["other"]],
        tmp_path / "r",
        labels=["facts"],
        models=["tiny", "other"],
        token_probe=tmp_path / "probe",
        **OPTIONS,
    )
    assert [title.partition(" ")[0] for title in made.reports] == ["tiny"]
    ((title, reason),) = made.left_out.items()
    assert title.startswith("other")
    assert "was fitted on org/tiny, the answers are by org/other" in reason

    def every_second(i, document):
        document["model"] = ("org/tiny", "org/other")[i % 2]

    with open_store(build(tmp_path / "both", n=4, change=every_second)) as both:
        load_token_probe(tmp_path / "probe", both)
        with pytest.raises(ProbeError, match="the answers are by org/other;"):
            load_token_probe(tmp_path / "probe", both, "other")


def test_detectors_stand_in_the_order_of_their_tables():
    level = {"levels": {"span": {}}, "role": "probe"}
    studies = [
        {"tokens": {"detectors": [{"name": name, "title": name, **level} for name in names]}}
        for names in ("abc", "acd")
    ]
    assert [line.title for line in claim_lines({"studies": studies})] == list("abcd")


@pytest.mark.parametrize(
    ("which", "labels", "models", "said"),
    [
        (["one", "other"], [], [], r"of 2 models \(org/tiny in .*org/other in .*--model"),
        (["one", "two"], ["facts", "nope"], [], "no store has labels by 'nope'.*facts"),
        (["one", "two"], [], ["gpt"], "no store has answers by 'gpt'; the models are org/tiny"),
        (["one", "other"], [], ["tiny"], "has none of the labels and models that were named"),
    ],
)
def test_bad_names_are_refused_before_anything_is_studied(stores, which, labels, models, said):
    with pytest.raises(DatasetError, match=said):
        plan([stores[name] for name in which], labels, models)


def test_a_file_in_the_way_and_no_study_at_all(stores, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputExists, match="is a file"):
        build_comparison([stores["one"], stores["two"]], tmp_path / "file")
    with pytest.raises(
        DatasetError, match=r"none of the studies is possible: .*several evaluators"
    ):
        build_comparison([stores["one"]], tmp_path / "r", positive="invalid", **OPTIONS)


def test_names_of_folders_cannot_collide_or_lead_elsewhere(stores, tmp_path):
    names = ["../x", "..", "a b", "a-b", "A-B"]
    store = build(tmp_path / "s", n=4)
    with open_store(store, writable=True) as opened:
        for name in names:
            opened.put_evaluation(next(iter(opened)), name=name, label="correct")
    found = [one.name for one in plan([store], names, [])]
    assert found == ["x", "study", "a-b", "a-b-2", "A-B-3"]


def test_from_the_command_line(stores, tmp_path):
    both = [stores["one"], stores["two"]]
    small = ("--draws", 100, "--layers", 2, "--positions", "response_last", "--label", "facts")
    said = command("report", *both, "-o", tmp_path / "r", *small)
    assert "a/s: A linear probe tells" in said
    assert str(tmp_path / "r" / "index.html") in said.replace("\n", "")
    probe = ("--save-probe", tmp_path / "p")
    with pytest.raises(AssertionError) as caught:
        command("report", *both, "-o", tmp_path / "r2", *small, *probe)
    assert "name one store" in str(caught.value.__cause__)
    assert not (tmp_path / "r2").exists()
