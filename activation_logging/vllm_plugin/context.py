"""What only the front end's side of a request knows, handed to the tap."""

from __future__ import annotations

import re
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableMapping, Sequence

    Reading = Callable[[str, Sequence[int], Sequence[int]], str | None]

CHAT = "/v1/chat/completions"
BATCH = "/v1/chat/completions/batch"
RESPONSES = "/v1/responses"
INVOCATIONS = "/invocations"
"""SageMaker's route, which takes the body of any other."""
_UNTOLD = frozenset({"/generative_scoring", "/v1/systemone"})
"""Routes that do not say their answer's id: their engine's ids are ``<answer id>-i``."""
_NUMBER = re.compile(r"[-_](\d+)")
_CHATS = frozenset({CHAT, BATCH, "/v1/messages", "/cohere/v2/chat"})


@dataclass
class HttpRequest:
    """A request as its client sent it.

    Attributes:
        path: the route, such as ``/v1/completions``.
        body: the body's JSON.
        state: the ASGI state that vLLM leaves the answer's id in.
        content_of: gives what the server makes of an answer for its client: the content without
            reasoning and tool calls. Takes the text, its token ids and the prompt's. None where
            the client gets the text as it is.
    """

    path: str
    body: Mapping[str, Any]
    state: MutableMapping[str, Any] = field(default_factory=dict)
    content_of: Reading | None = None

    @property
    def answer_id(self) -> str | None:
        """The ``id`` of the OpenAI answer: all prompts and choices of the request share it."""
        metadata = self.state.get("request_metadata")
        return None if metadata is None else str(metadata.request_id)

    @property
    def arguments(self) -> Mapping[str, Any]:
        """What the body gives as ``vllm_xargs``."""
        arguments = self.body.get("vllm_xargs")
        return arguments if isinstance(arguments, dict) else {}

    @property
    def truncates(self) -> bool:
        """Whether the model may read less than the prompt's text."""
        by_tokens = self.body.get("truncate_prompt_tokens") is not None
        return by_tokens or self.body.get("truncation", "disabled") not in ("disabled", None)

    def messages(self, number: int) -> list[dict[str, Any]] | None:
        """Chat messages as sent; for the responses API its ``input``.

        Args:
            number: of the conversation, where the route takes several.
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
"""The request that the current task works for; engine tasks inherit it."""


class Place(NamedTuple):
    """Where an answer stands: in which OpenAI answer, to which of its prompts, as which choice.

    ``choice`` is None for the beams of a beam search, which are no choices.
    """

    request_id: str
    prompt: int
    choice: int | None


def place_of(http: HttpRequest | None, external_id: str, index: int, choices: int) -> Place:
    """The place that vLLM's id of a request tells.

    The i-th prompt of a list has the id ``<answer id>-i``, the i-th conversation of a batch
    ``<answer id>_i``; their choices follow those of the prompts before. On the responses route
    ``<answer id>_i`` is the i-th turn of one answer, between calls of tools.

    Args:
        http: the request, if it came with one.
        external_id: the id that vLLM's route gave to its engine.
        index: which of the choices of its prompt it is.
        choices: how many its prompt has.
    """
    answer = http.answer_id if http else None
    if http is not None and http.path in _UNTOLD:
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
