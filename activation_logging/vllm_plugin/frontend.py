"""The front-end tap: every request that ends becomes an entry, whatever way it ended.

vLLM's ``OutputProcessor`` sees each request (each choice of an ``n > 1`` by itself) come and
go, in the server as in offline use. :class:`TappedOutputProcessor` extends the four methods
through which requests pass, and changes nothing of what they return.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import weakref
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import vllm
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.output_processor import OutputProcessor, RequestState

from activation_logging.errors import EngineGone, RequestOptionError
from activation_logging.settings import RequestOptions, Settings
from activation_logging.store import GATHER_S, StoreWriter
from activation_logging.vllm_plugin.context import HttpRequest, http_request, place_of
from activation_logging.vllm_plugin.origin import mark_accepted
from activation_logging.vllm_plugin.sampling import sampling_record
from activation_logging.vllm_plugin.text import prompt_text, response_pieces, response_text

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable, Mapping

    from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest
    from vllm.v1.engine.parallel_sampling import ParentRequest

logger = logging.getLogger(f"vllm.{__name__}")

_IN_PIECES = (
    "a prompt that comes in pieces (a streaming-input session) cannot be logged: send it whole, or "
    "switch logging off for it with activation_logging: off"
)
_NO_CHANCE = -9999.0
"""What JSON gets for minus infinity, as in vLLM's own answers."""
_FLUSHED_AT_ONCE = 10_000
_DRAIN_S = 30.0
_LOOK_S = 0.5
_GONE = (
    "vLLM's engine has died; rows that it had not written yet are lost, and `activation-logging "
    "repair` removes their halves"
)


@dataclass(frozen=True)
class _Accepted:
    """What is known when a request comes in, and is not kept by vLLM until it ends."""

    http: HttpRequest | None
    options: RequestOptions
    sampling: SamplingParams
    arrival_time: float
    index: int
    choices: int
    multimodal: bool


