"""A question of a benchmark, and what holds for all of them: files, splits, limits."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from itertools import chain, zip_longest
from random import Random
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from activation_logging import tags
from activation_logging.errors import BenchmarkError
from activation_logging.files import write_whole
from activation_logging.strict_json import dumps

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from activation_logging.judges.verdict import Kind

Split = Literal["train", "test"]

_TEST_SHARE = 0.2
_TAGGED_DETAILS = (tags.FAME, tags.INVENTOR)
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Question:
    """One question, complete: what is asked, about what, and what would be right.

    Attributes:
        id: the same for the same seed on every machine, and unique in its benchmark.
        name: what is asked about.
        type: the domain as the prompt words it (``animal``) or the sort of fact (``capital``).
        kind: ``made_up`` and ``real`` names, or a ``fact`` with one right answer.
        stratum: the finest group that ``--limit`` balances and results are shown for.
        group: questions that belong on the same side of a train/test split share it.
        gold: accepted answers of a ``fact``, the preferred one first.
        details: where the question comes from, such as the ids of a made-up name's donors.
    """

    id: str
    prompt: str
    name: str
    type: str
    kind: Kind
    stratum: str
    group: str
    seed: int
    gold: tuple[str, ...] = ()
    details: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Question:
        """The question of ``asdict`` or of JSON, which has no tuples."""
        return cls(**{**fields, "gold": tuple(fields.get("gold", ()))})

    @property
    def split(self) -> Split:
        """``train`` or ``test``, one in five, by the group's hash: the same in every run."""
        digest = hashlib.sha256(self.group.encode()).digest()
        return "test" if int.from_bytes(digest[:8], "big") < _TEST_SHARE * 2**64 else "train"

    def tags(self, benchmark: str) -> dict[str, str]:
        """The ``activation_tags`` under which the store keeps the answers."""
        found = {
            tags.BENCHMARK: benchmark,
            "sample_id": self.id,
            tags.DOMAIN: self.type,
            tags.STRATUM: self.stratum,
            "kind": self.kind,
            tags.ENTITY: self.name,
            tags.GROUP: self.group,
            "seed": str(self.seed),
            "split": self.split,
        }
        found |= {key: self.details[key] for key in _TAGGED_DETAILS if key in self.details}
        return {**found, tags.GOLD: self.gold[0]} if self.gold else found


class Picker:
    """Random choices that are the same on any machine, Python version and hash seed.

    Python promises a stable sequence for ``Random.random()`` alone, so nothing else is used.
    A text seed is hashed with SHA-512 by ``random`` itself, independent of ``PYTHONHASHSEED``.
    """

    def __init__(self, *seed: object) -> None:
        self._random = Random("/".join(map(str, seed)))  # noqa: S311  not for secrets

    def choice(self, items: Sequence[_Item]) -> _Item:
        return items[int(self._random.random() * len(items))]

    def shuffled(self, items: Iterable[_Item]) -> list[_Item]:
        """Fisher-Yates, on a copy."""
        result = list(items)
        for last in range(len(result) - 1, 0, -1):
            other = int(self._random.random() * (last + 1))
            result[last], result[other] = result[other], result[last]
        return result


def check_parts(what: str, parts: Iterable[str], known: Sequence[str]) -> None:
    """Make sure that a benchmark has the parts that are asked for.

    Raises:
        BenchmarkError: it lacks one; ``what`` is what it calls a part, such as ``domain``.
    """
    unknown = [part for part in parts if part not in known]
    if unknown:
        raise BenchmarkError(f"no {what} is called {unknown[0]!r}; known are {', '.join(known)}")


def check_size(n: int, unit: str) -> None:
    """Make sure that something is asked for each ``unit``.

    Raises:
        BenchmarkError: ``n`` is below 1.
    """
    if n < 1:
        raise BenchmarkError(f"--N {n}: ask at least one question for each {unit}")


def balanced(questions: Sequence[Question], limit: int | None) -> list[Question]:
    """The first ``limit`` questions, taking one of each stratum in turn.

    Raises:
        BenchmarkError: the limit is below 1.
    """
    if limit is None:
        return list(questions)
    if limit < 1:
        raise BenchmarkError(f"--limit {limit}: ask at least one question")
    strata: dict[str, list[Question]] = {}
    for question in questions:
        strata.setdefault(question.stratum, []).append(question)
    turns = chain.from_iterable(zip_longest(*strata.values()))
    taken = {question.id for question in [q for q in turns if q is not None][:limit]}
    return [question for question in questions if question.id in taken]


def write_questions(path: Path, questions: Iterable[Question]) -> None:
    """One JSON object a line, replaced as a whole so that no half file is ever seen."""
    text = "".join(dumps(asdict(q), ascii_only=False) + "\n" for q in questions)
    replace_text(path, text)


def read_questions(path: Path) -> list[Question]:
    """Read a file of :func:`write_questions`.

    Raises:
        BenchmarkError: it cannot be read, or a line is not a question; the line is named.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BenchmarkError(f"{path} cannot be read: {error}") from None
    questions = [
        _parse(line, f"{path} line {n}") for n, line in enumerate(lines, 1) if line.strip()
    ]
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise BenchmarkError(f"{path}: the id {question.id!r} is there twice")
        seen.add(question.id)
    return questions


def replace_text(path: Path, text: str) -> None:
    """Write a file as a whole, its folder made.

    Raises:
        BenchmarkError: the folder cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text.encode())
    except OSError as error:
        raise BenchmarkError(f"{path} cannot be written: {error.strerror or error}") from None


def _parse(line: str, where: str) -> Question:
    try:
        return Question.of(json.loads(line))
    except (ValueError, TypeError, RecursionError) as error:
        raise BenchmarkError(f"{where} is not a question: {error}") from None
