"""Choosing the answers to learn from: which entries, with which class, in which group.

What would make a number mean something else than it says is refused here by name: no labels, one
class, several models, answers whose rows are incomplete.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import numpy.typing as npt

from activation_logging.dataset.groups import join_groups, subjects_of
from activation_logging.dataset.layers import Source, labels_of
from activation_logging.dataset.positions import Place
from activation_logging.errors import DatasetError, StoreCorrupt
from activation_logging.progress import Progress, silent, track
from activation_logging.records import LABELS, Label
from activation_logging.sites import RESID, AnySite, Site
from activation_logging.store.query import Filter, select
from activation_logging.store.statistics import counts
from activation_logging.tags import GROUP_TAGS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from activation_logging.records import Evaluation
    from activation_logging.store import Entry, Store
    from activation_logging.store.statistics import Counts

PROBE_JUDGE = "probe"
"""The judge of the labels that ``activation-logging score --write`` leaves."""

Broken = Literal["error", "skip"]
"""What to do with labelled answers whose rows are missing or not finite."""


@dataclass(frozen=True)
class Examples:
    """Labelled answers, without their activations.

    ``y`` is 1 for the positive label and 0 for the negative one, ``groups`` the entity that each
    answer is about. ``layers`` are those of the residual stream that all answers have, ``shapes``
    all sites that they have, with the shape of a row. ``left_out`` counts the answers that are not
    here, by reason.
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
    shapes: Mapping[Site, tuple[int, ...]]
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

    def labels_of(self, layers: Iterable[AnySite] | None = None) -> list[int | str]:
        """Labels of layers, sites and heads, in order, each once; see :mod:`.layers`.

        Args:
            layers: None for all of the residual stream, or all sites where none of it was logged.

        Raises:
            DatasetError: one is invalid, or not every example has it.
        """
        return labels_of(
            (self.layers or self.shapes) if layers is None else layers,
            self.shapes,
            num_layers=self.num_layers,
            answers=len(self),
        )

    def width(self, label: int | str) -> int:
        """Number of elements of a feature that is read from there."""
        source = Source.of(label, self.num_layers)
        return source.width(self.shapes[source.site])


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
    check_broken(broken)
    found = scan(
        store,
        label,
        classes=(positive, negative),
        wanted=Filter(model=model, tags=tags),
        group=group,
        progress=progress,
    )
    if broken == "error":
        found.refuse_incomplete()
    if not found.answers:
        raise DatasetError(
            f"no answer with the label {positive} or {negative} by {found.label} is left"
            + listing(found.left_out)
        )
    found.refuse_mixtures()
    first = found.answers[0]
    examples = Examples(
        store=store,
        label=found.label,
        positive=positive,
        negative=negative,
        model=first.model,
        keys=[answer.key for answer in found.answers],
        y=np.array([answer.label == positive for answer in found.answers], dtype=np.int64),
        groups=join_groups([answer.subjects for answer in found.answers]),
        tags=[answer.tags for answer in found.answers],
        places=[answer.place for answer in found.answers],
        layers=found.common_layers(),
        shapes=found.shapes(),
        num_layers=first.num_layers,
        hidden_size=first.hidden_size,
        dtypes=dict(Counter(answer.dtype for answer in found.answers)),
        grouped_by=dict(Counter(answer.subjects[0].partition(": ")[0] for answer in found.answers)),
        left_out=dict(found.left_out),
    )
    refuse_one_class(examples)
    return examples


def check_broken(broken: str) -> None:
    """Raise DatasetError unless it is one of :data:`Broken`."""
    if broken not in get_args(Broken):
        raise DatasetError(f"broken is {broken!r}, not one of {', '.join(get_args(Broken))}")


def refuse_one_class(examples: Examples) -> None:
    """Raise DatasetError unless both classes are there."""
    for name, count in examples.counts().items():
        if not count:
            other = max(examples.counts().values())
            raise DatasetError(
                f"none of the {other} answers is {name}: one class cannot be told from nothing; "
                f"label more answers, or choose other classes{or_claims(examples)}"
                + listing(examples.left_out)
            )


def or_claims(examples: Examples) -> str:
    """What there is to learn from besides, where claims of the answers have been judged."""
    if not counts(examples.store).spans.get(examples.label):
        return ""
    return ", or learn from their claims (`activation-logging probe fit --kind token`)"


@dataclass(frozen=True)
class _Answer:
    sequence: int
    key: str
    label: str
    model: str
    subjects: Sequence[str]
    tags: Mapping[str, str]
    place: Place
    layers: tuple[int, ...]
    num_layers: int
    hidden_size: int
    dtype: str