class FrontEndTap:
    """Turns the requests of one engine into entries of the store."""

    def __init__(self, engine: Any, settings: Settings) -> None:
        config = engine.vllm_config.model_config
        served = config.served_model_name
        self._model = (served[0] if isinstance(served, list) else served) or config.model
        # With data parallelism vLLM starts several API servers, each with a tap of its own.
        self._has_peers = engine.vllm_config.parallel_config._api_process_count > 1
        self._settings = settings
        self._num_layers = int(config.hf_text_config.num_hidden_layers)
        self._processors = config.logits_processors or ()
        self._engine = weakref.ref(engine)
        self._processor: TappedOutputProcessor = engine.output_processor
        # Offline engines answer in the caller's own thread: nothing else flushes for it.
        self.offline = not hasattr(engine, "output_handler")
        self.writer = StoreWriter(settings.lmdb_path, role="front end", policy=settings.full_policy)
        self._accepted: dict[str, _Accepted] = {}
        self._finished: deque[str] = deque(maxlen=_FLUSHED_AT_ONCE)
        # Those that ended without a token: the worker may never have heard of them.
        self._unseen: list[str] = []
        self._settling: asyncio.Task[None] | None = None
        atexit.register(self.close)

    def attach(self) -> None:
        """Put the tap on the engine's output processor."""
        self._processor.__class__ = TappedOutputProcessor
        self._processor.tap = self

    def accept(self, request: EngineCoreRequest, index: int, choices: int) -> None:
        """Note a request that comes in, and mark it for the worker.

        Args:
            request: as the engine gets it.
            index: which of the choices of its prompt it is.
            choices: how many its prompt has.

        Raises:
            VLLMValidationError: its ``activation_*`` arguments make no sense, or its prompt comes
                in pieces, which answers in between would belong to.
        """
        params = request.sampling_params
        if params is None:
            return
        http = http_request.get()
        arguments = _arguments(params, http)
        try:
            options = RequestOptions.parse(
                arguments, allowed_layers=self._settings.layers, num_layers=self._num_layers
            )
        except RequestOptionError as error:
            # A class of vLLM's own, which its server answers with HTTP 400.
            raise VLLMValidationError(str(error), parameter=error.parameter) from None
        if not options.enabled:
            return
        if request.resumable:
            raise VLLMValidationError(_IN_PIECES, parameter="prompt")
        mark_accepted(params, arguments)
        self._accepted[request.request_id] = _Accepted(
            http=http,
            options=options,
            sampling=params,
            arrival_time=request.arrival_time,
            index=index,
            choices=choices,
            multimodal=bool(request.mm_features),
        )

    def finish(self, state: RequestState, reason: str, error: str | None = None) -> None:
        """Queue the entry of a request that has ended; a second call for it does nothing."""
        accepted = self._accepted.pop(state.request_id, None)
        if accepted is None:
            return
        self._finished.append(state.request_id)
        if not (state.detokenizer and state.detokenizer.output_token_ids):
            self._unseen.append(state.request_id)
            self._settle_soon()
        self.writer.put_entry(lambda: self._document(state, accepted, reason, error))

    def flush(self) -> None:
        """Offline: return when everything finished so far is in the store, rows included."""
        engine = self._engine()
        if engine is not None:
            engine.collective_rpc("flush_activations", args=self._take_finished())
        self.writer.flush()

    async def flush_async(self) -> None:
        """The same for a server, whose event loop goes on meanwhile.

        Raises:
            EngineGone: the engine died before it had written everything.
        """
        engine = self._engine()
        if engine is not None:
            call = engine.collective_rpc("flush_activations", args=self._take_finished())
            await _unless_it_dies(engine, call)
        await asyncio.to_thread(self.writer.flush)
        if self._has_peers:
            # Their writers cannot be asked, but they hold nothing back for longer than this.
            await asyncio.sleep(3 * GATHER_S)

    async def drain(self) -> None:
        """Before an engine is shut down: record what is in flight as aborted, and flush."""
        self._abort_all()
        try:
            await asyncio.wait_for(self.flush_async(), _DRAIN_S)
        except Exception:
            # The engine may be gone already, after a signal to the whole process group.
            logger.exception("the last activations may be missing from the store")

    def close(self) -> None:
        """Record what is still in flight as aborted, and wait for the store."""
        self._abort_all()
        self.writer.close()
        atexit.unregister(self.close)

    def _abort_all(self) -> None:
        for state in list(self._processor.request_states.values()):
            self.finish(state, "abort")

    def _take_finished(self) -> tuple[list[str], list[str]]:
        finished, unseen = list(self._finished), self._unseen
        self._finished.clear()
        self._unseen = []
        return finished, unseen

    def _settle_soon(self) -> None:
        """Ask the worker about those unseen; offline, the next flush does."""
        if self.offline or self._settling is not None:
            return
        with suppress(RuntimeError):  # no loop runs where a server is being taken down
            self._settling = asyncio.get_running_loop().create_task(self._settle())

    async def _settle(self) -> None:
        # vLLM tells its engine of the end meanwhile; who is not known there then will never be.
        await asyncio.sleep(GATHER_S)
        self._settling = None
        engine, unseen, self._unseen = self._engine(), self._unseen, []
        if engine is not None and unseen:
            with suppress(EngineGone):
                call = engine.collective_rpc("settle_activations", args=(unseen,))
                await _unless_it_dies(engine, call)

    def _document(
        self, state: RequestState, accepted: _Accepted, reason: str, error: str | None
    ) -> dict[str, Any]:
        http, options, sampling = accepted.http, accepted.options, accepted.sampling
        tokenizer = self._processor.tokenizer
        response_ids = list(state.detokenizer.output_token_ids) if state.detokenizer else []
        place = place_of(http, state.external_req_id, accepted.index, accepted.choices)
        text = response_text(state)
        pieces = response_pieces(state, sampling, tokenizer, text, stopped=reason == "stop")
        response = "".join(pieces) if text is None else text
        # A body says whether its prompt may be cut. Beams grow, and keep their first text.
        told = not (self.offline or http is None or http.truncates)
        plain = told and place.choice is not None
        document: dict[str, Any] = {
            "prompt": prompt_text(state, tokenizer, whole=plain or accepted.multimodal),
            "response": response,
            "content": _content(http, response, response_ids, state.prompt_token_ids or []),
            "model": state.lora_name or self._model,
            "messages": http.messages(place.prompt) if http else None,
            "request_id": place.request_id,
            "choice": place.choice,
            "capture": state.request_id,
            "prompt_token_ids": list(state.prompt_token_ids or []),
            "response_token_ids": response_ids,
            "response_tokens": pieces,
            **_logprobs(state, response_ids),
            "finish_reason": reason,
            "error": error,
            "sampling": sampling_record(sampling, accepted.choices, self._processors),
            "tokens": options.tokens or self._settings.tokens,
            "tags": options.tags,
            "created": accepted.arrival_time,
            "vllm_version": vllm.__version__,
        }
        return {name: value for name, value in document.items() if value is not None}


