"""Offline chat: the messages of a conversation go with its request, as they do over HTTP."""

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
    """Render one conversation; the request that vLLM adds next is the one for it."""
    http_request.set(HttpRequest(CHAT, {"messages": list(conversation)}))
    return render(llm, conversation, *args, **kwargs)


def add_conversations(add: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Add a chat's requests; no later request is to get the last conversation."""
    token = http_request.set(None)
    try:
        return add(*args, **kwargs)
    finally:
        http_request.reset(token)
