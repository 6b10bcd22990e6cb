"""Which addresses strangers can reach, and how uvicorn is told of them."""

from __future__ import annotations

import logging

import pytest

from activation_logging.exposure import is_loopback, uvicorn_host, warn_if_open

LOGGER = logging.getLogger("a server's")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "::1", "[::1]"])
def test_only_this_machine(host, caplog):
    assert is_loopback(host)
    with caplog.at_level(logging.WARNING, LOGGER.name):
        warn_if_open(host, has_key=False, logger=LOGGER)
    assert not caplog.records


@pytest.mark.parametrize("host", [None, "", "0.0.0.0", "::", "10.1.2.3", "gpu.example.org"])
def test_everybody(host, caplog):
    assert not is_loopback(host)
    with caplog.at_level(logging.WARNING, LOGGER.name):
        warn_if_open(host, has_key=True, logger=LOGGER)
        assert not caplog.records
        warn_if_open(host, has_key=False, logger=LOGGER)
    assert "VLLM_API_KEY" in caplog.text


@pytest.mark.parametrize(
    ("argv", "environment", "host"),
    [
        ([], {}, "127.0.0.1"),
        (["--host", "0.0.0.0"], {}, "0.0.0.0"),
        (["--host=::"], {"UVICORN_HOST": "127.0.0.1"}, "::"),
        ([], {"UVICORN_HOST": "0.0.0.0"}, "0.0.0.0"),
        (["--host", "0.0.0.0", "--uds", "/run/s"], {}, "127.0.0.1"),
        (["--host"], {}, ""),
    ],
)
def test_what_uvicorn_was_told(argv, environment, host):
    assert uvicorn_host(["app", *argv], environment) == host
