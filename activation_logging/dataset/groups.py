"""What an answer is about: answers about one thing are one group, never split over two sides."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from activation_logging.store import Entry


def subjects_of(entry: Entry, tags: Sequence[str]) -> list[str]:
    """Everything that an answer is about, as ``tag: value``; the last one is its prompt.

    Args:
        entry: the answer.
        tags: names of the tags that say what an answer is about.
    """
    return [*named_subjects(entry.tags, tags), f"prompt: {entry.prompt_key}"]


def named_subjects(own: Mapping[str, str], tags: Sequence[str]) -> list[str]:
    """What an answer's own tags say that it is about, as ``tag: value``."""
    # Folded, so that a name written in two ways is one subject.
    return [f"{tag}: {own[tag].strip().casefold()}" for tag in tags if own.get(tag, "").strip()]


def join_groups(subjects: Sequence[Sequence[str]]) -> npt.NDArray[np.str_]:
    """The group of each answer, ``[n]``: answers that share any subject are one group.

    Args:
        subjects: for each answer all of its subjects; one of them becomes the group's name.
    """
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        parent.setdefault(name, name)
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for names in subjects:
        first = root(names[0])
        for other in names[1:]:
            parent[root(other)] = first
    return np.array([root(names[0]) for names in subjects])
