"""Studies of a store: each in a process and a folder of its own, one at a time.

The folders lie beside the store, in ``NAME.reports/``. A study goes on when the page is closed, and
when the pages' process ends. It holds a lock of the operating system, which goes away with it
however it ends: so nobody asks a file whether a process is alive.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from activation_logging.errors import ViewError
from activation_logging.files import write_whole
from activation_logging.process import tail
from activation_logging.strict_json import dumps

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_NAME = re.compile(r"\d{8}-\d{6}(-\d{1,3})?")
_FILE = re.compile(r"[a-z_]{1,40}\.(json|csv)")
_LOG_LINES = 5
REQUEST, PROGRESS, LOG, PAGE = "request.json", "progress.json", "log.txt", "index.html"
_LOCK, _STOPPED = ".lock", "stopped"
_PATIENCE_S = 0.2
_OURS = frozenset({REQUEST, PROGRESS})
_ASKED = ("store", "label", "model", "positive", "negative", "layers", "tags", "transfer_by")
_TOLD = ("pid", "what", "done", "of", "headline", "error", "scripts", "started", "ended")


@dataclass(frozen=True)
class Study:
    """One study of a store.

    Attributes:
        name: of its folder.
        folder: where its page and files are.
        asked: what is studied, as :func:`.report.build_report` takes it, and ``store``.
        state: ``running``, ``done``, ``failed`` or ``stopped``.
        progress: what it has written of itself: ``what``, ``done``, ``of``, ``headline``,
            ``error``, ``scripts``, ``started``, ``ended``; any may be None.
    """

    name: str
    folder: Path
    asked: Mapping[str, Any]
    state: str
    progress: Mapping[str, Any]

    @property
    def files(self) -> list[str]:
        """Names of its files of numbers, ``report.json`` first."""
        found = [
            file.name
            for file in self.folder.iterdir()
            if _FILE.fullmatch(file.name) and file.name not in _OURS
        ]
        return sorted(found, key=lambda name: (name != "report.json", name))

    @property
    def command(self) -> str:
        """The command that makes the same report."""
        words = ["activation-logging", "report", str(self.asked["store"])]
        for name, value in self.asked.items():
            if name == "tags":
                words += [
                    part for one in (value or {}).items() for part in ("--tag", "=".join(one))
                ]
            elif name != "store" and value:
                flag = "--" + name.replace("_", "-")
                words += [flag, ",".join(value) if isinstance(value, list) else str(value)]
        return shlex.join(words)


class Studies:
    """The studies of one store.

    Args:
        store: the store's folder.
        folder: of their folders; beside the store if left out.
    """

    def __init__(self, store: Path, folder: Path | None = None) -> None:
        resolved = store.resolve()
        self._store = resolved
        self.folder = folder or resolved.with_name(f"{resolved.name}.reports")
        self._process: subprocess.Popen[bytes] | None = None

    def all(self) -> list[Study]:
        """Every study, the newest first."""
        if not self.folder.is_dir():
            return []
        names = [p.name for p in self.folder.iterdir() if _NAME.fullmatch(p.name) and p.is_dir()]
        running = self._running()
        found = (self._read(name, running) for name in sorted(names, reverse=True))
        return [study for study in found if study is not None]

    def __getitem__(self, name: str) -> Study:
        """A study by its name.

        Raises:
            ViewError: there is none of that name.
        """
        found = self._read(name, self._running()) if _NAME.fullmatch(name) else None
        if found is None:
            raise ViewError(f"there is no study {name[:80]!r}")
        return found

    def start(self, asked: Mapping[str, Any]) -> str:
        """Start one, and return its name.

        Args:
            asked: arguments of :func:`.report.build_report`; what is None is left out.

        Raises:
            ViewError: another one is running, or nothing may be written beside the store.
        """
        try:
            self.folder.mkdir(exist_ok=True)
            with self._lock() as lock:
                if lock is None:
                    raise ViewError("a study of this store is running: wait for it, or stop it")
                return self._start(lock, {"store": str(self._store), **asked})
        except OSError as error:
            raise ViewError(
                f"no study can be written to {self.folder} ({error.strerror or error}); use "
                "`activation-logging report --output FOLDER`"
            ) from None

    def _start(self, lock: int, asked: Mapping[str, Any]) -> str:
        name = start = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        number = 1
        while (self.folder / name).exists():
            number += 1
            name = f"{start}-{number}"
        folder = self.folder / name
        folder.mkdir()
        write_whole(folder / REQUEST, dumps(asked).encode())
        # Whoever holds the lock last is the study: this process gives up its own end of it.
        os.ftruncate(lock, 0)
        os.pwrite(lock, name.encode(), 0)
        command = [sys.executable, "-m", f"{__package__}.study_process", str(folder)]
        with (folder / LOG).open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(lock,),
            )
        return name

    def stop(self, name: str) -> None:
        """Stop one that is running; nothing happens to one that has ended.

        Raises:
            ViewError: there is none of that name.
        """
        study = self[name]
        if study.state != "running":
            return
        (study.folder / _STOPPED).touch()
        pid = study.progress.get("pid")
        if isinstance(pid, int):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        elif self._process is not None:
            self._process.terminate()

    def remove(self, name: str) -> None:
        """Delete a study that has ended, with its files.

        Raises:
            ViewError: there is none of that name, or it is running.
        """
        study = self[name]
        if study.state == "running":
            raise ViewError("this study is running: stop it first")
        shutil.rmtree(study.folder)

    # --- what the folders say --------------------------------------------------------

    def _read(self, name: str, running: str | None) -> Study | None:
        folder = self.folder / name
        asked, progress = _json(folder / REQUEST), _json(folder / PROGRESS)
        if not asked:
            return None
        asked = dict.fromkeys(_ASKED) | asked
        progress = dict.fromkeys(_TOLD) | progress
        if name == running:
            state = "running"
        elif progress.get("ended"):
            state = "failed" if progress.get("error") else "done"
        elif (folder / _STOPPED).exists():
            state = "stopped"
        else:
            state = "failed"
            last = tail(folder / LOG, _LOG_LINES).strip() if (folder / LOG).exists() else ""
            progress = {**progress, "error": f"its process ended. {last}".strip()}
        return Study(name, folder, asked, state, progress)

    def _running(self) -> str | None:
        """The name of the study that runs."""
        if not self.folder.is_dir():
            return None
        if self._process is not None:
            self._process.poll()
        try:
            # Shared: who only looks must not seem to be a study to somebody else who looks.
            with self._opened(os.O_RDONLY) as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return None
        except BlockingIOError:
            return (self.folder / _LOCK).read_text("utf-8")
        return None

    @contextmanager
    def _lock(self) -> Iterator[int | None]:
        """The lock, for as long as the block runs; None if a study has it."""
        until = time.monotonic() + _PATIENCE_S
        with self._opened(os.O_RDWR | os.O_CREAT) as opened:
            while True:
                try:
                    fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    # Perhaps somebody only looks, which takes no time.
                    if time.monotonic() < until:
                        time.sleep(0.01)
                        continue
                    yield None
                else:
                    yield opened
                return

    @contextmanager
    def _opened(self, how: int) -> Iterator[int]:
        opened = os.open(self.folder / _LOCK, how | os.O_CLOEXEC, 0o644)
        try:
            yield opened
        finally:
            os.close(opened)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
