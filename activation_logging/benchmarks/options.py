"""The options of a run, each with its default and its help text: both command lines use them."""

from __future__ import annotations

import sys
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from activation_logging.errors import BenchmarkError, RequestOptionError
from activation_logging.score_options import STOP, ScoreOptions

if TYPE_CHECKING:
    from dataclasses import Field

    from activation_logging.benchmarks.registry import Benchmark

DEFAULT_BASE_URL = "http://localhost:8000/v1"

SIBLING = "sibling"

Display = Literal["none", "plain", "rich", "full"]
"""How Inspect shows its progress."""


def flag(
    help: str,  # noqa: A002 - as both command lines call it
    *,
    script: str | None = None,
    command: tuple[str, ...] | None = None,
    least: float | None = None,
    setting: bool = False,
) -> dict[str, Any]:
    """The metadata of a field of :class:`RunOptions` that is a flag.

    Args:
        help: without capital and full stop. ``{unit}`` is what the benchmark counts.
        script: the flag of the scripts; named after the field unless given.
        command: the flags of ``activation-logging eval``; named after the field unless given, and
            none if empty.
        least: the minimum of a number.
        setting: whether only benchmarks that name the field in their ``settings`` have it.
    """
    return {
        "help": help, "script": script, "command": command, "least": least, "setting": setting,
    }  # fmt: skip