@dataclass
class Found:
    """The answers that a scan took, and why it left out the others; see :func:`scan`."""

    label: str
    classes: Sequence[str]
    wanted: Filter
    group: Sequence[str]
    each: Callable[[Entry, Evaluation], object] | None = None
    answers: list[_Answer] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    incomplete: list[str] = field(default_factory=list)
    sites: set[tuple[Site, tuple[int, ...]]] = field(default_factory=set)

    def look_at(self, entry: Entry, verdict: Evaluation) -> None:
        """Take an answer, or count why not."""
        if reason := self.wanted.why_not(entry):
            self.left_out[reason] += 1
        elif verdict.label not in self.classes:
            self.left_out[f"labelled {verdict.label}"] += 1
        elif entry.status == "unkept":
            self.left_out["whose rows were not kept"] += 1
        elif entry.status != "complete":
            self.left_out["without all of their rows"] += 1
            self.incomplete.append(f"{entry.key} is {entry.status}: {entry.status_reason}")
        else:
            self._take(entry, verdict)

    def _take(self, entry: Entry, verdict: Evaluation) -> None:
        """Keep an answer; of the sites besides the residual stream those that all have."""
        others = {(site, entry.shape_of(site).shape) for site in entry.sites if site.name != RESID}
        answer = _answer(entry, verdict, self.group)
        if self.each is not None:
            self.each(entry, verdict)
        self.sites = self.sites & others if self.answers else others
        self.answers.append(answer)

    def common_layers(self) -> tuple[int, ...]:
        return tuple(sorted(set.intersection(*(set(answer.layers) for answer in self.answers))))

    def shapes(self) -> dict[Site, tuple[int, ...]]:
        """The sites that all answers have, with the shape of a row."""
        hidden = (self.answers[0].hidden_size,)
        of_layers = {Site(RESID, layer): hidden for layer in self.common_layers()}
        return {**of_layers, **dict(sorted(self.sites, key=lambda pair: pair[0].code))}

    def refuse_incomplete(self) -> None:
        if self.incomplete:
            raise DatasetError(
                f"{len(self.incomplete)} labelled answers lack activations or are damaged (the "
                f"first: {self.incomplete[0]}); look at them with `activation-logging verify`, ask "
                "again, or leave them out (broken='skip', --skip-broken)"
            )

    def refuse_mixtures(self) -> None:
        models = Counter(answer.model for answer in self.answers)
        if len(models) > 1:
            raise DatasetError(
                f"the labelled answers are of {len(models)} models{listing(models)}; "
                "choose one (model=, --model)"
            )
        shapes = Counter(f"{a.num_layers} layers of {a.hidden_size}" for a in self.answers)
        if len(shapes) > 1:
            raise DatasetError(
                f"answers of {self.answers[0].model} have different shapes{listing(shapes)}: two "
                "models were served under one name; choose one by a tag (tags=, --tag)"
            )
        layers = Counter(",".join(map(str, answer.layers)) for answer in self.answers)
        if len(layers) > 1 and not (self.common_layers() or self.sites):
            raise DatasetError(
                f"the labelled answers share no layer{listing(layers)}; choose some by a tag "
                "(tags=, --tag), or ask the questions again with the same layers"
            )


def scan(
    store: Store,
    label: str | None,
    *,
    classes: Sequence[str],
    wanted: Filter,
    group: Sequence[str],
    progress: Progress,
    each: Callable[[Entry, Evaluation], object] | None = None,
) -> Found:
    """Walk through what one evaluator has judged.

    Args:
        store: where to look.
        label: the evaluator's name; may be left out where only one has judged.
        classes: labels of answers to take; others are counted.
        wanted: which entries to take; others are counted.
        group: as for :func:`select_examples`.
        progress: told how far it is.
        each: called for every answer that is taken, in no order.

    Raises:
        DatasetError: there is no such evaluator, or no answer by that model.
    """
    if isinstance(group, str):
        raise DatasetError(f"group is a list of names of tags, such as [{group!r}], not a text")
    # A store without an index has to be walked through, which takes its time.
    all_counts = counts(store, progress)
    found = Found(choose_evaluator(store, label, all_counts), classes, wanted, group, each)
    number = all_counts.labels[found.label].total()
    if number < all_counts.entries:
        found.left_out["without this label"] = all_counts.entries - number
    models: Counter[str] = Counter()
    labelled = select(store, evaluator=found.label, newest_first=False)
    for entry in track(labelled, "looking for labels", number, progress):
        try:
            verdict = entry.evaluations.get(found.label)
            if verdict is not None:
                models[entry.model] += 1
                found.look_at(entry, verdict)
        except StoreCorrupt as error:  # noqa: PERF203 - one that is damaged hides no other
            found.left_out["that cannot be read"] += 1
            found.incomplete.append(str(error))
    if not found.answers and wanted.model is not None and wanted.model not in models:
        raise DatasetError(
            f"no labelled answer is by {wanted.model!r}; the models are{listing(models)}"
        )
    # In order of writing, on which folds depend, whether there is an index or not.
    found.answers.sort(key=attrgetter("sequence"))
    return found


def choose_evaluator(store: Store, label: str | None, found: Counts) -> str:
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
            f"several evaluators have judged{listing(names)}; choose one (label=, --label)"
        )
    chosen = next(iter(names), None) if label is None else label
    if chosen is None or chosen not in found.labels:
        raise DatasetError(_no_labels(store, label, names))
    return chosen


def _answer(entry: Entry, verdict: Evaluation, group: Sequence[str]) -> _Answer:
    return _Answer(
        sequence=entry.sequence,
        key=entry.key,
        label=verdict.label,
        model=entry.model,
        subjects=subjects_of(entry, group),
        tags=entry.tags,
        place=Place.of(entry, evaluations=[verdict]),
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
    return f"nothing is labelled by {label!r}; the evaluators are{listing(names)}"


def listing(counts: Mapping[str, int]) -> str:
    return f" ({', '.join(f'{name}: {count}' for name, count in counts.items())})" if counts else ""
