"""Which answers keep their rows: the terms of ``ACTIVATION_KEEP`` and of ``prune --keep``.

A term names a reason to keep an answer's rows, and any that holds is enough:

==================== ==========================================================
``all``              every answer
``none``             no answer; beside other terms it changes nothing
``sample:0.01``      this share of all requests, each with all of its choices
``tag:KEY=VALUE``    the request has this tag
``score:NAME>0.8``   the probe says more than this of the answer
``finish:length``    the answer ended for this reason
``labelled``         an evaluator has judged it (``prune`` only)
==================== ==========================================================
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from activation_logging.errors import SettingsError
from activation_logging.text import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

FINISH_REASONS = ("stop", "length", "abort", "error", "repetition")
"""vLLM's own, see ``vllm.v1.engine.FinishReason``."""

_WRITTEN = {
    "all": "all",
    "none": "none",
    "labelled": "labelled",
    "score": "score:NAME>0.8",
    "sample": "sample:0.01",
    "tag": "tag:KEY=VALUE",
    "finish": "finish:length",
}
SERVING = ("all", "none", "score", "sample", "tag", "finish")
"""The kinds of terms that a server takes."""
PRUNING = ("labelled", "score", "tag", "finish")
"""The kinds of terms that ``prune`` takes."""


class ScoreTerm(NamedTuple):
    """The probe ``name`` says more than ``above`` of an answer."""

    name: str
    above: float


@dataclass(frozen=True)
class Keep:
    """Reasons to keep an answer's rows. ``text`` is what the user wrote."""

    text: str
    everything: bool = False
    labelled: bool = False
    sample: float = 0.0
    tags: frozenset[tuple[str, str]] = frozenset()
    scores: tuple[ScoreTerm, ...] = ()
    finish: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, text: str, kinds: Iterable[str] = SERVING) -> Keep:
        """Read a comma list of terms.

        Args:
            text: the list.
            kinds: the kinds of terms that may occur.

        Raises:
            SettingsError: a term is none of these, or has an invalid value.
        """
        known = tuple(kinds)
        found: dict[str, list[str]] = {kind: [] for kind in known}
        for term in (part.strip() for part in text.split(",")):
            kind, colon, value = term.partition(":")
            if kind not in known or (":" in _WRITTEN[kind]) != bool(colon):
                ways = ", ".join(_WRITTEN[kind] for kind in known)
                raise SettingsError(f"{shown(term)} is not one of the terms {ways}")
            found[kind].append(value.strip())
        return cls(
            text,
            everything=bool(found.get("all")),
            labelled=bool(found.get("labelled")),
            sample=max(map(_share, found.get("sample", ())), default=0.0),
            tags=frozenset(map(_tag, found.get("tag", ()))),
            scores=tuple(map(_score, found.get("score", ()))),
            finish=frozenset(map(_reason, found.get("finish", ()))),
        )

    @property
    def probes(self) -> frozenset[str]:
        """The names of the probes that terms ask for."""
        return frozenset(term.name for term in self.scores)

    def check_probes(self, served: Iterable[str]) -> None:
        """Refuse a term of a probe that a server does not have.

        Raises:
            SettingsError: names it, and those that there are.
        """
        names = list(served)
        for term in self.scores:
            if term.name not in names:
                there = f"this server has {', '.join(names)}" if names else "this server has none"
                raise SettingsError(
                    f"score:{term.name}>{term.above:g} of ACTIVATION_KEEP needs the probe "
                    f"{term.name}, and {there}: see ACTIVATION_PROBES"
                )

    def on_arrival(self, name: str, tags: Mapping[str, str] | None) -> bool:
        """Whether a request's rows are kept, whatever its answer will be.

        Args:
            name: the request's id, which its choices share. The sample is drawn by it.
            tags: the request's tags.
        """
        has_tag = not self.tags.isdisjoint((tags or {}).items())
        return self.everything or has_tag or _place(name) < self.sample

    def by_scores(self, answers: Mapping[str, float]) -> bool:
        """Whether an answer's rows are kept because of what probes say of it; NaN says nothing."""
        return any(answers.get(term.name, 0.0) > term.above for term in self.scores)


def _place(name: str) -> float:
    """A number from 0 to 1 that follows from a text, as if it were drawn by chance."""
    digest = hashlib.sha256(name.encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _share(text: str) -> float:
    return _number(text, f"sample:{text}")


def _score(text: str) -> ScoreTerm:
    name, sign, above = (part.strip() for part in text.rpartition(">"))
    if not (sign and name):
        raise SettingsError(f"{shown(f'score:{text}')} is not score:NAME>0.8")
    return ScoreTerm(name, _number(above, f"score:{text}"))


def _number(text: str, term: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise SettingsError(f"{shown(term)}: {shown(text)} is not a number from 0 to 1")
    return number


def _tag(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (equals and name):
        raise SettingsError(f"{shown(f'tag:{text}')} is not tag:KEY=VALUE")
    return name, value


def _reason(text: str) -> str:
    if text not in FINISH_REASONS:
        reasons = ", ".join(FINISH_REASONS)
        raise SettingsError(f"{shown(f'finish:{text}')}: the reason is not one of {reasons}")
    return text
