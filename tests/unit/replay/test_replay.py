"""Stored answers run over again: the proof, what is refused, what is kept, and going on."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra 'replay' is not installed")
pytest.importorskip("transformers", reason="the extra 'replay' is not installed")

from typer.testing import CliRunner

from activation_logging import open_store
from activation_logging.cli import _app
from activation_logging.errors import ReplayError, SettingsError, StoreNotFound, UnknownName
from activation_logging.replay import QUANTITIES, ReplayOptions, model, plan_replay, run_replay
from activation_logging.store import StoreWriter
from activation_logging.store.prune import prune
from tests.fixtures import architectures, teacher
from tests.fixtures.damage import cut_off

KINDS = ["icr", "lapeigvals", "logit_lens", "lookback"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return architectures.make(tmp_path_factory.mktemp("model") / "llama", "Llama")


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A model of the same shape with other weights, but for its embeddings."""
    made = tmp_path_factory.mktemp("model") / "other"
    return architectures.make(made, "Llama", intermediate_size=96)


def replay(path, model=None, **options):
    with open_store(path, writable=True) as store:
        return run_replay(store, plan_replay(store, model, ReplayOptions(**options)))


def names(path):
    with open_store(path) as store:
        return [entry.derived_names for entry in store.entries()]


def run(*arguments):
    return CliRunner().invoke(_app, ["replay", *map(str, arguments)], catch_exceptions=False)


def test_it_proves_itself_and_keeps_what_it_computes(folder, store_path):
    teacher.build(store_path, folder)
    report = replay(store_path, folder)
    assert report.kept == dict.fromkeys(KINDS, 3)
    assert not report.refused
    proof = report.proofs.table()
    assert [site.label for site in proof] == [0, 2, 4]
    assert all(found.rows == 3 * 14 and found.worst < 2e-5 for found in proof.values())
    with open_store(store_path) as store:
        for entry in store.entries():
            assert entry.derived_names == [f"replay/{kind}" for kind in KINDS]
            ratios = entry.derived("replay/lookback")
            assert ratios.values.shape == (6, 4, 6)
            assert ratios.values.dtype == np.float16
            assert ratios.details["layers"] == [1, 2, 3, 4]
            assert ratios.details["dtype"] == "float32"
            assert ratios.details["proof"]["worst"] < 2e-5
            assert ratios.details["proof"]["sites"] == [0, 2, 4]
            assert entry.derived("replay/lapeigvals").values.shape == (4, 6, 10)
            assert entry.derived("replay/icr").values.shape == (6, 4)


def test_the_stores_own_model_is_the_default(folder, store_path):
    teacher.build(store_path, folder, 1)
    assert replay(store_path, kinds=["icr"]).kept == {"icr": 1}


def test_other_layers_and_kinds(folder, store_path):
    teacher.build(store_path, folder, 1)
    replay(store_path, folder, kinds=["logit_lens", "lapeigvals"], layers="2,last")
    with open_store(store_path) as store:
        (entry,) = store.entries()
        assert entry.derived("replay/logit_lens").values.shape == (6, 2, 2)
        assert entry.derived("replay/lapeigvals").details["layers"] == [2, 4]


def test_what_is_there_is_passed_over(folder, store_path):
    teacher.build(store_path, folder)
    assert replay(store_path, folder, kinds=["icr"], limit=2).proofs.answers == 2
    report = replay(store_path, folder, kinds=["icr", "lookback"])
    assert report.kept == {"icr": 1, "lookback": 3}
    report = replay(store_path, folder)
    assert (report.kept, report.plan.there) == ({"lapeigvals": 3, "logit_lens": 3}, 0)
    report = replay(store_path, folder)
    assert (report.kept, report.plan.there, report.plan.others) == ({}, 3, 0)
    report = replay(store_path, folder, kinds=["icr"], layers="2-3")
    assert (report.kept, report.plan.there, report.plan.others) == ({}, 0, 3)
    report = replay(store_path, folder, kinds=["icr"], layers="2-3", overwrite=True)
    assert report.kept == {"icr": 3}
    with open_store(store_path) as store:
        assert {e.derived("replay/icr").values.shape for e in store.entries()} == {(6, 2)}


