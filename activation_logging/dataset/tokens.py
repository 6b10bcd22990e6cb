"""From judged spans to rows: the tokens of every claim, each with its own state.

Token ``i`` of an answer stands at position ``P + i``. Its *own* state is the row of that position:
the first state that has read the token. The last token that was sampled was never fed to the model
and has none, so it is left out, and counted; so is a token whose row was not logged.

=========== ==========================================================================
a token of  is
=========== ==========================================================================
a claim     1 where the claim is ``contradicted``, 0 where it is ``supported``
two claims  a row for each of them
a claim     left out where it is ``unverifiable``
no claim    left out, or a 0 of a small weight: the option ``unlabelled``
=========== ==========================================================================

The tokens of a claim share a weight of 1, so that a claim counts once, however long it is.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from activation_logging.dataset.examples import Broken, check_broken, scan
from activation_logging.dataset.features import read_rows
from activation_logging.dataset.groups import join_groups
from activation_logging.dataset.layers import Source, labels_of
from activation_logging.dataset.spans import (
    Spans,
    TokenRows,
    collect,
    refuse_nothing,
    refuse_one_class,
)
from activation_logging.errors import DatasetError
from activation_logging.progress import Progress, silent, track
from activation_logging.records import LABELS
from activation_logging.sites import PRENORM, RESID, AnySite, Site
from activation_logging.store.query import Filter
from activation_logging.tags import GROUP_TAGS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from activation_logging.dataset.positions import Place
    from activation_logging.store import Entry, Store

BATCH = 8192
"""Tokens of a batch, unless a single answer has more."""

Ints = npt.NDArray[np.int64]
States = npt.NDArray[np.float32]


class TokenBatch(NamedTuple):
    """Some tokens, with their states ``X``, float32 ``[n, width]``.

    The others are ``[n]``: ``y`` the class, ``span`` and ``answer`` the numbers of the claim (-1
    for none) and of the answer, ``token`` the place among the answer's tokens, ``group`` what the
    answer is about, ``weight`` what the token counts for. A claim is never cut in two.
    """

    X: States
    y: Ints
    span: Ints
    answer: Ints
    token: Ints
    group: npt.NDArray[np.str_]
    weight: npt.NDArray[np.float64]


class RunBatch(NamedTuple):
    """Whole answers: the states of all their tokens that have one, ``X`` ``[n, width]``.

    ``answer`` and ``token`` are ``[n]``, as in :class:`TokenBatch`. No answer is cut in two.
    """

    X: States
    answer: Ints
    token: Ints


@dataclass(frozen=True)
class Tokens:
    """The tokens of judged claims; beside the states, about 100 bytes a token are in memory.

    ``rows`` has what is known of each token, ``spans`` of each claim. ``keys``, ``tags``,
    ``places`` and ``answer_groups`` are of the answers, in the order of writing. ``layers`` are the
    labels of what a state is made of: several are concatenated, in order. ``left_out`` counts
    claims, tokens and answers that are not here, by reason.

    Iterating gives :meth:`batches`.
    """

    store: Store
    label: str
    model: str
    num_layers: int
    shapes: Mapping[Site, tuple[int, ...]]
    layers: Sequence[int | str]
    keys: Sequence[str]
    tags: Sequence[Mapping[str, str]]
    places: Sequence[Place]
    answer_groups: npt.NDArray[np.str_]
    rows: TokenRows
    spans: Spans
    left_out: Mapping[str, int] = field(default_factory=dict)
    broken: Broken = "error"
    progress: Progress = silent

    def __len__(self) -> int:
        return len(self.rows.y)

    @property
    def y(self) -> Ints:
        """Classes, ``[n]``: 1 for contradicted."""
        return self.rows.y

    @property
    def weights(self) -> npt.NDArray[np.float64]:
        """What each token counts for, ``[n]``."""
        return self.rows.weight

    @property
    def groups(self) -> npt.NDArray[np.str_]:
        """What each token's answer is about, ``[n]``; never split one over train and test."""
        return np.asarray(self.answer_groups[self.rows.answer])

    @property
    def types(self) -> npt.NDArray[np.str_]:
        """The type of claim that each token belongs to, ``[n]``; empty where there is none."""
        return np.append(self.spans.type, "")[self.rows.span]

    @property
    def width(self) -> int:
        """Number of elements of a state."""
        return sum(self.width_of(layer) for layer in self.layers)

    @cached_property
    def X(self) -> States:
        """All states, float32 ``[n, width]``, read when first asked for; they must fit in memory.

        Raises:
            DatasetError: a state is not finite.
        """
        found = np.empty((len(self), self.width), np.float32)
        at = 0
        for batch in self.batches():
            found[at : at + len(batch.X)] = batch.X
            at += len(batch.X)
        return found

    def at(self, *layers: AnySite) -> Tokens:
        """The same tokens with the states of other layers or sites, concatenated.

        Raises:
            DatasetError: one was not logged for all answers, or is several heads.
        """
        found: list[int | str] = []
        for one in layers:
            labels = self.labels_of([one])
            if len(labels) > 1:
                raise DatasetError(
                    f"{one} names {len(labels)} places; choose one, such as {labels[0]}"
                )
            found += labels
        if not found:
            raise DatasetError("no layer is named; a state is read from one layer or more")
        return replace(self, layers=found)

    def labels_of(self, layers: Iterable[AnySite] | None = None) -> list[int | str]:
        """Labels of layers, sites and heads, in order, each once; see :mod:`.layers`.

        Args:
            layers: None for all of the residual stream, or all sites where none of it was logged.

        Raises:
            DatasetError: one is invalid, or not every answer has it.
        """
        if layers is None:
            stream = [site for site in self.shapes if site.name == RESID]
            layers = stream or self.shapes
        return labels_of(layers, self.shapes, num_layers=self.num_layers, answers=len(self.keys))

    def batches(self, size: int = BATCH) -> Iterator[TokenBatch]:
        """All tokens in order, about ``size`` at a time, for more than fits into memory.

        Raises:
            DatasetError: a state is not finite.
        """
        rows = self.rows
        bounds = np.searchsorted(rows.answer, np.arange(len(self.keys) + 1))
        for first, last in self._parts(np.diff(bounds), size):
            part = slice(bounds[first], bounds[last])
            X = np.empty((part.stop - part.start, self.width), np.float32)
            for number in range(first, last):
                own = rows.row[bounds[number] : bounds[number + 1]]
                states = self._read(number, int(own.min()), int(own.max()) + 1)
                X[bounds[number] - part.start : bounds[number + 1] - part.start] = states[
                    own - own.min()
                ]
            self._refuse_nan(X, rows.answer[part])
            yield TokenBatch(
                X,
                rows.y[part],
                rows.span[part],
                rows.answer[part],
                rows.token[part],
                self.answer_groups[rows.answer[part]],
                rows.weight[part],
            )

    def __iter__(self) -> Iterator[TokenBatch]:
        return self.batches()

    def whole_answers(self, size: int = BATCH) -> Iterator[RunBatch]:
        """Every token of these answers that has a state, judged or not.

        Raises:
            DatasetError: a state is not finite, unless ``broken`` says to skip it.
        """
        starts, counts = np.array([_own_rows(place) for place in self.places]).T
        skip = starts + [place.first - place.num_prompt for place in self.places]
        for first, last in self._parts(counts, size):
            numbers = range(first, last)
            X = np.concatenate([self._read(n, starts[n], starts[n] + counts[n]) for n in numbers])
            answer = np.repeat(np.arange(first, last), counts[first:last])
            token = np.concatenate([skip[n] + np.arange(counts[n]) for n in numbers])
            if self.broken == "skip" and not _all_finite(X):
                good = np.isfinite(X).all(axis=1)
                X, answer, token = X[good], answer[good], token[good]
            self._refuse_nan(X, answer)
            yield RunBatch(X, answer, token)

    def entries(self) -> Iterator[Entry]:
        """The answers' entries, one at a time."""
        for key in self.keys:
            yield self.store[key]

    def counts(self) -> dict[str, int]:
        """Number of claims of each class."""
        wrong = int(self.spans.y.sum())
        return {"contradicted": wrong, "supported": len(self.spans.y) - wrong}

    def without(self, bad: npt.NDArray[np.bool_], why: str) -> Tokens:
        """All but some tokens, ``[n]``; claims and answers that lose all of theirs go too."""
        if not bad.any():
            return self
        rows, spans, kept = self.rows.without(bad, self.spans)
        return replace(
            self,
            keys=[self.keys[i] for i in kept],
            tags=[self.tags[i] for i in kept],
            places=[self.places[i] for i in kept],
            answer_groups=self.answer_groups[kept],
            rows=rows,
            spans=spans,
            left_out={**self.left_out, why: self.left_out.get(why, 0) + int(bad.sum())},
        )

    def _parts(self, counts: Ints, size: int) -> Iterator[tuple[int, int]]:
        """First and last (not included) answers of each batch."""
        first, total = 0, 0
        what = f"reading the tokens' states at {'+'.join(map(str, self.layers))}"
        for number, count in enumerate(track(counts, what, len(counts), self.progress)):
            if total and total + count > size:
                yield first, number
                first, total = number, 0
            total += int(count)
        if total:
            yield first, len(counts)

    def _read(self, number: int, start: int, stop: int) -> States:
        entry = self.store[self.keys[number]]
        parts = [read_rows(entry, layer, start, stop) for layer in self.layers]
        joined = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        return joined.astype(np.float32, copy=False)

    def width_of(self, layer: int | str) -> int:
        """Number of elements of a state of one layer or site."""
        source = Source.of(layer, self.num_layers)
        return source.width(self.shapes[source.site])

    def _refuse_nan(self, X: States, answer: Ints) -> None:
        if _all_finite(X):
            return
        bad = ~np.isfinite(X).all(axis=1)
        raise DatasetError(
            f"{int(bad.sum())} tokens have states that are not finite (the first: of "
            f"{self.keys[answer[bad][0]]}, layer {self.layers[0]}); the model or its number format "
            "overflowed there: delete those answers, or leave the tokens out (broken='skip')"
        )

    def __repr__(self) -> str:
        claims = ", ".join(f"{count} {name}" for name, count in self.counts().items())
        layers = "+".join(map(str, self.layers))
        return f"Tokens({len(self)} of {claims}; layer {layers}, {self.model})"


