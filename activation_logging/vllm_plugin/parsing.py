"""The content that a client gets: the answer without reasoning and tool calls.

vLLM parses an answer only after it has ended, when its entry is already queued. The tap therefore
parses the answer again with a parser of the same kind. vLLM makes a parser for each request; this
module records how.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from activation_logging.vllm_plugin.compat import tell_prompt
from activation_logging.vllm_plugin.context import http_request

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def note_parser(
    make: Callable[..., Any], serving: Any, request: Any, tokenizer: Any, kwargs: Any
) -> Any:
    """Make the parser of a request, and record how to make another one for the request's entry.

    Args:
        make: vLLM's own method of ``serving``.
        serving: vLLM's handler of the chat or the responses route.
        request: the request, in this handler's type.
        tokenizer: the engine's tokenizer.
        kwargs: keyword arguments of the chat template.
    """
    parser = make(serving, request, tokenizer, kwargs)
    http = http_request.get()
    if http is None or parser is None:
        return parser

    def content_of(text: str, ids: Sequence[int], prompt_ids: Sequence[int]) -> str | None:
        # A parser is stateful: each answer needs its own.
        parser = make(serving, request, tokenizer, kwargs)
        tell_prompt(parser, prompt_ids)
        _, content, _ = parser.parse(
            text,
            request,
            enable_auto_tools=serving.enable_auto_tools,
            model_output_token_ids=ids,
        )
        return None if content is None else str(content)

    http.content_of = content_of
    return parser
