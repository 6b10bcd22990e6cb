"""What only the HTTP side of a request knows, passed to the front-end tap."""

from __future__ import annotations

import re
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableMapping, Sequence

    from activation_logging.vllm_plugin.scored_answers import AnswerScores

    Reading = Callable[[str, Sequence[int], Sequence[int]], str | None]

CHAT = "/v1/chat/completions"
BATCH = "/v1/chat/completions/batch"
RESPONSES = "/v1/responses"
INVOCATIONS = "/invocations"
"""SageMaker's route. It accepts the body of any other route."""
_WITHOUT_ANSWER_ID = frozenset({"/generative_scoring", "/v1/systemone"})
"""Routes that do not publish their answer's id. Their engine ids are ``<answer id>-i``."""
_NUMBER = re.compile(r"[-_](\d+)")
_CHATS = frozenset({CHAT, BATCH, "/v1/messages", "/cohere/v2/chat"})


@dataclass
class HttpRequest:
    """A request as its client sent it.

    Attributes:
        path: the route, such as ``/v1/completions``.
        body: the body's JSON.
        state: the ASGI state. vLLM stores the answer's id in it.
        content_of: returns the content that the client gets: the answer without reasoning and tool
            calls. Its arguments are the text, its token ids and the prompt's token ids. None if the
            client gets the text unchanged.
        scores: what the route was given of the scores; None if the client asked for none.
    """

    path: str
    body: Mapping[str, Any]
    state: MutableMapping[str, Any] = field(default_factory=dict)
    content_of: Reading | None = None
    scores: AnswerScores | None = None

    @property
    def answer_id(self) -> str | None:
        """The ``id`` of the OpenAI answer. All prompts and choices of the request share it."""
        metadata = self.state.get("request_metadata")
        return None if metadata is None else str(metadata.request_id)

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The body's ``vllm_xargs``, or an empty mapping."""
        arguments = self.body.get("vllm_xargs")
        return arguments if isinstance(arguments, dict) else {}

    @property
    def truncates(self) -> bool:
        """Whether the request allows vLLM to truncate the prompt."""
        by_tokens = self.body.get("truncate_prompt_tokens") is not None
        return by_tokens or self.body.get("truncation", "disabled") not in ("disabled", None)

    def messages(self, number: int) -> list[dict[str, Any]] | None:
        """The chat messages as sent; for the responses API, its ``input``.

        Args:
            number: index of the conversation, on the route that takes several.
        """
        messages: Any = None
        if self.path == RESPONSES:
            messages = self.body.get("input")
            if isinstance(messages, str):
                messages = [{"role": "user", "content": messages}]
        elif self._is_chat:
            messages = self.body.get("messages")
            if self.path == BATCH and isinstance(messages, list):
                messages = messages[number] if number < len(messages) else None
        is_list = isinstance(messages, list) and all(isinstance(one, dict) for one in messages)
        return messages if is_list else None

    @property
    def _is_chat(self) -> bool:
        if self.path == INVOCATIONS:
            return (self.answer_id or "").startswith("chatcmpl-")
        return self.path in _CHATS


http_request: ContextVar[HttpRequest | None] = ContextVar("http_request", default=None)
"""The request that the current task handles. Engine tasks inherit it."""


class Place(NamedTuple):
    """Position of an answer: id of the OpenAI answer, index of the prompt, index of the choice.

    ``choice`` is None for a beam of a beam search, because a beam is not a choice.
    """

    request_id: str
    prompt: int
    choice: int | None


def place_of(http: HttpRequest | None, external_id: str, index: int, choices: int) -> Place:
    """Derive an answer's place from vLLM's request id.

    The i-th prompt of a list has the id ``<answer id>-i``, the i-th conversation of a batch
    ``<answer id>_i``. Choices are numbered across the prompts: those of the second prompt follow
    those of the first. On the responses route ``<answer id>_i`` is the i-th turn of one answer,
    between tool calls.

    Args:
        http: the HTTP request; None offline.
        external_id: the id that vLLM's route gave to the engine.
        index: index of the choice within its prompt.
        choices: number of choices of the prompt.
    """
    answer = http.answer_id if http else None
    if http is not None and http.path in _WITHOUT_ANSWER_ID:
        answer = external_id.rpartition("-")[0]
    if http is None or answer is None:
        return Place(external_id, 0, index)
    rest = external_id.removeprefix(answer)
    if http.path == RESPONSES or not rest:
        return Place(answer, 0, index)
    number = _NUMBER.fullmatch(rest)
    if number is None:
        return Place(answer, 0, None)
    prompt = int(number[1])
    return Place(answer, prompt, prompt * choices + index)
