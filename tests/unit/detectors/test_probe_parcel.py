"""Probes on their way to other processes are what they were."""

from __future__ import annotations

import numpy as np
import pytest

from activation_logging.detectors.probe_parcel import pack, unpack
from activation_logging.errors import ProbeError
from tests.fixtures.live_probes import attention, probe, serve


def test_there_and_back() -> None:
    served = serve(
        span=probe(threshold=0.3),
        looks=attention(),
        shadow=probe("answer", "prompt_last", prompts=np.array([1, 2], np.uint64)),
    )
    found = unpack(pack(served))
    assert list(found) == ["span", "looks", "shadow"]
    for name, one in found.items():
        assert one.probe.as_json() == served[name].probe.as_json()
        assert (one.shadow, one.columns) == (served[name].shadow, served[name].columns)
        assert np.array_equal(one.probe.prompts, served[name].probe.prompts)


def test_none() -> None:
    assert not unpack(pack(serve()))


@pytest.mark.parametrize(
    "parcel", [b"", b"\xc1", b"\x91\x01", b"\x91\x94\xa1a\xc2\xc4\x00\xc4\x00"]
)
def test_something_else(parcel: bytes) -> None:
    with pytest.raises(ProbeError):
        unpack(parcel)
