"""The front-end tap: every request that ends becomes an entry, however it ended.

All requests pass through vLLM's ``OutputProcessor``, in the server and offline. A request with
``n > 1`` passes once per choice. :class:`TappedOutputProcessor` extends the methods that they pass
through and does not change their results.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import time
import weakref
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

import vllm
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.v1.engine.output_processor import OutputProcessor, RequestState

from activation_logging.errors import EngineGone, RequestOptionError
from activation_logging.settings import RequestOptions, Settings
from activation_logging.store import GATHER_S, StoreWriter
from activation_logging.vllm_plugin.calls import ask_workers
from activation_logging.vllm_plugin.context import HttpRequest, http_request, place_of
from activation_logging.vllm_plugin.hosts import LOOK_S, Hosts
from activation_logging.vllm_plugin.origin import mark_accepted
from activation_logging.vllm_plugin.sampling import sampling_record
from activation_logging.vllm_plugin.scored_outputs import (
    check_scores,
    refuse_adapter,
    scores_of,
    start_scores,
)
from activation_logging.vllm_plugin.served_model import depth_of, name_of
from activation_logging.vllm_plugin.text import (
    prompt_text,
    response_pieces,
    response_text,
    shared_characters,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest
    from vllm.v1.engine.parallel_sampling import ParentRequest

logger = logging.getLogger(f"vllm.{__name__}")

_IN_PIECES = (
    "a prompt that comes in pieces (a streaming-input session) cannot be logged: send it whole, or "
    "switch logging off for this request with activation_logging: off"
)
_MIN_LOGPROB = -9999.0
"""Replaces minus infinity in JSON, as in vLLM's own answers."""
_MAX_FLUSHED = 10_000
_DRAIN_S = 30.0
_TELL_S = 0.5
"""How long words for the worker are gathered, seconds: each call costs the engine a pause."""

Words: TypeAlias = dict[str, tuple[bool, int]]
"""What a worker must hear of answers; see :meth:`.RowCollector.hear`."""


@dataclass(frozen=True)
class _Accepted:
    """Facts about an incoming request that vLLM does not keep until the request ends."""

    http: HttpRequest | None
    options: RequestOptions
    sampling: SamplingParams
    arrival_time: float
    index: int
    choices: int
    kept: bool
    multimodal: bool