def test_refused_answers_do_not_use_up_the_limit(folder, other, store_path):
    writer = StoreWriter(store_path, role="test")
    for number, rows_of in enumerate([other, other, folder, folder, folder]):
        teacher.put(writer, folder, number, rows_of=rows_of)
    writer.close()
    done = run(store_path, "--model", folder, "--kinds", "icr", "--limit", "1")
    assert "5 answers to replay (icr), 1 of them now" in done.stderr
    assert [len(found) for found in names(store_path)] == [0, 0, 1, 0, 0]
    report = replay(store_path, folder, kinds=["icr"], limit=1)
    assert (len(report.refused), report.kept) == (2, {"icr": 1})
    assert [len(found) for found in names(store_path)] == [0, 0, 1, 1, 0]


def test_refused_answers_do_not_end_a_run_that_goes_on(folder, other, store_path):
    """They come first then, and are no sign of another model: an earlier run has proven that."""
    writer = StoreWriter(store_path, role="test")
    for number, rows_of in enumerate([folder, other, other, other, folder]):
        teacher.put(writer, folder, number, rows_of=rows_of)
    writer.close()
    assert replay(store_path, folder, kinds=["icr"], limit=1).kept == {"icr": 1}
    report = replay(store_path, folder, kinds=["icr"])
    assert (len(report.refused), report.kept) == (3, {"icr": 1})
    assert len(replay(store_path, folder, kinds=["icr"]).refused) == 3
    with pytest.raises(ReplayError, match="none of the first 3"):
        replay(store_path, other, kinds=["icr"], tolerance=1e-9, served_as=str(folder))


def test_what_is_deleted_or_pruned_meanwhile_is_left_out(folder, store_path):
    teacher.build(store_path, folder, 4)
    with open_store(store_path, writable=True) as store:
        keys = [entry.key for entry in store.entries()]

        def remove(what, done, total):
            if (what, done) == ("replaying", 1):
                store.delete(keys[1])
                prune(store, [keys[2]], "too old")

        plan = plan_replay(store, folder, ReplayOptions(kinds=["icr"]))
        report = run_replay(store, plan, progress=remove)
    assert (report.kept, report.refused) == ({"icr": 2}, [])
    assert report.plan.left_out == {"that were deleted or pruned meanwhile": 2}


def test_one_that_memory_is_too_small_for_is_refused(folder, store_path):
    import torch

    teacher.build(store_path, folder, 2)
    done = []

    def hungry(layer, answer):
        done.append(layer.number)
        if done == [1]:
            torch.empty(1 << 60)
        return QUANTITIES.get("icr").of_layer(layer, answer)

    with open_store(store_path, writable=True) as store:
        plan = plan_replay(store, folder, ReplayOptions(kinds=["icr"]))
        plan.quantities = [replace(plan.quantities[0], of_layer=hungry)]
        report = run_replay(store, plan)
    assert report.kept == {"icr": 1}
    (refusal,) = report.refused
    assert "memory ran out (" in refusal.why
    assert "--kinds logit_lens" in refusal.why


def test_broken_off_it_keeps_what_it_has(folder, store_path):
    teacher.build(store_path, folder)

    def stop(what, done, total):
        if what == "replaying" and done == 2:
            raise KeyboardInterrupt

    with open_store(store_path, writable=True) as store:
        plan = plan_replay(store, folder, ReplayOptions(kinds=["icr"]))
        with pytest.raises(KeyboardInterrupt):
            run_replay(store, plan, progress=stop)
    assert names(store_path) == [["replay/icr"], ["replay/icr"], []]
    assert replay(store_path, folder, kinds=["icr"]).kept == {"icr": 1}


def test_half_precision_is_stated(folder, store_path):
    teacher.build(store_path, folder, dtype="bfloat16")
    report = replay(store_path, folder, kinds=["icr"])
    worst = max(found.worst for found in report.proofs.table().values())
    assert 2e-5 < worst < 2**-7
    with open_store(store_path) as store:
        entry = next(store.entries())
        assert 2e-5 < entry.derived("replay/icr").details["proof"]["worst"] < 2**-7


