"""Sites besides the residual stream, and single heads: data sets, the study, probes, the report."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the extra 'detect' is not installed")

from activation_logging import open_store
from activation_logging.dataset.layers import in_order
from activation_logging.detectors import Options, SavedProbe, run_study, score_store
from activation_logging.detectors.served_probes import ServedProbes
from activation_logging.errors import DatasetError, ProbeError
from activation_logging.report import build_report, where_charts
from activation_logging.sites import Site
from tests.fixtures.answers import NUM_LAYERS
from tests.fixtures.planted import HIDDEN, build
from tests.fixtures.readers import command, strict

HEADS, ATTENTION = Site("heads", 3), Site("attn_out", 1)
SITES = {ATTENTION: (HIDDEN,), HEADS: (4, 3)}
ALL_HEADS = [f"heads@3.{head}" for head in range(4)]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Head 1 of layer 3 knows the answer; no layer of the residual stream does."""
    path = tmp_path_factory.mktemp("sites") / "s"
    return build(path, n=80, layer=-1, sites=SITES, dtype="bfloat16")


class TestDatasets:
    def test_a_site_is_flattened_and_a_head_is_its_part(self, path):
        with open_store(path) as store:
            for position in ("response_last", "response_mean", "prompt_last"):
                whole = store.dataset(layer="heads@3", position=position)
                assert whole.layer == "heads@3"
                assert whole.X.shape == (80, 12)
                for head, name in enumerate(ALL_HEADS):
                    part = store.dataset(layer=name, position=position)
                    assert part.layer == name
                    assert np.array_equal(part.X, whole.X[:, 3 * head : 3 * head + 3])
            entry = store[whole.keys[0]]
            prompt_last = entry.site("heads", 3)[len(entry.prompt_token_ids) - 1]
            assert np.array_equal(whole.X[0], prompt_last.reshape(-1))

    def test_a_layer_is_a_number_however_it_is_written(self, path):
        with open_store(path) as store:
            for layer in (2, "2", "resid@2", Site("resid", 2)):
                assert store.dataset(layer=layer).layer == 2
            assert store.dataset(layer="resid@last").layer == store.dataset().layer == 4

    def test_pickled_and_for_torch(self, path):
        pytest.importorskip("torch", reason="torch is not installed")
        with open_store(path) as store:
            for layer in (2, "heads@3", "heads@3.2"):
                dataset = store.dataset(layer=layer, position="response_mean")
                assert np.array_equal(pickle.loads(pickle.dumps(dataset)).X, dataset.X)
                states = pickle.loads(pickle.dumps(dataset.torch()))
                for number in (0, 79):
                    assert np.array_equal(states[number][0].numpy(), dataset.X[number])

    @pytest.mark.parametrize(
        ("layer", "said"),
        [
            ("heads@2", "heads@2 is not there for all 80 answers.* 0, 2, 4, attn_out@1, heads@3"),
            ("heads@3.4", "heads@3.4 does not exist: heads@3 has 4 heads"),
            ("attn_out@1.0", "attn_out@1.0 does not exist: attn_out@1 has 0 heads"),
            ("heads@3.*", "names 4 heads; choose one, such as heads@3.0"),
            ("heads@3.x", "names no head"),
            ("router@all", "router is not there"),
            ("q_proj@3", "known are resid, resid_prenorm"),
            ("3.1", "names no head"),
        ],
    )
    def test_what_is_not_there(self, path, layer, said):
        with open_store(path) as store, pytest.raises(DatasetError, match=said):
            store.dataset(layer=layer)

    def test_lists(self, path):
        with open_store(path) as store:
            examples = store.dataset().examples
        assert examples.labels_of() == [0, 2, 4]
        assert examples.labels_of(["heads@3.*", "last"]) == [4, *ALL_HEADS]
        assert examples.labels_of(["heads@3.0", "heads@3", 4]) == [4, "heads@3", "heads@3.0"]
        assert examples.labels_of(["attn_out@all", "all"]) == [0, 2, 4, "attn_out@1"]
        assert examples.labels_of(["heads@all.*"]) == ALL_HEADS
        assert in_order(["heads@3.10", "heads@3.9", "attn_out@2", 30, 4]) == [
            *(4, 30, "attn_out@2", "heads@3.9", "heads@3.10")
        ]

    def test_only_what_all_answers_have(self, tmp_path):
        path = build(tmp_path / "s", n=30, sites=SITES)
        build(path, n=30, sites={HEADS: (4, 3), ATTENTION: (2, 8)}, prefix="b-")
        with open_store(path) as store:
            examples = store.dataset().examples
            assert examples.labels_of(["heads@3", "2"]) == [2, "heads@3"]
            with pytest.raises(DatasetError, match="attn_out@1 is not there for all 60"):
                examples.labels_of(["attn_out@1"])

    def test_without_any_layer_the_sites_are_swept(self, tmp_path):
        path = build(tmp_path / "s", n=30, layers=(), sites={HEADS: (4, 3)})
        with open_store(path) as store:
            assert store.dataset(layer="heads@3").examples.labels_of() == ["heads@3"]


