"""What is studied of tokens and what came out: the options, a row of the table, the whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from activation_logging.tags import BENCHMARK, DOMAIN, GROUP_TAGS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import numpy.typing as npt

    from activation_logging.dataset import Tokens
    from activation_logging.dataset.examples import Broken
    from activation_logging.detectors.metrics import Interval
    from activation_logging.detectors.splits import Fold
    from activation_logging.sites import AnySite

LevelName = Literal["token", "span", "first", "answer"]
LEVELS: tuple[LevelName, ...] = ("token", "span", "first", "answer")
"""What is scored: a token; a claim, by the maximum over its tokens; a claim, by its first token
alone; an answer, by the maximum over all of its tokens."""

TokenRole = Literal["probe", "signal", "control", "check"]
"""``check``: fitted on shuffled labels, which nothing may be learned from."""

TYPE = "type"
"""The type of a claim, such as ``birth year``, among the tags that :class:`Transfer` is between."""


@dataclass(frozen=True)
class TokenOptions:
    """What to study of the tokens.

    Attributes:
        layers: layers or sites to choose from, in each fold's training part; None for all.
        mix: layers whose states are concatenated for one more probe; None for three spread evenly
            over ``layers``, an empty list for none.
        strengths: inverse L2 penalties to choose from, in each fold's training part.
        unlabelled: weight of tokens that no claim touches; see :func:`.make_tokens`.
        answers: also fit probes of whole answers, on all tokens of the judged answers.
        transfer_by: tags between whose values probes are tried; ``type`` is the type of claim.
        transfer_to: other evaluators with spans in this store, on whose claims the probe is tried.
        folds: number of parts.
        draws: number of bootstrap resamples.
        seed: of folds, resamples and probes.
    """

    layers: Sequence[AnySite] | None = None
    mix: Sequence[AnySite] | None = None
    strengths: Sequence[float] = (0.0001, 0.001, 0.01, 0.1)
    unlabelled: float = 0.0
    answers: bool = True
    transfer_by: Sequence[str] = (TYPE, DOMAIN, BENCHMARK)
    transfer_to: Sequence[str] = ()
    model: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    group: Sequence[str] = GROUP_TAGS
    broken: Broken = "error"
    folds: int = 5
    draws: int = 1000
    seed: int = 0


class Place(NamedTuple):
    """Where a token probe reads, and the inverse of its penalty.

    ``layers`` are labels of layers or sites; the states of several are concatenated.
    """

    layers: tuple[int | str, ...]
    C: float

    @property
    def layer(self) -> str:
        """The layers in one text."""
        return "+".join(map(str, self.layers))


@dataclass(frozen=True)
class TokenScores:
    """What one detector said, each time as part of the test side; higher is more contradicted.

    ``token`` is ``[n]``, ``span`` and ``first`` are ``[m]``, ``answer`` is ``[k]``; None where a
    detector says nothing there.
    """

    token: npt.NDArray[np.float64] | None = None
    span: npt.NDArray[np.float64] | None = None
    first: npt.NDArray[np.float64] | None = None
    answer: npt.NDArray[np.float64] | None = None


@dataclass(frozen=True)
class LevelResult:
    """How good a detector is at one level, with 95 % bootstrap intervals over answers' groups.

    ``aurc`` is the area under risk against coverage, see :func:`.metrics.aurc`; less is better.
    ``recall_at`` is by false positive rate. ``within_types`` is the AUROC among claims of one type,
    over all types weighted by their pairs, so that the type itself is no help; None for answers,
    and where no type has claims of both classes in a test part. ``over_best_control`` and
    ``within_types_over_best_control`` are the differences to the best control or signal, which
    ``best_control`` and ``best_control_within_types`` name, on the same resamples; None for those
    themselves.
    """

    auroc: Interval
    auprc: Interval
    aurc: Interval
    recall_at: Mapping[float, Interval]
    within_types: Interval | None
    best_control: str = ""
    over_best_control: Interval | None = None
    best_control_within_types: str = ""
    within_types_over_best_control: Interval | None = None

    def as_json(self) -> dict[str, Any]:
        """All figures, an interval as ``value``, ``low`` and ``high``."""
        found: dict[str, Any] = {
            "auroc": self.auroc._asdict(),
            "auprc": self.auprc._asdict(),
            "aurc": self.aurc._asdict(),
            "recall_at": {str(rate): each._asdict() for rate, each in self.recall_at.items()},
        }
        if self.over_best_control is not None:
            found["best_control"] = self.best_control
            found["over_best_control"] = self.over_best_control._asdict()
        if self.within_types is not None:
            found["within_types"] = self.within_types._asdict()
        if (within := self.within_types_over_best_control) is not None:
            found["best_control_within_types"] = self.best_control_within_types
            found["within_types_over_best_control"] = within._asdict()
        return found


@dataclass(frozen=True)
class TokenResult:
    """One row of the table: a detector, where it looked in each fold, and how well it did."""

    name: str
    title: str
    source: str
    role: TokenRole
    places: Sequence[Place]
    levels: Mapping[LevelName, LevelResult]
    scores: TokenScores


@dataclass(frozen=True)
class TokenTransfer:
    """AUROC per claim of a linear probe fitted on one value of a tag, tested on another.

    ``auroc[i][j]`` is fitted on ``sources[i]`` and tested on ``values[j]``; the last source is all
    values but the one that is tested. Fits are on training folds and tests on their test folds, so
    no answer's group is on both sides. ``left_out`` says which values have too few claims.
    """

    tag: str
    sources: Sequence[str]
    values: Sequence[str]
    auroc: Sequence[Sequence[Interval]]
    left_out: Mapping[str, str]


@dataclass(frozen=True)
class TokenStudy:
    """What came out.

    ``sweep`` has the mean AUROC per claim over the validation parts, by place; ``chosen`` the place
    of each fold, ``place`` the one that is best on average, and ``held_out`` the log-odds ``[n]``
    of linear probes there, each token as part of the test side; ``held_out_answers`` is the highest
    of all tokens of each answer, ``[k]``. ``wrong`` is 1 for answers with a contradicted claim,
    ``[k]``. ``to_labels`` has the AUROC per claim on the claims of other
    evaluators. ``left_out`` says why detectors or transfers are not here.
    """

    tokens: Tokens
    options: TokenOptions
    folds: Sequence[Fold]
    sweep: Mapping[Place, float]
    chosen: Sequence[Place]
    place: Place
    held_out: npt.NDArray[np.float64]
    held_out_answers: npt.NDArray[np.float64]
    wrong: npt.NDArray[np.int64]
    results: Sequence[TokenResult]
    transfers: Sequence[TokenTransfer]
    to_labels: Mapping[str, Interval]
    left_out: Mapping[str, str]

    def result(self, name: str) -> TokenResult:
        """The row of one detector; KeyError where it was left out."""
        for result in self.results:
            if result.name == name:
                return result
        raise KeyError(name)

    def as_json(self) -> dict[str, Any]:
        """What came out, without the scores."""
        return {
            "label": self.tokens.label,
            "model": self.tokens.model,
            "counts": {
                "tokens": len(self.tokens),
                **self.tokens.counts(),
                "answers": len(self.wrong),
                "answers_with_contradicted": int(self.wrong.sum()),
            },
            "left_out": {**self.tokens.left_out, **self.left_out},
            "place": {"layers": list(self.place.layers), "C": self.place.C},
            "chosen": [{"layers": list(one.layers), "C": one.C} for one in self.chosen],
            "sweep": [
                {"layers": list(place.layers), "C": place.C, "auroc": auroc}
                for place, auroc in self.sweep.items()
            ],
            "detectors": [
                {
                    "name": row.name,
                    "title": row.title,
                    "source": row.source,
                    "role": row.role,
                    "levels": {name: level.as_json() for name, level in row.levels.items()},
                }
                for row in self.results
            ],
            "transfer": [
                {
                    "tag": one.tag,
                    "sources": list(one.sources),
                    "values": list(one.values),
                    "auroc": [[cell._asdict() for cell in cells] for cells in one.auroc],
                    "left_out": dict(one.left_out),
                }
                for one in self.transfers
            ],
            "transfer_to": {name: cell._asdict() for name, cell in self.to_labels.items()},
        }
