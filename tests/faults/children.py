"""Functions run in processes of their own, which may die of them."""

from __future__ import annotations

import multiprocessing
import signal
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

# Forked, so that a child is there in milliseconds; whoever calls this has no threads running.
# All are daemons: a test that fails leaves none behind.
CONTEXT = multiprocessing.get_context("fork")


class Outcome(NamedTuple):
    """What a function returned, or the name of the signal that its process died of."""

    value: Any
    died_of: str | None


def run(function: Callable[..., Any], *arguments: Any, timeout: float = 60) -> Outcome:
    """Run a function in a forked process; SIGKILL after ``timeout`` seconds counts as its death."""
    receiving, sending = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_answer, args=(sending, function, arguments), daemon=True)
    process.start()
    sending.close()
    try:
        value = receiving.recv() if receiving.poll(timeout) else None
    except EOFError:
        value = None
    finally:
        receiving.close()
    process.join(timeout if value is not None else 1)
    if process.is_alive():
        process.kill()
        process.join()
    assert process.exitcode is not None
    died_of = signal.Signals(-process.exitcode).name if process.exitcode < 0 else None
    return Outcome(value, died_of)


def _answer(sending: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    sending.send(function(*arguments))
