"""The output head, read from model folders as they are found, against a plain product."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from activation_logging.errors import SettingsError
from activation_logging.verify.lm_head import load_lm_head

VOCABULARY, HIDDEN = 40_000, 8
TYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
RANDOM = np.random.default_rng(0)


def tensor(*shape: int, dtype: str = "float32") -> np.ndarray:
    return RANDOM.standard_normal(shape, np.float32).astype(TYPES[dtype])


def model(folder: Path, tensors: dict[str, np.ndarray], **config: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("dtype", TYPES)
def test_scores(tmp_path: Path, dtype: str) -> None:
    """The vocabulary is larger than the blocks that it is gone through in, and padded."""
    weight, bias = tensor(VOCABULARY + 24, HIDDEN, dtype=dtype), tensor(VOCABULARY + 24)
    tensors = {"lm_head.weight": weight, "lm_head.bias": bias, "model.other": tensor(3)}
    head = load_lm_head(model(tmp_path, tensors, vocab_size=VOCABULARY))
    assert (head.dtype, head.vocabulary, head.hidden_size) == (dtype, VOCABULARY, HIDDEN)

    rows, tokens = tensor(5, HIDDEN), [0, 7, 16_384, VOCABULARY - 1, 20_000]
    exact = rows.astype(np.float64) @ weight[:VOCABULARY].astype(np.float64).T + bias[:VOCABULARY]
    tokens[4] = int(exact[4].argmax())
    own = exact[np.arange(5), tokens]
    found = head.score(rows, tokens)
    np.testing.assert_allclose(found.logits, own, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.best, exact.max(axis=1), rtol=1e-4)
    assert found.ranks[4] == 0
    assert np.abs(found.ranks - (exact > own[:, None]).sum(axis=1)).max() <= 2


@pytest.mark.parametrize(
    ("tied", "name"),
    [(True, "model.embed_tokens.weight"), (False, "lm_head.weight"), (None, "lm_head.weight")],
)
def test_which_tensor(tmp_path: Path, tied: bool | None, name: str) -> None:
    tensors = {key: tensor(10, HIDDEN) for key in ("lm_head.weight", "model.embed_tokens.weight")}
    head = load_lm_head(model(tmp_path, tensors, text_config={"tie_word_embeddings": tied}))
    assert np.array_equal(head.weight, tensors[name])


@pytest.mark.parametrize("index", [True, False])
def test_several_files(tmp_path: Path, index: bool) -> None:
    weight = tensor(10, HIDDEN, dtype="bfloat16")
    model(tmp_path, {"model.norm.weight": tensor(HIDDEN)})
    save_file({"lm_head.weight": weight}, tmp_path / "z.safetensors")
    if index:
        files = {"lm_head.weight": "z.safetensors", "model.norm.weight": "model.safetensors"}
        text = json.dumps({"weight_map": files})
        (tmp_path / "model.safetensors.index.json").write_text(text)
    assert load_lm_head(tmp_path).weight.tobytes() == weight.tobytes()


def test_quantized_weights(tmp_path: Path) -> None:
    """Are refused as a head, and in no one's way elsewhere."""
    quantized = np.ones((10, HIDDEN), np.int8)
    tensors = {"lm_head.weight": tensor(10, HIDDEN), "model.embed_tokens.weight": quantized}
    with pytest.raises(SettingsError, match="stored as I8, and only F32, F16, BF16 can be read"):
        load_lm_head(model(tmp_path, tensors, tie_word_embeddings=True))
    assert load_lm_head(model(tmp_path, tensors)).hidden_size == HIDDEN


def test_folders_without_a_head(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="not a model folder"):
        load_lm_head(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SettingsError, match="holds no safetensors files"):
        load_lm_head(tmp_path)
    with pytest.raises(SettingsError, match="none of its safetensors files holds an output head"):
        load_lm_head(model(tmp_path, {"model.norm.weight": tensor(HIDDEN)}))


@pytest.mark.parametrize(
    ("config", "index", "named"),
    [
        ("[]", None, "config.json: it"),
        ('{"text_config": 3}', None, "config.json: text_config"),
        ("{}", "{}", "index.json: weight_map"),
        ("{}", '{"weight_map": 3}', "index.json: weight_map"),
        ("[" * 100_000, None, "config.json: maximum recursion"),
    ],
)
def test_json_of_another_shape(tmp_path: Path, config: str, index: str | None, named: str) -> None:
    (tmp_path / "config.json").write_text(config)
    if index is not None:
        (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(SettingsError, match=f"not a model folder: .*{named}"):
        load_lm_head(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\0" * 7, b"\xff" * 64, b"\2\0\0\0\0\0\0\0{}rest"])
def test_broken_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(SettingsError, match="is not a readable safetensors file"):
        load_lm_head(tmp_path)


def test_an_index_that_names_a_tensor_of_no_file(tmp_path: Path) -> None:
    model(tmp_path, {"model.norm.weight": tensor(HIDDEN)})
    text = json.dumps({"weight_map": {"lm_head.weight": "model.safetensors"}})
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(SettingsError, match="lm_head"):
        load_lm_head(tmp_path)
