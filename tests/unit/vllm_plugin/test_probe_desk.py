"""Which probes a request may set, from which files, and how other API servers learn of it."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from fastapi import FastAPI
from fastapi.testclient import TestClient

from activation_logging.errors import ProbeError, SettingsError
from activation_logging.vllm_plugin import probe_routes
from activation_logging.vllm_plugin.probe_desk import ProbeDesk, Wanted, changed, checked_folder
from activation_logging.vllm_plugin.shared_probes import SharedProbes
from tests.fixtures.live_probes import probe, serve

SERVED = serve(one=probe(), shadow=probe("answer", "prompt_last"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "probes"
    probe(threshold=0.25).save(folder / "new")
    probe(threshold=0.75).save(tmp_path / "secret")
    return checked_folder(str(folder))


def change(folder: Path, new: dict[str, str], removed: tuple[str, ...] = ()) -> Any:
    return changed(folder, {name: Wanted(file) for name, file in new.items()}, removed, SERVED)


class TestChanges:
    def test_one_is_added_replaced_and_removed(self, folder: Path) -> None:
        found = change(folder, {"two": "new"})
        assert list(found) == ["one", "shadow", "two"]
        assert found["one"].probe is SERVED["one"].probe
        assert found["shadow"].shadow
        replaced = change(folder, {"one": "new.json"}, ("shadow",))
        assert list(replaced) == ["one"]
        assert replaced["one"].probe.threshold == 0.25
        assert list(change(folder, {}, ("one", "shadow"))) == []

    def test_a_shadow(self, folder: Path) -> None:
        found = changed(folder, {"one": Wanted("new", shadow=True)}, (), SERVED)
        assert found["one"].shadow

    @pytest.mark.parametrize(
        "file",
        [
            *(
                "../secret",
                "/etc/passwd",
                "..",
                ".",
                "",
                "a/b",
                "a\\b",
                ".hidden",
                "new\0",
                "new\n",
            ),
            *("~root", "%2e%2e/secret", "né", "x" * 300),
        ],
    )
    def test_a_path_is_no_file_of_the_folder(self, folder: Path, file: str) -> None:
        with pytest.raises(SettingsError, match="is not the name of a probe's file"):
            change(folder, {"two": file})

    def test_a_link_out_of_the_folder(self, folder: Path, tmp_path: Path) -> None:
        for ending in ("json", "safetensors"):
            (folder / f"out.{ending}").symlink_to(tmp_path / f"secret.{ending}")
            (folder / f"within.{ending}").symlink_to(folder / f"new.{ending}")
        with pytest.raises(ProbeError, match=r"the probe two: out\.safetensors is a link out of"):
            change(folder, {"two": "out"})
        assert change(folder, {"two": "within"})["two"].probe.threshold == 0.25

    def test_half_a_link(self, folder: Path, tmp_path: Path) -> None:
        (folder / "new.json").unlink()
        (folder / "new.json").symlink_to(tmp_path / "secret.json")
        with pytest.raises(ProbeError, match=r"new.json is a link out of the folder"):
            change(folder, {"two": "new"})

    def test_a_broken_file_is_named_without_the_folder(self, folder: Path) -> None:
        (folder / "new.json").write_text("{")
        for file, reason in (("new", "new.json cannot be read"), ("none", "there is no none.safe")):
            with pytest.raises(ProbeError, match=f"^the probe two: {reason}") as refused:
                change(folder, {"two": file})
            assert str(folder) not in str(refused.value)

    def test_names(self, folder: Path) -> None:
        with pytest.raises(SettingsError, match="'all' is not the name of a probe"):
            change(folder, {"all": "new"})
        with pytest.raises(SettingsError, match="there is no probe 'two' to remove, only one, sha"):
            change(folder, {}, ("two",))
        with pytest.raises(SettingsError, match="the probe one is to be set and removed"):
            change(folder, {"one": "new"}, ("one",))

    def test_what_may_be_set(self, folder: Path) -> None:
        (folder / "other.json").write_text("{}")
        (folder / "a b.json").write_bytes((folder / "new.json").read_bytes())
        assert ProbeDesk(folder).files() == ["new"]
        assert ProbeDesk(None).files() == []

    def test_a_folder_that_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match=r"ACTIVATION_PROBE_FOLDER: .* is not a folder"):
            checked_folder(str(tmp_path / "none"))


class TestWithoutAModel:
    """As `server:app` is before the first request, and a server that may load none."""

    def test_nothing_is_served_yet(self, folder: Path) -> None:
        app = FastAPI()
        probe_routes.add_to(app, ProbeDesk(folder))
        with TestClient(app) as client:
            answer = client.get("/v1/activations/probes")
            assert answer.json() == {"object": "list", "data": [], "files": ["new"]}
            refused = client.post("/v1/activations/probes", json={"set": {"two": "new"}})
        assert refused.status_code == 503
        assert "no model is loaded" in refused.json()["detail"]

    def test_no_folder_no_change(self) -> None:
        with pytest.raises(SettingsError, match="may not load probes: start it with --activation-"):
            asyncio.run(ProbeDesk(None).change(None, {}, ["one"]))


class TestSharing:
    def test_the_others_learn_once(self, tmp_path: Path) -> None:
        one, other = SharedProbes(tmp_path), SharedProbes(tmp_path)
        assert one.news() is None
        one.put(SERVED)
        assert one.news() is None
        found = other.news()
        assert found is not None
        assert found.digest == SERVED.digest
        assert other.news() is None
        other.put(serve())
        assert one.news() == {}
        # One that starts later finds what there is.
        assert SharedProbes(tmp_path).news() == {}

    def test_what_is_announced_is_known_and_not_used_yet(self, tmp_path: Path) -> None:
        one, other = SharedProbes(tmp_path), SharedProbes(tmp_path)
        assert other.coming() is None
        one.announce(SERVED)
        found = other.coming()
        assert found is not None
        assert found.digest == SERVED.digest
        assert other.news() is None

    def test_only_one_changes_at_a_time(self, tmp_path: Path) -> None:
        inside: list[int] = []
        most = 0

        def change() -> None:
            nonlocal most
            with SharedProbes(tmp_path).changing():
                inside.append(1)
                most = max(most, len(inside))
                time.sleep(0.02)
                inside.pop()

        threads = [threading.Thread(target=change) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert most == 1
