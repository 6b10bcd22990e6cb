"""Several reports beside each other: labels, models or stores in one table."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from activation_logging import __version__
from activation_logging.errors import DatasetError, OutputExists, ProbeError
from activation_logging.extras import require
from activation_logging.files import write_whole
from activation_logging.locations import Address, below, folder_for, located
from activation_logging.progress import Progress, silent
from activation_logging.report.build import PAGE, ReportResult, build_report
from activation_logging.store import open_store
from activation_logging.store.query import is_named
from activation_logging.store.statistics import Counts, counts
from activation_logging.strict_json import dumps

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping, Sequence

FORMAT = "activation-logging comparison"
VERSION = 1

Whole = TypeVar("Whole", str, Path | Address)


class Asked(NamedTuple):
    """One study to make; ``title`` is made of what tells it from the others."""

    store: Path | Address
    label: str | None
    model: str | None
    title: str
    name: str


@dataclass(frozen=True)
class ComparisonResult:
    """Where the comparison is, and the reports that it compares, by title.

    ``left_out`` says why a study was not possible. ``document`` is what ``comparison.json`` holds.
    """

    page: Path | Address
    files: tuple[Path | Address, ...]
    reports: Mapping[str, ReportResult]
    left_out: Mapping[str, str]
    document: Mapping[str, Any]


def build_comparison(
    store_paths: Sequence[str | os.PathLike[str]],
    out_dir: str | os.PathLike[str],
    *,
    labels: Sequence[str] = (),
    models: Sequence[str] = (),
    progress: Progress = silent,
    **options: Any,
) -> ComparisonResult:
    """Study every label of every model in every store, and put the results into one table.

    Each study has its own report in a folder of ``out_dir``. One that is not possible, because it
    has too few answers for instance, is left out with its reason.

    Args:
        store_paths: the stores' folders.
        out_dir: where ``index.html``, ``comparison.json``, ``comparison.csv`` and the folders of
            the studies go, made if needed; or an address.
        labels: the evaluators' names; may be left out where only one has judged.
        models: names of models; may be left out where all answers are by one.
        progress: called with each study's stages.
        options: what :func:`.build_report` takes besides, the same for all.

    Raises:
        DatasetError: a label or a model is nowhere, models are mixed without being named, or not
            one study is possible.
        OutputExists: ``out_dir`` is a file.
        ExtraMissing: scikit-learn, plotly or jinja2 is not installed.
    """
    require("detect", "sklearn", "plotly", "jinja2")
    where = located(out_dir)
    if isinstance(where, Path) and where.exists() and not where.is_dir():
        raise OutputExists(f"{where} is a file; name a folder for the report")
    asked = plan(store_paths, labels, models)
    with folder_for(where, PAGE) as folder:
        return _write(asked, folder, where, progress, options)


def _write(
    asked: Sequence[Asked],
    folder: Path,
    where: Path | Address,
    progress: Progress,
    options: Mapping[str, Any],
) -> ComparisonResult:
    """Make the studies, and write everything into a folder; ``where`` is what users call it."""
    from activation_logging.report.comparison_data import claim_csv_rows, csv_rows
    from activation_logging.report.files import csv_bytes
    from activation_logging.report.page import render_comparison

    reports: dict[str, ReportResult] = {}
    left_out: dict[str, str] = {}
    for one in asked:
        made = _report(one, folder, _under(one.title, progress), options)
        if isinstance(made, str):
            left_out[one.title] = made
        else:
            reports[one.title] = made
    if not reports:
        raise DatasetError(
            "none of the studies is possible: "
            + "; ".join(f"{title}: {why}" for title, why in left_out.items())
        )
    document = _document(reports, left_out)
    files = {
        "comparison.json": dumps(document, indent=1, ascii_only=False).encode(),
        "comparison.csv": csv_bytes(csv_rows(document)),
        **({"claims.csv": csv_bytes(claims)} if (claims := claim_csv_rows(document)) else {}),
        PAGE: render_comparison(document).encode("utf-8", "replace"),
    }
    for name, content in files.items():
        write_whole(folder / name, content)
    return ComparisonResult(
        page=below(where, PAGE),
        files=tuple(below(where, name) for name in files),
        reports={title: _elsewhere(report, folder, where) for title, report in reports.items()},
        left_out=left_out,
        document=document,
    )


def _elsewhere(report: ReportResult, folder: Path, where: Path | Address) -> ReportResult:
    """A report whose files will be at ``where`` instead of ``folder``."""

    def moved(file: Path | Address) -> Path | Address:
        if isinstance(file, Address) or not file.is_relative_to(folder):
            return file
        return below(where, file.relative_to(folder).as_posix())

    return replace(report, page=moved(report.page), files=tuple(map(moved, report.files)))


def _report(
    asked: Asked, folder: Path, progress: Progress, options: Mapping[str, Any]
) -> ReportResult | str:
    """The report of one study, or why it is not possible."""
    try:
        return build_report(
            asked.store,
            folder / asked.name,
            label=asked.label,
            model=asked.model,
            progress=progress,
            **options,
        )
    except (DatasetError, ProbeError) as error:
        return str(error)


def plan(
    store_paths: Sequence[str | os.PathLike[str]], labels: Sequence[str], models: Sequence[str]
) -> list[Asked]:
    """Which studies there are: every named label and model that a store has.

    Raises:
        DatasetError: a label or a model is in none of the stores, a store has none of them, or the
            stores hold answers of several models and none is named.
    """
    found: dict[Path | Address, Counts] = {}
    distinct: dict[Path | Address, Path | Address] = {}
    for each in map(located, store_paths):
        distinct.setdefault(each.resolve(), each)
    for path in distinct.values():
        with open_store(path) as store:
            found[path] = counts(store)
    _refuse_unknown(found, labels, models)
    if not models:
        _refuse_mixture(found)
    wanted_labels: Sequence[str | None] = labels or [None]
    wanted_models: Sequence[str | None] = models or [None]
    asked: list[tuple[Path | Address, str | None, str | None]] = []
    for path, has in found.items():
        own = [
            (label, model)
            for label in wanted_labels
            for model in wanted_models
            if (label is None or label in has.labels) and (model is None or _has(has.models, model))
        ]
        if not own:
            raise DatasetError(
                f"{path} has none of the labels and models that were named; its labels are "
                f"{_listed(has.labels)}, its models {_listed(has.models)}: leave it out, or name "
                "one of them"
            )
        asked += [(path, label, model) for label, model in own]
    return _named(asked)


def _named(asked: Sequence[tuple[Path | Address, str | None, str | None]]) -> list[Asked]:
    """With titles of what differs between the studies, and names that folders may have."""
    stores = _short({path: path.absolute().parts for path, _, _ in asked})
    served = _short({model: model.strip("/").split("/") for _, _, model in asked if model})
    several = [len({one[part] for one in asked}) > 1 for part in range(3)]
    found: list[Asked] = []
    names: set[str] = set()
    for path, label, model in asked:
        parts = (label or "", served[model] if model else "", stores[path])
        shown = [
            part
            for part, differs in zip(parts, (several[1], several[2], several[0]), strict=True)
            if differs and part
        ]
        title = " · ".join(shown) or label or "study"
        name = plain = re.sub(r"[^\w.-]+", "-", "-".join(shown)).strip(".-") or "study"
        number = 2
        while name.lower() in names:
            name, number = f"{plain}-{number}", number + 1
        names.add(name.lower())
        found.append(Asked(path, label, model, title, name))
    return found


def _short(names: Mapping[Whole, Sequence[str]]) -> dict[Whole, str]:
    """Each name, given by its parts, by as many of the last ones as tell it from the others."""
    shown: dict[Whole, str] = {}
    for count in range(1, max(map(len, names.values()), default=0) + 1):
        shown = {name: "/".join(parts[-count:]) for name, parts in names.items()}
        if len(set(shown.values())) == len(shown):
            break
    return shown


def _refuse_unknown(
    found: Mapping[Path | Address, Counts], labels: Sequence[str], models: Sequence[str]
) -> None:
    evaluators = {name for has in found.values() for name in has.labels}
    for name in labels:
        if name not in evaluators:
            raise DatasetError(
                f"no store has labels by {name!r}; the evaluators are {_listed(evaluators)}"
            )
    served = {name for has in found.values() for name in has.models}
    for name in models:
        if not _has(served, name):
            raise DatasetError(
                f"no store has answers by {name!r}; the models are {_listed(served)}"
            )


def _refuse_mixture(found: Mapping[Path | Address, Counts]) -> None:
    where: dict[str, list[str]] = {}
    for path, has in found.items():
        for model in has.models:
            where.setdefault(model, []).append(str(path))
    if len(where) > 1:
        listed = "; ".join(f"{model} in {', '.join(paths)}" for model, paths in where.items())
        raise DatasetError(
            f"the answers are of {len(where)} models ({listed}); say which to compare, with "
            "--model for each (models=)"
        )


def _has(models: Iterable[str], name: str) -> bool:
    return any(is_named(model, name) for model in models)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _under(title: str, progress: Progress) -> Progress:
    return lambda what, done, total: progress(f"{title}: {what}", done, total)


def _document(reports: Mapping[str, ReportResult], left_out: Mapping[str, str]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "created": time.time(),
        "activation-logging": __version__,
        "studies": [
            {
                "title": title,
                "page": "/".join(report.page.parts[-2:]),
                "headline": report.headline,
                "best_control": report.document["trust"]["best_control"],
                "tokens": {
                    name: value
                    for name, value in report.document["tokens"].items()
                    if name != "examples"
                },
                **{
                    part: report.document[part]
                    for part in ("data", "place", "detectors", "detectors_left_out", "provenance")
                },
            }
            for title, report in reports.items()
        ],
        "left_out": dict(left_out),
    }
