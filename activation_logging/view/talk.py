"""A question to a server, and its answer as it comes: tokens, what the probes say, the end.

What a page gets are small JSON objects, one a line. The colours are made here, by the same rule as
those of stored answers, so that the page's script has no arithmetic of its own.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from activation_logging.errors import ViewError
from activation_logging.report.marking import Marked, shade
from activation_logging.view.server_link import message_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

MOST_CHARACTERS = 1_000_000
MOST_MESSAGES = 500
MOST_TOKENS = 100_000
ALTERNATIVES = 5
ROLES = ("system", "user", "assistant")
CHAT_TAGS = {"source": "chat"}
"""Tags of the answers of a chat, by which a list finds them."""
_NUMBERS = {
    "max_tokens": (int, 1, MOST_TOKENS),
    "temperature": (float, 0, 100),
    "top_p": (float, 0, 1),
    "seed": (int, -(1 << 63), (1 << 63) - 1),
}


class Limit(NamedTuple):
    """When a probe ends an answer: ``kind`` is ``tokens`` or ``prompt``."""

    probe: str
    kind: str
    above: float
    tokens: int

    def option(self) -> dict[str, Any]:
        """The request's ``activation_stop``."""
        if self.kind == "prompt":
            return {"probe": self.probe, "prompt_above": self.above}
        return {"probe": self.probe, "above": self.above, "tokens": self.tokens}


@dataclass(frozen=True)
class Question:
    """What a person asks.

    Attributes:
        model: its name.
        messages: of the conversation, the question last; one alone where ``plain``.
        plain: whether the text is to be continued, without a chat's template.
        settings: of sampling, by their names in OpenAI's API.
        probes: those whose scores are asked for.
        limit: when one of them ends the answer.
        logs: whether the server takes our options.
    """

    model: str
    messages: Sequence[Mapping[str, str]]
    plain: bool
    settings: Mapping[str, float]
    probes: Sequence[str]
    limit: Limit | None
    logs: bool

    @classmethod
    def of(cls, fields: Mapping[str, str]) -> Question:
        """A question as the page sends it.

        Raises:
            ViewError: a field is not what it should be.
        """
        probes = tuple(name for name in fields.get("probes", "").split(",") if name)
        return cls(
            model=fields.get("model", "").strip(),
            messages=_messages(fields.get("messages", "")),
            plain=fields.get("plain") == "1",
            settings={
                n: v for n in _NUMBERS if (v := _number(fields, n, *_NUMBERS[n])) is not None
            },
            probes=probes,
            limit=_limit(fields),
            logs=fields.get("logs") == "1",
        )

    @property
    def path(self) -> str:
        """Where the server takes it."""
        return "/v1/completions" if self.plain else "/v1/chat/completions"

    def body(self) -> dict[str, Any]:
        """What the server gets."""
        ours: dict[str, Any] = {"activation_tags": CHAT_TAGS} if self.logs else {}
        if self.probes:
            ours["activation_scores"] = ",".join(self.probes)
        if self.limit is not None:
            ours["activation_stop"] = self.limit.option()
        asked: dict[str, Any] = (
            {"prompt": self.messages[-1]["content"], "logprobs": ALTERNATIVES}
            if self.plain
            else {
                "messages": list(self.messages),
                "logprobs": True,
                "top_logprobs": ALTERNATIVES,
            }
        )
        if self.model:
            asked["model"] = self.model
        if ours:
            asked["vllm_xargs"] = ours
        return {**asked, **self.settings, "stream": True}


def _messages(text: str) -> list[dict[str, str]]:
    if len(text) > MOST_CHARACTERS:
        raise ViewError(
            f"the conversation is longer than {MOST_CHARACTERS:,} characters: begin anew"
        )
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, list) or not 0 < len(given) <= MOST_MESSAGES:
        raise ViewError("there is no question: write one")
    found = []
    for one in given:
        role, content = (one.get("role"), one.get("content")) if isinstance(one, dict) else ("", "")
        if role not in ROLES or not isinstance(content, str):
            raise ViewError(f"a message has a role ({', '.join(ROLES)}) and a text")
        found.append({"role": role, "content": content})
    if not found[-1]["content"]:
        raise ViewError("there is no question: write one")
    return found


def _number(
    fields: Mapping[str, str], name: str, kind: type[int | float], low: float, high: float
) -> float | None:
    text = fields.get(name, "").strip()
    if not text:
        return None
    try:
        value = kind(text)
    except (ValueError, OverflowError):
        value = math.nan
    if not low <= value <= high:
        raise ViewError(
            f"{name.replace('_', ' ')}: {text[:40]!r} is no number from {low} to {high}"
        )
    return value


