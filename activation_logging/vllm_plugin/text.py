"""The text of token ids, exactly as the model was given them or gave them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllm import SamplingParams
    from vllm.v1.engine.output_processor import RequestState


def prompt_text(state: RequestState, tokenizer: Any) -> str:
    """The rendered prompt; for a request that came as token ids, their decoded text."""
    if state.prompt is not None:
        return state.prompt
    if tokenizer is None or not state.prompt_token_ids:
        return ""
    return str(tokenizer.decode(state.prompt_token_ids, skip_special_tokens=False))


def response_text(state: RequestState, sampling: SamplingParams, tokenizer: Any) -> str:
    """The text that the client got; where it asked for token ids alone, what they say."""
    detokenizer = state.detokenizer
    if detokenizer is None:
        return ""
    text = getattr(detokenizer, "output_text", None)
    if text is None and tokenizer is not None:
        return str(
            tokenizer.decode(
                detokenizer.output_token_ids, skip_special_tokens=sampling.skip_special_tokens
            )
        )
    return text or ""


def response_pieces(token_ids: Sequence[int], tokenizer: Any) -> list[str]:
    """What each token adds to the text; joined they are the whole, special tokens included.

    A character made of several tokens belongs to the last of them, the others are empty.
    """
    if tokenizer is None:
        return []
    fast = getattr(tokenizer, "_tokenizer", None)
    if fast is None:
        return [str(tokenizer.decode([token], skip_special_tokens=False)) for token in token_ids]
    from tokenizers.decoders import DecodeStream

    stream = DecodeStream(skip_special_tokens=False)
    return [stream.step(fast, token) or "" for token in token_ids]
