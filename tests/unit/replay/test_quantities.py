"""Each quantity against a computation by numpy, from the attention of a real small model."""

from __future__ import annotations

import gc

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra 'replay' is not installed")
pytest.importorskip("transformers", reason="the extra 'replay' is not installed")

import torch
from scipy.spatial.distance import jensenshannon
from scipy.special import log_softmax, softmax

from activation_logging.replay.attention import EIGENVALUES
from activation_logging.replay.model import ReplayModel
from activation_logging.replay.registry import QUANTITIES, Answer
from activation_logging.replay.stream import MOST_ATTENDED
from activation_logging.sites import Site
from tests.fixtures import architectures

P, R = 17, 11
IDS = np.random.default_rng(5).integers(3, 250, P + R).tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return architectures.make(tmp_path_factory.mktemp("model") / "llama", "Llama")


@pytest.fixture(scope="module")
def reference(folder):
    """Attention ``[L, H, n, n]``, the stream ``[L + 1, n, hidden]`` before the norm, and logits."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    stream = []
    model.model.norm.register_forward_pre_hook(lambda _, args: stream.append(args[0][0]))
    with torch.inference_mode():
        found = model(torch.tensor([IDS[:-1]]), output_hidden_states=True, output_attentions=True)
        states = torch.stack([*(s[0] for s in found.hidden_states[:-1]), stream[0]])
        logits = model.lm_head(model.model.norm(states))
    return torch.cat(found.attentions).numpy(), states.numpy(), logits.numpy()


@pytest.fixture(scope="module")
def kept(folder):
    """Every quantity, as a replay keeps it."""
    model = ReplayModel(folder)
    model.load()
    answer = Answer(P, R, torch.tensor(IDS[P:]))
    parts = {quantity.name: [] for quantity in QUANTITIES}

    def take(layer):
        for quantity in QUANTITIES:
            parts[quantity.name].append(quantity.of_layer(layer, answer))

    model.run(IDS[:-1], take, [])
    return {
        quantity.name: torch.stack(parts[quantity.name], dim=quantity.axis).numpy()
        for quantity in QUANTITIES
    }


def test_lookback_ratios(reference, kept):
    attention = reference[0]
    assert kept["lookback"].shape == (R, 4, 6)
    assert np.all(kept["lookback"][0] == 1)
    for i in range(1, R):
        weights = attention[:, :, P - 1 + i]
        at_prompt = weights[..., :P].mean(axis=-1)
        at_answer = weights[..., P : P + i].mean(axis=-1)
        np.testing.assert_allclose(
            kept["lookback"][i], at_prompt / (at_prompt + at_answer), rtol=1e-5
        )


def test_eigenvalues_are_those_of_the_laplacian(reference, kept):
    attention = reference[0].astype(np.float64)
    n = P + R - 1
    assert kept["lapeigvals"].shape == (4, 6, EIGENVALUES)
    for layer in range(4):
        for head in range(6):
            weights = attention[layer, head]
            # Position i is seen by itself and all that follow.
            degree = np.array([weights[i:, i].mean() for i in range(n)])
            eigenvalues = np.linalg.eigvals(np.diag(degree) - weights)
            assert np.abs(eigenvalues.imag).max() < 1e-6
            wanted = np.sort(eigenvalues.real)[::-1][:EIGENVALUES]
            np.testing.assert_allclose(kept["lapeigvals"][layer, head], wanted, atol=1e-6)


def test_icr_scores(reference, kept):
    attention, states = (each.astype(np.float64) for each in reference[:2])
    assert kept["icr"].shape == (R, 4)
    for layer in range(4):
        before, after = states[layer], states[layer + 1]
        for i in range(R):
            at = P - 1 + i
            weights = attention[layer, :, at, : at + 1].mean(axis=0)
            chosen = np.argsort(-weights, kind="stable")[:MOST_ATTENDED]
            update = after[at] - before[at]
            along = [update @ before[j] / np.linalg.norm(before[j]) for j in chosen]
            p, q = softmax(along), weights[chosen] / weights[chosen].sum()
            assert kept["icr"][i, layer] == pytest.approx(jensenshannon(p, q) ** 2, abs=2e-5)


def test_logit_lens(reference, kept):
    log_probs = log_softmax(reference[2].astype(np.float64), axis=-1)[1:, P - 1 :]
    assert kept["logit_lens"].shape == (R, 4, 2)
    entropy = -(np.exp(log_probs) * log_probs).sum(axis=-1).T
    np.testing.assert_allclose(kept["logit_lens"][..., 0], entropy, atol=1e-4)
    chosen = log_probs[:, np.arange(R), IDS[P:]].T
    np.testing.assert_allclose(kept["logit_lens"][..., 1], chosen, atol=1e-4)


def test_one_layers_attention_is_there_at_a_time(folder):
    model = ReplayModel(folder)
    model.load()
    there = []

    def take(layer):
        shape = (1, *layer.attention.shape)
        found = [o for o in gc.get_objects() if type(o) is torch.Tensor and o.shape == shape]
        there.append(len(found))

    model.run(IDS[:-1], take, [])
    assert there == [1, 1, 1, 1]


def test_rows_are_the_hidden_states_of_transformers(folder, reference):
    model = ReplayModel(folder)
    model.load()
    rows = model.run(IDS[:-1], None, [Site("resid", 0), Site("resid", 3), Site("resid_prenorm", 4)])
    for site, found in rows.items():
        np.testing.assert_allclose(found, reference[1][site.layer], atol=1e-6)


@pytest.mark.parametrize("kind", ["GPTNeoX", "OPT", "Falcon"])
def test_other_architectures(tmp_path, kind):
    from transformers import AutoModelForCausalLM

    folder = architectures.make(tmp_path / kind, kind)
    model = ReplayModel(folder)
    model.load()
    assert model.attends == {1, 2, 3, 4}
    assert model.no_lens is None
    found = []
    model.run(IDS[:-1], lambda layer: found.append(layer.attention), [])
    other = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.inference_mode():
        wanted = other(torch.tensor([IDS[:-1]]), output_attentions=True).attentions
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs[0])


def test_a_head_that_is_not_all_of_the_logits_is_named(tmp_path):
    model = ReplayModel(architectures.make(tmp_path / "gemma", "Gemma2"))
    model.load()
    assert model.no_lens is not None
    assert "not only" in model.no_lens
