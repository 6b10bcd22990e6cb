"""A saved probe applied to a store: scores of rows beside entries, and scores of answers."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from activation_logging import Derived, open_store
from activation_logging.cli import _app
from activation_logging.detectors.saved_probe import SavedProbe
from activation_logging.detectors.store_scores import _Run, label_of, responses, score_store
from activation_logging.errors import DerivedError, ProbeError, StoreNotFound
from activation_logging.store.query import Filter
from activation_logging.store.statistics import statistics
from activation_logging.verify import verify
from bench.version_1 import make_version_1
from tests.fixtures.damage import cut_off
from tests.fixtures.planted import build
from tests.unit.detectors.test_saved_probe import answers, make


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return build(tmp_path / "s", n=8, without_rows=frozenset({5}))


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return make().save(tmp_path / "probes" / "claims")[0]


def arrays(path: Path) -> dict[str, dict[str, np.ndarray]]:
    with open_store(path) as store:
        return {key: store[key].scores for key in store}


def test_each_model_may_have_a_probe_of_the_same_name(path: Path, tmp_path: Path) -> None:
    build(path, n=3, prefix="b", change=lambda i, d: d.update(model="org/other"))
    for folder, model, number in (("a", "org/tiny", 7), ("b", "org/other", 3)):
        probe, _ = make(model=model).save(tmp_path / folder / "claims")
        assert len(score_store(path, probe)[0]) == number


def test_a_probe_of_answers_reads_each_once(path: Path) -> None:
    read = []

    class Counted(SavedProbe):
        def score(self, entry: Any) -> float:
            read.append(entry.key)
            return super().score(entry)

    counted = Counted(**vars(answers("response_mean")))
    with open_store(path) as store:
        run = _Run(counted, Filter(), unlabelled=False, left_out=Counter())
        entry = next(store.entries())
        rows, scored = run.score(entry)
    assert read == [entry.key]
    assert scored is not None
    assert rows is not None
    assert rows[np.isfinite(rows)].tolist() == [np.float32(scored.probability)]


class TestRows:
    def test_they_are_what_the_probe_says(self, path: Path, tokens: Path) -> None:
        scored, left_out = score_store(path, tokens)
        probe = SavedProbe.load(tokens)
        assert left_out == {"without layer 2, or without their rows": 1}
        with open_store(path) as store:
            for row in scored:
                entry = store[row.key]
                assert row.probability == probe.score(entry)
                rows = probe.score_rows(entry)
                assert np.array_equal(entry.scores["claims"], rows, equal_nan=True)
                assert entry.score_digests == {"claims": probe.digest}
                assert entry.derived("score/claims").details["probe"] == "claims"
                assert row.tokens == np.isfinite(rows).sum() > 1
            assert statistics(store).arrays["score/claims"].number == len(scored) == 7
            assert all("without rows" not in found.what for found in verify(store).problems)

    def test_a_probe_of_answers(self, path: Path, tmp_path: Path) -> None:
        probe, _ = answers("response_mean").save(tmp_path / "mean")
        scored, _ = score_store(path, probe, name="another")
        found = arrays(path)
        for row in scored:
            assert found[row.key].keys() == {"another"}
            rows = found[row.key]["another"]
            assert rows[-1] == np.float32(row.probability)
            assert row.tokens == np.isfinite(rows).sum() == 1

    def test_again_gives_the_same(self, path: Path, tokens: Path) -> None:
        first = score_store(path, tokens)[0]
        assert score_store(path, tokens)[0] == first

    def test_entries_that_are_deleted_meanwhile_are_passed_over(
        self, path: Path, tokens: Path
    ) -> None:
        with open_store(path) as store:
            first, second, *others = [entry.key for entry in store.entries()]

        def delete(what: str, done: int, total: int) -> None:
            del total
            for key, at in ((first, ("scoring", 3)), (second, ("writing", 0))):
                if (what, done) == at:
                    with open_store(path, writable=True) as store:
                        store.delete(key)

        scored, _ = score_store(path, tokens, write="opinion", progress=delete)
        assert {first, second} < {row.key for row in scored}
        found = arrays(path)
        assert found.keys() == set(others)
        with open_store(path) as store:
            known = {key for key in others if store[key].evaluations.get("opinion")}
        assert known == {row.key for row in scored} - {first, second}
        assert {key for key in others if found[key]} == known

    def test_another_probe_does_not_replace_them(
        self, path: Path, tokens: Path, tmp_path: Path
    ) -> None:
        score_store(path, tokens)
        before = arrays(path)
        other, _ = make().save(tmp_path / "claims")
        said = "7 entries have scores called 'claims' by another probe; choose another name"
        with pytest.raises(ProbeError, match=said):
            score_store(path, other)
        np.testing.assert_equal(arrays(path), before)
        score_store(path, other, overwrite=True)
        with open_store(path) as store:
            digests = {store[key].score_digests.get("claims") for key in store}
        assert digests == {SavedProbe.load(other).digest, None}

    def test_nothing_is_kept(self, path: Path, tokens: Path) -> None:
        scored, _ = score_store(path, tokens, keep=False)
        assert len(scored) == 7
        assert all(not found for found in arrays(path).values())

    def test_an_answer_of_one_token(self, tmp_path: Path, tokens: Path) -> None:
        """Only the state that starts it is there."""

        def cut(_number: int, document: dict[str, Any]) -> None:
            for name in ("response_token_ids", "response_tokens", "logprobs", "top_logprobs"):
                document[name] = document[name][:1]
            document["response"] = document["response_tokens"][0]

        path = build(tmp_path / "short", n=2, change=cut)
        scored, left_out = score_store(path, tokens)
        assert not scored
        ((reason, count),) = left_out.items()
        assert (reason.startswith("without a usable state (no state"), count) == (True, 2)
        for found in arrays(path).values():
            rows = found["claims"]
            assert np.flatnonzero(np.isfinite(rows)).tolist() == [len(rows) - 1]


class TestLabels:
    def test_an_evaluation(self, path: Path, tmp_path: Path) -> None:
        probe = answers("response_last")
        file, _ = probe.save(tmp_path / "p")
        scored, _ = score_store(path, file, write="suspect")
        with open_store(path) as store:
            for row in scored:
                found = store[row.key].evaluations["suspect"]
                assert (found.label, found.score) == (row.label, row.probability)
                assert (row.label == "hallucinated") == (row.probability >= probe.threshold)
                assert found.details["digest"] == probe.digest

    def test_a_probe_of_claims_labels_answers(self, path: Path, tmp_path: Path) -> None:
        probe = make(positive="contradicted", negative="supported")
        assert label_of(probe, 0.5) == "hallucinated"
        assert label_of(probe, 0.4) == "correct"
        scored, _ = score_store(path, probe.save(tmp_path / "p")[0], write="suspect")
        assert {row.label for row in scored} <= {"hallucinated", "correct"}

    def test_the_truth_is_not_replaced(self, path: Path, tokens: Path) -> None:
        with pytest.raises(ProbeError, match="'facts' is the name of labels by gold"):
            score_store(path, tokens, write="facts")
        assert all(not found for found in arrays(path).values())


class TestBadInput:
    @pytest.mark.parametrize("name", ["", "a\nb", "x" * 200, "\0"])
    def test_names(self, path: Path, tokens: Path, name: str) -> None:
        with pytest.raises(DerivedError, match="is not the name of an array"):
            score_store(path, tokens, name=name)

    def test_another_model(self, path: Path, tmp_path: Path) -> None:
        file, _ = make(model="org/other").save(tmp_path / "p")
        scored, left_out = score_store(path, file)
        assert not scored
        assert left_out == {"by org/tiny; the probe was fitted on org/other": 8}

    def test_a_site_that_was_not_logged(self, path: Path, tmp_path: Path) -> None:
        file, _ = make(sources=("heads@3",)).save(tmp_path / "p")
        scored, left_out = score_store(path, file)
        assert not scored
        assert left_out == {"without layer heads@3, or without their rows": 8}

    def test_no_store_is_made(self, tmp_path: Path, tokens: Path) -> None:
        with pytest.raises(StoreNotFound):
            score_store(tmp_path / "none", tokens)
        assert not (tmp_path / "none").exists()

    def test_version_1(self, path: Path, tokens: Path) -> None:
        make_version_1(path)
        with pytest.raises(Exception, match="`activation-logging upgrade PATH`"):
            score_store(path, tokens)
        assert len(score_store(path, tokens, keep=False)[0]) == 7

    def test_forged_scores(self, path: Path, tokens: Path) -> None:
        """A record without a digest is another probe's."""
        with open_store(path, writable=True) as store:
            key = next(iter(store))
            store.put_derived([Derived(key, "score/claims", np.zeros(2, np.float32))])
        with pytest.raises(ProbeError, match="1 entries have scores"):
            score_store(path, tokens)


@pytest.mark.parametrize("left", [20, 300])
def test_a_damaged_entry_is_counted_and_the_rest_goes_on(path, tokens, left):
    cut_off(path, 2, left=left)
    for _ in range(2):
        scored, left_out = score_store(path, tokens, write="p")
        assert len(scored) == 6
        assert left_out["that cannot be read"] == 1
    with open_store(path) as store:
        assert statistics(store).labels["p"].total() == 6


def test_texts_are_looked_up_for_what_is_shown(path, tokens):
    scored, _ = score_store(path, tokens)
    with open_store(path, writable=True) as store:
        # No text is held of every answer of a store.
        assert not {entry.response for entry in store.entries()} & {*map(str, sum(scored, ()))}
        store.delete(scored[0].key)
        said = {row.key: store[row.key].response for row in scored[1:]}
    assert responses(path, scored) == said
    result = CliRunner().invoke(_app, ["score", str(path), "--probe", str(tokens), "--json"])
    told = json.loads(result.stdout)["scores"]
    assert {row["key"]: row["response"] for row in told} == said
