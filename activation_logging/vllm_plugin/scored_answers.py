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
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.datastructures import MutableHeaders

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from starlette.types import Message, Send

    from activation_logging.vllm_plugin.live_scores import Told

FIELD = "activation_scores"
_FIELDS = ("prompt", "tokens", "answer")
_ENDS = frozenset({"response.completed", "response.incomplete", "response.failed"})
"""Events of the responses API that end an answer, and hold it whole."""
_OTHER_ENDS = frozenset({"message_delta", "message-end"})
"""Those of the routes that imitate Anthropic's and Cohere's APIs."""
_DELTA = (".delta", "_delta", "-delta")
_DATA, _END = b"data: ", b"\n\n"
"""What stands before an event's data, and after an event."""


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

    def has_begun(self, choice: int) -> bool:
        """Whether a choice has had an output."""
        return choice in self._whole

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
        self._waiting: list[_Event] = []

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
        body, answer = self._held, _object(self._held)
        if answer is not None:
            for place, choice in _places(answer):
                place[FIELD] = self._scores.whole(choice)
            body = _dumped(answer)
        headers = MutableHeaders(raw=list(self._start["headers"]))
        headers["content-length"] = str(len(body))
        await self._send({**self._start, "headers": headers.raw})
        await self._send({**message, "body": body})

    def _events(self, message: Message) -> bytes:
        """The events that are complete now."""
        *events, self._held = (self._held + message.get("body", b"")).split(_END)
        done = [one for raw in events for one in self._ready(raw)]
        if not message.get("more_body", False):
            done += [*self._due(everything=True), self._held]
        return b"".join(done)

    def _ready(self, raw: bytes) -> Iterator[bytes]:
        """What can be sent once an event is there.

        VLLM begins all choices of a chat when the first of them has an output. The first chunk of
        each other one waits for an output of its own, which brings ``prompt``.
        """
        event = _Event.read(raw)
        if event is not None and event.choices:
            self._waiting.append(event)
            yield from self._due()
            return
        yield from self._due(everything=True)
        if event is None or not self._extend_event(event.data):
            yield raw + _END
        else:
            yield bytes(event) + _END

    def _due(self, *, everything: bool = False) -> Iterator[bytes]:
        """The chunks that have waited and whose choices have had an output, or all of them."""
        waiting, self._waiting = self._waiting, []
        for event in waiting:
            if everything or any(map(self._scores.has_begun, event.choices)):
                self._extend_event(event.data)
                yield bytes(event) + _END
            else:
                self._waiting.append(event)

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


class _Event(NamedTuple):
    """An event of a stream: what stands before its data, and its data, a JSON object."""

    head: bytes
    data: dict[str, Any]

    @classmethod
    def read(cls, raw: bytes) -> _Event | None:
        """The event; None if its data is something else."""
        head, mark, data = raw.partition(_DATA)
        found = _object(data)
        return None if found is None else cls(head + mark, found)

    @property
    def choices(self) -> list[int]:
        """The choices that it is a chunk of."""
        return [choice for _, choice in _places(self.data)] if self.data.get("choices") else []

    def __bytes__(self) -> bytes:
        return self.head + _dumped(self.data)


def _object(raw: bytes) -> dict[str, Any] | None:
    """A JSON object; None of other bytes."""
    try:
        value = json.loads(raw)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _dumped(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
