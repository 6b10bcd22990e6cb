"""``/v1/activations/probes``: the probes of a server, and changes to them while it runs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Request, Response
from pydantic import BaseModel, Field

from activation_logging.asgi import AsciiJson
from activation_logging.routes import PREFIX, http_errors
from activation_logging.vllm_plugin.probe_desk import ProbeDesk, Wanted, engine_of, live_of

if TYPE_CHECKING:
    from fastapi import FastAPI

router = APIRouter(
    prefix=f"{PREFIX}/probes", tags=["activations"], default_response_class=AsciiJson
)

MAX_CHANGES = 256
_Name = Annotated[str, Field(min_length=1, max_length=256)]


class NewProbe(BaseModel, extra="forbid"):
    """A probe to set."""

    file: _Name = Field(description="The name of its file in the server's folder of probes.")
    shadow: bool = Field(
        default=False, strict=True, description="Score and store, but send to no client."
    )


class ProbeChange(BaseModel, extra="forbid"):
    """A change of a server's probes, which is made as a whole or not at all."""

    set: dict[_Name, _Name | NewProbe] = Field(
        default_factory=dict,
        max_length=MAX_CHANGES,
        description="By name, the file, or an object that also says whether it is a shadow.",
    )
    remove: list[_Name] = Field(default_factory=list, max_length=MAX_CHANGES)


def add_to(app: FastAPI, desk: ProbeDesk) -> None:
    """Give an application these routes. They come before those with a key in their path."""
    app.state.activation_probes = desk
    app.include_router(router)


def _desk(request: Request) -> ProbeDesk:
    desk: ProbeDesk = request.app.state.activation_probes
    return desk


Desk = Annotated[ProbeDesk, Depends(_desk)]


@router.get("")
async def list_probes(request: Request, desk: Desk) -> Response:
    """The probes that score every answer, in the order of their columns.

    ``scored`` and ``flagged`` count the answers since the server started, under the probe's name.
    ``files`` are the probes of the server's folder, which may be set.
    """
    return await _listed(request.app, desk)


@router.post("")
async def change_probes(change: ProbeChange, request: Request, desk: Desk) -> Response:
    """Set probes by name and file, and remove others, without a restart.

    A probe that is set again is read again. All workers change over between two steps. An answer
    that is on its way when its probe is replaced has no scores from there on. Where one probe is
    broken, of another model, or reads a layer that the server computes no scores of, nothing
    changes.
    """
    engine = engine_of(request.app)
    if engine is None:
        raise HTTPException(503, "no model is loaded, so there are no probes to change")
    if not (change.set or change.remove):
        raise HTTPException(400, 'nothing to change: give {"set": {NAME: FILE}, "remove": [NAME]}')
    wanted = {
        name: Wanted(one) if isinstance(one, str) else Wanted(one.file, one.shadow)
        for name, one in change.set.items()
    }
    with http_errors():
        await desk.change(engine, wanted, change.remove)
    return await _listed(request.app, desk)


async def _listed(app: FastAPI, desk: ProbeDesk) -> Response:
    live = live_of(engine_of(app))
    if live is not None:
        desk.learn(live)
        live.collect()

    def read() -> dict[str, Any]:
        data = [] if live is None else list(desk.told(live))
        return {"object": "list", "data": data, "files": desk.files()}

    with http_errors():
        return AsciiJson(await asyncio.to_thread(read))
