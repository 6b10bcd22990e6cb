"""One pass of a model over each answer of a plan, proven by its rows, and kept beside the entry."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from activation_logging.errors import EntryNotFound, ReplayError, RowsMissing
from activation_logging.extras import version_of
from activation_logging.progress import Progress, silent, track
from activation_logging.replay.plan import Job, Plan, Refusal
from activation_logging.replay.proof import Proof, Proofs, compare, proving_sites
from activation_logging.replay.registry import Answer, LayerPass, Quantity
from activation_logging.store.derived import REPLAY, Derived

if TYPE_CHECKING:
    import numpy.typing as npt

    from activation_logging.replay.model import ReplayModel
    from activation_logging.store import Entry, Store

_COMMIT_S = 5.0
"""At least so often what has been computed is written."""
_STRANGERS = 3
"""If none of the first answers of that number is the model's, and none ever was, no other is tried.
"""

_LESS_MEMORY = (
    "replay it on a machine with more memory, or compute kinds that read no attention "
    "(--kinds logit_lens)"
)


@dataclass
class ReplayReport:
    """What :func:`run_replay` did.

    ``kept`` counts arrays by kind, ``refused`` has the answers that were not replayed, by name,
    ``strangers`` of them because their rows are not the model's. ``tokens`` were run over in
    ``seconds``, without loading the model.
    """

    plan: Plan
    kept: Counter[str] = field(default_factory=Counter)
    bytes: int = 0
    refused: list[Refusal] = field(default_factory=list)
    strangers: int = 0
    proofs: Proofs = field(default_factory=Proofs)
    tokens: int = 0
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **self.plan.as_dict(),
            "dtype": self.plan.model.dtype,
            "device": self.plan.model.device,
            "replayed": self.proofs.answers,
            "kept": dict(self.kept),
            "bytes": self.bytes,
            "refused": [refusal._asdict() for refusal in self.refused],
            "proof": {str(s.label): e._asdict() for s, e in self.proofs.table().items()},
            "tokens": self.tokens,
            "seconds": self.seconds,
        }


def run_replay(store: Store, plan: Plan, *, progress: Progress = silent) -> ReplayReport:
    """Run a plan's model over its answers, and keep what was asked for.

    An answer whose logged rows are not the model's is refused, and nothing is kept of it. What has
    been computed is written every few seconds, and when the run is broken off. The next run goes
    on there. A limit counts the answers that are kept: else the same refused ones could use up
    every run.

    Args:
        store: the plan's store, open for writing.
        plan: what :func:`.plan_replay` made.
        progress: told after each answer.

    Raises:
        ReplayError: the model cannot be loaded, lacks what a quantity reads, or is not the one that
            answered.
    """
    report = ReplayReport(plan, refused=list(plan.refused))
    if not plan.jobs:
        return report
    progress("loading the model", 0, 0)
    plan.model.load()
    _refuse_lacking(plan)
    pending: list[Derived] = []
    started = time.monotonic()
    # The first answer is written at once: a store that takes no arrays should say so early.
    written = float("-inf")
    try:
        for job in track(plan.jobs, "replaying", len(plan.jobs), progress):
            if report.proofs.answers == plan.options.limit:
                break
            pending += _replay(store, job, report)
            if time.monotonic() - written > _COMMIT_S:
                _write(store, pending, report)
                written = time.monotonic()
    finally:
        _write(store, pending, report)
        report.seconds = time.monotonic() - started
    return report


def _replay(store: Store, job: Job, report: ReplayReport) -> list[Derived]:
    """What one answer comes to; nothing if it is refused, or has lost its rows meanwhile."""
    plan, model = report.plan, report.plan.model
    if why := _too_large(model, job):
        report.refused.append(Refusal(job.key, why))
        return []
    quantities = [quantity for quantity in plan.quantities if quantity.name in job.kinds]
    try:
        values, proof = replay_entry(model, store[job.key], quantities, plan.layers)
    except (EntryNotFound, RowsMissing):
        plan.left_out["that were deleted or pruned meanwhile"] += 1
        return []
    except MemoryError as error:
        report.refused.append(Refusal(job.key, f"{error}: {_LESS_MEMORY}"))
        return []
    report.tokens += job.tokens
    if why := proof.refuted(plan.options.tolerance):
        report.refused.append(Refusal(job.key, why))
        report.strangers += 1
        _refuse_strangers(report)
        return []
    report.proofs.add(proof)
    return [
        Derived(job.key, REPLAY + quantity.name, array, _details(plan, quantity, proof))
        for quantity, array in zip(quantities, values, strict=True)
    ]


def replay_entry(
    model: ReplayModel, entry: Entry, quantities: list[Quantity], layers: tuple[int, ...]
) -> tuple[list[npt.NDArray[Any]], Proof]:
    """Run a loaded model over one answer.

    Args:
        model: that is loaded.
        entry: an answer with rows of the residual stream.
        quantities: what to compute.
        layers: of which decoder layers.

    Returns:
        The array of each quantity, and how far the entry's rows are from the model's.

    Raises:
        RowsMissing: the entry has no rows, or has lost them meanwhile.
        MemoryError: memory ran out.
    """
    import torch

    num_prompt, num_response = entry.num_tokens
    response = entry.response_token_ids
    answer = Answer(num_prompt, num_response, torch.tensor(response, device=model.device))
    parts: list[list[Any]] = [[] for _ in quantities]

    def take(layer: LayerPass) -> None:
        if layer.number in layers:
            for quantity, found in zip(quantities, parts, strict=True):
                found.append(quantity.of_layer(layer, answer))

    # The last token was never fed to the model.
    rows = model.run([*entry.prompt_token_ids, *response[:-1]], take, proving_sites(entry))
    arrays = [
        torch.stack(found, dim=quantity.axis).float().cpu().numpy().astype(quantity.dtype)
        for quantity, found in zip(quantities, parts, strict=True)
    ]
    return arrays, compare(entry, rows, dtype=model.dtype)


def _refuse_lacking(plan: Plan) -> None:
    """Raise ReplayError if the model does not give what a quantity reads."""
    model = plan.model
    silent_layers = [layer for layer in plan.layers if layer not in model.attends]
    for quantity in plan.quantities:
        if quantity.reads == "attention" and silent_layers:
            raise ReplayError(
                f"{quantity.name} needs attention weights, which layers "
                f"{', '.join(map(str, silent_layers))} of {model.folder} do not give; leave them "
                "out (--layers), or compute other kinds (--kinds)"
            )
        if quantity.reads == "head" and model.no_lens is not None:
            raise ReplayError(
                f"{quantity.name} cannot be computed for {model.folder}: {model.no_lens}; compute "
                "other kinds (--kinds)"
            )


def _too_large(model: ReplayModel, job: Job) -> str | None:
    needed, free = model.bytes_needed(job.tokens), model.bytes_free()
    if free is None or needed <= free:
        return None
    return (
        f"its {job.tokens} tokens take {needed / 2**30:.1f} GiB, most of it for the attention of "
        f"one layer, and {free / 2**30:.1f} GiB are free: {_LESS_MEMORY}"
    )


def _refuse_strangers(report: ReplayReport) -> None:
    plan = report.plan
    if plan.is_proven or report.proofs.answers:
        return
    if report.strangers >= _STRANGERS:
        last = report.refused[-1]
        raise ReplayError(
            f"none of the first {_STRANGERS} answers has the rows of {plan.model.folder} (of "
            f"{last.key[:10]} {last.why}): another model answered, or other weights; nothing was "
            "kept"
        )


def _details(plan: Plan, quantity: Quantity, proof: Proof) -> dict[str, Any]:
    return {
        "digest": plan.digest(quantity),
        "model": plan.model.digest,
        "layers": list(plan.layers),
        "dtype": plan.model.dtype,
        "settings": dict(quantity.settings),
        "proof": proof.as_json(),
        "with": {name: version_of(name) for name in ("torch", "transformers")},
    }


def _write(store: Store, pending: list[Derived], report: ReplayReport) -> None:
    """Write and forget what is pending; what belongs to an entry that is gone is dropped."""
    there = [item for item in pending if item.key in store]
    pending.clear()
    store.put_derived(there, skip_deleted=True)
    for item in there:
        report.kept[item.name.removeprefix(REPLAY)] += 1
        report.bytes += np.asarray(item.values).nbytes
