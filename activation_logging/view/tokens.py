"""What is known of each token of an answer: numbers, alternatives, and what colours it.

Of a state a token has its own: that of position ``P + i`` for token ``i``, as everywhere in the
package where a probe reads tokens. The last token was never fed to the model and has none.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from activation_logging.errors import InputMissing, ProbeError, RowsMissing, ViewError
from activation_logging.report.colours import own_states
from activation_logging.report.marking import marked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from activation_logging.detectors.saved_probe import SavedProbe
    from activation_logging.store import Entry

MOST_TOKENS = 2000
"""So many tokens of an answer are shown."""
ALTERNATIVES = 5

Numbers = npt.NDArray[np.float64]


class Choice(NamedTuple):
    """Something that may colour the tokens: its name in the address, and for people."""

    name: str
    title: str


class Legend(NamedTuple):
    """What the two ends of the scale mean; ``low`` is None where the scale has one end."""

    low: str | None
    high: str
    kind: str


@dataclass(frozen=True)
class Tokens:
    """The tokens of an answer, coloured.

    Attributes:
        tokens: with their pieces, as :func:`activation_logging.report.marking.marked` gives them.
        by: how they are coloured, for :func:`activation_logging.report.marking.shade`.
        facts: by the place of a token in the answer, lines about it.
        legend: what the colours mean; None without any.
        cut: whether there are more tokens.
    """

    tokens: Sequence[Any]
    by: str
    facts: Sequence[str]
    legend: Legend | None
    cut: bool


def choices(entry: Entry, probes: Mapping[str, SavedProbe]) -> list[Choice]:
    """What may colour this answer's tokens, the most telling first."""
    found = [
        Choice(f"probe/{name}", f"probe {name}")
        for name, probe in probes.items()
        if probe.model == entry.model
    ]
    found += [Choice(f"score/{name}", f"score {name}") for name in entry.scores]
    if entry.logprobs is not None:
        found.append(Choice("logprob", "log-probability"))
    if entry.top_logprobs is not None:
        found += [
            Choice("rank", "rank among the alternatives"),
            Choice("entropy", "entropy of the alternatives"),
        ]
    if entry.status == "complete":
        found += [Choice(f"norm/{site}", f"norm of {named(site)}") for site in entry.sites]
    return found


def named(site: Any) -> str:
    """A site for people."""
    return f"layer {site.layer}" if site.name == "resid" else str(site)


def make_tokens(
    entry: Entry,
    by: str,
    probes: Mapping[str, SavedProbe],
    spans: Sequence[Mapping[str, Any]],
    pieces: Callable[[Iterable[int]], Mapping[int, str]],
    *,
    blind: bool = False,
) -> Tokens:
    """An answer's tokens, coloured by one of :func:`choices`; ``""`` for no colour.

    ``pieces`` gives the texts of tokens, as far as they are known. Where a person is to judge,
    ``blind`` leaves out what probes say.

    Raises:
        ViewError: nothing of that name can colour it, and why.
    """
    count = min(entry.num_tokens[1], MOST_TOKENS)
    logprobs = _optional(entry.logprobs, count)
    scores, levels, legend = _colours(entry, by, probes, logprobs)
    texts = entry.response_tokens or []
    tokens = [
        {
            "text": texts[i] if i < len(texts) else f"#{entry.response_token_ids[i]} ",
            "score": _plain(scores, i),
            "logprob": _plain(logprobs, i),
            "level": _plain(levels, i),
        }
        for i in range(count)
    ]
    exact = "".join(texts) == entry.response
    kind = "probe" if scores is not None else "level" if levels is not None else by
    return Tokens(
        tokens=marked({"tokens": tokens, "spans": spans, "exact": exact}),
        by=kind,
        facts=_facts(entry, {} if blind else _said(entry, probes), pieces, count),
        legend=legend,
        cut=entry.num_tokens[1] > count,
    )


def _colours(
    entry: Entry, by: str, probes: Mapping[str, SavedProbe], logprobs: Numbers | None
) -> tuple[Numbers | None, Numbers | None, Legend | None]:
    """Probabilities, or levels from 0 to 1, and what they mean."""
    kind, _, name = by.partition("/")
    if not by:
        return None, None, None
    if kind == "probe":
        if name not in probes:
            raise ViewError(f"no probe is called {name[:80]!r}; start the page with --probe PATH")
        probe = probes[name]
        return _by_probe(entry, probe), None, Legend(probe.negative, probe.positive, "")
    if kind == "score":
        if name not in entry.scores:
            raise ViewError(f"this answer has no scores called {name[:80]!r}")
        return _placed(entry, entry.scores[name]), None, Legend("0", f"1 by {name}", "")
    if by == "logprob" and logprobs is not None:
        return None, None, Legend(None, "unlikely to the model itself", "unlikely")
    if by == "rank" and (found := ranks(entry)) is not None:
        return None, np.log2(found) / 4, Legend("the first choice", "a late choice", "unlikely")
    if by == "entropy" and (found := entropies(entry)) is not None:
        return None, found / 3, Legend("certain", "3 nats", "unlikely")
    if kind == "norm":
        found = norms(entry, name)
        low, high = float(np.nanmin(found)), float(np.nanmax(found))
        levels = (found - low) / max(high - low, 1e-9)
        return None, levels, Legend(f"{low:.4g}", f"{high:.4g}", "unlikely")
    raise ViewError(f"{by[:80]!r} is nothing that this answer could be coloured by")