class FrontEndTap:
    """Writes an entry to the store for each request of one engine."""

    def __init__(self, engine: Any, settings: Settings) -> None:
        config = engine.vllm_config.model_config
        self._model = name_of(config)
        # With data parallelism vLLM starts several API servers, each with a tap of its own.
        self._has_peers = engine.vllm_config.parallel_config._api_process_count > 1
        self._settings = settings
        self._num_layers = depth_of(config)
        self._processors = config.logits_processors or ()
        self._engine = weakref.ref(engine)
        self._processor: TappedOutputProcessor = engine.output_processor
        # An offline engine answers in the caller's own thread, so the tap itself must flush.
        self.offline = not hasattr(engine, "output_handler")
        path = settings.store_path()
        self.writer = StoreWriter(path, role="front end", policy=settings.full_policy)
        self._accepted: dict[str, _Accepted] = {}
        self._finished: deque[str] = deque(maxlen=_MAX_FLUSHED)
        # Requests that ended without a token: the worker may never have received them.
        self._unseen: list[str] = []
        # What the worker needs in order to decide whether rows are kept.
        self._words: Words = {}
        self._tell_at = 0.0
        self._keep = settings.keeping
        self.live = start_scores(settings, engine.vllm_config)
        probes, inbox = (self.live.served.digest, self.live.address) if self.live else ("", None)
        self.hosts = Hosts(engine, self.writer, settings, probes, inbox)
        self._settling: asyncio.Task[None] | None = None
        atexit.register(self.close)

    def attach(self) -> None:
        """Put the tap on the engine's output processor."""
        self._processor.__class__ = TappedOutputProcessor
        self._processor.tap = self

    def accept(self, request: EngineCoreRequest, index: int, parent: ParentRequest | None) -> None:
        """Register an incoming request, and mark it for the worker.

        Args:
            request: the engine's request.
            index: index of the choice within its prompt.
            parent: the request that it is a choice of; None where the prompt has one choice.

        Raises:
            VLLMValidationError: the ``activation_*`` arguments are invalid, or the prompt comes in
                pieces. The latter has no single prompt that its answers belong to.
        """
        params = request.sampling_params
        if params is None:
            return
        http = http_request.get()
        arguments = _arguments(params, http)
        try:
            options = RequestOptions.parse(
                arguments, settings=self._settings, num_layers=self._num_layers
            )
            check_scores(options.scores, self.live)
            if options.scores and request.lora_request is not None:
                refuse_adapter(request.lora_request.lora_name)
        except RequestOptionError as error:
            # vLLM's server answers its own class of error with HTTP 400.
            raise VLLMValidationError(str(error), parameter=error.parameter) from None
        if not options.enabled:
            return
        if request.resumable:
            raise VLLMValidationError(_IN_PIECES, parameter="prompt")
        if self.live is not None:
            num_prompt = len(request.prompt_token_ids or ())
            self.live.accept(request.request_id, num_prompt, options.scores)
        name = parent.request_id if parent else request.request_id
        kept = self._keep.on_arrival(name, options.tags)
        mark_accepted(params, arguments, self.live.address if self.live else None, kept=kept)
        self._accepted[request.request_id] = _Accepted(
            http=http,
            options=options,
            sampling=params,
            arrival_time=request.arrival_time,
            index=index,
            choices=parent.n if parent else 1,
            kept=kept,
            multimodal=bool(request.mm_features),
        )

    def watch(self, state: RequestState, queue: Any) -> None:
        """Have the outputs of a request that was accepted carry the scores that it asked for."""
        accepted = self._accepted.get(state.request_id)
        if self.live is None or accepted is None:
            return
        http, choices = accepted.http, accepted.choices
        asked = None if http is None else http.scores

        def note(output: Any, part: bool) -> None:
            for one in output.outputs if asked is not None else ():
                choice = place_of(http, output.request_id, one.index, choices).choice
                if asked is not None and choice is not None:
                    asked.add(choice, output.request_id, scores_of(one), part=part)

        self.live.attach(state, queue, note)

    def finish(self, state: RequestState, reason: str, error: str | None = None) -> None:
        """Queue the entry of a request that has ended. A second call does nothing."""
        accepted = self._accepted.pop(state.request_id, None)
        if accepted is None:
            return
        self._finished.append(state.request_id)
        num_tokens = len(state.detokenizer.output_token_ids) if state.detokenizer else 0
        stopped = self.live.finish(state.request_id, num_tokens) if self.live else None
        ran = bool(num_tokens) or stopped is not None
        self.hosts.ended(state.request_id, ran=ran)
        if not (ran or self.hosts.away):
            self._unseen.append(state.request_id)
            self._settle_soon()
        if not accepted.kept and (self._keep.finish or self._keep.scores):
            states = num_tokens + (stopped is not None)
            self._words[state.request_id] = reason in self._keep.finish, states
            self._settle_soon()
        self.writer.put_entry(lambda: self._document(state, accepted, reason, error, stopped))

    def tell(self) -> None:
        """Offline: tell the worker what it needs in order to decide, now and then."""
        engine, now = self._engine(), time.monotonic()
        if engine is None or not self._words or now < self._tell_at:
            return
        words, self._words = self._words, {}
        engine.collective_rpc("settle_activations", args=([], words))
        self._tell_at = now + _TELL_S

    def flush(self) -> None:
        """Offline: wait until all finished requests are in the store, rows included."""
        engine = self._engine()
        if engine is not None:
            engine.collective_rpc("flush_activations", args=self._take_finished())
            self.hosts.locate()
        self.writer.flush()

    async def flush_async(self) -> None:
        """The same for a server, without blocking its event loop.

        Raises:
            EngineGone: the engine died before it had written everything.
        """
        engine = self._engine()
        if engine is not None:
            await ask_workers(engine, "flush_activations", *self._take_finished())
            await self.hosts.locate_async()
        await asyncio.to_thread(self.writer.flush)
        if self._has_peers:
            # This process cannot reach the other servers' writers. They commit within this time.
            await asyncio.sleep(3 * GATHER_S + (2 * LOOK_S if self.hosts.away else 0))

    async def drain(self) -> None:
        """Before shutdown: record all requests in flight as aborted, and flush."""
        self._abort_all()
        try:
            await asyncio.wait_for(self.flush_async(), _DRAIN_S)
        except Exception:
            # A signal to the whole process group may have ended the engine already.
            logger.exception("the last activations may be missing from the store")

    def close(self) -> None:
        """Record all requests in flight as aborted, and wait for the store."""
        self._abort_all()
        self.hosts.close()
        self.writer.close()
        if self.live is not None:
            self.live.close()
        atexit.unregister(self.close)

    def _abort_all(self) -> None:
        for state in list(self._processor.request_states.values()):
            self.finish(state, "abort")

    def _take_finished(self) -> tuple[list[str], list[str], Words]:
        finished = list(self._finished)
        self._finished.clear()
        return finished, *self._take_unsettled()

    def _take_unsettled(self) -> tuple[list[str], Words]:
        unseen, self._unseen = self._unseen, []
        words, self._words = self._words, {}
        return unseen, words

    def _settle_soon(self) -> None:
        """Tell the worker what only the front end knows. Offline, the next flush does that."""
        if self.offline or self._settling is not None:
            return
        with suppress(RuntimeError):  # during a server's shutdown no event loop runs
            self._settling = asyncio.get_running_loop().create_task(self._settle())

    async def _settle(self) -> None:
        # Meanwhile vLLM reports the end to its engine. A request that the worker does not know by
        # then will never reach it.
        await asyncio.sleep(_TELL_S if self._words else GATHER_S)
        self._settling = None
        engine, unsettled = self._engine(), self._take_unsettled()
        if engine is not None and any(unsettled):
            with suppress(EngineGone):
                await ask_workers(engine, "settle_activations", *unsettled)

    def _document(
        self,
        state: RequestState,
        accepted: _Accepted,
        reason: str,
        error: str | None,
        stopped: str | None,
    ) -> dict[str, Any]:
        http, options, sampling = accepted.http, accepted.options, accepted.sampling
        tokenizer = self._processor.tokenizer
        response_ids = list(state.detokenizer.output_token_ids) if state.detokenizer else []
        place = place_of(http, state.external_req_id, accepted.index, accepted.choices)
        text = response_text(state)
        pieces = response_pieces(state, sampling, tokenizer, text, stopped=reason == "stop")
        response = "".join(pieces) if text is None else text
        shared = shared_characters(
            response_ids, pieces, tokenizer, skip_special=sampling.skip_special_tokens
        )
        # Only an HTTP body says whether vLLM may truncate the prompt. A beam's prompt grows, but
        # its text stays that of the first step.
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
            "shared_characters": shared if pieces else None,
            **_logprobs(state, response_ids),
            "finish_reason": reason,
            "stop_reason": stopped,
            "error": error,
            "sampling": sampling_record(sampling, accepted.choices, self._processors),
            "tokens": options.tokens or self._settings.tokens,
            "tags": options.tags,
            "created": accepted.arrival_time,
            "vllm_version": vllm.__version__,
        }
        return {name: value for name, value in document.items() if value is not None}


