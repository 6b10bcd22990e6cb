"""Saved probes: what they say of rows, answers and entries; their files, and broken ones."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from activation_logging import open_store
from activation_logging.detectors.fitted_on import fitted_on, prompts_of
from activation_logging.detectors.saved_probe import (
    Calibration,
    OperatingPoint,
    SavedProbe,
    find_probes,
)
from activation_logging.errors import InputMissing, OutputExists, ProbeError, RowsMissing
from activation_logging.sites import Site
from tests.fixtures.planted import HIDDEN, MODEL, NUM_LAYERS, build

RNG = np.random.default_rng(0)
HEADS = Site("heads", 3)


def make(**fields: Any) -> SavedProbe:
    """A linear probe of tokens at layer 2, unless the fields say otherwise."""
    given: dict[str, Any] = {
        "kind": "token",
        "form": "linear",
        "tensors": {"weight": RNG.normal(size=HIDDEN), "bias": np.array([0.25])},
        "sources": (2,),
        "position": None,
        "threshold": 0.5,
        "calibration": Calibration(0.5, -0.1),
        "model": MODEL,
        "num_layers": NUM_LAYERS,
        "label": "facts",
        "positive": "hallucinated",
        "negative": "correct",
    }
    return SavedProbe(**(given | fields))


def answers(position: str | int | None, **fields: Any) -> SavedProbe:
    return make(kind="answer", position=position, **fields)


def by_hand(probe: SavedProbe, states: np.ndarray) -> np.ndarray:
    """Probabilities of rows ``[n, width]`` by a linear probe."""
    odds = states.astype(np.float64) @ probe.tensors["weight"] + probe.tensors["bias"][0]
    a, b = probe.calibration
    return 1 / (1 + np.exp(-(a * odds + b)))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("probes") / "s", n=6, sites={HEADS: (4, 3)})


@pytest.fixture(scope="module")
def entry(path: Path) -> Any:
    store = open_store(path)
    return next(store.entries())


class TestEntries:
    def test_tokens(self, entry: Any) -> None:
        probe = make()
        prompt, response = entry.num_tokens
        expected = by_hand(probe, entry.layer(2))
        found = probe.score_rows(entry)
        assert found.dtype == np.float32
        assert found.shape == entry.positions.shape
        # The state that starts the answer, and all that have read a token of it.
        assert np.isnan(found).tolist() == [p < prompt - 1 for p in range(prompt + response - 1)]
        assert found[prompt - 1 :] == pytest.approx(expected[prompt - 1 :], rel=1e-6)
        assert probe.score(entry) == pytest.approx(expected[prompt:].max(), rel=1e-12)

    @pytest.mark.parametrize("position", ["prompt_last", "response_first", "response_last", 1, -1])
    def test_a_position(self, entry: Any, position: str | int) -> None:
        prompt, response = entry.num_tokens
        last = prompt + response - 2
        row = {"prompt_last": prompt - 1, "response_first": prompt, 1: 1}.get(position, last)
        probe = answers(position)
        expected = by_hand(probe, entry.layer(2)[row : row + 1])[0]
        assert probe.score(entry) == pytest.approx(expected, rel=1e-12)
        found = probe.score_rows(entry)
        assert np.flatnonzero(np.isfinite(found)).tolist() == [row]
        assert found[row] == np.float32(probe.score(entry))

    @pytest.mark.parametrize(
        ("position", "pool"), [("response_mean", "mean"), ("response_max", "max")]
    )
    def test_a_pool_is_known_with_its_last_row(self, entry: Any, position: str, pool: str) -> None:
        probe = answers(position)
        states = entry.layer(2)[entry.num_tokens[0] :]
        expected = by_hand(probe, getattr(states, pool)(axis=0)[None])[0]
        assert probe.score(entry) == pytest.approx(expected, rel=1e-6)
        found = probe.score_rows(entry)
        assert np.flatnonzero(np.isfinite(found)).tolist() == [len(found) - 1]

    def test_a_form_that_puts_tokens_together(self, entry: Any) -> None:
        query, weight = RNG.normal(size=(2, 3, HIDDEN))
        tensors = {"query": query, "weight": weight, "bias": np.array([0.1])}
        probe = answers(None, form="attention", tensors=tensors)
        states = entry.layer(2)[entry.num_tokens[0] :].astype(np.float64)
        odds = 0.1
        for one, own in zip(query, weight, strict=True):
            shares = np.exp(states @ one)
            odds += float((shares / shares.sum()) @ (states @ own))
        assert probe.score(entry) == pytest.approx(1 / (1 + np.exp(0.1 - 0.5 * odds)), rel=1e-9)
        found = probe.score_rows(entry)
        assert np.flatnonzero(np.isfinite(found)).tolist() == [len(found) - 1]

    @pytest.mark.parametrize("position", [None, "response_mean"])
    def test_several_sources_side_by_side(self, entry: Any, position: str | None) -> None:
        width = HIDDEN + 3 + 12
        tensors = {"weight": RNG.normal(size=width), "bias": np.zeros(1)}
        sources = (4, "heads@3.1", "heads@3")
        probe = make(
            kind="token" if position is None else "answer",
            position=position,
            tensors=tensors,
            sources=sources,
        )
        heads = entry.site("heads", 3)
        rows = np.concatenate([entry.layer(4), heads[:, 1], heads.reshape(len(heads), -1)], axis=1)
        own = rows[entry.num_tokens[0] :]
        expected = (
            by_hand(probe, own).max()
            if position is None
            else by_hand(probe, own.mean(axis=0, dtype=np.float64)[None])[0]
        )
        assert probe.score(entry) == pytest.approx(expected, rel=1e-6)

    def test_of_rows_alone(self) -> None:
        """What a server applies has no entry."""
        probe = make()
        rows = RNG.normal(size=(5, HIDDEN)).astype(np.float32)
        rows[3, 0] = np.nan
        good = np.flatnonzero(np.isfinite(rows[:, 0]))
        assert probe.of_tokens(rows)[good] == pytest.approx(by_hand(probe, rows[good]))
        assert np.isnan(probe.of_tokens(rows)[3])
        assert probe.of_answer(rows[good]) == pytest.approx(by_hand(probe, rows[good]).max())
        with pytest.raises(InputMissing, match="layer 2 holds values that are not finite"):
            probe.of_answer(rows)

    def test_large_log_odds_do_not_overflow(self) -> None:
        assert make().probability([-1e6, 0.2, 1e6]).tolist() == [0.0, 0.5, 1.0]

    @pytest.mark.parametrize(
        ("fields", "error", "said"),
        [
            ({"model": "org/other"}, ProbeError, "fitted on org/other, entry .* is by org/tiny"),
            ({"num_layers": 5}, ProbeError, "fitted on 5 layers of 16, entry .* has 4 of 16"),
            ({"sources": (3,)}, RowsMissing, "layer 3"),
            ({"sources": ("attn_out@2",)}, RowsMissing, "attn_out@2"),
            ({"sources": ("heads@3",)}, ProbeError, "layers of 16, entry .* has 4 of 12"),
            ({"sources": ("heads@3.4",)}, RowsMissing, "heads@3 has 4 heads"),
        ],
    )
    def test_entries_that_it_does_not_fit(
        self, entry: Any, fields: dict[str, Any], error: type[Exception], said: str
    ) -> None:
        for score in (make(**fields).score, make(**fields).score_rows):
            with pytest.raises(error, match=said):
                score(entry)

    @pytest.mark.parametrize("tokens", ["response", "prompt"])
    def test_rows_of_a_part(self, tmp_path: Path, tokens: str) -> None:
        with open_store(build(tmp_path / "s", n=2, tokens=tokens)) as store:
            entry = next(store.entries())
            probe, prompt = make(), entry.num_tokens[0]
            found = probe.score_rows(entry)
            expected = by_hand(probe, entry.layer(2))
            judged = entry.positions >= prompt - 1
            assert np.isfinite(found).tolist() == judged.tolist()
            assert found[judged] == pytest.approx(expected[judged], rel=1e-6)
            if tokens == "prompt":
                with pytest.raises(InputMissing, match="no state"):
                    probe.score(entry)

    def test_states_that_are_not_finite(self, tmp_path: Path) -> None:
        def broken(_number: int, rows: dict[int, np.ndarray]) -> None:
            rows[2][-1] = np.inf

        with open_store(build(tmp_path / "s", n=1, change_rows=broken)) as store:
            entry = next(store.entries())
            found = make().score_rows(entry)
            assert np.isnan(found[-1])
            assert np.isfinite(found[-2])
            for probe in (make(), answers("response_last"), answers("response_mean")):
                with pytest.raises(InputMissing, match="not finite"):
                    probe.score(entry)


class TestDigest:
    def test_it_is_of_all_that_scores_depend_on(self) -> None:
        probe = make()
        told = {"threshold": 0.1, "report": {"a": 1}, "positive": "refused", "label": "x"}
        assert replace(probe, **told).digest == probe.digest
        for fields in (
            {"tensors": {**probe.tensors, "bias": np.array([0.26])}},
            {"sources": (4,)},
            {"calibration": Calibration(0.5, -0.2)},
            {"kind": "answer"},
            {"kind": "answer", "position": "response_last"},
            {"model": "other"},
        ):
            assert replace(probe, **fields).digest != probe.digest

    def test_of_data(self) -> None:
        keys = ["a" * 64, "b" * 64, "a" * 64 + "#1"]
        told = fitted_on(keys, [1, 0, 1])
        assert told == fitted_on(reversed(keys), [1, 0, 1])
        assert told["answers"] == 3
        assert told != fitted_on(keys, [1, 0, 0])
        assert prompts_of(keys).tolist() == [int("a" * 16, 16), int("b" * 16, 16)]


class TestFiles:
    def test_there_and_back(self, tmp_path: Path) -> None:
        point = OperatingPoint(0.05, 0.9, {"value": 0.4, "low": 0.3, "high": None})
        probe = answers(
            "response_mean",
            form="multimax",
            tensors={"weight": RNG.normal(size=(2, HIDDEN + 3)), "bias": np.array([0.1])},
            sources=(2, "heads@3.1"),
            operating_points=(point,),
            data={"digest": "x", "answers": 3},
            prompts=np.array([5, 2**64 - 1], np.uint64),
            report={"auroc": {"value": 0.75}},
            provenance={"seed": 1},
        )
        files = probe.save(tmp_path / "new" / "made.up")
        assert [file.name for file in files] == ["made.up.safetensors", "made.up.json"]
        for name in (tmp_path / "new" / "made.up", *files):
            again = SavedProbe.load(name)
            assert again.as_json() == probe.as_json()
            assert again.digest == probe.digest
            assert again.operating_points == (point,)
            assert again.prompts.tolist() == probe.prompts.tolist()
            for tensor, expected in probe.tensors.items():
                assert np.array_equal(again.tensors[tensor], expected)

    def test_version_1_gives_the_same_probabilities(self, tmp_path: Path, entry: Any) -> None:
        weight, bias = RNG.normal(size=HIDDEN), 0.3
        save_file({"weight": weight, "bias": np.array([bias])}, str(tmp_path / "old.safetensors"))
        notes = {
            "format": "activation-logging linear probe",
            "version": 1,
            "threshold": 0.37,
            "layer": 2,
            "position": "response_last",
            "model": MODEL,
            "num_layers": NUM_LAYERS,
            "label": "facts",
            "positive": "hallucinated",
            "negative": "correct",
            "provenance": {"auroc": {"value": 0.8, "low": 0.7, "high": 0.9}, "seed": 0},
        }
        (tmp_path / "old.json").write_text(json.dumps(notes))
        probe = SavedProbe.load(tmp_path / "old")
        assert (probe.kind, probe.form, probe.sources) == ("answer", "linear", (2,))
        assert (probe.threshold, probe.position) == (0.37, "response_last")
        assert probe.report["auroc"]["value"] == 0.8
        state = entry.layer(2)[-1].astype(np.float64)
        assert probe.score(entry) == float(np.exp(-np.logaddexp(0, -(state @ weight + bias))))
        probe.save(tmp_path / "new")
        assert SavedProbe.load(tmp_path / "new").score(entry) == probe.score(entry)

    def test_what_a_later_release_adds_is_passed_over(self, tmp_path: Path) -> None:
        _, notes = make().save(tmp_path / "p")
        notes.write_text(json.dumps({**json.loads(notes.read_text()), "later": [1]}))
        assert SavedProbe.load(notes).kind == "token"

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"format": "x"}, "does not describe a probe of this package"),
            ({"version": 3}, "has version 3, this package reads 1 and 2"),
            ({"version": True}, "has version True"),
            ({"kind": "span"}, "is no probe: Invalid enum value 'span'"),
            ({"form": "cubic"}, "form 'cubic' of a probe is not one of linear, attention"),
            ({"form": "attention"}, "query is missing"),
            ({"sources": []}, "is no probe"),
            ({"sources": [2.5]}, "is no probe"),
            ({"sources": ["q_proj@3"]}, "reads what cannot be: .*q_proj"),
            ({"sources": [4]}, "do not belong together"),
            ({"position": "middle"}, "reads what cannot be: position 'middle'"),
            ({"position": "response_last"}, "a probe of tokens has no position"),
            ({"threshold": "high"}, "is no probe"),
            ({"threshold": None}, "is no probe"),
            ({"calibration": {"a": 1}}, "is no probe"),
            ({"calibration": {"a": -1, "b": 0}}, "turn its ranking around"),
            ({"operating_points": [{}]}, "is no probe"),
            ({"model": 5}, "is no probe"),
            ({"num_layers": -1}, "is no probe"),
            ({"digest": "0" * 64}, "do not belong together"),
        ],
    )
    def test_broken_notes(self, tmp_path: Path, change: dict[str, Any], said: str) -> None:
        _, notes = make().save(tmp_path / "p")
        notes.write_text(json.dumps({**json.loads(notes.read_text()), **change}))
        with pytest.raises(ProbeError, match=said):
            SavedProbe.load(notes)

    @pytest.mark.parametrize(
        "text",
        ["", "[]", "5", "{", "[" * 100_000, '{"format": NaN}', "\udcff", '{"threshold": 1e999}'],
        ids=lambda text: text[:20].encode("unicode_escape").decode(),
    )
    def test_notes_that_are_none(self, tmp_path: Path, text: str) -> None:
        _, notes = make().save(tmp_path / "p")
        notes.write_text(text, "utf-8", "surrogateescape")
        with pytest.raises(ProbeError, match=str(notes)):
            SavedProbe.load(notes)

    def test_infinite_numbers(self, tmp_path: Path) -> None:
        _, notes = make().save(tmp_path / "p")
        notes.write_text(notes.read_text().replace('"threshold": 0.5', '"threshold": 1e999'))
        with pytest.raises(ProbeError, match="a number that is not finite"):
            SavedProbe.load(notes)

    @pytest.mark.parametrize(
        ("tensors", "said"),
        [
            ({"weight": np.zeros(0), "bias": np.zeros(1)}, "has the shape"),
            ({"weight": np.zeros((2, 2)), "bias": np.zeros(1)}, "has the shape"),
            ({"weight": np.zeros(HIDDEN)}, "bias is missing"),
            (
                {"weight": np.zeros(HIDDEN), "bias": np.zeros(1), "x": np.zeros(1)},
                "x is missing or",
            ),
            ({"weight": np.full(HIDDEN, np.nan), "bias": np.zeros(1)}, "not finite"),
            ({"weight": np.zeros(HIDDEN, np.int32), "bias": np.zeros(1)}, "int32"),
            ({"weight": np.zeros(HIDDEN), "bias": np.zeros(1), "fitted_on": np.zeros(2)}, "uint64"),
            ({"weight": np.ones(HIDDEN), "bias": np.zeros(1)}, "do not belong together"),
        ],
    )
    def test_broken_weights(self, tmp_path: Path, tensors: dict[str, Any], said: str) -> None:
        weights, _ = make().save(tmp_path / "p")
        save_file(tensors, str(weights))
        with pytest.raises(ProbeError, match=said):
            SavedProbe.load(weights)

    @pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"\x80\x04.", b"{}"])
    def test_weights_that_are_none(self, tmp_path: Path, content: bytes) -> None:
        weights, _ = make().save(tmp_path / "p")
        weights.write_bytes(content)
        with pytest.raises(ProbeError, match=r"p\.safetensors cannot be read"):
            SavedProbe.load(weights)

    @pytest.mark.parametrize("kind", ["BF16", "F8_E4M3"])
    def test_weights_of_types_that_numpy_has_not(self, tmp_path: Path, kind: str) -> None:
        weights, _ = make().save(tmp_path / "p")
        size = 2 if kind == "BF16" else 1
        header = {"weight": {"dtype": kind, "shape": [1], "data_offsets": [0, size]}}
        line = json.dumps(header).encode()
        weights.write_bytes(len(line).to_bytes(8, "little") + line + bytes(size))
        # By safetensors, or where its release knows the type, by the form.
        with pytest.raises(ProbeError, match=r"p\.safetensors (cannot be read|is broken)"):
            SavedProbe.load(weights)

    def test_cut_off_weights(self, tmp_path: Path) -> None:
        weights, _ = make().save(tmp_path / "p")
        weights.write_bytes(weights.read_bytes()[:-8])
        with pytest.raises(ProbeError, match="cannot be read"):
            SavedProbe.load(weights)

    def test_files_that_no_probe_needs(self, tmp_path: Path) -> None:
        weights, notes = make().save(tmp_path / "p")
        for file, most in ((weights, 1 << 30), (notes, 16 << 20)):
            kept = file.read_bytes()
            os.truncate(file, most + 1)  # sparse
            with pytest.raises(ProbeError, match=f"more than {most} bytes"):
                SavedProbe.load(weights)
            file.write_bytes(kept)
        assert load_file(weights).keys() == {"weight", "bias"}

    def test_missing_files(self, tmp_path: Path) -> None:
        weights, _ = make().save(tmp_path / "p")
        weights.unlink()
        with pytest.raises(ProbeError, match=r"there is no .*p\.safetensors; a probe is NAME"):
            SavedProbe.load(tmp_path / "p")

    @pytest.mark.parametrize("name", ["", "/", "..", "new/", "a\0b"])
    def test_names_that_are_no_files(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(ProbeError, match="names no file"):
            make().save(f"{tmp_path}/{name}")

    def test_names_that_are_too_long(self, tmp_path: Path) -> None:
        with pytest.raises(ProbeError, match="200 bytes at most"):
            make().save(tmp_path / ("x" * 201))
        with pytest.raises(ProbeError, match="cannot be read: File name too long"):
            SavedProbe.load(tmp_path / ("x" * 256) / "p")
        assert not list(tmp_path.iterdir())

    def test_something_is_in_the_way(self, tmp_path: Path) -> None:
        (tmp_path / "p.json").mkdir()
        with pytest.raises(OutputExists, match="is a folder"):
            make().save(tmp_path / "p")
        (tmp_path / "file").touch()
        with pytest.raises(ProbeError, match="cannot be written: File exists"):
            make().save(tmp_path / "file" / "p")

    def test_a_folder_of_probes(self, tmp_path: Path) -> None:
        make().save(tmp_path / "b.2")
        _, notes = answers("response_last").save(tmp_path / "a")
        make().save(tmp_path / "broken")[0].unlink()
        (tmp_path / "other.json").write_text("{}")
        (tmp_path / "folder.json").mkdir()
        probes, broken = find_probes(tmp_path)
        assert list(probes) == ["a", "b.2"]
        assert probes["a"].position == "response_last"
        assert broken.keys() == {"broken"}
        for wrong in (notes, tmp_path / "none"):
            with pytest.raises(ProbeError, match="cannot be looked into"):
                find_probes(wrong)