def make_tokens(
    store: Store,
    label: str | None = None,
    *,
    layer: AnySite | Sequence[AnySite] = "last",
    site: str | None = None,
    unlabelled: float = 0.0,
    model: str | None = None,
    tags: Mapping[str, str] | None = None,
    group: Sequence[str] = GROUP_TAGS,
    broken: Broken = "error",
    progress: Progress = silent,
) -> Tokens:
    """The tokens of the claims that one evaluator has judged, with their states.

    Args:
        store: an open store.
        label: the evaluator's name; may be left out if there is one.
        layer: a logged layer's number, ``last``, a site such as ``heads@15``, one head of it such
            as ``heads@15.3``, or a list of these, whose states are concatenated.
        site: a kind of site, of which ``layer`` names the layer, or a whole one (``heads@15``).
        unlabelled: weight of a token that no claim touches, as one that is not contradicted; a
            claim has 1. Obeso et al. 2025 (arXiv:2509.03531) give such tokens a tenth. 0 leaves
            them out.
        model: only this model's answers.
        tags: only answers that carry all of these tags.
        group: tags that name what an answer is about; answers that share one, or their prompt,
            are one group.
        broken: what to do with answers and tokens whose states are missing or not finite.
        progress: told how far the scan and the reading are.

    Raises:
        DatasetError: there is nothing to learn from, or it is mixed; says what to do.
    """
    tokens = select_tokens(
        store,
        label,
        unlabelled=unlabelled,
        model=model,
        tags=tags,
        group=group,
        broken=broken,
        progress=progress,
    ).at(*_given(layer, site))
    return finite_tokens(tokens) if broken == "skip" else tokens


