"""From an answer to the sample of Inspect that asked for it.

Labels from Inspect say which log they are from, by the name of its file, and which sample of it.
Anybody may write such a label, so nothing of it is taken for an address: the viewer's own is given
when the pages are opened, and a label only says what stands after its ``#``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, urlsplit

from activation_logging.errors import SettingsError
from activation_logging.printable import printable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from activation_logging.store import Entry

_LOG = re.compile(r"[\w.+-][\w.+ -]{0,250}\.(eval|json)")
_MOST_CHARACTERS = 300


class InspectSample(NamedTuple):
    """A sample of one of Inspect's logs: the name of the log's file, its id and its epoch."""

    log: str
    id: str
    epoch: int

    def address(self, viewer: str | None) -> str | None:
        """Where ``inspect view --log-dir FOLDER_OF_THE_LOG`` shows it; None without a viewer."""
        if viewer is None:
            return None
        log, sample = quote(self.log, safe=""), quote(self.id, safe="", errors="replace")
        return f"{viewer}/#/logs/{log}/samples/sample/{sample}/{self.epoch}/"


def samples_of(entry: Entry) -> list[InspectSample]:
    """The samples that an answer's labels are from, each once."""
    found = (_sample(one.details) for one in entry.evaluations.values())
    return list(dict.fromkeys(one for one in found if one is not None))


def _sample(details: Mapping[str, Any]) -> InspectSample | None:
    log, name, epoch = (details.get(key) for key in ("inspect_log", "sample_id", "epoch"))
    if not (isinstance(log, str) and isinstance(name, str) and type(epoch) is int and epoch > 0):
        return None
    if not _LOG.fullmatch(log) or not 0 < len(name) <= _MOST_CHARACTERS:
        return None
    return InspectSample(log, name, epoch)


def checked_viewer(address: str) -> str:
    """The address of a viewer, without a slash at its end.

    Raises:
        SettingsError: it is none.
    """
    try:
        found = urlsplit(address.strip())
        usable = found.scheme in {"http", "https"} and found.hostname
    except ValueError:
        usable = None
    if not usable or found.query or found.fragment or found.username or found.password:
        raise SettingsError(
            f"--inspect {printable(address[:200])}: give the address that `inspect view` prints, "
            "such as http://127.0.0.1:7575"
        )
    return address.strip().rstrip("/")