def _limit(fields: Mapping[str, str]) -> Limit | None:
    kind, probe = fields.get("stop", ""), fields.get("stop_probe", "")
    if not kind:
        return None
    if kind not in ("tokens", "prompt") or not probe:
        raise ViewError("the stop names no probe: choose one, or no stop")
    above = _number(fields, "above", float, 0, 1)
    tokens = _number(fields, "tokens", int, 1, 10_000)
    if above is None:
        raise ViewError("the stop has no threshold: give a probability from 0 to 1")
    return Limit(probe, kind, above, int(tokens or 1))


class Told:
    """What a page is told of an answer, chunk by chunk."""

    def __init__(self) -> None:
        self.request_id: str | None = None
        self._tokens = 0
        self._scored: dict[str, int] = {}

    def chunk(self, chunk: Mapping[str, Any]) -> dict[str, Any]:
        """What one chunk of a server's stream brings; empty if nothing.

        Raises:
            ViewError: the server says that it failed.
        """
        if "error" in chunk:
            raise ViewError(f"the server says: {message_of(chunk)}")
        self.request_id = self.request_id or chunk.get("id")
        choice = next(iter(chunk.get("choices") or ()), None)
        if choice is None:
            return {}
        told: dict[str, Any] = {}
        if tokens := list(self._new_tokens(choice)):
            told["tokens"] = tokens
        if scores := choice.get("activation_scores"):
            self._scores(scores, told)
        if choice.get("finish_reason"):
            told["ended"] = {"by": choice["finish_reason"], "reason": choice.get("stop_reason")}
        return told

    def _new_tokens(self, choice: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        delta = choice.get("delta")
        if delta is None:
            text, thought = choice.get("text") or "", False
            tokens = _plain_tokens(choice.get("logprobs") or {})
        else:
            thoughts = delta.get("reasoning") or delta.get("reasoning_content") or ""
            text, thought = thoughts or delta.get("content") or "", bool(thoughts)
            tokens = [
                (one["token"], one["logprob"], _top(one))
                for one in (choice.get("logprobs") or {}).get("content") or ()
            ]
        # A token may end within a letter: its text comes with a later one.
        exact = "".join(token for token, _, _ in tokens) == text
        if not tokens and text:
            tokens, exact = [(text, None, [])], True
        for place, (token, logprob, top) in enumerate(tokens):
            shown = token if exact else text if place == 0 else ""
            self._tokens += 1
            yield {
                "text": shown,
                "logprob": logprob,
                "shade": shade(Marked(None, logprob, (), ()), "logprob").strip(),
                "more": _instead(token, top),
                **({"thought": True} if thought else {}),
            }

    def _scores(self, scores: Mapping[str, Any], told: dict[str, Any]) -> None:
        for name, found in scores.items():
            first = self._scored.get(name, 0)
            new = found.get("tokens") or []
            self._scored[name] = first + len(new)
            known = [
                [first + at, round(score, 6), shade(Marked(score, None, (), ()), "probe").strip()]
                for at, score in enumerate(new)
                if score is not None
            ]
            if known:
                told.setdefault("scores", {})[name] = known
            for field in ("prompt", "answer"):
                if found.get(field) is not None:
                    of = Marked(found[field], None, (), ())
                    one = [round(found[field], 6), shade(of, "probe").strip()]
                    told.setdefault(field, {})[name] = one


def _top(token: Mapping[str, Any]) -> list[tuple[str, float]]:
    return [(one["token"], one["logprob"]) for one in token.get("top_logprobs") or ()]


def _plain_tokens(logprobs: Mapping[str, Any]) -> list[tuple[str, float | None, list[Any]]]:
    tokens = logprobs.get("tokens") or []
    values = logprobs.get("token_logprobs") or [None] * len(tokens)
    tops = logprobs.get("top_logprobs") or [None] * len(tokens)
    return [
        (token, value, list((top or {}).items()))
        for token, value, top in zip(tokens, values, tops, strict=False)
    ]


def _instead(chosen: str, top: Sequence[tuple[str, float]]) -> str:
    rest = [f"{text!r} {math.exp(p):.1%}" for text, p in top if text != chosen]
    return f"instead: {', '.join(rest[:ALTERNATIVES])}" if rest else ""


async def events(lines: AsyncIterator[str]) -> AsyncIterator[dict[str, Any]]:
    """The JSON objects of a stream of server-sent events.

    Raises:
        ViewError: it is no such stream.
    """
    async for line in lines:
        name, _, data = line.partition(":")
        if name != "data" or data.strip() == "[DONE]":
            continue
        try:
            found = json.loads(data)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise ViewError("the server's answer is no stream of JSON objects")
        yield found