def test_computed_in_half_precision(folder, store_path):
    teacher.build(store_path, folder, 1)
    report = replay(store_path, folder, dtype="bfloat16")
    assert report.kept == dict.fromkeys(KINDS, 1)
    worst = max(found.worst for found in report.proofs.table().values())
    assert 2e-5 < worst < 0.1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_other_weights_are_refused_at_once(folder, other, store_path, dtype):
    teacher.build(store_path, folder, 5, rows_of=other, dtype=dtype)
    with pytest.raises(ReplayError, match="none of the first 3 answers has the rows of"):
        replay(store_path, folder, kinds=["icr"])
    assert names(store_path) == [[]] * 5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_answer_of_another_model_is_refused_by_name(folder, other, store_path, dtype):
    writer = StoreWriter(store_path, role="test")
    for number, rows_of in enumerate([folder, folder, other, folder]):
        teacher.put(writer, folder, number, rows_of=rows_of, dtype=dtype)
    writer.close()
    report = replay(store_path, folder, kinds=["icr"])
    assert report.kept == {"icr": 3}
    with open_store(store_path) as store:
        strange = list(store.entries())[2].key
    assert [refusal.key for refusal in report.refused] == [strange]
    assert [len(found) for found in names(store_path)] == [1, 1, 0, 1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_wrong_row_or_token_is_enough(folder, store_path, dtype):
    def swap(rows):
        rows[2][[7, 8]] = rows[2][[8, 7]]

    writer = StoreWriter(store_path, role="test")
    teacher.put(writer, folder, 0, dtype=dtype)
    teacher.put(writer, folder, 1, dtype=dtype, change=swap)
    _, response = teacher.some_ids(2)
    teacher.put(writer, folder, 2, dtype=dtype, response_token_ids=[response[0], 99, *response[2:]])
    writer.close()
    report = replay(store_path, folder, kinds=["icr"])
    assert report.kept == {"icr": 1}
    assert len(report.refused) == 2
    assert [len(found) for found in names(store_path)] == [1, 0, 0]


def test_a_row_that_is_not_finite_is_refused(folder, store_path):
    def spoil(rows):
        rows[2][3, 5] = np.nan

    writer = StoreWriter(store_path, role="test")
    teacher.put(writer, folder, 0)
    teacher.put(writer, folder, 1, change=spoil)
    writer.close()
    report = replay(store_path, folder, kinds=["icr"])
    assert len(report.refused) == 1


def test_a_tolerance_can_be_given(folder, store_path):
    def nudge(rows):
        rows[2] *= 1.001

    teacher.build(store_path, folder, 1, change=nudge)
    report = replay(store_path, folder, kinds=["icr"])
    assert "--tolerance" in report.refused[0].why
    assert replay(store_path, folder, kinds=["icr"], tolerance=0.01).kept == {"icr": 1}


def test_another_shape_is_refused_before_the_weights_are_read(folder, tmp_path, store_path):
    smaller = architectures.make(tmp_path / "small", "Llama", hidden_size=96)
    teacher.build(store_path, folder)
    with pytest.raises(ReplayError, match=r"3 answers have 4 layers of 192, but .* 4 layers of 96"):
        replay(store_path, smaller)


def test_names_are_compared(folder, store_path):
    writer = StoreWriter(store_path, role="test")
    teacher.put(writer, folder, 0, served_as="org/first")
    teacher.put(writer, folder, 1, served_as="org/second")
    writer.close()
    with pytest.raises(SettingsError, match=r"has no entry of .*org/first, org/second"):
        replay(store_path, folder)
    report = replay(store_path, folder, kinds=["icr"], served_as="org/first")
    assert report.kept == {"icr": 1}
    assert report.plan.left_out == {"of another model": 1}
    with pytest.raises(SettingsError, match=r"--model.*org/first, org/second"):
        replay(store_path)


def test_attention_that_does_not_fit_is_named(folder, store_path, monkeypatch):
    writer = StoreWriter(store_path, role="test")
    teacher.put(writer, folder, 0)
    teacher.put(writer, folder, 1, lengths=(300, 6))
    writer.close()
    monkeypatch.setattr(model, "available", lambda: 6 << 20)
    report = replay(store_path, folder, kinds=["icr"])
    assert report.kept == {"icr": 1}
    (refusal,) = report.refused
    assert "its 306 tokens take" in refusal.why
    assert "--kinds logit_lens" in refusal.why
    assert replay(store_path, folder, kinds=["logit_lens"]).kept == {"logit_lens": 2}


def test_what_cannot_be_replayed_is_counted_or_named(folder, store_path):
    writer = StoreWriter(store_path, role="test")
    teacher.put(writer, folder, 0, error="it broke", finish_reason="error")
    teacher.put(writer, folder, 1, lengths=(6, 1))
    prompt, _ = teacher.some_ids(2)
    teacher.put(writer, folder, 2, prompt_token_ids=[*prompt[:-1], 10_000])
    writer.close()
    report = replay(store_path, folder)
    assert report.plan.left_out == {"that are failed": 1}
    assert ["outside the model's" in refusal.why for refusal in report.refused] == [True]
    # The only token of an answer has ratios, too.
    assert report.kept == dict.fromkeys(KINDS, 1)
    with open_store(store_path) as store:
        (kept,) = (e for e in store.entries() if e.derived_names)
        assert np.isnan(kept.derived("replay/lapeigvals").values[0, 0]).sum() == 4


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"kinds": ["look"]}, UnknownName, "look"),
        ({"layers": "0"}, SettingsError, "layer 0"),
        ({"layers": "9"}, SettingsError, "layers 0 to 4"),
        ({"layers": "heads@2"}, SettingsError, "heads@2"),
        ({"dtype": "int8"}, ReplayError, "int8"),
        ({"device": "abacus"}, ReplayError, "abacus"),
        ({"tolerance": float("nan")}, SettingsError, "not nan"),
        ({"tolerance": float("inf")}, SettingsError, "not inf"),
    ],
)
def test_bad_options(folder, store_path, options, error, says):
    teacher.build(store_path, folder, 1)
    with pytest.raises(error, match=says):
        replay(store_path, folder, **options)


