"""The ``claims`` judge of profiles: each claim of an answer beside what is known.

1. Typed rules find the claims of the answer, and say of each whether it is ``supported``,
   ``contradicted`` or ``unverifiable``: :mod:`.persons`, :mod:`.countries`, :mod:`.elements`.
   What they are not sure about is ``unverifiable``.
2. An answer with a contradicted claim is ``hallucinated``.
3. One with a supported claim and none contradicted is ``correct``: nothing that could be checked
   was wrong.
4. One that declines, as the ``rules`` judge sees it, is ``refused``.
5. Any other is ``invalid``: there is nothing in it to judge.

Deterministic, offline, English only. How often it is right: docs/benchmarks.md.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from activation_logging.judges.claims.countries import read_country
from activation_logging.judges.claims.elements import read_element
from activation_logging.judges.claims.persons import read_person
from activation_logging.judges.claims.record import Profile, Reading, World
from activation_logging.judges.registry import Judge
from activation_logging.judges.rules import judge_belief
from activation_logging.judges.verdict import Answer, Verdict
from activation_logging.records import SPAN_LABELS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from activation_logging.records import Label, Span

VERSION = "claims/3"

_READERS = {"person": read_person, "country": read_country, "element": read_element}


def claims_judge(profile_of: Callable[[str, str], Profile], world: Callable[[], World]) -> Judge:
    """A judge of profiles.

    Args:
        profile_of: from the type of a thing and its name to what is known of it; of what is not
            known, a profile without facts.
        world: names that mean something.
    """

    def decide(answer: Answer) -> Verdict:
        spans = read_claims(
            answer.generation,
            profile_of(answer.type, answer.name),
            world(),
            cut=answer.finish_reason in {"length", "max_tokens"},
        )
        label, words = label_of(spans, answer.generation, answer.name)
        return Verdict.on(answer, label, VERSION, words, details=counted(spans), spans=spans)

    return Judge(VERSION, decide, kinds=("profile",))


def read_claims(
    text: str, profile: Profile, world: World, *, cut: bool = False
) -> tuple[Span, ...]:
    """The claims of an answer, in their order, none overlapping another.

    Args:
        text: the answer.
        profile: what is known of the thing that it is about.
        world: names that mean something.
        cut: whether the answer ended at its limit of tokens, so that its last word may be half.
    """
    reading = Reading(text, profile, world, cut=cut)
    _READERS[profile.type](reading)
    return reading.spans


def label_of(spans: Sequence[Span], text: str, name: str) -> tuple[Label, str]:
    """The label of an answer with these claims, and the reason in words."""
    found = Counter(span.label for span in spans)
    for label, verdict in (("contradicted", "hallucinated"), ("supported", "correct")):
        if found[label]:  # type: ignore[index]
            first = next(span for span in spans if span.label == label)
            said = text[first.start : first.end]
            right = f", known is {first.gold}" if label == "contradicted" else ""
            more = f" ({found[label]} such claims)" if found[label] > 1 else ""  # type: ignore[index]
            return verdict, f"{first.claim} {said!r} is {label}{right}{more}"  # type: ignore[return-value]
    belief, words = judge_belief(text, name)
    if belief == "declines":
        return "refused", words
    return "invalid", "no claim that could be checked"


def counted(spans: Sequence[Span]) -> dict[str, Any]:
    """How many claims of each kind have which label, and in all."""
    kinds = dict.fromkeys(span.claim or "" for span in spans)
    table = Counter((span.claim or "", span.label) for span in spans)
    return {
        **{label: sum(span.label == label for span in spans) for label in SPAN_LABELS},
        "claims": {
            kind: {label: table[kind, label] for label in SPAN_LABELS if table[kind, label]}
            for kind in kinds
        },
    }
