"""What only the HTTP side of a request knows, handed to the front-end tap."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping


@dataclass(frozen=True)
class HttpRequest:
    """The body of an OpenAI request, and the ASGI state that vLLM leaves the answer's id in."""

    body: Mapping[str, Any]
    state: MutableMapping[str, Any]

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
    def messages(self) -> list[Any] | None:
        """Chat messages as sent; for the responses API its ``input``."""
        messages = self.body.get("messages")
        if messages is None and "prompt" not in self.body:
            messages = self.body.get("input")
            if isinstance(messages, str):
                messages = [{"role": "user", "content": messages}]
        return messages if isinstance(messages, list) else None


http_request: ContextVar[HttpRequest | None] = ContextVar("http_request", default=None)
"""The HTTP request that the current task works for; engine tasks inherit it."""
