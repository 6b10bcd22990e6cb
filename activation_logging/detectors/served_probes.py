"""The probes of a server: what they need of each token's state, and what they say of it.

The worker keeps a few numbers of every token, its *columns*: the state times a matrix that holds
the projections of all probes (:mod:`activation_logging.vllm_plugin.scorer`). Everything that a
probe says follows from them. A probe of several sources has the sum of what each contributes.

Here a row of columns is what all probes need together, float64 ``[num_columns]``; that of one probe
is :attr:`ServedProbe.columns` of it. numpy alone is needed, so the front end has this too.

A state is at one of the positions ``P - 1`` to ``P + R - 2``, of ``P`` prompt and ``R`` response
tokens. Probes that look elsewhere cannot be served and are refused by name:

============== =================================================================================
tokens         a score at each position from ``P - 1``; the answer's is of all from ``P``
prompt_last    one score, at ``P - 1``
response_first one score, at ``P``
response_last  one score, at the last position, which is ``P - 1`` in an answer of one token
response_mean  one score, of the mean of the positions from ``P``
None           one score, which the probe's form makes of the positions from ``P``
============== =================================================================================

A worker does not know which position is the last: it may be a step ahead of a stop string. So of a
probe that looks at the end there is a *running* score, what it would say if the answer ended there.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from activation_logging.dataset.layers import Source
from activation_logging.detectors.forms import Accumulated, form_of
from activation_logging.detectors.saved_probe import SavedProbe
from activation_logging.errors import DatasetError, ProbeError
from activation_logging.sites import Site
from activation_logging.strict_json import dumps

if TYPE_CHECKING:
    from collections.abc import Iterable

    from activation_logging.arrays import Floats
    from activation_logging.detectors.forms import Form
    from activation_logging.probe_list import ProbeFile
    from activation_logging.sites import RowShape

CAPACITY = 64
"""How many columns all probes together may have of one site."""

_SERVED = ("prompt_last", "response_first", "response_last", "response_mean")


@dataclass(frozen=True)
class ServedProbe:
    """One probe of a server.

    Attributes:
        name: what requests and scores call it.
        probe: what was loaded.
        shadow: whether no client gets its scores.
        columns: where its columns are among those of all probes.
    """

    name: str
    probe: SavedProbe
    shadow: bool
    columns: slice

    @property
    def of_tokens(self) -> bool:
        """Whether it says something of every position."""
        return self.probe.kind == "token"

    @property
    def knows_prompt(self) -> bool:
        """Whether it says something before the first token of the answer."""
        return self.of_tokens or self.probe.position == "prompt_last"

    @property
    def reads_one_row(self) -> bool:
        """Whether what it says at a position follows from the state there alone."""
        return self.of_tokens or self.probe.position == "response_last"

    @property
    def offset(self) -> int:
        """The first position that it says something at, counted from ``P - 1``."""
        return 0 if self.knows_prompt or self.probe.position == "response_last" else 1

    @property
    def looks_at_end(self) -> bool:
        """Whether its one score is that of the last position, so that a running one is known."""
        return self.probe.position in (None, "response_last", "response_mean") and (
            not self.of_tokens
        )

    def at(self, columns: Floats) -> Floats:
        """The probability of every row by itself, float64 ``[n]``; NaN where it is not finite.

        Args:
            columns: of all probes, ``[n, num_columns]``.
        """
        return self.probe.probability(self.form.tokens_of(self.own(columns), self.bias))

    def running(self, columns: Floats) -> Floats:
        """What it would say of the answer if that ended at each row, float64 ``[n]``.

        NaN from a row that is not finite on. Not for ``prompt_last``, which none matters to.

        Args:
            columns: of all probes, ``[n, num_columns]``, from position ``P`` on without a gap.
        """
        return self.begin().more(columns)

    def begin(self) -> Running:
        """What it says of an answer that has no states yet; see :meth:`running`."""
        return Running(self)

    def answer(self, columns: Floats) -> float:
        """What it says of an answer with these states; NaN if it has none where the probe looks.

        Args:
            columns: of all probes, ``[n, num_columns]``, from position ``P - 1`` on.
        """
        scores = self.running(columns[1:]) if self.of_tokens else self.scores(columns)
        return float(scores[-1]) if len(scores) else np.nan

    def scores(self, columns: Floats) -> Floats:
        """What is kept of an answer: a probability at each position from ``P - 1 + offset`` on.

        Args:
            columns: of all probes, ``[n, num_columns]``, from position ``P - 1`` on.
        """
        if self.reads_one_row:
            return self.at(columns)
        if self.looks_at_end:
            return self.running(columns[1:])
        return self.at(columns[self.offset : self.offset + 1])

    @property
    def form(self) -> Form:
        """How its columns make log-odds."""
        return form_of(self.probe.form)

    @property
    def bias(self) -> float:
        """Of its log-odds."""
        return float(self.probe.tensors["bias"][0])

    def own(self, columns: Floats) -> Floats:
        """Its columns of those of all probes; a row that is not finite is NaN whole."""
        own = columns[:, self.columns]
        return np.where(np.isfinite(own).all(axis=1, keepdims=True), own, np.nan)


class Running:
    """What a probe would say of an answer if that ended at each row, of rows that come in pieces.

    The pieces change no bit, and what is kept of the rows does not grow.

    Args:
        served: the probe.
    """

    def __init__(self, served: ServedProbe) -> None:
        self._served = served
        self._run = served.form.begin(served.bias)
        self._sums = Accumulated(np.add)
        self._first: Floats | None = None
        self._count = 0

    def more(self, columns: Floats) -> Floats:
        """The probability at each of the rows that come now, float64 ``[n]``.

        Args:
            columns: of all probes, ``[n, num_columns]``, which follow on those before.
        """
        served, position = self._served, self._served.probe.position
        own = served.own(columns)
        if position is None:
            return served.probe.probability(self._run.more(own))
        if position == "response_mean":
            counts = np.arange(1, len(own) + 1) + self._count
            self._count += len(own)
            own = self._sums.more(own) / counts[:, None]
        elif position == "response_first" and len(own):
            self._first = own[:1].copy() if self._first is None else self._first
            own = np.repeat(self._first, len(own), axis=0)
        return served.probe.probability(served.form.tokens_of(own, served.bias))


class Part(NamedTuple):
    """What one source of a probe contributes to its columns.

    ``rows`` are the elements of a row of ``site``, and ``matrix``, ``[rows, C]``, what they are
    multiplied by; the products belong to ``columns`` of all probes.
    """

    site: Site
    rows: slice
    matrix: Floats
    columns: slice


class ServedProbes(Mapping[str, ServedProbe]):
    """The probes of a server by name, in order.

    Args:
        probes: name, probe, and whether it is a shadow.

    Raises:
        ProbeError: one of them cannot be served, or all together have more columns of a site than
            :data:`CAPACITY`; the text names the probe.
    """

    def __init__(self, probes: Iterable[tuple[str, SavedProbe, bool]] = ()) -> None:
        self._probes: dict[str, ServedProbe] = {}
        used: Counter[Site] = Counter()
        start = 0
        for name, probe, shadow in probes:
            if probe.kind == "answer" and probe.position not in (None, *_SERVED):
                raise ProbeError(
                    f"the probe {name} looks at {probe.position}, which is not known while a model "
                    f"answers: serve one of tokens, of all states of an answer, or of "
                    f"{', '.join(_SERVED)}"
                )
            stop = start + form_of(probe.form).columns(probe.tensors).shape[1]
            self._probes[name] = ServedProbe(name, probe, shadow, slice(start, stop))
            for site in (Source.of(one, probe.num_layers).site for one in probe.sources):
                used[site] += stop - start
                if used[site] > CAPACITY:
                    raise ProbeError(
                        f"the probe {name} is one too many: the probes of a server may have "
                        f"{CAPACITY} columns of one site together (a linear probe has 1, one of "
                        f"attention 2 a head), and this makes {used[site]} of {site.words}; serve "
                        "fewer"
                    )
            start = stop
        self.num_columns = start

    @classmethod
    def load(cls, files: Iterable[ProbeFile]) -> ServedProbes:
        """Read the probes of a list.

        Raises:
            ProbeError: a file is missing or broken, or a probe cannot be served.
        """
        found = []
        for file in files:
            try:
                found.append((file.name, SavedProbe.load(file.path), file.shadow))
            except ProbeError as error:  # noqa: PERF203 - which one it is must be said
                raise ProbeError(f"the probe {file.name}: {error}") from None
        return cls(found)

    def __getitem__(self, name: str) -> ServedProbe:
        return self._probes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._probes)

    def __len__(self) -> int:
        return len(self._probes)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the names, in order, with the probes: equal ones have equal columns."""
        told = [[name, one.probe.digest, one.shadow] for name, one in self.items()]
        return hashlib.sha256(dumps(told).encode()).hexdigest()

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """What the probes read, ascending by code."""
        probes = [served.probe for served in self.values()]
        found = {Source.of(one, probe.num_layers).site for probe in probes for one in probe.sources}
        return tuple(sorted(found, key=lambda site: site.code))

    def columns_of(self, others: ServedProbes, columns: Floats) -> Floats:
        """The columns of these probes, from those that others have; NaN of a probe they lack.

        Args:
            others: the probes that the rows were projected with.
            columns: of them, ``[n, num_columns]``.
        """
        if others.digest == self.digest:
            return columns
        found = np.full((len(columns), self.num_columns), np.nan)
        for name, one in self.items():
            other = others.get(name)
            if other is not None and other.probe.digest == one.probe.digest:
                found[:, one.columns] = columns[:, other.columns]
        return found

    def check_model(self, model: str, num_layers: int) -> None:
        """Refuse a probe of another model.

        Args:
            model: the served name.
            num_layers: its depth.

        Raises:
            ProbeError: names the probe.
        """
        for name, served in self.items():
            fitted = served.probe
            if (fitted.model, fitted.num_layers) != (model, num_layers):
                raise ProbeError(
                    f"the probe {name} was fitted on {fitted.model} with {fitted.num_layers} "
                    f"layers, this server has {model} with {num_layers}: serve the model under "
                    "that name (--served-model-name), or fit a probe on answers of this one"
                )
            for source in fitted.sources:
                site = Source.of(source, num_layers).site
                if site.layer > num_layers:
                    raise ProbeError(f"the probe {name} reads {site.words}, which does not exist")

    def parts(self, shapes: Mapping[int, RowShape]) -> list[Part]:
        """What to compute of the rows of each site; several parts may be of one site.

        Args:
            shapes: what a row of each site is, by the site's code: of all sites that are read.

        Raises:
            ProbeError: a site is not read, or has another width; the text names the probe.
        """
        return [part for served in self.values() for part in _parts(served, shapes)]


def _parts(served: ServedProbe, shapes: Mapping[int, RowShape]) -> Iterator[Part]:
    probe, name = served.probe, served.name
    projection = form_of(probe.form).columns(probe.tensors)
    start = 0
    for label in probe.sources:
        source = Source.of(label, probe.num_layers)
        shape = shapes.get(source.site.code)
        if shape is None:
            sites = (Site.from_code(code).words for code in sorted(shapes))
            raise ProbeError(
                f"the probe {name} reads {source.site.words}, and this server keeps scores of "
                f"{', '.join(sites) or 'no layer'}: start it with a probe of that layer"
            )
        try:
            rows = source.columns(shape.shape)
        except DatasetError as error:
            raise ProbeError(f"the probe {name}: {error}") from None
        stop = start + rows.stop - rows.start
        yield Part(source.site, rows, projection[start:stop], served.columns)
        start = stop
    if start != len(projection):
        sources = (Source.of(label, probe.num_layers) for label in probe.sources)
        read = " and ".join(source.site.words for source in sources)
        raise ProbeError(
            f"the probe {name} reads {len(projection)} numbers of {read}, and this model has "
            f"{start} there: it was fitted on another model of that name"
        )
