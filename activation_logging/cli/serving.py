"""Commands that run a model: demo-model, serve, generate, bench."""

from __future__ import annotations

import json
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import Annotated, Literal

import typer

from activation_logging.cli.terminal import AsJson, errors, output, print_json

_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("demo-model")(demo_model)
    app.command("serve", add_help_option=False, context_settings=_PASSED_ON)(serve)
    app.command("bench", context_settings=_PASSED_ON)(bench)


def demo_model() -> None:
    """Prepare the default model (once) and print its folder.

    The model is SmolLM2-135M-Instruct, about 270 MB, cached outside the work tree.
    """
    from activation_logging.demo_model import demo_model_path

    typer.echo(demo_model_path())


def serve(context: typer.Context) -> None:
    """Serve a model with vLLM and log every request: `serve MODEL [any flag of vllm serve]`.

    The same as `python -m activation_logging.vllm_serve`, with its flags: `--lmdb_path`,
    `--activation-layers`, `--activation-tokens`, `--activation-dtype`, `--auth_token`.
    """
    from activation_logging import vllm_serve

    raise typer.Exit(vllm_serve.main(context.args))


def bench(  # noqa: PLR0917 - the command's options
    context: typer.Context,
    model: Annotated[
        str | None, typer.Option(help="Model to serve; the default model if left out.")
    ] = None,
    baseline: Annotated[
        Literal["plain", "off"],
        typer.Option(
            help="What to compare with: vLLM that does not load the plugin, as if it were not "
            "installed (plain), or loads it with ACTIVATION_LOGGING=0 (off)."
        ),
    ] = "plain",
    candidate: Annotated[
        Literal["logging", "off", "plain"],
        typer.Option(help="What is measured; plain against plain shows the noise."),
    ] = "logging",
    concurrency: Annotated[
        str, typer.Option(help="Requests in flight, separated by commas.")
    ] = "1,8,32,64",
    rounds: Annotated[int, typer.Option(help="Pairs of measurements per concurrency.")] = 5,
    requests: Annotated[
        int | None,
        typer.Option(
            help="Requests per measurement; by default enough for a dozen seconds."
        ),
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens per answer.")] = 64,
    prompt_words: Annotated[
        int, typer.Option(help="Words of a prompt's own; about one token each.")
    ] = 64,
    shared_prefix: Annotated[
        int, typer.Option(help="Words at the start that all prompts share (a system prompt).")
    ] = 0,
    layers: Annotated[str, typer.Option(help="Layers to log, as in ACTIVATION_LAYERS.")] = "last",
    eager: Annotated[bool, typer.Option("--eager", help="Do not compile the model.")] = False,
    disturbance: Annotated[
        float | None,
        typer.Option(
            help="Measure a pair again (up to three times) if other processes kept more than so "
            "many processor cores busy meanwhile."
        ),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Keep the servers' logs and the store here.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option("--output", help="Write every measurement here, as JSON.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure what logging costs: the same load on a plain and a logging server, in turns.

    Both run at once, and one at a time is under load; a streaming client in a process of its own
    notes when each token comes. What is reported is the ratio of the two, round by round, as a
    median with the least and the greatest. Flags that are not listed here go to vLLM, for both.
    """
    from activation_logging.bench.compare import Plan, compare
    from activation_logging.bench.servers import ServerOptions
    from activation_logging.bench.table import TerminalWatcher, show

    plan = Plan(
        options=ServerOptions(
            model=model or _default_model(),
            vllm_args=tuple(context.args),
            layers=layers,
            eager=eager,
        ),
        baseline=baseline,
        candidate=candidate,
        concurrencies=_numbers(concurrency),
        rounds=rounds,
        answer_tokens=tokens,
        prompt_words=prompt_words,
        shared_prefix=shared_prefix,
        requests=requests,
        disturbance=disturbance,
    )
    with TerminalWatcher(plan, errors) as watcher:
        results = compare(plan, watcher, folder)
    if save is not None:
        save.parent.mkdir(parents=True, exist_ok=True)
        save.write_text(json.dumps(results.to_json(), indent=1) + "\n", encoding="utf-8")
    if as_json:
        print_json(results.to_json())
    else:
        show(results, output)


def _default_model() -> str:
    from activation_logging.demo_model import demo_model_path

    return str(demo_model_path())


def _numbers(text: str) -> tuple[int, ...]:
    """Positive numbers separated by commas."""
    from activation_logging.errors import SettingsError

    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() for part in parts):
        raise SettingsError(f"concurrency: {text!r} is not a list of numbers such as 1,8,32")
    return tuple(int(part) for part in parts)