def test_bad_models(folder, tmp_path, store_path):
    teacher.build(store_path, folder, 1)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ReplayError, match="no safetensors files"):
        replay(store_path, empty)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(ReplayError, match="merge it into its base model"):
        replay(store_path, adapter)
    broken = architectures.make(tmp_path / "broken", "Llama")
    (broken / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ReplayError, match="cannot be loaded"):
        replay(store_path, broken)


def test_the_command(folder, store_path):
    teacher.build(store_path, folder)
    planned = run(store_path, "--model", folder, "--dry-run")
    assert planned.exit_code == 0, planned.output
    assert "the longest has 15 tokens" in planned.stderr
    assert names(store_path) == [[]] * 3
    with open_store(store_path) as store:
        key = next(iter(store))
    done = run(store_path, "--model", folder, "--kinds", "lookback, icr", "--key", key[:12])
    assert done.exit_code == 0, done.output
    assert "1 answers replayed in float32 on cpu" in done.stdout
    done = run(store_path, "--model", folder, "--json")
    found = json.loads(done.stdout)
    assert found["replayed"] == 3
    assert found["kept"] == {"lookback": 2, "lapeigvals": 3, "icr": 2, "logit_lens": 3}
    assert found["proof"]["2"]["worst"] < 2e-5


def test_the_command_makes_no_store(tmp_path):
    done = CliRunner().invoke(_app, ["replay", str(tmp_path / "typo"), "--model", str(tmp_path)])
    assert isinstance(done.exception, StoreNotFound)
    assert not (tmp_path / "typo").exists()


def test_a_device_that_is_not_there_is_named_before_its_memory_is_asked_for(
    folder, store_path, monkeypatch
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    teacher.build(store_path, folder, 1)
    with open_store(store_path) as store, pytest.raises(ReplayError, match="no device 'cuda:1'"):
        plan_replay(store, folder, ReplayOptions(device="cuda:1"))


def test_the_command_ends_with_1_if_an_answer_was_refused(folder, other, store_path):
    teacher.build(store_path, folder, 1, rows_of=other)
    done = run(store_path, "--model", folder, "--kinds", "icr")
    assert done.exit_code == 1
    assert "nothing was replayed" in done.stdout
    assert "a row differs by" in done.stdout.replace("\n", " ")


def test_a_damaged_entry_is_refused_by_name(folder, store_path):
    teacher.build(store_path, folder)
    key = cut_off(store_path, 1, left=20)
    report = replay(store_path, folder)
    assert report.kept == dict.fromkeys(KINDS, 2)
    assert [(refusal.key, "is not readable JSON" in refusal.why) for refusal in report.refused] == [
        (key, True)
    ]
