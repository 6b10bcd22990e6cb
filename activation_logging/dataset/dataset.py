"""The answers that one evaluator has judged, each with one state, as arrays."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from activation_logging.dataset.examples import (
    Broken,
    Examples,
    refuse_one_class,
    select_examples,
)
from activation_logging.dataset.features import finite, locate, read_blocks
from activation_logging.dataset.positions import parse_position
from activation_logging.errors import DatasetError
from activation_logging.progress import Progress, silent
from activation_logging.tags import GROUP_TAGS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from activation_logging.records import Label
    from activation_logging.sites import AnySite
    from activation_logging.store import Store


@dataclass(frozen=True)
class Dataset:
    """Labelled answers with one state each, ready for scikit-learn.

    ``X`` is read from the store when it is first asked for, one answer at a time: only the rows
    that are needed are touched. :meth:`batches` never holds more than one batch.
    """

    examples: Examples
    layer: int | str
    position: str | int
    progress: Progress = silent

    @cached_property
    def X(self) -> npt.NDArray[np.float32]:
        """States, float32 ``[n, width]``.

        Raises:
            DatasetError: a state is not finite.
        """
        blocks = read_blocks(self.examples, [self.layer], [self.position], progress=self.progress)
        return next(blocks).X[:, 0]

    @property
    def y(self) -> npt.NDArray[np.int64]:
        """Classes, ``[n]``: 1 for the positive label."""
        return self.examples.y

    @property
    def keys(self) -> Sequence[str]:
        """The entries' keys."""
        return self.examples.keys

    @property
    def groups(self) -> npt.NDArray[np.str_]:
        """What each answer is about, ``[n]``; never split one group over train and test."""
        return self.examples.groups

    @property
    def tags(self) -> Sequence[Mapping[str, str]]:
        """The entries' tags."""
        return self.examples.tags

    @property
    def left_out(self) -> Mapping[str, int]:
        """How many labelled answers are not here, by reason."""
        return self.examples.left_out

    @cached_property
    def prompts(self) -> list[str]:
        """The prompts' texts, read when first asked for."""
        return [entry.prompt for entry in self.examples.entries()]

    @cached_property
    def responses(self) -> list[str]:
        """The answers' texts, read when first asked for."""
        return [entry.response for entry in self.examples.entries()]

    @cached_property
    def logprobs(self) -> list[list[float | None] | None]:
        """The log-probabilities of each answer's tokens, None where they were not asked for."""
        return [entry.logprobs for entry in self.examples.entries()]

    def __reduce__(self) -> tuple[Any, ...]:
        """What travels to another process: where the states are, not the states."""
        return Dataset, (self.examples, self.layer, self.position)

    def batches(
        self, size: int = 256
    ) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]]:
        """``(X, y)`` in order, ``size`` answers at a time, for more than fits into memory."""
        for start in range(0, len(self), size):
            index = np.arange(start, min(start + size, len(self)))
            part = self.examples.take(index, why="in another batch")
            yield Dataset(part, self.layer, self.position).X, part.y

    def torch(self) -> Any:
        """A ``torch.utils.data.Dataset`` of ``(state, class)``, reading as it is indexed.

        It may be pickled, and used by several workers of a DataLoader.
        """
        from activation_logging.dataset.torch_dataset import StateDataset

        return StateDataset(self)

    def __len__(self) -> int:
        return len(self.examples)

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in self.examples.counts().items())
        return f"Dataset({counts}; layer {self.layer}, {self.position}, {self.examples.model})"


def make_dataset(
    store: Store,
    label: str | None = None,
    *,
    layer: AnySite = "last",
    position: str | int = "response_last",
    positive: Label = "hallucinated",
    negative: Label = "correct",
    model: str | None = None,
    tags: Mapping[str, str] | None = None,
    group: Sequence[str] = GROUP_TAGS,
    broken: Broken = "error",
    progress: Progress = silent,
) -> Dataset:
    """The answers that one evaluator has judged, with the state of one layer at one position.

    Args:
        store: an open store.
        label: the evaluator's name, such as ``short_facts``; may be left out if there is one.
        layer: a logged layer's number, ``last``, a site such as ``heads@15``, or one head of it
            such as ``heads@15.3``.
        position: one of :data:`.NAMED_POSITIONS` or an index, see :mod:`.positions`.
        positive: the label that becomes 1.
        negative: the label that becomes 0. Refused, invalid and other answers are left out and
            counted in ``left_out``.
        model: only this model's answers.
        tags: only answers that carry all of these tags.
        group: tags that name what an answer is about; answers that share one, or their prompt,
            are one group.
        broken: what to do with answers whose states are missing or not finite.
        progress: told how far the reading is.

    Raises:
        DatasetError: there is nothing to learn from, or it is mixed; says what to do.
    """
    examples = select_examples(
        store,
        label,
        positive=positive,
        negative=negative,
        model=model,
        tags=tags,
        group=group,
        broken=broken,
        progress=progress,
    )
    labels, name = examples.labels_of([layer]), parse_position(position)
    if len(labels) > 1:
        raise DatasetError(f"{layer} names {len(labels)} heads; choose one, such as {labels[0]}")
    examples = _with_position(examples, name)
    if broken == "skip":
        examples = finite(examples, labels, [name], progress=progress)
    refuse_one_class(examples)
    return Dataset(examples, labels[0], name, progress)


def _with_position(examples: Examples, position: str | int) -> Examples:
    """Only the examples that have a state at ``position``; the others are counted by reason."""
    reasons = locate(examples, [position]).reasons[:, 0]
    missing = sorted(set(reasons) - {""})
    for reason in missing:
        keep = reasons != reason
        examples, reasons = examples.take(np.flatnonzero(keep), why=reason), reasons[keep]
    if not len(examples):
        raise DatasetError(f"no answer has a state at {position} ({'; '.join(missing)})")
    return examples