def select_tokens(
    store: Store,
    label: str | None = None,
    *,
    unlabelled: float = 0.0,
    model: str | None = None,
    tags: Mapping[str, str] | None = None,
    group: Sequence[str] = GROUP_TAGS,
    broken: Broken = "error",
    progress: Progress = silent,
) -> Tokens:
    """The tokens of :func:`make_tokens`, of no layer yet; :meth:`Tokens.at` gives them states.

    Raises:
        DatasetError: there is nothing to learn from, or it is mixed; says what to do.
    """
    if not 0 <= unlabelled < float("inf"):
        raise DatasetError(f"unlabelled is {unlabelled}: a weight of 0 or more is needed")
    check_broken(broken)
    found_spans: dict[str, Any] = {}
    found = scan(
        store,
        label,
        classes=LABELS,
        wanted=Filter(model=model, tags=tags),
        group=group,
        progress=progress,
        each=lambda entry, verdict: found_spans.update({entry.key: collect(entry, verdict)}),
    )
    if broken == "error":
        found.refuse_incomplete()
    left_out = Counter(found.left_out)
    for judged in found_spans.values():
        left_out.update(judged.left_out)
    answers = []
    for answer in found.answers:
        if len(found_spans[answer.key].y):
            answers.append(answer)
        else:
            left_out["answers without a judged claim that has a state"] += 1
    found.answers = answers
    refuse_nothing(found.label, len(found_spans), found_spans, left_out)
    found.refuse_mixtures()
    rows, spans = TokenRows.joined([found_spans[answer.key] for answer in answers], unlabelled)
    refuse_one_class(spans, left_out)
    return Tokens(
        store=store,
        label=found.label,
        model=answers[0].model,
        num_layers=answers[0].num_layers,
        shapes=found.shapes(),
        layers=(),
        keys=[answer.key for answer in answers],
        tags=[answer.tags for answer in answers],
        places=[answer.place for answer in answers],
        answer_groups=join_groups([answer.subjects for answer in answers]),
        rows=rows,
        spans=spans,
        left_out=dict(left_out),
        broken=broken,
        progress=progress,
    )


