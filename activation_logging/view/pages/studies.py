"""Studies: started by a button, followed while they run, and read here."""

from __future__ import annotations

from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

from fastapi import APIRouter, Query, Request, Response
from starlette.responses import FileResponse, RedirectResponse

from activation_logging.errors import ViewError
from activation_logging.records import Label
from activation_logging.store.query import parse_tags
from activation_logging.store.statistics import counts
from activation_logging.view.state import Form, State, base_of, page
from activation_logging.view.studies import PAGE, Studies

if TYPE_CHECKING:
    from collections.abc import Mapping

    from activation_logging.view.state import ViewState

router = APIRouter()

NEEDED = ("sklearn", "scipy", "plotly")
"""What studies need besides the pages: the extra ``detect``."""
_LABELS = get_args(Label)
_KINDS = {"json": "application/json", "csv": "text/csv; charset=utf-8"}


def _studies(state: ViewState) -> Studies:
    path = Path(state.store.path)
    if not path.is_dir():
        raise ViewError(
            "studies are of a folder on this machine, of a store or of several: open the folder "
            "for them, or use `activation-logging report`"
        )
    return Studies(path)


@router.get("/studies")
def studies(
    request: Request, state: State, of: Annotated[str, Query(max_length=300)] = ""
) -> Response:
    """All studies of the store, and the form for another.

    The page of a study that runs asks each second ``of`` it, and takes its progress out of the
    answer: the rest, which somebody may be reading or pressing, stays until the study has ended.
    """
    found = counts(state.store)
    judged = sorted(found.labels.items())
    of_store = _studies(state)
    shown = page(
        request,
        state,
        "studies.html.j2",
        studies=of_store.all(),
        judged=dict(Counter({name: sum(one.values()) for name, one in judged}).most_common()),
        models=sorted(found.models),
        labels=[one for one in _LABELS if one != "invalid"],
        able=all(map(find_spec, NEEDED)),
    )
    if of and of_store[of].state != "running":
        shown.headers["hx-retarget"] = shown.headers["hx-reselect"] = f"#study-{of}"
    return shown


@router.post("/studies")
def start(request: Request, state: State, form: Form) -> Response:
    """Start a study."""
    _studies(state).start(_asked(dict(form)))
    return RedirectResponse(f"{base_of(request)}/studies", 303)


def _asked(fields: Mapping[str, str]) -> dict[str, Any]:
    positive, negative = fields.get("positive", ""), fields.get("negative", "")
    if positive not in _LABELS or negative not in _LABELS or positive == negative:
        raise ViewError("a study tells one label from another: choose two")
    tags = parse_tags(part for part in fields.get("tags", "").split(",") if part.strip())
    layers = [part.strip() for part in fields.get("layers", "").split(",") if part.strip()]
    return {
        "label": fields.get("label") or None,
        "model": fields.get("model") or None,
        "positive": positive,
        "negative": negative,
        "layers": layers or None,
        "tags": {name.strip(): value.strip() for name, value in tags.items()} or None,
        "transfer_by": fields.get("transfer_by", "").strip() or None,
    }


@router.post("/studies/stop")
def stop(request: Request, state: State, form: Form) -> Response:
    """Stop the study that runs."""
    _studies(state).stop(dict(form).get("name", ""))
    return RedirectResponse(f"{base_of(request)}/studies", 303)


@router.post("/studies/remove")
def remove(request: Request, state: State, form: Form) -> Response:
    """Delete a study's files."""
    _studies(state).remove(dict(form).get("name", ""))
    return RedirectResponse(f"{base_of(request)}/studies", 303)


@router.get("/studies/{name}/")
def report(state: State, name: str) -> Response:
    """The report, the same page that ``activation-logging report`` writes."""
    study = _studies(state)[name]
    if study.state != "done" or not (study.folder / PAGE).is_file():
        raise ViewError(f"the study {name} has no report")
    return FileResponse(
        study.folder / PAGE,
        media_type="text/html; charset=utf-8",
        headers={"content-security-policy": _policy(study.progress.get("scripts"))},
    )


def _policy(scripts: Any) -> str:
    """The report's own scripts may run, and nothing else; it has no part in these pages.

    Its charts set styles, and a style runs nothing.
    """
    hashes = [one for one in scripts or () if isinstance(one, str) and " " not in one]
    allowed = " ".join(f"'{one}'" for one in hashes) or "'none'"
    return (
        f"sandbox allow-scripts allow-downloads; default-src 'none'; script-src {allowed}; "
        "style-src 'unsafe-inline'; img-src data: blob:; font-src data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    )


@router.get("/studies/{name}/{file}")
def numbers(state: State, name: str, file: str) -> Response:
    """One of the files of numbers beside a report."""
    study = _studies(state)[name]
    if file not in study.files:
        raise ViewError(f"the study {name} has no file {file[:80]!r}")
    kind = _KINDS[file.rpartition(".")[2]]
    return FileResponse(study.folder / file, media_type=kind, filename=file)
