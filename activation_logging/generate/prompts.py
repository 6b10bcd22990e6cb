"""The prompts of ``activation-logging generate``: a file of JSON lines, each with an id."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from activation_logging.errors import PromptsError, RequestOptionError
from activation_logging.settings import RequestOptions, Settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

RUN_TAG = "generate_run"
LINE_TAG = "generate_line"

_FIELDS = {"prompt", "messages", "tags"}
_SHOWN_ERRORS = 10


@dataclass(frozen=True)
class PromptLine:
    """One line of the file: a text, or the messages of a chat.

    ``id`` depends on the line's content alone; the n-th of several equal lines gets ``#n``.
    """

    number: int
    id: str
    tags: Mapping[str, str]
    prompt: str | None = None
    messages: Sequence[Mapping[str, Any]] | None = None


def read_prompts(path: Path) -> list[PromptLine]:
    """Read JSON lines, each an object with ``prompt`` or ``messages``, and perhaps ``tags``.

    Raises:
        PromptsError: invalid lines, named by number; or there is no such file.
    """
    lines: list[PromptLine] = []
    problems: list[str] = []
    seen: Counter[str] = Counter()
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, text in enumerate(file, start=1):
                if not text.strip():
                    continue
                try:
                    lines.append(_parse(number, text, seen))
                except PromptsError as error:
                    problems.append(f"line {number}: {error}")
    except UnicodeDecodeError as error:
        raise PromptsError(f"{path} is not UTF-8 text: {error.reason}") from None
    except OSError as error:
        raise PromptsError(f"{path} cannot be read: {error.strerror}") from None
    if problems:
        more = len(problems) - _SHOWN_ERRORS
        shown = problems[:_SHOWN_ERRORS] + ([f"and {more} more"] if more > 0 else [])
        raise PromptsError(f"{path} has invalid lines:\n  " + "\n  ".join(shown))
    if not lines:
        raise PromptsError(f"{path} holds no prompts")
    return lines


def _parse(number: int, text: str, seen: Counter[str]) -> PromptLine:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PromptsError(f"not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise PromptsError("not a JSON object")
    line = make_line(number, value)
    seen[line.id] += 1
    return line if seen[line.id] == 1 else replace(line, id=f"{line.id}#{seen[line.id]}")


def make_line(number: int, value: Mapping[str, Any]) -> PromptLine:
    """A line with an id made of its content alone.

    Args:
        number: of the line, for what is said of it.
        value: ``prompt`` or ``messages``, and perhaps ``tags``.

    Raises:
        PromptsError: says what is wrong with it.
    """
    if unknown := value.keys() - _FIELDS:
        raise PromptsError(f"unknown field {min(unknown)!r}; known are messages, prompt, tags")
    prompt, messages = value.get("prompt"), value.get("messages")
    if (prompt is None) == (messages is None):
        raise PromptsError("needs either 'prompt' or 'messages'")
    if prompt is not None and (not isinstance(prompt, str) or not prompt):
        raise PromptsError("'prompt' is not a text")
    if messages is not None:
        _check_messages(messages)
    tags = value.get("tags") or {}
    if isinstance(tags, dict) and (taken := tags.keys() & {RUN_TAG, LINE_TAG}):
        raise PromptsError(f"the tag {min(taken)!r} is set by this command")
    try:
        RequestOptions.parse({"activation_tags": tags}, settings=Settings())
    except RequestOptionError as error:
        raise PromptsError(str(error).replace("activation_tags", "'tags'")) from None
    content = json.dumps([prompt, messages, tags], sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:20]
    return PromptLine(number, digest, tags, prompt, messages)


def _check_messages(messages: object) -> None:
    if not isinstance(messages, list) or not messages:
        raise PromptsError("'messages' is not a list of messages")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise PromptsError("a message is not an object with a 'role'")
        # vLLM's chat takes a turn without one: an assistant's that only called tools.
        if not isinstance(message.get("content"), (str, list, type(None))):
            raise PromptsError("the 'content' of a message is neither a text nor a list of parts")
