"""What a probe was fitted on, told so that it can be recognised and not read."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from activation_logging.dataset.groups import named_subjects

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping, Sequence

    from activation_logging.dataset import Tokens


def fitted_on(keys: Iterable[str], labels: Iterable[Any]) -> dict[str, Any]:
    """What :attr:`.SavedProbe.data` says of entries and their labels: a digest, and how many.

    The same entries with the same labels have the same digest, in any order.
    """
    lines = sorted(f"{key}\t{label}" for key, label in zip(keys, labels, strict=True))
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return {"digest": digest, "answers": len(lines)}


def claims_fitted_on(tokens: Tokens) -> dict[str, Any]:
    """The same of the judged claims of answers: a digest, and how many answers and claims."""
    spans = tokens.spans
    names = np.where(spans.y == 1, "contradicted", "supported")
    keys = [tokens.keys[answer] for answer in spans.answer]
    places = [f"{key} {a}-{b}" for key, a, b in zip(keys, spans.start, spans.end, strict=True)]
    told = fitted_on(places, names)
    return {"digest": told["digest"], "answers": len(tokens.keys), "claims": told["answers"]}


def prompts_of(keys: Iterable[str]) -> npt.NDArray[np.uint64]:
    """:attr:`.SavedProbe.prompts` of entries: each prompt once, sorted."""
    return np.unique(np.array(list(map(prompt_number, keys)), np.uint64))


def prompt_number(key: str) -> int:
    """The first eight bytes of a prompt's SHA-256, from the key of an entry."""
    return int(key.rpartition(":")[2][:16], 16)


def subjects_among(
    tags: Iterable[Mapping[str, str]], group: Sequence[str]
) -> npt.NDArray[np.uint64]:
    """:attr:`.SavedProbe.subjects` of answers with these tags: each subject once, sorted.

    Args:
        tags: of each answer.
        group: names of the tags that say what an answer is about.
    """
    names = {subject for own in tags for subject in named_subjects(own, group)}
    return np.sort(np.array([_start_of_hash(name) for name in names], np.uint64))


def is_about(tags: Mapping[str, str], known: Container[int]) -> bool:
    """Whether an answer with these tags is about one of :attr:`.SavedProbe.known_subjects`.

    All of its tags are looked up: the probe knows by which of them its own answers were grouped.
    """
    return any(_start_of_hash(name) in known for name in named_subjects(tags, list(tags)))


def _start_of_hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "replace")).digest()[:8], "big")
