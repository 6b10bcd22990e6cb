"""The way to logged entries, to find and to label them: the store's folder, or the server's routes.

An answer is found by the id of its request, by the key that its prompt has in the store, or by
what was asked.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from activation_logging.benchmarks.endpoint import client, openai_package
from activation_logging.errors import BenchmarkError, EntryNotFound, LabelError
from activation_logging.progress import Progress, silent, track
from activation_logging.records import ANSWERED, Evaluation, Span
from activation_logging.store import open_store
from activation_logging.store.query import entries_of
from activation_logging.text import brief

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from activation_logging.judges.verdict import Answer
    from activation_logging.store import Entry

_THINK = re.compile(r"</?think[^>]*>")
_PAGE = 1000
_UNPROCESSABLE = (400, 422)


class Found(NamedTuple):
    """The fields of an entry that labelling needs.

    ``choice`` is its index among the choices of the request's answer, and ``evaluators`` are the
    names of those who have labelled it.
    """

    key: str
    response: str
    content: str
    finish_reason: str | None
    choice: int | None = None
    evaluators: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether the answer came to its end."""
        return self.finish_reason in ANSWERED

    def holds(self, answer: Answer) -> bool:
        """Whether this entry is complete and holds the text of the answer."""
        return self.whole and self.says(answer.generation, answer.reasoning)

    def says(self, text: str, reasoning: str | None = None) -> bool:
        """Whether its text is this one, or this one and the reasoning that was taken out of it."""
        return text in (self.response, self.content) or self._thinks(text, reasoning)

    def place_of(self, text: str) -> int | None:
        """Where the judged text begins in the response; None if the response does not hold it.

        What precedes it is the reasoning, which may quote it, so the last place counts.
        """
        at = self.response.rfind(text)
        return None if at < 0 else at

    def _thinks(self, text: str, reasoning: str | None) -> bool:
        if not reasoning:
            return False
        before, found, after = self.response.partition(reasoning)
        rest = _THINK.sub("", before + after)
        return bool(found) and rest.split() == text.split()


class Recovered(NamedTuple):
    """An answer's content as its client got it, and whether it ended before its first token."""

    content: str
    no_token: bool


def moved(spans: Sequence[Span], place: int | None) -> tuple[Span, ...]:
    """Spans of the judged text, which is at ``place`` in the response; none if it is nowhere."""
    if place is None:
        return ()
    return tuple(replace(span, start=place + span.start, end=place + span.end) for span in spans)


def moved_details(details: Mapping[str, Any], place: int | None) -> dict[str, Any]:
    """Details with the place of the answer given moved likewise, or without it."""
    sides = ("answer_start", "answer_end")
    if not all(type(details.get(side)) is int for side in sides):
        return dict(details)
    if place is None:
        return {name: value for name, value in details.items() if name not in sides}
    return {**details, **{side: place + details[side] for side in sides}}


class Labels(ABC):
    """Somewhere that entries can be found and labelled."""

    where: str

    @abstractmethod
    def find(self, request_id: str) -> list[Found]:
        """The entries of one request."""

    @abstractmethod
    def of_key(self, key: str) -> list[Found]:
        """The entry of a key such as ``<sha256>#1``; of one without ``#``, every answer."""

    @abstractmethod
    def questions(self, progress: Progress = silent) -> Iterator[tuple[str, str]]:
        """What was asked, and the entry's key, of every entry: of a chat the last message."""

    @abstractmethod
    def evaluation(self, key: str, name: str) -> Evaluation | None:
        """One evaluator's label of an entry."""

    @abstractmethod
    def put(self, evaluations: Sequence[tuple[str, Evaluation]]) -> None:
        """Write labels beside the entries that have these keys.

        Raises:
            LabelError: one cannot be written; earlier ones may have been.
        """

    @abstractmethod
    def has_no_token(self, key: str) -> bool:
        """Whether the answer of an entry ended before its first token, as only a probe does."""

    def answer_to(self, request_id: str) -> Recovered | None:
        """The complete answer to a request; None if there is none."""
        for found in self.find(request_id):
            if found.whole:
                no_token = not found.content and self.has_no_token(found.key)
                return Recovered(found.content, no_token)
        return None

    @abstractmethod
    def flush(self) -> None:
        """Wait until all answers so far are stored, if there is a server to ask."""


class StoreLabels(Labels):
    """Through the store's folder on this machine."""

    def __init__(self, path: Path) -> None:
        # Fail early: a missing store must not be made by asking for it.
        open_store(path).close()
        self._store = open_store(path, writable=True)
        self.where = str(path)

    def flush(self) -> None:
        """Do nothing: a label whose entry is not stored yet is tried again."""

    def find(self, request_id: str) -> list[Found]:
        return [_found(entry) for entry in self._store.for_request(request_id)]

    def of_key(self, key: str) -> list[Found]:
        return [_found(entry) for entry in entries_of(self._store, key)]

    def questions(self, progress: Progress = silent) -> Iterator[tuple[str, str]]:
        entries = track(self._store.entries(), "reading questions", len(self._store), progress)
        return ((entry.question, entry.key) for entry in entries)

    def evaluation(self, key: str, name: str) -> Evaluation | None:
        return self._store[key].evaluations.get(name)

    def has_no_token(self, key: str) -> bool:
        return not self._store[key].num_tokens[1]

    def put(self, evaluations: Sequence[tuple[str, Evaluation]]) -> None:
        self._store.put_evaluations(evaluations)


