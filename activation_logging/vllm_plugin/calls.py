"""Calls from a front end to the workers of all its engines, and engines that die meanwhile."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from vllm.v1.engine.exceptions import EngineDeadError

from activation_logging.errors import EngineGone

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterator

    from vllm.v1.engine.core_client import SyncMPClient
    from vllm.v1.engine.llm_engine import LLMEngine

T = TypeVar("T")

_POLL_S = 0.5
_ENGINE_DIED = (
    "vLLM's engine has died; rows that it had not written yet are lost, and `activation-logging "
    "repair` removes the unmatched records"
)


async def ask_workers(engine: Any, method: str, *args: Any) -> list[Any]:
    """Call a method of all workers of all engines, and return their answers in a fixed order.

    vLLM's own ``collective_rpc`` calls them all too, and returns those of the first engine alone.

    Args:
        engine: the front end's ``AsyncLLM``.
        method: name of the method.
        args: of the method.

    Raises:
        EngineGone: an engine has died.
        Exception: a worker has raised an error, or lacks the method.
    """
    client = engine.engine_core
    calls = [
        client._call_utility_async("collective_rpc", method, None, args, None, engine=one)
        for one in client.core_engines
    ]
    each = await _answer_or_engine_gone(engine, asyncio.gather(*calls))
    return [answer for workers in each for answer in workers]


async def _answer_or_engine_gone(engine: Any, call: Awaitable[T]) -> T:
    """The engine's answer to a call. A dead engine would never answer.

    Raises:
        EngineGone: the engine has died.
    """
    answer = asyncio.ensure_future(call)
    try:
        while not (await asyncio.wait({answer}, timeout=_POLL_S))[0]:
            if engine.errored:
                raise EngineGone(_ENGINE_DIED)
        if isinstance(answer.exception(), EngineDeadError):
            raise EngineGone(_ENGINE_DIED)
        return answer.result()
    finally:
        answer.cancel()


def watch(engine: LLMEngine) -> None:
    """Have the engine's ``step`` raise an error once the engine's process is gone.

    A process that is killed, as for want of memory, cannot say that it dies. vLLM notices, but does
    not tell the caller of ``step``, who would wait forever.
    """
    client = engine.engine_core
    if hasattr(client, "resources"):  # else the engine runs in this process
        name = "activation-logging-engine-watch"
        threading.Thread(target=_watch, args=(weakref.ref(client),), name=name, daemon=True).start()


def _watch(reference: weakref.ref[SyncMPClient]) -> None:
    while (client := reference()) is not None:
        if client.resources.engine_dead:
            client.outputs_queue.put_nowait(EngineDeadError())
            return
        del client
        time.sleep(_POLL_S)


@contextmanager
def engine_gone() -> Iterator[None]:
    """Say it in this package's words when an offline engine has died; see :func:`watch`.

    Raises:
        EngineGone: it has.
    """
    try:
        yield
    except EngineDeadError:
        raise EngineGone(_ENGINE_DIED) from None
