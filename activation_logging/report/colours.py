"""What colours the tokens of an answer: a probe of tokens, else the model's log-probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from activation_logging.detectors.saved_probe import SavedProbe
    from activation_logging.store import Entry

By = Literal["study", "probe", "logprob", "nothing"]


class Coloured(NamedTuple):
    """Whose numbers colour an answer, and the probability of each of its tokens, None without.

    ``by`` is ``study`` for probes of tokens that were fitted without the answer, ``probe`` for a
    saved one, ``logprob`` for the model's own log-probabilities, and ``nothing`` without any.
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
        """What colours the tokens of one answer."""
        if entry.key in self._studied:
            return Coloured("study", self._studied[entry.key])
        return Coloured("logprob" if entry.logprobs else "nothing")
