"""What colours the tokens of an answer: a probe of tokens, else the model's log-probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from activation_logging.errors import InputMissing, ProbeError, RowsMissing
from activation_logging.store.query import is_named
from activation_logging.store.statistics import counts

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from activation_logging.detectors.saved_probe import SavedProbe
    from activation_logging.store import Entry, Store

By = Literal["study", "probe", "fitted probe", "logprob", "nothing"]


class Coloured(NamedTuple):
    """Whose numbers colour an answer, and the probability of each of its tokens, None without.

    ``by`` is ``study`` for probes of tokens that were fitted without the answer, ``probe`` for a
    saved one, ``fitted probe`` for a saved one that was fitted on answers to this prompt,
    ``logprob`` for the model's own log-probabilities, and ``nothing`` without any.
    """

    by: By
    scores: Sequence[float | None] = ()


class Colours:
    """Colours answers: by the study of tokens, else a saved probe, else log-probabilities.

    Args:
        studied: by key of an answer, the probabilities of its tokens by probes fitted without it.
        probe: a saved probe of tokens, for the answers that were not studied.
    """

    def __init__(
        self, studied: Mapping[str, Sequence[float | None]], probe: SavedProbe | None = None
    ) -> None:
        self._studied = studied
        self._probe = probe

    def __call__(self, entry: Entry) -> Coloured:
        """What colours the tokens of one answer.

        Raises:
            ProbeError: the saved probe is another model's.
        """
        if entry.key in self._studied:
            return Coloured("study", self._studied[entry.key])
        if self._probe is not None and (found := _scored(self._probe, entry)):
            return found
        return Coloured("logprob" if entry.logprobs else "nothing")


def load_token_probe(
    path: str | os.PathLike[str], store: Store, model: str | None = None
) -> SavedProbe:
    """A saved probe that can colour the tokens of a store's answers, or of those by one model.

    Raises:
        ProbeError: it cannot be read, is no probe of tokens, or no answer is by its model.
    """
    from activation_logging.detectors.saved_probe import SavedProbe

    probe = SavedProbe.load(path)
    if probe.kind != "token":
        raise ProbeError(
            f"{path} is a probe of whole answers, which says nothing of tokens; name one of tokens "
            "(`activation-logging probe fit --kind token`)"
        )
    models = [one for one in counts(store).models if model is None or is_named(one, model)]
    # Answers by none are refused by the study, which names the models that there are.
    if models and probe.model not in models:
        raise ProbeError(
            f"{path} was fitted on {probe.model}, the answers are by {', '.join(sorted(models))}; "
            "name a probe of that model"
        )
    return probe


def _scored(probe: SavedProbe, entry: Entry) -> Coloured | None:
    """None where the states that the probe reads are not there."""
    try:
        rows = probe.score_rows(entry)
    except (RowsMissing, InputMissing):
        return None
    scores = [None if np.isnan(score) else float(score) for score in own_states(entry, rows)]
    prompt = np.uint64(int(entry.prompt_key[:16], 16))
    return Coloured("fitted probe" if prompt in probe.prompts else "probe", scores)


def own_states(entry: Entry, rows: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """What a value per row, ``[rows]``, says of each response token's own state, ``[R]``.

    Token i is at position P + i; its own state is there, if it was logged, else NaN.
    """
    positions = entry.positions
    first = int(positions[0]) if len(positions) else 0
    places = entry.num_tokens[0] - first + np.arange(entry.num_tokens[1])
    there = (places >= 0) & (places < len(rows))
    own = np.full(len(places), np.nan)
    own[there] = rows[places[there]]
    return own
