"""Room on the interpreter's stack for what a function calls.

CPython (3.11 and later) keeps the frames of Python functions in chunks of 16 KiB. A call that
does not fit maps another chunk, and its return unmaps it: where a loop happens to run at the
very end of a chunk, each of its calls pays for both, and for a page fault, some ten microseconds
together. One frame more in between, as a subclass that extends a method adds, decides whether
that happens: vLLM's forward pass on the CPU reaches this depth, and paid it two times per layer
and step without the plugin, six times with it, which was 5 % of the time of a small model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    F = TypeVar("F", bound=Callable[..., Any])

_SLOTS = 4096
"""Stack slots of 8 bytes: more than fits a chunk, so that one of 64 KiB is mapped."""


def with_room_below(function: F) -> F:
    """Make the frame of ``function`` ask for so much that it begins a new, larger chunk.

    One chunk is then mapped per call of ``function``, and whatever it calls fits into the rest of
    it, 32 KiB. Only pages that are used are ever touched. Before Python 3.11 it changes nothing.
    """
    python: Any = function
    python.__code__ = python.__code__.replace(co_stacksize=_SLOTS)
    return function
