"""Log the hidden states of every request that vLLM serves, and read them back.

Importing this package imports neither torch nor vllm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from activation_logging.lazy import lazy_names
from activation_logging.moved import install

if TYPE_CHECKING:
    from activation_logging.errors import ActivationLoggingError
    from activation_logging.records import Evaluation, Span
    from activation_logging.store import Derived, Entry, Store, open_store

install()
del install

__version__ = "0.1.0"
__all__ = [
    "ActivationLoggingError",
    "Derived",
    "Entry",
    "Evaluation",
    "Span",
    "Store",
    "open_store",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ActivationLoggingError": ".errors",
        "Derived": ".store",
        "Entry": ".store",
        "Evaluation": ".records",
        "Span": ".records",
        "Store": ".store",
        "open_store": ".store",
    },
)
