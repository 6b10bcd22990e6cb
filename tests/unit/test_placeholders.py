"""One environment for every host: the placeholders of a store's path."""

from __future__ import annotations

import socket

import pytest

from activation_logging.errors import SettingsError
from activation_logging.placeholders import filled, short_host
from activation_logging.settings import Settings, given_lmdb_path

HOST = short_host()


def test_each_host_and_engine_has_its_own() -> None:
    settings = Settings(lmdb_path="/data/{host}/{engine}.lmdb")
    assert settings.store_path() == f"/data/{HOST}/front.lmdb"
    assert settings.store_path(3) == f"/data/{HOST}/3.lmdb"


def test_a_path_without_any_stays() -> None:
    assert Settings(lmdb_path="some {folder").store_path(1) == "some {folder"


def test_the_variable_is_filled_for_programs_beside_the_server() -> None:
    assert given_lmdb_path({"ACTIVATION_LMDB_PATH": " /data/{host} "}) == f"/data/{HOST}"
    assert given_lmdb_path({}) is None


def test_a_host_with_a_domain_and_odd_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "node 7/x.example.org")
    assert filled("{host}") == "node_7_x"


@pytest.mark.parametrize("path", ["/data/{node}", "/data/{host}/{}", "{Host}", "{host }"])
def test_an_unknown_one_is_refused(path: str) -> None:
    with pytest.raises(SettingsError, match=r"ACTIVATION_LMDB_PATH: .*known are \{host\} and"):
        Settings.from_env({"ACTIVATION_LMDB_PATH": path})