class TappedOutputProcessor(OutputProcessor):
    """vLLM's output processor, which also tells the tap of every request."""

    tap: FrontEndTap
    _reasons: Mapping[str, str] = MappingProxyType({})

    def add_request(
        self,
        request: EngineCoreRequest,
        prompt: str | None,
        parent_req: ParentRequest | None = None,
        request_index: int = 0,
        queue: Any = None,
    ) -> None:
        if request.request_id not in self.request_states:
            self.tap.accept(request, request_index, parent_req.n if parent_req else 1)
        super().add_request(request, prompt, parent_req, request_index, queue)

    def process_outputs(
        self, engine_core_outputs: list[EngineCoreOutput], *args: Any, **kwargs: Any
    ) -> Any:
        # What the engine says of the end; a stop string is found here, and not in there.
        self._reasons = {
            output.request_id: str(output.finish_reason)
            for output in engine_core_outputs
            if output.finish_reason is not None
        }
        processed = super().process_outputs(engine_core_outputs, *args, **kwargs)
        if self.tap.offline and self._reasons and not self.request_states:
            self.tap.flush()
        return processed

    def _finish_request(self, req_state: RequestState) -> None:
        super()._finish_request(req_state)
        self.tap.finish(req_state, self._reasons.get(req_state.request_id, "stop"))

    def abort_requests(self, request_ids: Iterable[str], internal: bool) -> list[str]:
        states = dict(self.request_states)
        aborted = super().abort_requests(request_ids, internal)
        for name in aborted:
            if name in states:
                self.tap.finish(states[name], "abort")
        return aborted

    def propagate_error(self, e: Exception) -> None:
        super().propagate_error(e)
        for state in self.request_states.values():
            self.tap.finish(state, "error", error=f"the engine failed: {e!r}")


def _arguments(params: SamplingParams, http: HttpRequest | None) -> dict[str, Any]:
    """The ``activation_*`` arguments of a request.

    Some requests lose them on their way: those that beam search makes out of one, and those of
    routes without ``vllm_xargs``. What the HTTP request says holds for each of them.
    """
    given = {**(http.arguments if http else {}), **(params.extra_args or {})}
    return {name: value for name, value in given.items() if name.startswith("activation_")}


async def _unless_it_dies(engine: Any, call: Awaitable[Any]) -> None:
    """Wait for the engine's answer to a call, which would never come if it died meanwhile.

    Raises:
        EngineGone: it has died.
    """
    answer = asyncio.ensure_future(call)
    try:
        while not (await asyncio.wait({answer}, timeout=_LOOK_S))[0]:
            if engine.errored:
                raise EngineGone(_GONE)
        if isinstance(answer.exception(), EngineDeadError):
            raise EngineGone(_GONE)
        answer.result()
    finally:
        answer.cancel()


def _content(
    http: HttpRequest | None, response: str, ids: list[int], prompt_ids: list[int]
) -> str | None:
    """What the client got as the answer's content, or None where it is the response itself."""
    if http is None or http.content_of is None:
        return None
    try:
        content = http.content_of(response, ids, prompt_ids) or ""
    except Exception:
        # The parser's own failure, which the client has been told of; the entry stays whole.
        logger.exception("an answer could not be parsed; its entry has no content of its own")
        return None
    return None if content == response else content


def _logprobs(state: RequestState, response_ids: list[int]) -> Mapping[str, Any]:
    """Log-probabilities of the chosen tokens and of the alternatives that came with them."""
    processor = state.logprobs_processor
    if processor is None or not processor.logprobs:
        return {}
    tops = [
        {token: max(entry.logprob, _NO_CHANCE) for token, entry in top.items()}
        for top in processor.logprobs
        if top
    ]
    chosen = [top.get(token) for token, top in zip(response_ids, tops, strict=False)]
    return {"logprobs": chosen, "top_logprobs": tops}
