"""What a report says of tokens: colours by probes of tokens alone, claims beside them, files."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the extra 'detect' is not installed")

from activation_logging import open_store
from activation_logging.detectors import SavedProbe, metrics
from activation_logging.detectors.tokens import TokenOptions, fit_token_probe, run_token_study
from activation_logging.errors import DatasetError, ProbeError
from activation_logging.report import build_report
from activation_logging.report.files import write_data
from activation_logging.report.page import render_page
from tests.fixtures.claims import CITY, NEAR, YEAR, Claims, build_claims
from tests.fixtures.planted import build
from tests.unit.report.test_page import Page

OPTIONS = {"draws": 100, "layers": [2], "positions": ["response_last"]}


@pytest.fixture(scope="module")
def claims():
    return Claims(n=60, wrong=(0.35, 0.35), signal=12.0)


@pytest.fixture(scope="module")
def store(claims, tmp_path_factory):
    return build_claims(tmp_path_factory.mktemp("claims") / "s", claims)


@pytest.fixture(scope="module")
def report(store, tmp_path_factory):
    return build_report(store, tmp_path_factory.mktemp("report"), label="profiles", **OPTIONS)


@pytest.fixture(scope="module")
def probe(store, tmp_path_factory):
    path = tmp_path_factory.mktemp("probe") / "tokens"
    options = TokenOptions(layers=[2], mix=[], answers=False, draws=100)
    with open_store(store) as opened:
        fit_token_probe(run_token_study(opened, "profiles", options)).save(path)
    return path


def all_examples(document):
    return [*document["examples"], *document["tokens"].get("examples", ())]


def test_tokens_of_judged_claims_have_the_colour_of_their_label(report):
    right: dict[str, list[bool]] = {}
    for example in all_examples(report.document):
        assert example["coloured_by"] == "study"
        scores = [token["score"] for token in example["tokens"]]
        judged = {*YEAR, *CITY}
        assert [index for index, score in enumerate(scores) if score is not None] == sorted(judged)
        year, near, city = example["spans"]
        assert (year["tokens"], near["tokens"], city["tokens"]) == (list(YEAR), [3], [4])
        assert near["score"] is None
        for span, tokens in ((year, YEAR), (city, CITY)):
            assert span["score"] == max(scores[index] for index in tokens)
            is_right = (span["score"] > 0.5) == (span["label"] == "contradicted")
            right.setdefault(example["kind"], []).append(is_right)
    assert all(right["best"])
    assert np.mean(right["best"] + right["typical"]) > 0.8
    assert np.mean(right["worst"]) < np.mean(right["best"])
    assert NEAR == (3,)


def test_the_page_underlines_what_was_judged_and_lists_it(report):
    text = report.page.read_text("utf-8")
    page = Page(text)
    ids = page.values("id")
    assert len(set(ids)) == len(ids)
    lines = [cls for cls in page.values("class") if cls.startswith("judged ")]
    assert set(lines) == {"judged supported", "judged contradicted", "judged unverifiable"}
    for numbers, tag in ((at.get("data-spans"), tag) for tag, at in page.elements):
        assert numbers is None or tag == "span"
    answers = [at["id"] for tag, at in page.elements if tag == "article"]
    assert len(answers) == len(all_examples(report.document))
    assert all(f"{answer}-{number}" in ids for answer in answers for number in range(3))
    # One token of each answer is reached by the tab key.
    stops = [
        at for tag, at in page.elements if at.get("class") == "token" and at["tabindex"] == "0"
    ]
    assert len(stops) == len(answers)


def test_files_have_what_the_page_has(report):
    folder = report.page.parent
    document = json.loads((folder / "report.json").read_bytes())
    with (folder / "claims.csv").open(encoding="utf-8") as file:
        claims = list(csv.DictReader(file))
    assert len(claims) == sum(document["tokens"]["claims"].values()) == 120
    y = np.array([int(row["y"]) for row in claims])
    said = np.array([float(row["token_linear"]) for row in claims])
    fold = np.array([int(row["fold"]) for row in claims])
    folds = [np.flatnonzero(fold == number) for number in range(5)]
    with (folder / "token_detectors.csv").open(encoding="utf-8") as file:
        rows = {(row["name"], row["level"]): row for row in csv.DictReader(file)}
    for row in document["tokens"]["detectors"]:
        for level, found in row["levels"].items():
            assert float(rows[row["name"], level]["auroc"]) == found["auroc"]["value"]
    ranked = metrics.auroc(y, said, np.ones((1, len(y))), folds)[0]
    assert ranked == pytest.approx(float(rows["token_linear", "span"]["auroc"]), abs=1e-6)
    assert {"token_sweep.csv", "operating_points.csv"} <= {file.name for file in report.files}


def test_figures_are_called_as_in_a_study_of_tokens(report, store):
    options = TokenOptions(layers=[2], mix=[], answers=False, transfer_by=(), draws=100)
    with open_store(store) as opened:
        study = run_token_study(opened, "profiles", options).as_json()
    reported = {row["name"]: row["levels"] for row in report.document["tokens"]["detectors"]}
    for row in study["detectors"]:
        for level, figures in row["levels"].items():
            found = reported[row["name"]][level]
            assert figures.keys() <= found.keys()
            assert all(found[name] is None for name in found.keys() - figures.keys())


def test_without_spans_no_probe_colours_a_token(tmp_path):
    store = build(tmp_path / "s", n=40)
    report = build_report(store, tmp_path / "r", label="facts", **OPTIONS)
    assert "have no spans" in report.document["tokens"]["left_out"]
    for example in report.document["examples"]:
        assert example["coloured_by"] == "logprob"
        assert all(token["score"] is None for token in example["tokens"])
    page = Page(report.page.read_text("utf-8"))
    assert not page.values("data-score")
    assert "the token's log-probability, no probe" in page.text
    assert not (tmp_path / "r" / "claims.csv").exists()


@pytest.mark.parametrize("split", [{"folds_by": "template"}, {"match_length": True}])
def test_the_page_says_that_claims_are_not_split_as_the_answers_are(report, split):
    said = "claims are split by what an answer is about alone"
    assert said not in Page(report.page.read_text("utf-8")).text
    assert report.document["tokens"]["folds_by"] == "group"
    other = {**report.document["provenance"], **split}
    assert said in Page(render_page({**report.document, "provenance": other})).text


def test_files_of_an_earlier_report_do_not_stay_beside_a_later_one(report, tmp_path):
    (tmp_path / "claims.csv").write_text("key\n1\n")
    (tmp_path / "mine.csv").write_text("mine\n")
    document = {**report.document, "tokens": {"left_out": "no spans"}}
    tables = {file.name for file in write_data(tmp_path, document, [{"key": "1"}], [])}
    assert {"claims.csv", "token_detectors.csv"}.isdisjoint(tables)
    assert {file.name for file in tmp_path.iterdir()} == tables | {"mine.csv"}


def test_a_saved_probe_of_tokens_colours_answers_without_spans(probe, tmp_path):
    def change(_i, document):
        document["prompt"] += "Say it."

    store = build(tmp_path / "s", n=40, logprobs=False, change=change)
    report = build_report(store, tmp_path / "r", label="facts", token_probe=probe, **OPTIONS)
    saved = SavedProbe.load(probe)
    with open_store(store) as opened:
        for example in report.document["examples"]:
            entry = opened[example["key"]]
            assert example["coloured_by"] == "probe"
            *own, last = [token["score"] for token in example["tokens"]]
            wanted = saved.of_tokens(entry.layer(2)[entry.num_tokens[0] :])
            np.testing.assert_allclose(own, wanted, atol=1e-4)
            assert last is None
    document = dict(report.document)
    document["examples"] = [{**document["examples"][0], "coloured_by": "fitted probe"}]
    assert "which was fitted on this prompt" in Page(render_page(document)).text


def test_a_probe_says_where_it_has_seen_the_prompt(store, probe, tmp_path):
    with open_store(store, writable=True) as opened:
        for key in list(opened):
            verdict = opened[key].evaluations["profiles"]
            opened.put_evaluation(key, name="plain", label=verdict.label)
    report = build_report(store, tmp_path / "r", label="plain", token_probe=probe, **OPTIONS)
    assert {one["coloured_by"] for one in report.document["examples"]} == {"fitted probe"}


def test_probes_that_cannot_colour_are_refused_at_once(store, probe, report, tmp_path):
    saved = SavedProbe.load(probe)
    replace(saved, model="org/other").save(tmp_path / "other")
    answer = replace(saved, kind="answer", position="response_last")
    answer.save(tmp_path / "answer")
    for name, said in (
        ("other", "was fitted on org/other, the answers are by org/tiny"),
        ("answer", "is a probe of whole answers"),
        ("nowhere", "there is no"),
    ):
        with pytest.raises(ProbeError, match=said):
            build_report(store, tmp_path / "r", label="profiles", token_probe=tmp_path / name)
    assert not (tmp_path / "r").exists()
    assert report.page.exists()


@pytest.mark.parametrize(
    ("wrong", "says"), [(0.9, "only . answers are correct"), (1.0, "none of the 40 answers")]
)
def test_where_hardly_an_answer_is_right_its_claims_are_pointed_to(tmp_path, wrong, says):
    path = build_claims(tmp_path / "s", Claims(n=40, wrong=(wrong, wrong)))
    with pytest.raises(DatasetError, match=rf"{says}.*probe fit --kind token"):
        build_report(path, tmp_path / "report", label="profiles", **OPTIONS)
    assert not (tmp_path / "report").exists()