def _found(entry: Entry) -> Found:
    return Found(
        key=entry.key,
        response=entry.response,
        content=entry.content,
        finish_reason=entry.finish_reason,
        choice=entry.choice,
        evaluators=tuple(entry.evaluations),
    )


class ServerLabels(Labels):
    """Through the routes of the server that answered."""

    def __init__(self, base_url: str, key: str | None = None) -> None:
        self._openai = openai_package()
        self._client = client(base_url, key=key, timeout=60.0, retries=2)
        self.where = f"{base_url.rstrip('/')}/activations"
        self._get({"limit": 1})

    def find(self, request_id: str) -> list[Found]:
        return [_listed(entry) for entry in self._get({"request_id": request_id})["data"]]

    def of_key(self, key: str) -> list[Found]:
        page = self._get({"key": key, "limit": _PAGE})["data"]
        # An older server knows no `key` and lists whatever is newest.
        return [_listed(entry) for entry in page if key in (entry["key"], _base(entry["key"]))]

    def questions(self, progress: Progress = silent) -> Iterator[tuple[str, str]]:
        for number in count():
            page = self._get({"limit": _PAGE, "offset": number * _PAGE})
            progress("reading questions", number * _PAGE, 0)
            for entry in page["data"]:
                yield entry.get("question", entry["prompt"]), entry["key"]
            if page["next"] is None:
                return

    def evaluation(self, key: str, name: str) -> Evaluation | None:
        found = self._whole(key)["evaluations"].get(name)
        return found and Evaluation(name, found["label"], found["score"], found["judge"])

    def has_no_token(self, key: str) -> bool:
        return not self._whole(key)["response_token_ids"]

    def put(self, evaluations: Sequence[tuple[str, Evaluation]]) -> None:
        for key, evaluation in evaluations:
            body = {
                "name": evaluation.name,
                "label": evaluation.label,
                "score": evaluation.score,
                "judge": evaluation.judge,
                "details": dict(evaluation.details),
                "spans": [span.as_json() for span in evaluation.spans],
            }
            path = f"/activations/{quote(key, safe='')}/evaluations"
            with self._asking():
                self._client.post(path, cast_to=object, body=body)

    def flush(self) -> None:
        with self._asking():
            self._client.post("/activations/flush", cast_to=object, body={})

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Turn the client's errors into ours."""
        try:
            yield
        except self._openai.APIConnectionError:
            raise BenchmarkError(f"no server answers at {self.where}") from None
        except self._openai.AuthenticationError:
            raise BenchmarkError(f"{self.where} wants an API key; set VLLM_API_KEY") from None
        except self._openai.NotFoundError as error:
            if error.request.method == "GET" and not error.request.url.path.endswith("activations"):
                raise EntryNotFound(f"{self.where}: {brief(error)}") from None
            raise BenchmarkError(f"the server has no {self.where}: it does not log") from None
        except self._openai.APIStatusError as error:
            if error.status_code in _UNPROCESSABLE:
                raise LabelError(brief(error, 400)) from None
            raise BenchmarkError(f"{self.where} fails: {brief(error, 400)}") from None

    def _whole(self, key: str) -> Any:
        """One entry with all of its fields."""
        with self._asking():
            return self._client.get(f"/activations/{quote(key, safe='')}", cast_to=object)

    def _get(self, query: Mapping[str, Any]) -> dict[str, Any]:
        with self._asking():
            page = self._client.get("/activations", cast_to=object, options={"params": dict(query)})
        if not (isinstance(page, dict) and isinstance(page.get("data"), list)):
            raise BenchmarkError(f"{self.where} does not answer with a list of entries")
        return page


def _listed(entry: Mapping[str, Any]) -> Found:
    return Found(
        key=entry["key"],
        response=entry["response"],
        content=entry.get("content", entry["response"]),  # an older server has none
        finish_reason=entry["finish_reason"],
        choice=entry.get("choice"),
        evaluators=tuple(entry.get("evaluations", ())),
    )


def _base(key: str) -> str:
    return key.partition("#")[0]


def reach(store: Path | None, base_url: str | None) -> Labels:
    """The way to the entries: the store's folder if given, else the server.

    Raises:
        BenchmarkError, StoreError: there is none; the text says why.
    """
    if store is not None:
        return StoreLabels(store)
    if base_url is None:
        raise BenchmarkError("give the store's folder or the server's address")
    return ServerLabels(base_url)
