"""Commands that run a model: demo-model, serve, bench."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("demo-model")(demo_model)


def demo_model() -> None:
    """Prepare the default model (once) and print its folder.

    The model is SmolLM2-135M-Instruct, about 270 MB, cached outside the work tree.
    """
    from activation_logging.demo_model import demo_model_path

    typer.echo(demo_model_path())
