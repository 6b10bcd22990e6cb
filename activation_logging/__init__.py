"""Log the hidden states of every request that vLLM serves, and read them back.

Importing this package imports neither torch nor vllm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from activation_logging.moved import install

if TYPE_CHECKING:
    from activation_logging.errors import ActivationLoggingError
    from activation_logging.records import Evaluation
    from activation_logging.store import Entry, Store, open_store

install()
del install

__version__ = "0.1.0"
__all__ = ["ActivationLoggingError", "Entry", "Evaluation", "Store", "open_store"]

_HOMES = {
    "ActivationLoggingError": "errors",
    "Entry": "store",
    "Evaluation": "records",
    "Store": "store",
    "open_store": "store",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
