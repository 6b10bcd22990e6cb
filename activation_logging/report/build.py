"""A report from a labelled store: the study, the data files and the page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from activation_logging.errors import OutputExists
from activation_logging.extras import require
from activation_logging.files import write_whole
from activation_logging.locations import Address, below, folder_for, located, refuse_address
from activation_logging.progress import Progress, silent
from activation_logging.store import open_store

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from activation_logging.detectors.metrics import Interval
    from activation_logging.detectors.results import Study
    from activation_logging.detectors.sweep import Fit
    from activation_logging.store.places import Where


PAGE = "index.html"
"""The page of a report, which refers to no other file."""


class TableRow(NamedTuple):
    """One detector's AUROC with its 95 % interval; ``layer`` and ``position`` may be empty.

    ``over_best_control`` is its AUROC less that of the best control; None for that one itself.
    """

    name: str
    detector: str
    layer: str
    position: str
    auroc: float
    low: float
    high: float
    over_best_control: Interval | None = None


@dataclass(frozen=True)
class ReportResult:
    """Where the report is, and its main table.

    ``document`` is what ``report.json`` holds; ``headline`` the finding in a sentence or two.
    """

    page: Path | Address
    files: tuple[Path | Address, ...]
    table: tuple[TableRow, ...]
    headline: str
    left_out: Mapping[str, str]
    document: Mapping[str, Any]


def build_report(
    store_path: Where,
    out_dir: str | os.PathLike[str],
    *,
    label: str | None = None,
    seed: int = 0,
    save_probe: str | os.PathLike[str] | None = None,
    token_probe: str | os.PathLike[str] | None = None,
    fit: Fit | None = None,
    progress: Progress = silent,
    **options: Any,
) -> ReportResult:
    """Study a labelled store and write the report.

    Args:
        store_path: what :func:`.open_store` takes: the store's folder, or several, or the folder or
            address of an export.
        out_dir: where ``index.html``, ``report.json`` and the CSV files go; made if needed. May be
            an address, such as ``s3://bucket/folder``.
        label: the evaluator's name; may be left out where only one has judged.
        seed: of splits, bootstrap and networks; the same seed gives the same numbers.
        save_probe: also write the best linear probe, fitted on all answers, to this path.
        token_probe: a saved probe of tokens that colours the answers whose label has no spans.
        fit: where the probes of the sweep are fitted, as for
            :func:`activation_logging.detectors.run_study`; on this machine if left out.
        progress: called with each stage and how far it is.
        options: fields of :class:`activation_logging.detectors.Options`, such as
            ``layers``, ``positions``, ``positive``, ``negative``, ``model`` or ``tags``.

    Raises:
        DatasetError: the answers cannot be learned from; says what to do.
        OutputExists: ``out_dir`` is a file.
        ProbeError: ``token_probe`` cannot be read, is no probe of tokens, or is another model's.
        AddressError: an address cannot be reached, or gives no right to it.
        ExtraMissing: scikit-learn, plotly or jinja2 is not installed.
    """
    require("detect", "sklearn", "plotly", "jinja2")
    from activation_logging.detectors import Options, fit_probe, run_study
    from activation_logging.report.colours import Colours, load_token_probe
    from activation_logging.report.document import make_document, score_rows
    from activation_logging.report.files import write_data
    from activation_logging.report.headline import headline
    from activation_logging.report.page import render_page
    from activation_logging.report.tokens import claim_rows, probabilities, study_tokens

    where = located(out_dir)
    if isinstance(where, Path) and where.exists() and not where.is_dir():
        raise OutputExists(f"{where} is a file; name a folder for the report")
    if save_probe is not None:
        refuse_address(save_probe, "a probe", "name a file (--save-probe), and copy it there")
    with folder_for(where, PAGE) as folder, open_store(store_path) as store:
        coloured_by = (
            None
            if token_probe is None
            else load_token_probe(token_probe, store, options.get("model"))
        )
        asked = Options(seed=seed, **options)
        study = run_study(store, label, asked, fit=fit, progress=progress)
        of_tokens = study_tokens(store, study.examples.label, study.options, progress=progress)
        studied = {} if isinstance(of_tokens, str) else probabilities(of_tokens)
        colour = Colours(studied, coloured_by)
        progress("writing the report", 0, 1)
        probe = fit_probe(study)
        document = make_document(study, of_tokens, probe, colour)
        folder.mkdir(parents=True, exist_ok=True)
        written = write_data(folder, document, score_rows(study), claim_rows(of_tokens))
        page = folder / PAGE
        # A prompt may hold lone surrogates, which UTF-8 has no form for.
        write_whole(page, render_page(document).encode("utf-8", "replace"))
        written.append(page)
        files = [below(where, file.relative_to(folder).as_posix()) for file in written]
        if save_probe is not None:
            files += probe.save(save_probe)
        progress("writing the report", 1, 1)
    return ReportResult(
        page=below(where, PAGE),
        files=tuple(files),
        table=_table(study),
        headline=headline(document),
        left_out=study.detectors_left_out,
        document=document,
    )


def _table(study: Study) -> tuple[TableRow, ...]:
    """A row for each detector, and the floor that shuffled labels give."""
    floor = study.trust.shuffled.auroc
    return (
        *(
            TableRow(r.name, r.title, r.layer, r.position, *r.auroc, r.over_best_control)
            for r in study.results
        ),
        TableRow("shuffled_labels", "Linear probe, shuffled labels", "", "", *floor),
    )
