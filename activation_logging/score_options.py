"""What a request asks of the probes: ``activation_scores`` and ``activation_stop``, parsed.

Whether a server has probes of these names is another question, see :meth:`ScoreOptions.check`: a
server's probes may change while a request is on its way, and what was accepted stays valid.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from activation_logging.errors import RequestOptionError
from activation_logging.probe_list import ALL
from activation_logging.text import shown

SCORES, STOP = "activation_scores", "activation_stop"
SCORE_OPTIONS = frozenset({SCORES, STOP})
STOP_REASON = "activation:"
"""What the ``stop_reason`` of an answer that a probe ended begins with, before the probe's name."""
MAX_STOPS = 64
MAX_NAMES = 256
MAX_TEXT = 16 * 1024
_STOP_FIELDS = ("probe", "above", "tokens", "prompt_above")
_LIKE = '{"probe": NAME, "above": 0.9, "tokens": 3} or {"probe": NAME, "prompt_above": 0.8}'


class Stop(NamedTuple):
    """When an answer ends because of a probe.

    Attributes:
        probe: its name.
        above: the probability that so many ``tokens`` in a row must exceed; None for none.
        tokens: see ``above``.
        prompt_above: the probability that the last prompt token must exceed; None for none.
    """

    probe: str
    above: float | None = None
    tokens: int = 1
    prompt_above: float | None = None


@dataclass(frozen=True)
class ScoreOptions:
    """What one request asks of the probes.

    ``names`` are the probes whose scores it gets; None for no scores, ``("all",)`` for all that
    the server shows.
    """

    names: tuple[str, ...] | None = None
    stops: tuple[Stop, ...] = ()

    def __bool__(self) -> bool:
        return self.names is not None or bool(self.stops)

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> ScoreOptions:
        """Parse the two options; others are left alone.

        Raises:
            RequestOptionError: one of them is invalid.
        """
        return cls(_parse_names(options.get(SCORES)), _parse_stops(options.get(STOP)))

    def check(self, served: Collection[str]) -> None:
        """Refuse what the probes of a server cannot give.

        Args:
            served: the names of its probes, but those that it keeps to itself.

        Raises:
            RequestOptionError: it has no probes, or none of such a name.
        """
        asked = [(SCORES, name) for name in self.names or () if name != ALL]
        asked += [(STOP, stop.probe) for stop in self.stops]
        if self and not served:
            raise RequestOptionError(
                STOP if self.names is None else SCORES,
                "this server has no probes; start it with --activation-probe NAME=PATH "
                "(ACTIVATION_PROBES), or leave the option out",
            )
        for option, name in asked:
            if name not in served:
                raise RequestOptionError(
                    option,
                    f"this server has no probe {shown(name)}; choose among "
                    f"{', '.join(sorted(served))}",
                )

    def scored(self, served: Iterable[str]) -> tuple[str, ...]:
        """The names of the probes whose scores the request gets, in the order asked for."""
        if self.names is None:
            return ()
        return tuple(served) if ALL in self.names else self.names


def _parse_names(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    items = value if isinstance(value, (list, tuple)) else [value]
    if not all(isinstance(item, str) for item in items) or sum(map(len, items)) > MAX_TEXT:
        raise RequestOptionError(
            SCORES, f'{shown(value)} are not names of probes; give "NAME,NAME", or "all"'
        )
    names = [name.strip() for item in items for name in item.split(",")]
    if not all(names) or not names:
        raise RequestOptionError(
            SCORES, f'{shown(value)} leaves a name out; give "NAME,NAME", or "all"'
        )
    if len(names) > MAX_NAMES:
        raise RequestOptionError(SCORES, f'more than {MAX_NAMES} names; "all" gives every score')
    return tuple(dict.fromkeys(names))


def _parse_stops(value: Any) -> tuple[Stop, ...]:
    if value is None:
        return ()
    found = _from_json(value)
    items = found if isinstance(found, (list, tuple)) else [found]
    if len(items) > MAX_STOPS:
        raise RequestOptionError(STOP, f"more than {MAX_STOPS} stops")
    if not items:
        raise RequestOptionError(STOP, f"an empty list; give {_LIKE}, or leave it out")
    return tuple(_parse_stop(_from_json(item)) for item in items)


def _from_json(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if len(value) > MAX_TEXT:
        raise RequestOptionError(STOP, f"longer than {MAX_TEXT} bytes")
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise RequestOptionError(STOP, f"{shown(value)} is not JSON; give {_LIKE}") from None


def _parse_stop(value: Any) -> Stop:
    if not isinstance(value, Mapping):
        raise RequestOptionError(STOP, f"{shown(value)} is not an object; give {_LIKE}")
    unknown = value.keys() - set(_STOP_FIELDS)
    if unknown:
        raise RequestOptionError(
            STOP, f"unknown field {shown(min(map(str, unknown)))}; known are "
            f"{', '.join(_STOP_FIELDS)}"
        )  # fmt: skip
    probe, tokens = value.get("probe"), value.get("tokens")
    if not isinstance(probe, str) or not probe:
        raise RequestOptionError(STOP, f"names no probe; give {_LIKE}")
    above, before = (_threshold(value, name) for name in ("above", "prompt_above"))
    if above is None and before is None:
        raise RequestOptionError(STOP, f"has neither above nor prompt_above; give {_LIKE}")
    if tokens is not None and above is None:
        raise RequestOptionError(STOP, "tokens counts tokens that are above; give above too")
    if tokens is not None and (type(tokens) is not int or tokens < 1):
        raise RequestOptionError(
            STOP, f"tokens is {shown(tokens)}; give a whole number of at least 1"
        )
    return Stop(probe, above, 1 if tokens is None else tokens, before)


def _threshold(value: Mapping[str, Any], name: str) -> float | None:
    given = value.get(name)
    if given is None:
        return None
    # A bool is an int, and NaN lies nowhere.
    if type(given) not in (int, float) or not 0 <= given <= 1:
        raise RequestOptionError(STOP, f"{name} is {shown(given)}; give a probability, 0 to 1")
    return float(given)
