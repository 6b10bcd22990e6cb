"""The command that opens the pages of a store in a browser: view."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from activation_logging.cli.options import StorePaths
from activation_logging.cli.progress import show_progress
from activation_logging.cli.terminal import errors
from activation_logging.errors import SettingsError
from activation_logging.exposure import is_loopback
from activation_logging.extras import require

if TYPE_CHECKING:
    from activation_logging.detectors.saved_probe import SavedProbe


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command("view")(view)


def view(
    path: StorePaths,
    *,
    server: Annotated[
        str | None,
        typer.Option(
            help="A server to chat with, such as http://localhost:8000/v1. Its key is read from "
            "VLLM_API_KEY.",
        ),
    ] = None,
    probe: Annotated[
        list[str] | None,
        typer.Option(
            help="A saved probe that can colour tokens, as PATH or NAME=PATH; may be repeated.",
            metavar="[NAME=]PATH",
        ),
    ] = None,
    inspect: Annotated[
        str | None,
        typer.Option(
            help="Where `inspect view --log-dir FOLDER` shows the logs of Inspect that answers "
            "were asked by, such as http://127.0.0.1:7575: answers link to their samples.",
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on. One that other machines reach needs the token that is "
            "printed as a part of the address."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 for any free one.", min=0, max=65535)] = 8123,
) -> None:
    """Open a store in a browser: list, search and label its answers, and look into them.

    The first time, every answer is read once into a search index beside the store. A server may
    write to the store meanwhile. Stop with Ctrl-C.
    """
    require("view", "fastapi", "httpx", "jinja2", "python_multipart", "uvicorn")
    from activation_logging.view.addresses import PREFIX
    from activation_logging.view.app import LOOPBACK, make_app
    from activation_logging.view.inspect_link import checked_viewer
    from activation_logging.view.server_link import ServerLink
    from activation_logging.view.serving import listen, run

    link = ServerLink(server, os.environ.get("VLLM_API_KEY")) if server else None
    viewer = checked_viewer(inspect) if inspect else None
    probes = _probes(probe or ())
    local = is_loopback(host)
    token = None if local else secrets.token_urlsafe(24)
    names = (*LOOPBACK, host.strip("[]")) if local else None
    app = make_app(
        path, probes=probes, server=link, inspect=viewer, hosts=names,
        keys=(token,) if token else (),
    )  # fmt: skip
    # The port first: reading a large store takes minutes.
    with listen(host, port) as socket:
        with show_progress() as progress:
            app.state.view.index.build(progress)
        shown = f"[{host}]" if ":" in host and not host.startswith("[") else host
        address = f"http://{shown}:{socket.getsockname()[1]}{PREFIX}/"
        errors.print(f"{app.state.view.store.path} is at", style="dim")
        typer.echo(f"{address}?token={token}" if token else address)
        run(app, socket)


def _probes(given: list[str] | tuple[str, ...]) -> dict[str, SavedProbe]:
    from activation_logging.detectors.saved_probe import SavedProbe

    found: dict[str, SavedProbe] = {}
    for text in given:
        name, equals, place = text.partition("=")
        file = Path(place if equals else text)
        name = name if equals else file.stem
        if not name or name in found:
            raise SettingsError(f"--probe {text}: give each probe a name of its own, as NAME=PATH")
        found[name] = SavedProbe.load(file)
    return found