class TappedOutputProcessor(OutputProcessor):
    """vLLM's output processor, which also reports every request to the tap."""

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
            self.tap.accept(request, request_index, parent_req)
            super().add_request(request, prompt, parent_req, request_index, queue)
            self.tap.watch(self.request_states[request.request_id], queue)
            return
        super().add_request(request, prompt, parent_req, request_index, queue)

    def process_outputs(
        self, engine_core_outputs: list[EngineCoreOutput], *args: Any, **kwargs: Any
    ) -> Any:
        live = self.tap.live
        ended = live.before(engine_core_outputs, self.request_states) if live else ()
        # The engine's finish reasons. A stop string has none: this processor finds it itself.
        self._reasons = {
            output.request_id: str(output.finish_reason)
            for output in engine_core_outputs
            if output.finish_reason is not None
        }
        processed = super().process_outputs(engine_core_outputs, *args, **kwargs)
        processed.reqs_to_abort.extend(ended)
        # Of a stop string the engine does not know.
        if self.tap.offline and (self._reasons or processed.reqs_to_abort):
            if self.request_states:
                self.tap.tell()
            else:
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

    Some engine requests lack them: those of a beam search, and those of routes without
    ``vllm_xargs``. The arguments of the HTTP request apply to these.
    """
    given = {**(http.arguments if http else {}), **(params.extra_args or {})}
    return {name: value for name, value in given.items() if name.startswith("activation_")}


def _content(
    http: HttpRequest | None, response: str, ids: list[int], prompt_ids: list[int]
) -> str | None:
    """The content that the client got, or None if it equals the response."""
    if http is None or http.content_of is None:
        return None
    try:
        content = http.content_of(response, ids, prompt_ids) or ""
    except Exception:
        # The parser itself failed, and vLLM has told the client. The entry stays whole.
        logger.exception("an answer could not be parsed; its entry has no `content`")
        return None
    return None if content == response else content


def _logprobs(state: RequestState, response_ids: list[int]) -> Mapping[str, Any]:
    """Log-probabilities of the chosen tokens, and of the alternatives that vLLM returned."""
    processor = state.logprobs_processor
    if processor is None or not processor.logprobs:
        return {}
    tops = [
        {token: max(entry.logprob, _MIN_LOGPROB) for token, entry in top.items()}
        for top in processor.logprobs
        if top
    ]
    chosen = [top.get(token) for token, top in zip(response_ids, tops, strict=False)]
    return {"logprobs": chosen, "top_logprobs": tops}
