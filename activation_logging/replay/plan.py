"""Which answers of a store a model is run over, and why not over others."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from activation_logging.errors import ReplayError, SettingsError, StoreCorrupt
from activation_logging.progress import Progress, silent, track
from activation_logging.replay.model import ReplayModel
from activation_logging.replay.proof import proving_sites
from activation_logging.replay.registry import QUANTITIES, Quantity
from activation_logging.sites import parse_layers, resolve
from activation_logging.store.derived import REPLAY
from activation_logging.store.query import find, select
from activation_logging.store.statistics import counts
from activation_logging.strict_json import dumps
from activation_logging.verify.alignment import match_model

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from activation_logging.store import Entry, Store


@dataclass(frozen=True)
class ReplayOptions:
    """What to compute, and for which answers.

    Attributes:
        kinds: names of :data:`.QUANTITIES`; None for all.
        layers: numbers and ranges such as ``8,15-20,last``; None for every layer.
        dtype: what the model computes in, one of :data:`.DTYPES`.
        device: as torch names it; None for a GPU if there is one.
        keys: only these entries: keys, or beginnings of them.
        label: only answers with this label, ``LABEL`` or ``NAME=LABEL``.
        tags: only answers that carry all of these tags.
        served_as: the name that the model was served under, if that was another.
        limit: stop after so many answers have been replayed; those that are refused do not count.
        overwrite: compute again what is there.
        tolerance: how much a row may differ, relatively; None for what :mod:`.proof` says.
        trust_remote_code: run code that the model brings.
    """

    kinds: Sequence[str] | None = None
    layers: str | None = None
    dtype: str = "float32"
    device: str | None = None
    keys: Sequence[str] = ()
    label: str | None = None
    tags: Mapping[str, str] | None = None
    served_as: str | None = None
    limit: int | None = None
    overwrite: bool = False
    tolerance: float | None = None
    trust_remote_code: bool = False


class Job(NamedTuple):
    """An answer to run over: its key, its tokens, and the names of what to compute."""

    key: str
    tokens: int
    kinds: tuple[str, ...]


class Refusal(NamedTuple):
    """An answer that is not replayed, and why."""

    key: str
    why: str


@dataclass
class Plan:
    """A model that is not loaded yet, and what to do with it.

    ``jobs`` are all answers that lack something, also where the options set a limit.
    ``there`` counts the answers that have everything already, ``others`` those that have it from
    another model or with other settings. ``is_proven`` says that an earlier run has found an
    answer's rows to be this model's. ``left_out`` counts answers by reason.
    """

    model: ReplayModel
    options: ReplayOptions
    quantities: list[Quantity]
    layers: tuple[int, ...]
    jobs: list[Job] = field(default_factory=list)
    there: int = 0
    others: int = 0
    is_proven: bool = False
    left_out: Counter[str] = field(default_factory=Counter)
    refused: list[Refusal] = field(default_factory=list)

    @property
    def longest(self) -> int:
        """Tokens of the longest answer to do, with its prompt."""
        return max((job.tokens for job in self.jobs), default=0)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "model": str(self.model.folder),
            "digest": self.model.digest,
            "kinds": [quantity.name for quantity in self.quantities],
            "layers": list(self.layers),
            "answers": len(self.jobs),
            "tokens": sum(job.tokens for job in self.jobs),
            "longest": self.longest,
            "bytes_needed": self.model.bytes_needed(self.longest),
            "bytes_free": self.model.bytes_free(),
            "there": self.there,
            "others": self.others,
            "left_out": dict(self.left_out),
            "refused": [refusal._asdict() for refusal in self.refused],
        }

    def digest(self, quantity: Quantity) -> str:
        """Hex SHA-256 of all that a quantity's numbers depend on, besides the tokens."""
        settings = [
            self.model.digest,
            self.model.dtype,
            quantity.name,
            dict(quantity.settings),
            quantity.dtype,
            self.layers,
        ]
        return hashlib.sha256(dumps(settings).encode()).hexdigest()


