"""The exact text of a prompt's and a response's token ids."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from vllm.v1.engine.detokenizer import BaseIncrementalDetokenizer, IncrementalDetokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllm import SamplingParams
    from vllm.v1.engine.output_processor import RequestState

_UNREADABLE = "\ufffd"
"""What bytes decode to that are no whole character."""
_MOST_PARTS = 64
"""Of characters that are not garbage. Looking at each part takes time that grows by the square."""


def prompt_text(state: RequestState, tokenizer: Any, *, whole: bool) -> str:
    """The text that the model read.

    Args:
        state: vLLM's state of the request.
        tokenizer: the engine's, or None.
        whole: whether the request's text is known to be exactly what the model read. Otherwise
            (the prompt may have been truncated, or lack the tokens of a beam) the text is compared
            with the token ids. If they differ, the decoded ids are returned. They are also returned
            for a request that came as token ids.
    """
    ids, text = state.prompt_token_ids or [], state.prompt
    if tokenizer is None or (text is not None and whole):
        return text or ""
    read = str(tokenizer.decode(ids, skip_special_tokens=False)) if ids else ""
    if text is None or text == read:
        return read
    special = set(tokenizer.all_special_ids)
    encoded = tokenizer.encode(text, add_special_tokens=False)
    same = [i for i in ids if i not in special] == [i for i in encoded if i not in special]
    return text if same else read


def response_pieces(
    state: RequestState,
    sampling: SamplingParams,
    tokenizer: Any,
    response: str | None,
    *,
    stopped: bool,
) -> list[str]:
    """The text that each token adds to the answer. Joined, the pieces are the response.

    vLLM's own detokenizer makes the pieces, because it knows where the prompt ends. A piece is
    empty if the text omits the token (an end of turn, a stop string), or if the token's bytes do
    not complete a character yet. The character then belongs to the token that completes it.

    Args:
        state: vLLM's state of the request.
        sampling: its parameters.
        tokenizer: the engine's, or None; without one there are no pieces.
        response: the text that the client got, or None if it asked for token ids only.
        stopped: whether the last token ended the answer. The text then omits it by default.
    """
    if tokenizer is None or state.detokenizer is None:
        return []
    request: Any = SimpleNamespace(
        request_id=state.request_id,
        prompt_token_ids=state.prompt_token_ids,
        prompt_embeds=None,
        sampling_params=sampling,
    )
    detokenizer = IncrementalDetokenizer.from_new_request(tokenizer, request)
    if not isinstance(detokenizer, BaseIncrementalDetokenizer):
        return []
    pieces: list[str] = []
    for token in state.detokenizer.output_token_ids:
        detokenizer.token_ids.append(token)
        pieces.append(detokenizer.decode_next(token))
    if response is not None:
        return _cut(pieces, len(response))
    if pieces and stopped and not sampling.include_stop_str_in_output:
        pieces[-1] = ""
    return pieces


def shared_characters(
    tokens: Sequence[int], pieces: Sequence[str], tokenizer: Any, *, skip_special: bool
) -> list[tuple[int, int, int]]:
    """Tokens that hold other characters than their pieces say, because they are parts of some.

    Args:
        tokens: ids of the response.
        pieces: of :func:`response_pieces`, for the same tokens.
        tokenizer: the engine's.
        skip_special: whether the text omits special tokens. These hold no character.

    Returns:
        Index of the token, start and end of its characters in the response, each.
    """
    found: list[tuple[int, int, int]] = []
    waiting: list[int] = []
    at = 0
    for index, piece in enumerate(pieces):
        if piece and waiting:
            ids = [tokens[part] for part in (*waiting, index)]
            parts = zip((*waiting, index), _parts(ids, piece, tokenizer), strict=True)
            found += [(part, at + low, at + high) for part, (low, high) in parts if low < high]
        if piece:
            at += len(piece)
            waiting.clear()
        elif tokenizer.decode([tokens[index]], skip_special_tokens=skip_special):
            waiting.append(index)
    return found


def _parts(ids: Sequence[int], piece: str, tokenizer: Any) -> list[tuple[int, int]]:
    """The characters of a piece that each of the tokens holds which make it together.

    The first tokens alone decode to the characters that they complete. U+FFFD follows if they
    begin another one, which the next token goes on with.
    """
    if len(ids) > _MOST_PARTS:
        return [(0, len(piece))] * len(ids)
    parts = []
    start = 0
    for count in range(1, len(ids)):
        text = tokenizer.decode(ids[:count], skip_special_tokens=False)
        # A stop string may have cut the piece.
        whole = text.rstrip(_UNREADABLE)[: len(piece)]
        done = max(start, len(whole)) if piece.startswith(whole) else start
        begun = done < len(piece) and text.endswith(_UNREADABLE)
        parts.append((start, done + begun))
        start = done
    return [*parts, (start, len(piece))]


def response_text(state: RequestState) -> str | None:
    """The text that the client got, or None if it asked for token ids only."""
    return getattr(state.detokenizer, "output_text", None)


def _cut(pieces: Sequence[str], length: int) -> list[str]:
    """The pieces cut after ``length`` characters in all: vLLM omitted the rest from the text."""
    cut = []
    for piece in pieces:
        cut.append(piece[:length])
        length -= len(cut[-1])
    return cut