class Inventor(NamedTuple):
    """A model that invents names, and where it is served.

    ``is_tested``: at the address of the tested model, whose key it wants then.
    """

    model: str
    base_url: str
    is_tested: bool

    @classmethod
    def parse(cls, text: str, tested_url: str) -> Inventor:
        """What ``--generator`` names.

        Raises:
            BenchmarkError: it is no ``MODEL@URL``.
        """
        model, _, url = text.rpartition("@")
        if not model or not url.startswith(("http://", "https://")):
            raise BenchmarkError(
                f"--generator {text!r} is not MODEL@URL, such as org/model@http://localhost:8001/v1"
            )
        return cls(model, url, url == tested_url)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What to ask, whom, how it is judged, and where everything goes.

    ``exp``, ``n`` and ``max_tokens`` are the benchmark's own where they are None.

    Raises:
        BenchmarkError: a value is invalid; the text names it as the scripts' flags do.
    """

    exp: str | None = field(default=None, metadata=flag("part of the benchmark"))
    do_generate_prompt: bool = field(
        default=False, metadata=flag("make the questions, anew if they exist", command=())
    )
    do_inference: bool = field(
        default=True, metadata=flag("ask what has no answer yet", command=())
    )
    do_eval: bool = field(
        default=True, metadata=flag("judge what has no verdict yet, and label it", command=())
    )
    n: int | None = field(
        default=None,
        metadata=flag(
            "questions for each {unit}, controls not counted",
            script="--N",
            command=("--n", "--N"),
            least=1,
        ),
    )
    seed: int = field(default=0, metadata=flag("random seed of the questions"))
    limit: int | None = field(
        default=None,
        metadata=flag("maximum number of questions in all, balanced over strata", least=1),
    )
    epochs: int = field(default=1, metadata=flag("how often each question is asked", least=1))
    temperature: float = field(
        default=0.0,
        metadata=flag("temperature of the answers; above 0 they are sampled", least=0),
    )
    max_tokens: int | None = field(
        default=None, metadata=flag("maximum length of an answer in tokens", least=1)
    )
    model: str = field(metadata=flag("the model, as the server calls it", script="--tested_model"))
    base_url: str = field(default=DEFAULT_BASE_URL, metadata=flag("the server's address"))
    output_base_dir: Path = field(
        default=Path("output"), metadata=flag("folder above the run's", command=("--output-dir",))
    )
    prompt_output_path: Path | None = field(
        default=None, metadata=flag("file or folder for the questions", command=())
    )
    infer_overwrite: bool = field(
        default=False,
        metadata=flag("forget the answers that are there", command=("--overwrite/--no-overwrite",)),
    )
    eval_overwrite: bool = field(
        default=False, metadata=flag("forget the verdicts that are there", command=())
    )
    activation_stop: str | None = field(
        default=None,
        metadata=flag(
            "when probes of the server end answers, as JSON: "
            '{{"probe": NAME, "prompt_above": 0.8}} refuses before the first word'
        ),
    )
    judge: str = field(
        default="rules",
        metadata=flag("'rules' (the benchmark's own judge), another judge's name, or a model"),
    )
    judge_base_url: str | None = field(
        default=None,
        metadata=flag("where a judging model is served, if not at the tested model's address"),
    )
    controls: str = field(
        default=SIBLING,
        metadata=flag(
            "which real names stand beside made-up ones: 'sibling', the donors of their halves, "
            "or 'famous' ones (nonsense_mixed_entities)",
            setting=True,
        ),
    )
    generator: list[str] | None = field(
        default=None,
        metadata=flag(
            "MODEL@URL of a model that invents the names, once for each such model; the tested "
            "model unless given (generated_entities)",
            setting=True,
        ),
    )
    store: Path | None = field(
        default=None,
        metadata=flag(
            "the store, if it is on this machine; otherwise labels go through the server",
            script="--lmdb_path",
            command=("--lmdb-path",),
        ),
    )
    max_connections: int = field(
        default=32, metadata=flag("number of questions open at once", least=1)
    )
    display: Display = "none"

    def __post_init__(self) -> None:
        for one in flags():
            value, least = getattr(self, one.name), one.metadata["least"]
            if least is not None and value is not None and value < least:
                raise BenchmarkError(
                    f"{script_flag(one)} {value} is invalid: the minimum is {least}"
                )
        if not self.model and (self.do_inference or self.do_eval):
            raise BenchmarkError("--tested_model is missing: name the model as the server calls it")
        if self.activation_stop is not None:
            try:
                ScoreOptions.parse({STOP: self.activation_stop})
            except RequestOptionError as error:
                raise BenchmarkError(f"--activation-stop: {error}") from None
        if self.epochs > 1 and not self.temperature:
            raise BenchmarkError(
                f"{self.epochs} epochs at temperature 0 would give the same answer {self.epochs} "
                "times; give a --temperature above 0"
            )

    def settings(self, benchmark: Benchmark) -> dict[str, Any]:
        """The options that the questions of a benchmark depend on, besides number and seed.

        Raises:
            BenchmarkError: an option is given that the benchmark does not have, or is invalid.
        """
        for one in flags():
            foreign = one.metadata["setting"] and one.name not in benchmark.settings
            if foreign and getattr(self, one.name) != one.default:
                raise BenchmarkError(f"{benchmark.name} has no {script_flag(one)}")
        found = {name: getattr(self, name) for name in benchmark.settings}
        if "generator" in found:
            if not (self.generator or self.model):
                raise BenchmarkError(
                    "--generator is missing: name the model that invents, as MODEL@URL"
                )
            named = self.generator or [f"{self.model}@{self.base_url}"]
            found["generator"] = [Inventor.parse(text, self.base_url) for text in named]
        return found

    def recorded_settings(self, benchmark: Benchmark) -> dict[str, str]:
        """The same in words, without addresses and without what is the default.

        Raises:
            BenchmarkError: as :meth:`settings`.
        """
        found = self.settings(benchmark)
        if "generator" in found:
            found["generator"] = ", ".join(inventor.model for inventor in found["generator"])
        return {name: value for name, value in found.items() if value != default_setting(name)}

    @classmethod
    def from_command_line(cls, **given: Any) -> RunOptions:
        """Options as flags gave them: a judging model is served where the tested one is.

        Raises:
            BenchmarkError: a value is invalid.
        """
        given["model"] = given["model"] or ""
        given["judge_base_url"] = given["judge_base_url"] or given["base_url"]
        terminal: Display = "rich" if sys.stdout.isatty() else "plain"
        return cls(**{"display": terminal, **given})


def flags() -> list[Field[Any]]:
    """The fields that are flags, in the order to list them."""
    return [one for one in fields(RunOptions) if one.metadata]


def script_flag(one: Field[Any]) -> str:
    """The flag's name in the scripts."""
    return one.metadata["script"] or f"--{one.name}"


def default_setting(name: str) -> Any:
    """The value of a benchmark's own option where none is given."""
    return next(one.default for one in flags() if one.name == name)


def default_of(one: Field[Any], benchmark: Benchmark) -> Any:
    """The default of a flag, where the benchmark has its own that one; None if it is required."""
    own = {
        "exp": benchmark.default_exp,
        "n": benchmark.default_n,
        "max_tokens": benchmark.max_tokens,
    }
    default = None if one.default is MISSING else one.default
    return own.get(one.name, default)
