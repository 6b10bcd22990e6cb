"""The process of one study: ``python -m activation_logging.view.study_process FOLDER``.

It writes how far it is into its folder, and gives way to what else the machine does.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from activation_logging.errors import ActivationLoggingError
from activation_logging.files import write_whole
from activation_logging.strict_json import dumps
from activation_logging.view.studies import PROGRESS, REQUEST

_EVERY_S = 0.3
_NICE = 10


class _Progress:
    """Writes what is being done, a few times a second."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / PROGRESS
        self._state: dict[str, Any] = {"pid": os.getpid(), "started": time.time()}
        self._written = 0.0
        self.tell(what="starting")

    def __call__(self, what: str, done: int, total: int) -> None:
        if time.monotonic() - self._written >= _EVERY_S or what != self._state["what"]:
            self.tell(what=what, done=done, of=total)

    def tell(self, **news: Any) -> None:
        self._written = time.monotonic()
        self._state.update(news)
        write_whole(self._path, dumps(self._state).encode())


def main(folder: Path) -> None:
    """Make the report that the folder's request asks for."""
    os.nice(_NICE)
    progress = _Progress(folder)
    asked = json.loads((folder / REQUEST).read_text("utf-8"))
    try:
        from activation_logging.report import build_report
        from activation_logging.report.page import script_hashes

        store = asked.pop("store")
        given = {name: value for name, value in asked.items() if value is not None}
        found = build_report(store, folder, save_probe=folder / "probe", progress=progress, **given)
        progress.tell(headline=found.headline, scripts=script_hashes(), ended=time.time())
    except ActivationLoggingError as error:
        progress.tell(error=str(error), ended=time.time())
    except Exception as error:  # noqa: BLE001 - the page says what has happened
        traceback.print_exc()
        progress.tell(error=f"{type(error).__name__}: {error}", ended=time.time())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
