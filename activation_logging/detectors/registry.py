"""What a detector is, and all of them by name.

A new one is a single :class:`Detector`. Ours are in the modules beside this one; another package
offers its own by an entry point::

    [project.entry-points."activation_logging.detectors"]
    my_probe = "my_package.probes:MY_PROBE"
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from activation_logging.errors import PluginError
from activation_logging.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import numpy.typing as npt

    from activation_logging.detectors.follow_ups import FollowUps
    from activation_logging.detectors.samples import Samples
    from activation_logging.store import Entry

Needs = Literal["state", "heads", "answer", "given", "samples", "follow_up", "text", "replay"]
Role = Literal["probe", "signal", "control"]
Where = Literal["chosen", "last", "before"]


def _curve(_seed: int) -> Any:
    from activation_logging.detectors.calibration import logistic_curve

    return logistic_curve()


@dataclass(frozen=True)
class Detector:
    """One row of the report's table, and how its scores are made.

    ``make(seed)`` gives an unfitted scikit-learn classifier of classes 0 and 1. What it is fitted
    on follows from ``needs``:

    ========= ====================================================================================
    state     ``[n, hidden]``, float64: one state per answer
    heads     ``[n, width]``, float64: the states of one head; one fit for every logged head
    answer    ``[n, 1]``, float64: ``of_answer(entry)`` for each answer
    given     ``[n, 1]``, float64: ``of_given(entry, tokens)``, of the tokens that are, by the
              judge's word, the answer given
    samples   ``[n, 1]``, float64: ``of_samples(entry, samples)``, of all answers to the prompt
    follow_up ``[n, 1]``, float64: ``of_follow_up(entry, follow_ups)``, of what was asked about it
    text      ``[n, 2]``, str: prompt and answer
    replay    ``[n, width]``, float32: ``of_replay(values)``, of what a replay has kept
    ========= ====================================================================================

    These functions raise :class:`InputMissing` where an answer lacks what they read. One such
    answer leaves the detector out, since metrics over different answers cannot be compared. The
    text completes "3 of 100 answers have ...", and is a sentence for ``of_samples``.

    Attributes:
        name: as in the registry, and in ``report.json``.
        title: as in the report's table.
        source: the paper that it comes from.
        needs: see above.
        make: see above; left out, a logistic curve through a single number.
        of_answer: the number of one answer.
        of_given: the number of the tokens of one answer that are the answer given.
        of_samples: the number of one answer among the answers to its prompt.
        of_follow_up: the number of what was asked about one answer.
        of_replay: a vector, the same length for all answers, of what a replay has kept of one.
        replays: the kind that it reads, a name of :data:`.QUANTITIES`.
        beside: of a ``state``, detectors of which the first that has numbers here gives one more
            column, after the state's.
        fit_with: of a ``state``, what ``fit`` takes besides states and classes, by name:
            ``groups``, or the numbers of the detector of that name, each ``[n]``.
        where: which states: ``chosen`` by each fold's validation part; of the ``last`` layer at
            the end of the answer; or ``before`` the answer, at the layer that each fold chooses.
            There is no row where a study has no such place. What reads no states is ``before``
            where it reads nothing of the answer.
        role: ``probe`` reads activations, ``signal`` reads the answer's own numbers, ``control``
            tells what is known without either.
        control: a probe that does no better is not worth its activations. Every ``control`` is one,
            and so may a signal be.
        in_curves: whether the report draws its ROC and precision-recall curves.
        baseline: the AUROC of all others is compared with this one's.

    Raises:
        PluginError: the fields contradict each other.
    """

    name: str
    title: str
    source: str
    needs: Needs
    make: Callable[[int], Any] = _curve
    of_answer: Callable[[Entry], float] | None = None
    of_given: Callable[[Entry, npt.NDArray[np.int64]], float] | None = None
    of_samples: Callable[[Entry, Samples], float] | None = None
    of_follow_up: Callable[[Entry, FollowUps], float] | None = None
    of_replay: Callable[[npt.NDArray[Any]], npt.NDArray[np.float32]] | None = None
    replays: str = ""
    beside: tuple[str, ...] = ()
    fit_with: tuple[str, ...] = ()
    where: Where = "chosen"
    role: Role = "probe"
    control: bool = False
    in_curves: bool = False
    baseline: bool = False

    def __post_init__(self) -> None:
        if self.role == "control":
            object.__setattr__(self, "control", True)
        if self.control and self.role == "probe":
            raise PluginError(f"the detector {self.name!r} is a probe: it cannot be a control too")
        for needs, function in (
            ("answer", self.of_answer),
            ("given", self.of_given),
            ("samples", self.of_samples),
            ("follow_up", self.of_follow_up),
            ("replay", self.of_replay),
        ):
            if (function is not None) != (self.needs == needs):
                raise PluginError(
                    f"the detector {self.name!r} needs {self.needs!r}: of_{needs} "
                    f"{'must be given' if function is None else 'would never be used'}"
                )
        if (self.beside or self.fit_with) and self.needs != "state":
            raise PluginError(
                f"the detector {self.name!r} needs {self.needs!r}: only one of a state has numbers "
                "beside it"
            )


_OURS = (
    "linear:LINEAR_PROBE",
    "linear:LINEAR_PROBE_LAST",
    "linear:LINEAR_PROBE_BEFORE",
    "linear:MASS_MEAN",
    "linear:MASS_MEAN_WHITENED",
    "network:SAPLMA",
    "distance:MAHALANOBIS",
    "distance:NEAREST_NEIGHBOURS",
    "heads:BEST_HEADS",
    "entropy_probe:SEMANTIC_ENTROPY_PROBE",
    "stacked:STACKED",
    "replayed:LOOKBACK_LENS",
    "replayed:LAPEIGVALS",
    "replayed:ICR",
    "replayed:LOGIT_LENS",
    "signals:MEAN_LOGPROB",
    "signals:MIN_LOGPROB",
    "signals:TOKEN_ENTROPY",
    "given:ANSWER_LOGPROB",
    "given:ANSWER_MIN_LOGPROB",
    "given:ANSWER_ENTROPY",
    "follow_ups:P_TRUE",
    "samples:SEMANTIC_ENTROPY",
    "samples:SEMANTIC_ENTROPY_ASKED",
    "samples:SELF_CONSISTENCY",
    "samples:EIGENSCORE",
    "signals:LENGTH",
    "text:TEXT_ONLY",
    "text:PROMPT_ONLY",
)

DETECTORS: Registry[Detector] = Registry(
    "detector",
    Detector,
    "activation_logging.detectors",
    {where.partition(":")[2].lower(): f"activation_logging.detectors.{where}" for where in _OURS},
)
"""In the order of the report's table."""


def load_detectors() -> list[Detector]:
    """Every detector, in the order of the report's table.

    Raises:
        PluginError: one cannot be loaded, or is registered under another name than its own.
    """
    found = [(name, DETECTORS.get(name)) for name in DETECTORS.names()]
    for name, detector in found:
        if detector.name != name:
            raise PluginError(
                f"the detector registered as {name!r} calls itself {detector.name!r}: give both "
                "the same name"
            )
    return [detector for _, detector in found]
