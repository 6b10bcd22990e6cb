"""Scores in HTTP answers: vLLM's own answer, extended for a request that asked for them.

A choice gets ``activation_scores``, and so does every chunk of a stream that belongs to a choice.
Answers without choices (the responses API, and others) get it at their top level, and their events
beside what the event says. The rest of an answer stays as vLLM wrote it.

A route takes outputs from its queue and writes chunks. Each chunk gets what the outputs that were
taken before it brought and no chunk has yet. The answer's own score waits for the chunk that ends
the answer.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from starlette.datastructures import MutableHeaders

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.types import Message, Send

    from activation_logging.vllm_plugin.live_scores import Told

FIELD = "activation_scores"
_FIELDS = ("prompt", "tokens", "answer")
_ENDS = frozenset({"response.completed", "response.incomplete", "response.failed"})
"""Events of the responses API that end an answer, and hold it whole."""
_OTHER_ENDS = frozenset({"message_delta", "message-end"})
"""Those of the routes that imitate Anthropic's and Cohere's APIs."""
_DELTA = (".delta", "_delta", "-delta")


def join(first: Told, second: Told) -> Told:
    """What was told of an answer in two parts, as one."""
    joined: Told = {}
    for told in (first, second):
        _extend(joined, told)
    return {
        name: {field: found[field] for field in _FIELDS if field in found}
        for name, found in joined.items()
    }


def _extend(joined: Told, told: Told) -> None:
    """Add what was told next to what was told before; the lists of the latter grow in place."""
    for name, found in told.items():
        before = joined.setdefault(name, {"tokens": []})
        before["tokens"] += found["tokens"]
        if "prompt" in found:
            before.setdefault("prompt", found["prompt"])
        if "answer" in found:
            before["answer"] = found["answer"]


class AnswerScores:
    """What a route was given of the scores of its request, by choice.

    Args:
        names: the probes whose scores the request gets.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._nothing: Told = {name: {"tokens": []} for name in names}
        self._whole: dict[int, dict[str, Told]] = {}
        self._waiting: dict[int, Told] = {}

    def add(self, choice: int, turn: str, told: Told, *, part: bool) -> None:
        """Note the scores of an output.

        Args:
            choice: index of the choice in the answer.
            turn: the engine's name of what was asked: one answer may take several, between tools.
            told: the scores.
            part: whether they follow on earlier ones; otherwise they replace them.
        """
        turns = self._whole.setdefault(choice, {})
        if not part:
            turns[turn] = told
            return
        _extend(turns.setdefault(turn, {}), told)
        waiting = self._waiting.get(choice)
        self._waiting[choice] = told if waiting is None else join(waiting, told)

    def take(self, choice: int, *, last: bool) -> Told:
        """What no chunk of a choice has had yet. Unless it is the ``last``, ``answer`` waits."""
        told = self._waiting.pop(choice, self._nothing)
        if not last:
            kept = {
                name: {"tokens": [], "answer": found["answer"]}
                for name, found in told.items()
                if "answer" in found
            }
            if kept:
                self._waiting[choice] = kept
            told = {
                name: {field: value for field, value in found.items() if field != "answer"}
                for name, found in told.items()
            }
        return told

    def whole(self, choice: int) -> Told:
        """All scores of a choice."""
        found = self._nothing
        for told in self._whole.get(choice, {}).values():
            found = join(found, told)
        return found


class ScoredAnswer:
    """A ``send`` that puts the scores of a request into its answer.

    Args:
        send: takes the answer with scores.
        scores: what the route was given of them.
    """

    def __init__(self, send: Send, scores: AnswerScores) -> None:
        self._send = send
        self._scores = scores
        self._start: Message | None = None
        self._kind = ""
        self._held = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=list(message["headers"]))
            plain = message["status"] == 200 and "content-encoding" not in headers
            self._kind = headers.get("content-type", "").partition(";")[0] if plain else ""
            if self._kind == "application/json":
                # Its length is not known yet.
                self._start = message
                return
        elif message["type"] == "http.response.body":
            if self._kind == "application/json":
                await self._whole(message)
                return
            if self._kind == "text/event-stream":
                message = {**message, "body": self._events(message)}
        await self._send(message)

    async def _whole(self, message: Message) -> None:
        self._held += message.get("body", b"")
        if message.get("more_body", False) or self._start is None:
            return
        body = _changed(self._held, self._extend_whole)
        headers = MutableHeaders(raw=list(self._start["headers"]))
        headers["content-length"] = str(len(body))
        await self._send({**self._start, "headers": headers.raw})
        await self._send({**message, "body": body})

    def _events(self, message: Message) -> bytes:
        """The events that are complete now."""
        *events, self._held = (self._held + message.get("body", b"")).split(b"\n\n")
        done = [b"\n".join(map(self._line, event.split(b"\n"))) + b"\n\n" for event in events]
        if not message.get("more_body", False):
            done.append(self._held)
        return b"".join(done)

    def _line(self, line: bytes) -> bytes:
        start, data = line[:6], line[6:]
        return start + _changed(data, self._extend_event) if start == b"data: " else line

    def _extend_whole(self, answer: dict[str, Any]) -> None:
        for place, choice in _places(answer):
            place[FIELD] = self._scores.whole(choice)

    def _extend_event(self, event: dict[str, Any]) -> bool:
        kind = event.get("type", "")
        if "choices" in event:
            for place, choice in _places(event):
                place[FIELD] = self._scores.take(choice, last=bool(place.get("finish_reason")))
            return bool(event["choices"])
        if kind in _ENDS:
            event[FIELD] = self._scores.take(0, last=True)
            if isinstance(event.get("response"), dict):
                event["response"][FIELD] = self._scores.whole(0)
        elif kind in _OTHER_ENDS:
            event[FIELD] = self._scores.take(0, last=True)
        elif kind.endswith(_DELTA):
            event[FIELD] = self._scores.take(0, last=False)
        else:
            return False
        return True


def _places(answer: dict[str, Any]) -> Iterable[tuple[dict[str, Any], int]]:
    """Where scores go, and of which choice."""
    choices = answer.get("choices")
    if not isinstance(choices, list):
        return [(answer, 0)]
    return [(choice, choice["index"]) for choice in choices if isinstance(choice, dict)]


def _changed(raw: bytes, change: Any) -> bytes:
    """A JSON object after a change; other bytes as they are."""
    try:
        value = json.loads(raw)
    except ValueError:
        return raw
    if not isinstance(value, dict) or change(value) is False:
        return raw
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
