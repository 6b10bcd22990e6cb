"""Choosing the answers to learn from: which entries, with which class, in which group.

Everything that would make a figure mean something else than it says is refused here by name:
no labels, one class, several models, answers whose rows are not all there.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from activation_logging.dataset.positions import Place, place_of
from activation_logging.errors import DatasetError
from activation_logging.progress import Progress, silent, track
from activation_logging.records import LABELS, Label
from activation_logging.store.query import is_named, select
from activation_logging.store.statistics import counts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from activation_logging.store import Entry, Store
    from activation_logging.store.statistics import Counts

PROBE_JUDGE = "probe"
"""The judge of the labels that ``activation-logging score --write`` leaves."""

GROUP_TAGS = ("group", "entity")
"""Tags that name what an answer is about, as the benchmarks write them."""

Broken = Literal["error", "skip"]
"""What to do with labelled answers whose rows are missing or not finite."""


@dataclass(frozen=True)
class Examples:
    """Labelled answers, without their activations.

    ``y`` is 1 for the positive label and 0 for the negative one, ``groups`` the entity that each
    answer is about. ``left_out`` counts the answers that are not here, by reason.
    """

    store: Store
    label: str
    positive: str
    negative: str
    model: str
    keys: Sequence[str]
    y: npt.NDArray[np.int64]
    groups: npt.NDArray[np.str_]
    tags: Sequence[Mapping[str, str]]
    places: Sequence[Place]
    layers: tuple[int, ...]
    num_layers: int
    hidden_size: int
    dtypes: Mapping[str, int]
    grouped_by: Mapping[str, int]
    left_out: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, index: npt.NDArray[np.int64], *, why: str) -> Examples:
        """Only these examples; the others are counted under ``why``."""
        gone = len(self) - len(index)
        return replace(
            self,
            keys=[self.keys[i] for i in index],
            y=self.y[index],
            groups=self.groups[index],
            tags=[self.tags[i] for i in index],
            places=[self.places[i] for i in index],
            left_out={**self.left_out, why: self.left_out.get(why, 0) + gone}
            if gone
            else self.left_out,
        )

    def entries(self) -> Iterator[Entry]:
        """The entries, one at a time."""
        for key in self.keys:
            yield self.store[key]

    def counts(self) -> dict[str, int]:
        """Number of examples of each class."""
        ones = int(self.y.sum())
        return {self.positive: ones, self.negative: len(self) - ones}

    def layer_number(self, layer: int | str) -> int:
        """The number of a layer; ``last`` is the one after the final norm.

        Raises:
            DatasetError: not every example has it.
        """
        try:
            number = self.num_layers if layer == "last" else int(layer)
        except ValueError:
            raise DatasetError(f"layer {layer!r} is not a number or 'last'") from None
        if number not in self.layers:
            raise DatasetError(
                f"layer {layer} is not there for all {len(self)} answers; the layers that all of "
                f"them have are {', '.join(map(str, self.layers))} (last is {self.num_layers})"
            )
        return number


def select_examples(
    store: Store,
    label: str | None = None,
    *,
    positive: Label = "hallucinated",
    negative: Label = "correct",
    model: str | None = None,
    tags: Mapping[str, str] | None = None,
    group: Sequence[str] = GROUP_TAGS,
    broken: Broken = "error",
    progress: Progress = silent,
) -> Examples:
    """Find the answers of a store that one evaluator has judged.

    Args:
        store: where to look.
        label: the evaluator's name; may be left out where only one has judged.
        positive: the class that is 1.
        negative: the class that is 0. Answers with any other label are left out and counted.
        model: only this model's answers; needed where the store holds several models'.
        tags: only answers that carry all of these tags.
        group: tags that name what an answer is about: answers that share one of them, or their
            prompt, are one group.
        broken: ``error`` refuses answers whose rows are incomplete, ``skip`` leaves them out.
        progress: told how far the scan is.

    Raises:
        DatasetError: there is nothing to learn from, or it is mixed; says what to do.
    """
    for name in (positive, negative):
        if name not in LABELS:
            raise DatasetError(f"label {name!r} is not one of {', '.join(LABELS)}")
    if positive == negative:
        raise DatasetError(f"the two classes are both {positive!r}; name two labels")
    found = _scan(store, label, model, tags or {}, group, (positive, negative), broken, progress)
    if not found.rows:
        raise DatasetError(
            f"no answer with the label {positive} or {negative} by {found.label} is left"
            + _listing(found.left_out)
        )
    found.refuse_mixtures()
    first = found.rows[0]
    examples = Examples(
        store=store,
        label=found.label,
        positive=positive,
        negative=negative,
        model=first.model,
        keys=[row.key for row in found.rows],
        y=np.array([row.label == positive for row in found.rows], dtype=np.int64),
        groups=join_groups([row.about for row in found.rows]),
        tags=[row.tags for row in found.rows],
        places=[row.place for row in found.rows],
        layers=found.common_layers(),
        num_layers=first.num_layers,
        hidden_size=first.hidden_size,
        dtypes=dict(Counter(row.dtype for row in found.rows)),
        grouped_by=dict(Counter(row.about[0].partition(": ")[0] for row in found.rows)),
        left_out=dict(found.left_out),
    )
    refuse_one_class(examples)
    return examples


def refuse_one_class(examples: Examples) -> None:
    """Raise DatasetError unless both classes are there."""
    for name, count in examples.counts().items():
        if not count:
            other = max(examples.counts().values())
            raise DatasetError(
                f"none of the {other} answers is {name}: one class cannot be told from nothing; "
                "label more answers, or choose other classes" + _listing(examples.left_out)
            )


def join_groups(about: Sequence[Sequence[str]]) -> npt.NDArray[np.str_]:
    """The group of each answer, ``[n]``: answers that share any name are one group.

    Args:
        about: for each answer everything that it is about; the first name becomes the group's.
    """
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        parent.setdefault(name, name)
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for names in about:
        first = root(names[0])
        for other in names[1:]:
            parent[root(other)] = first
    return np.array([root(names[0]) for names in about])


@dataclass(frozen=True)
class _Row:
    key: str
    label: str
    model: str
    about: Sequence[str]
    tags: Mapping[str, str]
    place: Place
    layers: tuple[int, ...]
    num_layers: int
    hidden_size: int
    dtype: str


@dataclass
class _Found:
    label: str
    rows: list[_Row]
    left_out: Counter[str]

    def common_layers(self) -> tuple[int, ...]:
        return tuple(sorted(set.intersection(*(set(row.layers) for row in self.rows))))

    def refuse_mixtures(self) -> None:
        models = Counter(row.model for row in self.rows)
        if len(models) > 1:
            raise DatasetError(
                f"the labelled answers are of {len(models)} models{_listing(models)}; "
                "choose one (model=, --model)"
            )
        shapes = Counter(f"{row.num_layers} layers of {row.hidden_size}" for row in self.rows)
        if len(shapes) > 1:
            raise DatasetError(
                f"answers of {self.rows[0].model} have different shapes{_listing(shapes)}: two "
                "models were served under one name; choose one by a tag (tags=, --tag)"
            )
        layers = Counter(",".join(map(str, row.layers)) for row in self.rows)
        if len(layers) > 1 and not self.common_layers():
            raise DatasetError(
                f"the labelled answers share no layer{_listing(layers)}; choose some by a tag "
                "(tags=, --tag), or ask the questions again with the same layers"
            )


def _scan(  # noqa: PLR0917 - one caller
    store: Store,
    label: str | None,
    model: str | None,
    tags: Mapping[str, str],
    group: Sequence[str],
    classes: Sequence[str],
    broken: Broken,
    progress: Progress,
) -> _Found:
    # A store without an index has to be walked through, which takes its time.
    all_counts = counts(store, progress)
    label = _evaluator(store, label, all_counts)
    number = all_counts.labels[label].total()
    found: list[tuple[int, _Row]] = []
    left_out: Counter[str] = Counter()
    if number < all_counts.entries:
        left_out["without this label"] = all_counts.entries - number
    halves: list[str] = []
    seen_models: Counter[str] = Counter()
    labelled = select(store, evaluator=label, newest_first=False)
    for entry in track(labelled, "looking for labels", number, progress):
        verdict = entry.evaluations.get(label)
        if verdict is None:
            continue
        own = entry.tags
        seen_models[entry.model] += 1
        if model is not None and not is_named(entry.model, model):
            left_out["of another model"] += 1
        elif any(own.get(name) != value for name, value in tags.items()):
            left_out["with other tags"] += 1
        elif verdict.label not in classes:
            left_out[f"labelled {verdict.label}"] += 1
        elif entry.status != "complete":
            left_out["without all of their rows"] += 1
            halves.append(f"{entry.key} is {entry.status}: {entry.status_reason}")
        else:
            found.append((entry.sequence, _row(entry, verdict.label, own, group)))
    # In order of writing, on which folds depend, whether there is an index or not.
    rows = [row for _, row in sorted(found, key=itemgetter(0))]
    if not rows and model is not None and model not in seen_models:
        raise DatasetError(
            f"no labelled answer is by {model!r}; the models are{_listing(seen_models)}"
        )
    if halves and broken == "error":
        raise DatasetError(
            f"{len(halves)} labelled answers lack activations (the first: {halves[0]}); look at "
            "them with `activation-logging verify`, ask again, or leave them out (broken='skip', "
            "--skip-broken)"
        )
    return _Found(label, rows, left_out)


def _evaluator(store: Store, label: str | None, found: Counts) -> str:
    """The evaluator whose labels are meant.

    Raises:
        DatasetError: there is none of that name, or no name was given where several have judged.
    """
    # The labels that a probe has written are no truth to learn from, unless asked for.
    names = {
        name: sum(number for judge, number in judges.items() if judge != PROBE_JUDGE)
        for name, judges in found.judges.items()
    }
    names = {name: number for name, number in names.items() if number}
    if label is None and len(names) > 1:
        raise DatasetError(
            f"several evaluators have judged{_listing(names)}; choose one (label=, --label)"
        )
    chosen = next(iter(names), None) if label is None else label
    if chosen is None or chosen not in found.labels:
        raise DatasetError(_no_labels(store, label, names))
    return chosen


def _row(entry: Entry, label: str, tags: Mapping[str, str], group: Sequence[str]) -> _Row:
    # Folded, so that a name written in two ways is one entity.
    about = [
        f"{name}: {tags[name].strip().casefold()}" for name in group if tags.get(name, "").strip()
    ]
    return _Row(
        key=entry.key,
        label=label,
        model=entry.model,
        about=[*about, f"prompt: {entry.key.partition('#')[0]}"],
        tags=tags,
        place=place_of(entry),
        layers=entry.layers,
        num_layers=entry.num_layers,
        hidden_size=entry.hidden_size,
        dtype=entry.dtype,
    )


def _no_labels(store: Store, label: str | None, names: Mapping[str, int]) -> str:
    if not len(store):
        return f"{store.path} has no entries yet; serve a model and ask it something first"
    if not names:
        return (
            f"none of the {len(store)} answers in {store.path} has a label; run a benchmark "
            "(`activation-logging eval`), apply one (`activation-logging label`), or call "
            "store.put_evaluation"
        )
    return f"nothing is labelled by {label!r}; the evaluators are{_listing(names)}"


def _listing(counts: Mapping[str, int]) -> str:
    return f" ({', '.join(f'{name}: {count}' for name, count in counts.items())})" if counts else ""