def _by_probe(entry: Entry, probe: SavedProbe) -> Numbers:
    try:
        return own_states(entry, probe.score_rows(entry))
    except (ProbeError, RowsMissing, InputMissing) as error:
        raise ViewError(f"the probe says nothing of this answer: {error}") from None


def _placed(entry: Entry, rows: npt.NDArray[Any]) -> Numbers:
    try:
        return own_states(entry, rows)
    except RowsMissing as error:
        raise ViewError(f"it is not known which tokens the scores are of: {error}") from None


def norms(entry: Entry, site: str) -> Numbers:
    """The Euclidean norm of each token's own state at a site, ``[R]``; NaN where there is none.

    Raises:
        ViewError: the site was not logged.
    """
    try:
        rows = entry.rows(site)
    except (RowsMissing, ValueError) as error:
        raise ViewError(str(error)) from None
    found = own_states(entry, np.linalg.norm(rows.astype(np.float64), axis=1))
    if not np.isfinite(found).any():
        raise ViewError(f"no token of this answer has a state of its own at {site}")
    return found


def ranks(entry: Entry) -> Numbers | None:
    """Of each token the place among the alternatives that were logged, from 1."""
    top = entry.top_logprobs
    if top is None:
        return None
    found = np.full(len(top), np.nan)
    for i, (each, token) in enumerate(zip(top, entry.response_token_ids, strict=False)):
        if token in each:
            found[i] = 1 + sum(one > each[token] for one in each.values())
    return found


def entropies(entry: Entry) -> Numbers | None:
    """At each token the entropy of the alternatives that were logged, in nats.

    All others count as one: it is at least so much.
    """
    top = entry.top_logprobs
    if top is None:
        return None
    found = []
    for each in top:
        p = np.exp(np.array(list(each.values()), np.float64))
        p = np.append(p, max(1 - p.sum(), 0.0))
        p = p[p > 0]
        found.append(float(-(p * np.log(p)).sum()))
    return np.array(found)


def _said(entry: Entry, probes: Mapping[str, SavedProbe]) -> dict[str, Numbers]:
    """What kept scores and probes say of each token."""
    numbers: dict[str, Numbers] = {}
    for name, rows in entry.scores.items():
        with suppress(ViewError):
            numbers[f"score {name}"] = _placed(entry, rows)
    for name, probe in probes.items():
        if probe.model == entry.model:
            with suppress(ViewError):
                numbers[f"probe {name}"] = _by_probe(entry, probe)
    return numbers


def _facts(
    entry: Entry,
    said: Mapping[str, Numbers],
    pieces: Callable[[Iterable[int]], Mapping[int, str]],
    count: int,
) -> list[str]:
    """Lines about each token but its text and log-probability, which its element has anyway."""
    lines: list[list[str]] = [[f"token {i + 1} of {entry.num_tokens[1]}"] for i in range(count)]
    of_alternatives = {"rank": ranks(entry), "entropy at least": entropies(entry)}
    known = {what: values for what, values in of_alternatives.items() if values is not None}
    numbers = {**said, **known}
    for what, values in numbers.items():
        for i in np.flatnonzero(np.isfinite(values[:count])):
            lines[i].append(f"{what}: {values[i]:.4g}")
    for i, text in enumerate(_alternatives(entry, pieces)[:count]):
        if text:
            lines[i].append(f"instead: {text}")
    return ["\n".join(each) for each in lines]


def _alternatives(entry: Entry, pieces: Callable[[Iterable[int]], Mapping[int, str]]) -> list[str]:
    """At each token the likeliest others; by number, where no answer has had them."""
    own, top = entry.response_token_ids, entry.top_logprobs or ()
    texts = pieces(token for each in top for token in each)
    found = []
    for chosen, each in zip(own, top, strict=False):
        rest = sorted(((p, t) for t, p in each.items() if t != chosen), reverse=True)
        found.append(
            ", ".join(
                f"{texts[t]!r} {np.exp(p):.1%}" if texts.get(t) else f"#{t} {np.exp(p):.1%}"
                for p, t in rest[:ALTERNATIVES]
            )
        )
    return found


def _optional(values: Sequence[float | None] | None, count: int) -> Numbers | None:
    if values is None:
        return None
    return np.array([np.nan if one is None else max(one, -100.0) for one in values[:count]])


def _plain(values: Numbers | None, index: int) -> float | None:
    if values is None or index >= len(values) or not np.isfinite(values[index]):
        return None
    return round(float(values[index]), 4)
