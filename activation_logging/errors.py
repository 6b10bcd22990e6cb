"""Every exception that this package raises on purpose.

::

    ActivationLoggingError
    ├── SettingsError (ValueError)          an option or environment variable is invalid
    │   └── RequestOptionError              a request's option is invalid: HTTP 400
    ├── UnsupportedEngineError              this vLLM, or this mode of it, is not supported
    ├── EngineGone (RuntimeError)           vLLM's engine died; rows not yet written are lost
    ├── StoreError
    │   ├── StoreNotFound (FileNotFoundError)
    │   ├── NotAStore                       the path holds something else
    │   ├── StoreVersionError               written by another format version
    │   ├── StoreReadOnly (PermissionError) opened without ``writable=True``, or no write access
    │   ├── StoreInUse                      another process, or this one, has the store open
    │   ├── StoreFull                       it may not grow, and what is to be written does not fit
    │   ├── StoreCorrupt                    a record or a page is invalid
    │   ├── EntryNotFound (KeyError)
    │   ├── AmbiguousKey (LookupError)      several stores that are read as one have this key
    │   └── RowsMissing (LookupError)       the entry exists, these activations do not
    ├── LabelError (ValueError)             an evaluation that cannot be: its name, label, spans
    ├── DerivedError (ValueError)           an array that cannot be kept beside an entry
    ├── DatasetError (ValueError)           the labelled answers cannot be learned from as they are
    │   ├── LeakError                       the same entity is in the training and the test part
    │   └── InputMissing (LookupError)      an answer lacks what a position, span or detector needs
    ├── ProbeError (ValueError)             a saved probe that is broken, or made for another model
    ├── ReplayError                         a model that cannot be run again over stored answers
    ├── AddressError (OSError)              an address that cannot be reached, read or written
    ├── OutputExists (FileExistsError)      something is already where the output should go
    ├── ExtraMissing (ImportError)          an optional package is not installed
    ├── PackageError                        a package of data cannot be downloaded or read
    ├── BenchmarkError                      a benchmark cannot start or go on
    ├── PromptsError (ValueError)           lines of a prompts file that cannot be read
    ├── LabelsFileError (ValueError)        a file of labels made elsewhere that cannot be read
    ├── ClusterError (RuntimeError)         no Ray cluster is there, or nothing works on it
    ├── ServerFailed (RuntimeError)         a server that was started here is not running
    ├── ViewError (ValueError)              a page that cannot be shown as it was asked for
    ├── UnknownName (LookupError)           nothing that is found by name is called so
    ├── PluginError (ImportError)           another package's entry point cannot be used
    └── DemoModelError                      a model could not be prepared
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from activation_logging.printable import lines

if TYPE_CHECKING:
    from types import TracebackType


class ActivationLoggingError(Exception):
    """Base of all errors raised on purpose. The text is one sentence and names the remedy."""


class SettingsError(ActivationLoggingError, ValueError):
    """An option or environment variable has an invalid value."""


class RequestOptionError(SettingsError):
    """An option of one request is invalid: the server answers HTTP 400."""

    def __init__(self, parameter: str, message: str) -> None:
        super().__init__(f"{parameter}: {message}")
        self.parameter = parameter


class UnsupportedEngineError(ActivationLoggingError):
    """This version or mode of vLLM is not supported. Start-up stops, rather than log nothing."""


class EngineGone(ActivationLoggingError, RuntimeError):
    """vLLM's engine died. Rows that it had not written yet are lost."""


class StoreError(ActivationLoggingError):
    """Base of all errors of a store."""


class StoreNotFound(StoreError, FileNotFoundError):
    """The path holds no store."""


class NotAStore(StoreError):
    """The path holds something that this package did not write."""


class StoreVersionError(StoreError):
    """The store was written by another version of the format."""


class StoreReadOnly(StoreError, PermissionError):
    """The store is open for reading only, or this user may not write to it."""


class StoreInUse(StoreError):
    """The operation needs exclusive access, but a process has the store open."""


class StoreFull(StoreError):
    """A store may not grow any more, and what is to be written does not fit."""


class StoreCorrupt(StoreError):
    """A record or a page of the store is invalid."""


class EntryNotFound(StoreError, KeyError):
    """No entry has that key."""

    # KeyError would print the repr of the sentence.
    __str__ = Exception.__str__


class AmbiguousKey(StoreError, LookupError):
    """Of several stores that are read as one, more than one has this key. The text names them."""


class RowsMissing(StoreError, LookupError):
    """The entry exists, but the requested activations were not logged or never arrived."""


class LabelError(ActivationLoggingError, ValueError):
    """An evaluation has an invalid name, label, score, details or spans."""


class DerivedError(ActivationLoggingError, ValueError):
    """An array has a name, type, size or details that cannot be kept beside an entry."""


class DatasetError(ActivationLoggingError, ValueError):
    """The labelled answers of a store are unfit for a data set. The text says why."""


class LeakError(DatasetError):
    """One entity is in both the training and the test part."""


class InputMissing(DatasetError, LookupError):
    """An answer lacks what a position, a span or a detector needs; the text is the reason."""


class ProbeError(ActivationLoggingError, ValueError):
    """A saved probe is broken, or was fitted on another model."""


class ReplayError(ActivationLoggingError):
    """A model cannot be run again over the answers of a store, or is not the one that answered."""


class AddressError(ActivationLoggingError, OSError):
    """An address such as ``s3://bucket/folder`` cannot be reached, read or written, or is none."""


class OutputExists(ActivationLoggingError, FileExistsError):
    """The output path already exists."""


class ExtraMissing(ActivationLoggingError, ImportError):
    """A package that belongs to an optional extra is not installed."""


class PackageError(ActivationLoggingError):
    """A package that carries data is not on this machine, or could not be downloaded or read."""


class DemoModelError(ActivationLoggingError):
    """The default model, or the large one, could not be prepared."""


def print_as_one_sentence() -> None:
    """In programs of others, such as ``vllm serve``: print our errors without a traceback."""
    usual = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, ActivationLoggingError):
            print(f"error: {lines(error)}", file=sys.stderr)
        else:
            usual(kind, error, trace)

    if getattr(usual, "__module__", None) != __name__:
        sys.excepthook = hook


class BenchmarkError(ActivationLoggingError):
    """A benchmark cannot start or go on."""


class PromptsError(ActivationLoggingError, ValueError):
    """Lines of a prompts file are invalid. The text gives their numbers."""


class LabelsFileError(ActivationLoggingError, ValueError):
    """A file of labels made elsewhere is not there, or of no format that is known here."""


class ClusterError(ActivationLoggingError, RuntimeError):
    """There is no Ray cluster at an address, or no engine or task could be run on one."""


class ServerFailed(ActivationLoggingError, RuntimeError):
    """A server that this package started did not become healthy; the text ends with its log."""


class ViewError(ActivationLoggingError, ValueError):
    """A page that cannot be shown as it was asked for, or a selection that cannot be changed."""


class UnknownName(ActivationLoggingError, LookupError):
    """Nothing that is found by name (a benchmark, judge, detector, format, ...) is called so.

    The text lists the names.
    """


class PluginError(ActivationLoggingError, ImportError):
    """Another package's entry point failed to load, or offers an unusable object."""