def plan_replay(
    store: Store,
    model: str | Path | None = None,
    options: ReplayOptions | None = None,
    *,
    progress: Progress = silent,
) -> Plan:
    """Choose the answers, and compare what can be compared without running the model.

    Args:
        store: an open store.
        model: the folder of the model that answered, or its name on the Hugging Face hub. None
            for the name that the store's only model was served under, if that is a folder.
        options: what to compute, and for which answers.
        progress: told how far the search is.

    Raises:
        ReplayError: the model cannot be read, or is not the one that answered.
        SettingsError: an option is invalid, or no entry is by that model.
        UnknownName: a kind is none of :data:`.QUANTITIES`.
    """
    options = options or ReplayOptions()
    if options.tolerance is not None and not 0 <= options.tolerance < math.inf:
        raise SettingsError(f"a tolerance is a number from 0 on, not {options.tolerance}")
    names = QUANTITIES.names() if options.kinds is None else list(dict.fromkeys(options.kinds))
    quantities = [QUANTITIES.get(name) for name in names]
    given = str(_recorded_model(store) if model is None else model)
    replayed = ReplayModel(
        given,
        dtype=options.dtype,
        device=options.device,
        attention=any(quantity.reads == "attention" for quantity in quantities),
        trust_remote_code=options.trust_remote_code,
    )
    layers = chosen_layers(options.layers, replayed.num_layers)
    plan = Plan(replayed, options, quantities, layers)
    answered = match_model(store, given, options.served_as)
    differ: Counter[str] = Counter()
    chosen, total = _chosen(store, options)
    for entry in track(chosen, "looking for answers", total, progress):
        try:
            if not answered(entry):
                plan.left_out["of another model"] += 1
            elif why := _without(entry):
                plan.left_out[why] += 1
            elif shape := _other_shape(entry, replayed):
                differ[shape] += 1
                plan.refused.append(Refusal(entry.key, f"it has {shape}: another model answered"))
            elif why := _unfit(entry, replayed):
                plan.refused.append(Refusal(entry.key, why))
            else:
                _add(plan, entry)
        except StoreCorrupt as error:  # noqa: PERF203 - one that is damaged hides no other
            plan.refused.append(Refusal(entry.key, str(error)))
    if differ and not (plan.jobs or plan.there or plan.others):
        shape, number = differ.most_common(1)[0]
        raise ReplayError(
            f"{number} answers have {shape}, but {given} has {replayed.num_layers} layers of "
            f"{replayed.hidden_size}: another model answered; give its folder (--model)"
        )
    return plan


def chosen_layers(text: str | None, num_layers: int) -> tuple[int, ...]:
    """Numbers of decoder layers, ascending, of a list such as ``8,15-20,last``; None for all.

    Raises:
        SettingsError: it is no such list, or the model has no such layer.
    """
    if text is None:
        return tuple(range(1, num_layers + 1))
    found = {site.layer for site in resolve(parse_layers(text, num_layers), num_layers)}
    if text.strip().lower() == "all":
        found.discard(0)
    if 0 in found:
        raise SettingsError(f"layer 0 is no decoder layer; they are 1 to {num_layers}")
    return tuple(sorted(found))


def _recorded_model(store: Store) -> str:
    models = sorted(counts(store).models)
    if len(models) == 1 and Path(models[0]).is_dir():
        return models[0]
    listed = f" (it has entries of {', '.join(models)})" if models else ""
    raise SettingsError(
        f"say which model answered, by its folder or its name on the hub (--model){listed}"
    )


def _chosen(store: Store, options: ReplayOptions) -> tuple[Iterable[Entry], int]:
    """The entries to look at, in order of writing, and how many there are at most."""
    among = None
    if options.keys:
        found = {entry.key: entry for key in options.keys for entry in find(store, key)}
        among = list(found.values())
    entries = select(store, label=options.label, tags=options.tags, among=among, newest_first=False)
    return entries, len(store) if among is None else len(among)


def _without(entry: Entry) -> str | None:
    """What an entry lacks, to follow a count; None if it can be replayed."""
    if entry.status != "complete":
        return f"that are {entry.status}"
    if not all(entry.num_tokens):
        return "without a token of a prompt and of an answer"
    if not proving_sites(entry) or not len(entry.positions):
        return "without a logged layer of the residual stream, which would prove the replay"
    return None


def _other_shape(entry: Entry, model: ReplayModel) -> str | None:
    if (entry.num_layers, entry.hidden_size) == (model.num_layers, model.hidden_size):
        return None
    return f"{entry.num_layers} layers of {entry.hidden_size}"


def _unfit(entry: Entry, model: ReplayModel) -> str | None:
    """Why the model cannot be run over an entry's tokens."""
    ids = {*entry.prompt_token_ids, *entry.response_token_ids}
    if not 0 <= min(ids) <= max(ids) < model.vocabulary:
        return f"it has token ids outside the model's {model.vocabulary}: another model answered"
    if kinds := [model.not_text[token] for token in ids & model.not_text.keys()]:
        return f"its prompt holds {kinds[0]} input, which a store does not keep"
    return None


def _add(plan: Plan, entry: Entry) -> None:
    headers = entry.derived_headers(REPLAY)
    models = {header.details.get("model") for header in headers.values()}
    plan.is_proven |= plan.model.digest in models
    missing, other = [], False
    for quantity in plan.quantities:
        header = headers.get(REPLAY + quantity.name)
        if header is None or plan.options.overwrite:
            missing.append(quantity.name)
        elif header.details.get("digest") != plan.digest(quantity):
            other = True
    if missing:
        plan.jobs.append(Job(entry.key, sum(entry.num_tokens), tuple(missing)))
    elif other:
        plan.others += 1
    else:
        plan.there += 1
