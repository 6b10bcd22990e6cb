"""One layer of an entry over HTTP, in each format and of each stored type."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from activation_logging import open_store
from activation_logging.sites import Site
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


def test_another_site(tmp_path: Path) -> None:
    path = build(tmp_path / "store", n=1, sites={Site("heads", 3): (4, 3)}, dtype="bfloat16")
    with open_store(path) as store:
        (entry,) = store.entries()
        expected, bits = entry.site("heads", 3), entry.stored("heads@3").tobytes()
    with http(path) as client:
        where = f"/v1/activations/{entry.key}"
        assert client.get(where).json()["activations"]["sites"][-1] == "heads@3"
        npy = client.get(f"{where}/tensor", params={"site": "heads@3"})
        apart = client.get(f"{where}/tensor", params={"site": "heads", "layer": "3"})
        assert apart.content == npy.content
        assert apart.headers["content-disposition"] == npy.headers["content-disposition"]
        for both in ({"site": "heads@3", "layer": "2"}, {"site": "heads@3", "derived": "x"}):
            assert client.get(f"{where}/tensor", params=both).status_code == 400
        assert "_heads_3.npy" in npy.headers["content-disposition"]
        found = np.load(io.BytesIO(npy.content))
        assert np.array_equal(found, expected)
        file = tmp_path / "tensor.safetensors"
        whole = client.get(f"{where}/tensor", params={"site": "heads@3", "format": "safetensors"})
        file.write_bytes(whole.content)
        absent = client.get(f"{where}/tensor", params={"site": "heads@2"})
        assert absent.status_code == 404
        assert "logged sites: heads@3" in absent.json()["detail"]
        invalid = client.get(f"{where}/tensor", params={"site": "x"})
        assert invalid.status_code == 400
        assert "known sites are resid" in invalid.json()["detail"]
    with safe_open(file, framework="numpy") as tensors:
        assert tensors.get_tensor("activations").shape == expected.shape
        assert tensors.get_tensor("activations").tobytes() == bits
        assert tensors.metadata() == {"key": entry.key, "layer": "heads@3", "dtype": "bfloat16"}