def finite_tokens(tokens: Tokens) -> Tokens:
    """Only the tokens whose states are all finite; the others are counted."""
    bad = np.zeros(len(tokens), bool)
    bounds = np.searchsorted(tokens.rows.answer, np.arange(len(tokens.keys) + 1))
    for number in range(len(tokens.keys)):
        own = tokens.rows.row[bounds[number] : bounds[number + 1]]
        states = tokens._read(number, int(own.min()), int(own.max()) + 1)  # noqa: SLF001 - ours
        bad[bounds[number] : bounds[number + 1]] = ~np.isfinite(states[own - own.min()]).all(axis=1)
    found = tokens.without(bad, "tokens with states that are not finite")
    refuse_one_class(found.spans, Counter(found.left_out))
    return found


def _all_finite(X: States) -> bool:
    # A sum is finite only where all of its parts are, and is found faster.
    with np.errstate(invalid="ignore"):
        return bool(np.isfinite(X.sum(dtype=np.float64)) or np.isfinite(X).all())


def _own_rows(place: Place) -> tuple[int, int]:
    """The first row of an answer's own tokens, and their number."""
    start = max(place.num_prompt - place.first, 0)
    read = place.num_response - place.num_unread
    stop = min(place.num_prompt + read - place.first, place.num_rows)
    return start, max(stop - start, 0)


def _given(layer: AnySite | Sequence[AnySite], site: str | None) -> Sequence[AnySite]:
    layers = [layer] if isinstance(layer, (int, str, Site)) else list(layer)
    if site is None:
        return layers
    whole = "@" in site or site == PRENORM
    return [site] if whole else [f"{site}@{one}" for one in layers]
