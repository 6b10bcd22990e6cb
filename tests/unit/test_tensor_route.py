"""One layer of an entry over HTTP, in each format and of each stored type."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from activation_logging import open_store
from tests.fixtures.planted import build
from tests.fixtures.readers import http


@pytest.mark.parametrize(
    ("dtype", "stored"), [("float32", "F32"), ("float16", "F16"), ("bfloat16", "BF16")]
)
def test_tensor(tmp_path: Path, dtype: str, stored: str) -> None:
    path = build(tmp_path / "store", n=1, dtype=dtype)
    with open_store(path) as store:
        (entry,) = store.entries()
        expected, bits = entry.layer(2), entry.stored(2).tobytes()
        key, positions = entry.key, entry.positions
    with http(path) as client:
        npy, whole = (
            client.get(f"/v1/activations/{key}/tensor", params={"layer": "2", "format": kind})
            for kind in ("npy", "safetensors")
        )
    found = np.load(io.BytesIO(npy.content))
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected)
    file = tmp_path / "tensor.safetensors"
    file.write_bytes(whole.content)
    with safe_open(file, framework="numpy") as tensors:
        assert tensors.get_slice("activations").get_dtype() == stored
        assert tensors.get_tensor("activations").tobytes() == bits
        assert tensors.get_tensor("activations").shape == expected.shape
        assert np.array_equal(tensors.get_tensor("positions"), positions)
        assert tensors.metadata() == {"key": key, "layer": "2", "dtype": dtype}
