"""The whole study of the claims of one labelled store: sweep, choose, fit, evaluate."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from activation_logging.dataset.layers import in_order
from activation_logging.dataset.tokens import finite_tokens, select_tokens
from activation_logging.detectors.splits import MIN_PER_CLASS, make_folds
from activation_logging.detectors.tokens.answers import Chosen, highest_of_answers, pooled_probes
from activation_logging.detectors.tokens.cells import SHUFFLES, Cell, Split
from activation_logging.detectors.tokens.controls import controls, read
from activation_logging.detectors.tokens.evaluation import Evaluator, why_no_answers
from activation_logging.detectors.tokens.results import Place, TokenOptions, TokenStudy
from activation_logging.detectors.tokens.scored import Scored
from activation_logging.detectors.tokens.transfer import transfer_to, transfers_between
from activation_logging.errors import DatasetError
from activation_logging.extras import require
from activation_logging.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from activation_logging.dataset import Tokens
    from activation_logging.detectors.metrics import Interval
    from activation_logging.detectors.tokens.results import TokenRole, TokenTransfer
    from activation_logging.store import Store

_OBESO = "Obeso et al. 2025, arXiv:2509.03531"
_TITLES: Mapping[str, tuple[str, str, TokenRole]] = {
    "token_linear": ("Token probe", _OBESO, "probe"),
    "token_span_max": ("Token probe, maximum over claims", _OBESO, "probe"),
    "token_mix": ("Token probe, several layers", _OBESO, "probe"),
    "shuffled": ("Token probe, shuffled labels", "control", "check"),
}
_SMALL = 64 << 20
"""States of fewer bytes are fitted by one thread: more would wait for each other."""


def run_token_study(
    store: Store,
    label: str | None = None,
    options: TokenOptions | None = None,
    *,
    progress: Progress = silent,
) -> TokenStudy:
    """Fit and evaluate token probes on the claims that one evaluator has judged.

    Layer and penalty are chosen in each fold's training part. The states of one layer are in memory
    where they have up to 512 MiB; of more, a temporary file has them.

    Args:
        store: an open store.
        label: the evaluator's name; may be left out where only one has judged.
        options: which layers and penalties, how many folds, which seed.
        progress: told what is being done.

    Raises:
        DatasetError: the claims cannot be learned from, or there are too few; says what to do.
        ExtraMissing: scikit-learn is not installed.
    """
    require("detect", "sklearn")
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    options = options or TokenOptions()
    tokens, layers = _select(store, label, options, progress)
    small = len(tokens) * max(map(tokens.width_of, layers)) * 4 < _SMALL
    with threadpool_limits(1) if small else nullcontext():
        return _run(tokens, layers, options, progress)


def _run(
    tokens: Tokens, layers: Sequence[int | str], options: TokenOptions, progress: Progress
) -> TokenStudy:
    spans = tokens.spans
    folds = make_folds(
        spans.y, tokens.answer_groups[spans.answer], folds=options.folds, seed=options.seed
    )
    split = Split.of(tokens, folds)
    evaluator = Evaluator(tokens, folds, options.draws, options.seed)
    answers = evaluator.levels["answer"]
    cells = _sweep(split, layers, options, progress)
    chosen = split.choose(cells)
    place = _best(cells)
    span_max, shuffled = _at_chosen(split, chosen, options, progress)
    found = {
        "token_linear": [Chosen(cells, chosen)],
        "token_span_max": [Chosen(span_max, chosen)],
        "shuffled": [Chosen(drawn, chosen) for drawn in shuffled],
    }
    if mix := _mix(tokens, layers, options):
        mixed = split.cells(split.rows(mix), mix, options.strengths)
        found["token_mix"] = [Chosen(mixed, split.choose(mixed))]
    progress("scoring whole answers", 0, 1)
    scored, held_out_answers = _scored(split, found, Chosen(cells, [place] * len(folds)))
    left_out: dict[str, str] = {}
    if reason := why_no_answers(answers):
        left_out["Whole answers"] = reason
        scored = [one.without_answers() for one in scored]
    elif options.answers:
        scored += pooled_probes(split, answers.y, chosen, seed=options.seed, progress=progress)
    others, missing = controls(tokens, folds, None if left_out else answers, read(tokens, progress))
    progress("intervals", 0, 1)
    transfers, to_labels, why = _transfers(
        split, chosen, place, evaluator=evaluator, options=options, progress=progress
    )
    return TokenStudy(
        tokens=tokens,
        options=options,
        folds=folds,
        sweep={one: float(np.nanmean(cell.validation)) for one, cell in cells.items()},
        chosen=chosen,
        place=place,
        held_out=cells[place].token,
        held_out_answers=held_out_answers,
        wrong=answers.y,
        results=evaluator.results([*scored, *others]),
        transfers=transfers,
        to_labels=to_labels,
        left_out={**left_out, **missing, **why},
    )


def _select(
    store: Store, label: str | None, options: TokenOptions, progress: Progress
) -> tuple[Tokens, list[int | str]]:
    """The tokens to study, and the labels of the layers to choose from."""
    if not options.strengths or min(options.strengths) <= 0:
        raise DatasetError("strengths are inverse penalties to choose from, each above 0")
    tokens = select_tokens(
        store,
        label,
        unlabelled=options.unlabelled,
        model=options.model,
        tags=options.tags,
        group=options.group,
        broken=options.broken,
        progress=progress,
    )
    layers = tokens.labels_of(options.layers)
    mixed = tokens.labels_of(options.mix or ())
    if options.broken == "skip":
        for layer in in_order([*layers, *mixed]):
            tokens = finite_tokens(tokens.at(layer))
    for name, count in tokens.counts().items():
        if count < MIN_PER_CLASS:
            raise DatasetError(
                f"only {count} claims are {name}; a number from fewer than {MIN_PER_CLASS} would "
                "mean nothing: label more answers"
            )
    return tokens, layers


def _sweep(
    split: Split, layers: Sequence[int | str], options: TokenOptions, progress: Progress
) -> dict[Place, Cell]:
    """Probes of all folds at every layer, with every penalty; one layer is held at a time."""
    cells: dict[Place, Cell] = {}
    for number, layer in enumerate(layers):
        progress("fitting token probes", number, len(layers))
        cells |= split.cells(split.rows([layer]), (layer,), options.strengths)
        # Of a million tokens the scores of every place would not fit.
        kept = {_best(cells), *split.choose(cells)}
        cells = {one: cell if one in kept else cell.without_scores() for one, cell in cells.items()}
    progress("fitting token probes", len(layers), len(layers))
    return cells


def _at_chosen(
    split: Split, chosen: Sequence[Place], options: TokenOptions, progress: Progress
) -> tuple[dict[Place, Cell], list[dict[Place, Cell]]]:
    """At the place of each fold: probes of the maximum over claims, and of shuffled labels."""
    span_max: dict[Place, Cell] = {}
    shuffled: list[dict[Place, Cell]] = [{} for _ in range(SHUFFLES)]
    everywhere = sorted({place.layers for place in chosen}, key=str)
    for number, layers in enumerate(everywhere):
        progress("fitting the maximum over claims", number, len(everywhere))
        rows = split.rows(layers)
        strengths = sorted({place.C for place in chosen if place.layers == layers})
        span_max |= split.cells(rows, layers, strengths, span_max=True)
        drawn = split.shuffled(rows, layers, strengths, options.seed)
        shuffled = [{**one, **new} for one, new in zip(shuffled, drawn, strict=True)]
    return span_max, shuffled


def _mix(
    tokens: Tokens, layers: Sequence[int | str], options: TokenOptions
) -> tuple[int | str, ...]:
    """The layers to concatenate: those asked for, or three spread evenly."""
    if options.mix is not None:
        return tuple(tokens.labels_of(options.mix))
    if len(layers) < 4:
        return ()
    return tuple(layers[round(share * (len(layers) - 1))] for share in (0.25, 0.5, 0.75))


def _transfers(
    split: Split,
    chosen: Sequence[Place],
    place: Place,
    *,
    evaluator: Evaluator,
    options: TokenOptions,
    progress: Progress,
) -> tuple[list[TokenTransfer], dict[str, Interval], dict[str, str]]:
    """Between kinds of claims, to other evaluators' claims, and why some are left out."""
    total = 1 + len(options.transfer_to)
    progress("fitting on one kind, testing on others", 0, total)
    found, why = transfers_between(options.transfer_by, split, chosen, evaluator)
    to_labels = {}
    for number, label in enumerate(options.transfer_to, start=1):
        progress("fitting on one kind, testing on others", number, total)
        to_labels[label] = transfer_to(label, split, place, options)
    return found, to_labels, {f"Transfer by {tag}": reason for tag, reason in why.items()}


def _best(cells: Mapping[Place, Cell]) -> Place:
    """The place with the best mean over the validation parts, the first of several equal ones."""
    return max(cells, key=lambda place: float(np.nanmean(cells[place].validation)))


def _scored(
    split: Split, found: Mapping[str, Sequence[Chosen]], best: Chosen
) -> tuple[list[Scored], npt.NDArray[np.float64]]:
    """The scores of linear probes, by name: of tokens, claims and answers; and answers' of one."""
    every = [best, *(one for draws in found.values() for one in draws)]
    of_best, *others = highest_of_answers(split, every)
    highest = iter(others)
    rows = []
    for name, draws in found.items():
        first, *more = [
            replace(split.combined(one.cells, one.places), answer=next(highest)) for one in draws
        ]
        rows.append(Scored(name, *_TITLES[name], first, draws[0].places, more))
    return rows, of_best
