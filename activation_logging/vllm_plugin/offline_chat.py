"""Offline chat: attaches the messages of a conversation to its request, as HTTP does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from activation_logging.vllm_plugin.context import CHAT, HttpRequest, http_request

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


def note_conversation(
    render: Callable[..., Any],
    llm: Any,
    conversation: Sequence[Mapping[str, Any]],
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Render one conversation. vLLM adds its request next, so the messages wait in the context."""
    http_request.set(HttpRequest(CHAT, {"messages": list(conversation)}))
    return render(llm, conversation, *args, **kwargs)


def add_conversations(add: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Add a chat's requests, then clear the context: no later request gets the last messages."""
    token = http_request.set(None)
    try:
        return add(*args, **kwargs)
    finally:
        http_request.reset(token)
