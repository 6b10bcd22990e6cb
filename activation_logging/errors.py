"""Every exception that this package raises on purpose.

::

    ActivationLoggingError
    ├── SettingsError (ValueError)          an option or environment variable that makes no sense
    │   └── RequestOptionError              the same, in one request: HTTP 400
    ├── UnsupportedEngineError              this vLLM, or this mode of it, cannot be logged
    ├── EngineGone (RuntimeError)           vLLM's engine died; what it had not written is lost
    ├── StoreError
    │   ├── StoreNotFound (FileNotFoundError)
    │   ├── NotAStore                       something else lies at that path
    │   ├── StoreVersionError               written by another format version
    │   ├── StoreReadOnly (PermissionError) opened without ``writable=True``, or no write access
    │   ├── StoreInUse                      somebody has it open who must not, for what was asked
    │   ├── StoreCorrupt                    a record that cannot be what it says
    │   ├── EntryNotFound (KeyError)
    │   └── RowsMissing (LookupError)       the entry exists, these activations do not
    ├── LabelError (ValueError)             an evaluation that cannot be: its name, label, score
    ├── DatasetError (ValueError)           the labelled answers cannot be learned from as they are
    │   ├── LeakError                       the same entity is in the training and the test part
    │   └── InputMissing (LookupError)      an answer lacks what a position or a detector needs
    ├── ProbeError (ValueError)             a saved probe that is broken, or made for another model
    ├── OutputExists (FileExistsError)      something is already where the output should go
    ├── ExtraMissing (ImportError)          an optional package is not installed
    ├── BenchmarkError                      a benchmark cannot start or go on
    ├── PromptsError (ValueError)           lines of a prompts file that cannot be read
    ├── ServerFailed (RuntimeError)         a server that was started here is not running
    ├── UnknownName (LookupError)           no benchmark, judge, detector or format has that name
    ├── PluginError (ImportError)           another package's entry point cannot be used
    └── DemoModelError                      the default model could not be prepared
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from activation_logging.printable import lines

if TYPE_CHECKING:
    from types import TracebackType


class ActivationLoggingError(Exception):
    """Base of all errors raised on purpose; its text is one sentence that says what to do."""


class SettingsError(ActivationLoggingError, ValueError):
    """An option or environment variable has a value that makes no sense."""


class RequestOptionError(SettingsError):
    """One request asked for something that cannot be: the server answers HTTP 400."""

    def __init__(self, parameter: str, message: str) -> None:
        super().__init__(f"{parameter}: {message}")
        self.parameter = parameter


class UnsupportedEngineError(ActivationLoggingError):
    """This version or mode of vLLM cannot be logged; start-up stops rather than log nothing."""


class EngineGone(ActivationLoggingError, RuntimeError):
    """vLLM's engine died; the rows of requests that it had not written yet are lost."""


class StoreError(ActivationLoggingError):
    """Base of everything that can be wrong with a store."""


class StoreNotFound(StoreError, FileNotFoundError):
    """There is no store at that path."""


class NotAStore(StoreError):
    """Something lies at that path that this package did not write."""


class StoreVersionError(StoreError):
    """The store was written by another version of the format."""


class StoreReadOnly(StoreError, PermissionError):
    """A write was asked of a store that is open for reading only."""


class StoreInUse(StoreError):
    """What was asked takes a store that nobody else has open."""


class StoreCorrupt(StoreError):
    """A record in the store cannot be what it says it is."""


class EntryNotFound(StoreError, KeyError):
    """No entry has that key."""

    # KeyError prints the repr of its argument; a sentence should stay a sentence.
    __str__ = Exception.__str__


class RowsMissing(StoreError, LookupError):
    """The entry exists, but the activations asked for were not logged or never arrived."""


class LabelError(ActivationLoggingError, ValueError):
    """An evaluation has a name, label, score or details that cannot be."""


class DatasetError(ActivationLoggingError, ValueError):
    """The labelled answers of a store cannot be turned into a data set as they are."""


class LeakError(DatasetError):
    """The same entity is in the training and in the test part."""


class InputMissing(DatasetError, LookupError):
    """An answer lacks what one position or one detector needs; the text is the reason."""


class ProbeError(ActivationLoggingError, ValueError):
    """A saved probe is broken, or was fitted on another model."""


class OutputExists(ActivationLoggingError, FileExistsError):
    """Something is already where the output should go."""


class ExtraMissing(ActivationLoggingError, ImportError):
    """A package that belongs to an optional extra is not installed."""


class DemoModelError(ActivationLoggingError):
    """The default model could not be prepared."""


def print_as_one_sentence() -> None:
    """For programs that are not ours, such as ``vllm serve``: no traceback for our errors."""
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
    """Lines of a prompts file cannot be read; the text names each by its number."""


class ServerFailed(ActivationLoggingError, RuntimeError):
    """A server that this package started did not become healthy; the text ends with its log."""


class UnknownName(ActivationLoggingError, LookupError):
    """No benchmark, judge, detector or export format has that name; the text lists those known."""


class PluginError(ActivationLoggingError, ImportError):
    """What another package offers by an entry point cannot be loaded or used."""