OPTIONS = {"layers": ["2", "heads@3", "heads@3.*"], "positions": ["response_last"]}


@pytest.fixture(scope="module")
def report(path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return build_report(
        path, folder / "page", label="facts", draws=100, save_probe=folder / "p", **OPTIONS
    )


class TestStudy:
    def test_the_head_that_knows_is_found(self, path):
        with open_store(path) as store:
            found = run_study(store, "facts", Options(draws=100, **OPTIONS))
        assert [cell.layer for cell in found.cells] == [2, "heads@3", *ALL_HEADS]
        by_layer = {cell.layer: auroc.value for cell, auroc in found.cells.items()}
        assert by_layer["heads@3.1"] > 0.99
        assert by_layer["heads@3"] > 0.99
        assert max(by_layer[name] for name in (2, *ALL_HEADS) if name != "heads@3.1") < 0.8
        # Both are perfect: the first of them wins.
        assert found.place.layer == "heads@3"

    def test_the_report_names_sites_by_text_and_layers_by_number(self, report):
        document = json.loads((report.page.parent / "report.json").read_text())
        assert [row["layer"] for row in document["sweep"]] == [2, "heads@3", *ALL_HEADS]
        assert document["place"]["layer"] == "heads@3"
        assert document["data"]["layers"] == [0, 2, 4]
        assert "heads@3.1" in report.page.read_text()
        sweep = (report.page.parent / "sweep.csv").read_text()
        assert sweep.splitlines()[2].startswith("heads@3,")

    def test_the_saved_probe_scores_answers(self, path, report):
        (notes,) = (file for file in report.files if file.name == "p.json")
        assert SavedProbe.load(notes).sources == ("heads@3",)
        scored, left_out = score_store(path, notes)
        assert not left_out
        with open_store(path) as store:
            right = [row.label == store[row.key].evaluations["facts"].label for row in scored]
        assert np.mean(right) > 0.95

    def test_other_stores_lack_the_site(self, report, tmp_path):
        (notes,) = (file for file in report.files if file.name == "p.json")
        scored, left_out = score_store(build(tmp_path / "plain", n=4), notes)
        assert not scored
        ((reason, count),) = left_out.items()
        assert reason.startswith("without layer heads@3")
        assert count == 4
        other = build(tmp_path / "other", n=4, sites={HEADS: (2, 9)})
        with pytest.raises(ProbeError, match=r"fitted on 4 layers of 12, entry .* has 4 of 18"):
            score_store(other, notes)

    def test_from_the_command_line(self, path, tmp_path):
        said = command(
            *("report", path, "-o", tmp_path / "r", "--layers", "2,heads@3.*", "--json"),
            *("--positions", "response_last", "--draws", 100, "--label", "facts"),
        )
        rows = {row["detector"]: row for row in strict(said)["table"]}
        assert rows["Linear probe"]["layer"] == "heads@3.1"


def test_the_site_without_a_number(tmp_path):
    """``resid_prenorm`` is at the model's depth, which its name does not say."""
    prenorm = Site("resid_prenorm", NUM_LAYERS)
    path = build(tmp_path / "s", n=60, layers=(2,), sites={prenorm: (HIDDEN,)})
    with open_store(path) as store:
        data = store.dataset(layer="resid_prenorm")
        right = store.read(data.keys, site="resid_prenorm", position="response_last")
        assert np.array_equal(data.X, right)
    wanted = {"layers": ["resid_prenorm", 2], "positions": ["response_last"], "draws": 20}
    build_report(path, tmp_path / "r", save_probe=tmp_path / "p", **wanted)
    document = json.loads((tmp_path / "r" / "report.json").read_text())
    assert [row["layer"] for row in document["sweep"]] == [2, "resid_prenorm"]
    (kind,) = set(where_charts.places(document).sites) - {"resid"}
    assert kind == "resid_prenorm"
    assert where_charts.places(document).sites[kind][0]["at"] == NUM_LAYERS
    probe = SavedProbe.load(tmp_path / "p")
    served = ServedProbes([("one", replace(probe, sources=("resid_prenorm",)), False)])
    assert served.sites == (prenorm,)
    with open_store(path) as store:
        shape = next(store.entries()).shape_of("resid_prenorm")
    assert [part.site for part in served.parts({prenorm.code: shape})] == [prenorm]
