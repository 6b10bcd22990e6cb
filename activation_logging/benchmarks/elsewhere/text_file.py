"""A text file of any size: its encoding, its first lines, and its lines with their numbers."""

from __future__ import annotations

import codecs
import io
from typing import TYPE_CHECKING, NamedTuple

from activation_logging.errors import LabelsFileError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from activation_logging.progress import Progress

_CHUNK = 1 << 20
_HEAD = 1 << 16
_EVERY = 1000
"""Lines between two reports of progress."""
_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16's, which it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


class TextFile(NamedTuple):
    """A file that has been found to be text.

    ``head`` is its beginning, decoded.
    """

    path: Path
    encoding: str
    size: int
    head: str

    @classmethod
    def open(cls, path: Path, encoding: str | None = None) -> TextFile:
        """Look through the whole file once, so that nothing is done with half of it.

        Raises:
            LabelsFileError: it is empty, not there, or not text in this encoding.
        """
        try:
            with path.open("rb") as file:
                head = file.read(_HEAD)
                found = encoding or _marked(head) or "utf-8"
                if encoding is None and found == "utf-8" and b"\0" in head:
                    raise LabelsFileError(
                        f"{path} is not text; if it is, name its --encoding, such as utf-16-le"
                    )
                text = _decode_all(path, found, head, file)
        except OSError as error:
            raise LabelsFileError(f"{path} cannot be read: {error.strerror}") from None
        if not text.strip():
            raise LabelsFileError(f"{path} is empty")
        return cls(path, found, path.stat().st_size, text)

    def lines(self, progress: Progress) -> Iterator[str]:
        """Every line with its end, a few kilobytes at a time."""
        with self.path.open("rb") as file:
            reader = io.TextIOWrapper(file, encoding=self.encoding, newline="")
            for number, line in enumerate(reader):
                if number % _EVERY == 0:
                    progress(f"KiB of {self.path.name}", file.tell() // 1024, self.size // 1024)
                yield line.lstrip("\ufeff") if number == 0 else line


def _marked(head: bytes) -> str | None:
    return next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)


def _decode_all(path: Path, encoding: str, head: bytes, file: io.BufferedReader) -> str:
    """The beginning as text, once all of the file has been decoded."""
    done = 0
    try:
        decoder = codecs.getincrementaldecoder(encoding)()
        first = decoder.decode(head)
        done = len(head)
        while chunk := file.read(_CHUNK):
            decoder.decode(chunk)
            done += len(chunk)
        decoder.decode(b"", final=True)
    except LookupError:
        raise LabelsFileError(f"there is no encoding {encoding!r}") from None
    except UnicodeError as error:
        at = done + getattr(error, "start", 0)
        raise LabelsFileError(
            f"{path} is not {encoding.upper()} at byte {at}; name its --encoding, such as latin-1"
        ) from None
    return first
