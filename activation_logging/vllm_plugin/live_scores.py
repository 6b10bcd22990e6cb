"""What the probes say of one answer while it is written, and when they end it.

Row ``r`` is the state at position ``P - 1 + r``, of ``P`` prompt tokens: row 0 has read the prompt,
row ``r`` the first ``r`` tokens of the answer. A step that samples token ``i`` computes row ``i``.
So when the client gets token ``i`` the scores of the tokens before it are known, and its own is one
step away. The last token is never read by the model and has none; but where a probe ends the
answer, the token sampled in that step is dropped, and all that are left have been read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from activation_logging.errors import RequestOptionError
from activation_logging.score_options import STOP, STOP_REASON, Stop

if TYPE_CHECKING:
    from activation_logging.detectors.served_probes import ServedProbe, ServedProbes
    from activation_logging.score_options import ScoreOptions

Floats = npt.NDArray[np.float64]

Told = dict[str, dict[str, Any]]
"""What a client gets, by probe: ``prompt``, ``tokens`` and ``answer``, as far as known."""


def shown_names(served: ServedProbes) -> list[str]:
    """The names of the probes that clients may ask for."""
    return [name for name, one in served.items() if not one.shadow]


def check_options(options: ScoreOptions, served: ServedProbes) -> None:
    """Refuse what the probes of a server cannot give.

    Raises:
        RequestOptionError: there are no such probes, or one says nothing where the stop looks.
    """
    options.check(shown_names(served))
    for stop in options.stops:
        probe = served[stop.probe]
        if stop.prompt_above is not None and not probe.knows_prompt:
            raise RequestOptionError(
                STOP,
                f"the probe {stop.probe} says nothing before the first token (it reads "
                f"{probe.probe.position or 'the answer'}); give above instead of prompt_above",
            )
        if stop.above is not None and probe.probe.position == "prompt_last":
            raise RequestOptionError(
                STOP,
                f"the probe {stop.probe} says nothing of the answer's tokens (it reads the "
                "prompt's last); give prompt_above instead of above",
            )


class Final(NamedTuple):
    """What a probe said of an answer that has ended; None where it said nothing."""

    prompt: float | None
    answer: float | None


class _Part:
    """The rows that one sender computes a part of: they come in order, some of them twice."""

    def __init__(self) -> None:
        self.rows: Floats = np.empty((0, 0))
        self.count = 0

    def take(self, first: int, columns: Floats) -> None:
        """Put rows from ``first`` on in place. What does not follow on the last is left out."""
        if first < 0:
            columns, first = columns[-first:], 0
        stop = first + len(columns)
        if first > self.count or not len(columns):
            return
        if stop > len(self.rows):
            grown = np.empty((max(2 * stop, 64), columns.shape[1]))
            if self.count:
                grown[: self.count] = self.rows[: self.count]
            self.rows = grown
        self.rows[first:stop] = columns
        self.count = max(self.count, stop)


class _Watch:
    """One stop: how many tokens in a row were above, and up to which row that is known.

    What counts are the numbers that clients are told: one that equals a threshold is not above it.
    """

    def __init__(self, stop: Stop, probe: ServedProbe) -> None:
        self._stop = stop
        self._probe = probe
        self._checked = 0
        self._streak = 0
        self._running = probe.begin()
        self._read = 1

    def forget(self, row: int) -> None:
        """Note that rows from this one on were computed again; what was checked stays so."""
        if row < self._read:
            self._running, self._read = self._probe.begin(), 1

    def fires(self, rows: Floats) -> bool:
        """Whether the answer ends after the last of these rows, which begin with row 0."""
        stop, probe, start = self._stop, self._probe, self._checked
        self._checked = max(start, len(rows))
        before, above = stop.prompt_above, stop.above
        if before is not None and start == 0 and (_of_prompt(probe, rows) or 0.0) > before:
            return True
        if above is None or len(rows) <= max(start, 1):
            return False
        for score in map(_number, self._scores(rows, max(start, 1))):
            self._streak = self._streak + 1 if (score or 0.0) > above else 0
            if self._streak >= stop.tokens:
                return True
        return False

    def _scores(self, rows: Floats, start: int) -> Floats:
        """What the probe says at each row from ``start`` on, or of the answer up to there."""
        if self._probe.reads_one_row:
            return self._probe.at(rows[start:])
        # Of the rows before it keeps what it needs: a long answer costs no more at its end.
        found = self._running.more(rows[self._read :])
        found, self._read = found[start - self._read :], len(rows)
        return found


class LiveAnswer:
    """The scores of one answer, from the rows that arrive to what its client is told.

    Args:
        served: the server's probes when the request came. It keeps them to its end.
        options: what the request asks for, which must have been checked.
        num_prompt: ``P``.
    """

    def __init__(self, served: ServedProbes, options: ScoreOptions, num_prompt: int) -> None:
        self.served = served
        self._first = num_prompt - 1
        self._parts: dict[int, _Part] = {}
        self._expected = 1
        self._names = options.scored(shown_names(served))
        self._watches = {stop: _Watch(stop, served[stop.probe]) for stop in options.stops}
        self._told_prompt = False
        self._told_tokens = 0
        self.stop_reason: str | None = None
        """``activation:NAME`` once a probe has ended the answer."""
        self.late = False
        """Whether rows did not arrive in time, so that nobody waits for more."""

    @property
    def asks(self) -> bool:
        """Whether the client gets scores."""
        return bool(self._names)

    @property
    def num_rows(self) -> int:
        """How many rows are known, from row 0 on without a gap."""
        if len(self._parts) < self._expected:
            return 0
        return min(part.count for part in self._parts.values())

    def take(self, first: int, columns: Floats, part: int = 0, parts: int = 1) -> None:
        """Take rows that have arrived.

        Rows that are known already replace the old ones: the request was preempted, and they were
        computed again.

        Args:
            first: the position of the first row.
            columns: of all probes, ``[n, num_columns]``; what this sender contributes to them.
            part: number of the sender.
            parts: how many senders there are.
        """
        if columns.shape[1] == self.served.num_columns:
            self._expected = parts
            self._parts.setdefault(part, _Part()).take(first - self._first, columns)
            for watch in self._watches.values():
                watch.forget(first - self._first)

    def rows(self, count: int) -> Floats:
        """The first rows that are known, at most ``count``, float64 ``[n, num_columns]``."""
        count = min(count, self.num_rows)
        if not count:
            return np.empty((0, self.served.num_columns))
        first, *others = (part.rows[:count] for part in self._parts.values())
        return np.sum([first, *others], axis=0) if others else first

    def stop(self, count: int) -> str | None:
        """Whether a probe ends the answer, given its first ``count`` rows: the ``stop_reason``."""
        if self.stop_reason is None and self._watches:
            rows = self.rows(count)
            fired = [stop for stop, watch in self._watches.items() if watch.fires(rows)]
            if fired:
                self.stop_reason = f"{STOP_REASON}{fired[0].probe}"
        return self.stop_reason

    def tell(self, num_tokens: int, *, finished: bool) -> Told:
        """What the client has not been told yet, given that it has so many tokens.

        Args:
            num_tokens: tokens of the answer, with those that come with this.
            finished: whether the answer ends here.
        """
        fed = max(num_tokens - (self.stop_reason is None), 0)
        rows = self.rows(fed + 1)
        complete = finished and len(rows) > fed
        start = self._told_tokens
        stop = num_tokens if finished else max(min(fed, len(rows) - 1), start)
        tells_prompt = not self._told_prompt and (finished or bool(len(rows)))
        told: Told = {}
        for name in self._names:
            probe = self.served[name]
            tokens, answer = _of(probe, rows, start, complete=complete)
            found = told[name] = {}
            if tells_prompt:
                found["prompt"] = _of_prompt(probe, rows)
            tokens += [None] * (stop - start)
            found["tokens"] = tokens[: stop - start]
            if finished:
                found["answer"] = answer
        self._told_prompt |= tells_prompt
        self._told_tokens = stop
        return told

    def so_far(self, num_tokens: int, *, finished: bool) -> Told:
        """All scores of the first so many tokens, told or not; see :meth:`tell`."""
        self._told_prompt, self._told_tokens = False, 0
        return self.tell(num_tokens, finished=finished)


def finals(served: ServedProbes, rows: Floats) -> dict[str, Final]:
    """What every probe says of an answer, by name.

    Args:
        served: the probes.
        rows: of all states of the answer, ``[n, num_columns]``, from row 0 on.
    """
    found = {}
    for name, probe in served.items():
        _, answer = _of(probe, rows, len(rows), complete=True)
        found[name] = Final(_of_prompt(probe, rows), answer)
    return found


def _of_prompt(probe: ServedProbe, rows: Floats) -> float | None:
    """What a probe says at row 0."""
    return _number(probe.at(rows[:1])[0]) if probe.knows_prompt and len(rows) else None


def _of(
    probe: ServedProbe, rows: Floats, start: int, *, complete: bool
) -> tuple[list[float | None], float | None]:
    """What a probe says of each token from ``start`` on, and of the answer.

    Token ``i`` is read at row ``i + 1``. A probe that looks at the end says something of the last
    of these rows, where they are ``complete``.
    """
    own = rows[1:]
    known = complete or not (probe.of_tokens or probe.looks_at_end)
    answer = _number(probe.answer(rows)) if known else None
    if probe.of_tokens:
        return [_number(score) for score in probe.at(own[start:])], answer
    tokens: list[float | None] = [None] * max(len(own) - start, 0)
    place = len(own) - 1 if probe.looks_at_end else 0
    if known and not probe.knows_prompt and start <= place < len(own):
        tokens[place - start] = answer
    return tokens, answer


def _number(value: Any) -> float | None:
    """A probability as it is stored, rounded to float32; None where it is not finite."""
    return float(np.float32(value)) if np.isfinite(value) else None
