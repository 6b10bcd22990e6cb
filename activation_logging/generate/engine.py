"""vLLM's offline engine, kept busy, and what is checked before it starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from activation_logging.errors import SettingsError
from activation_logging.generate.prompts import LINE_TAG, RUN_TAG
from activation_logging.probe_list import parse_probes
from activation_logging.settings import RequestOptions, Settings
from activation_logging.text import brief
from activation_logging.vllm_plugin.gate import check_plugin_is_loaded

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from vllm import LLM, SamplingParams

    from activation_logging.generate.prompts import PromptLine

_WRITE_S = 30.0
"""What vLLM's processes may take to write and to end."""


class Answer(NamedTuple):
    """A finished request: the id of its line, its own, and its first choice; numbers of tokens."""

    line: str
    request_id: str
    text: str
    finish_reason: str
    tokens: int
    prompt_tokens: int


def request_id_of(run: str, line: str) -> str:
    """The id under which a line is asked, the same each time."""
    return f"{run}-{line}"


def checked_settings(sampling: Mapping[str, Any]) -> Settings:
    """The plugin's settings from the environment, for requests with this sampling.

    Raises:
        SettingsError: logging is off, or the sampling stops on a probe that is not served.
    """
    settings = Settings.from_env()
    if not settings.enabled:
        raise SettingsError("ACTIVATION_LOGGING=0 is set: nothing would be logged; unset it")
    options = RequestOptions.parse(sampling.get("extra_args"), settings=settings)
    shown = [probe.name for probe in parse_probes(settings.probes) if not probe.shadow]
    options.scores.check(shown)
    return settings


class Engine:
    """vLLM's offline engine, with always more requests in it than it can run.

    Args:
        model: what vLLM is to load.
        sampling: fields of vLLM's ``SamplingParams``, the same for every line.
        run: name of the run, which the requests carry as a tag.
        vllm_args: flags as for ``vllm serve``.

    Raises:
        SettingsError: a flag or sampling parameter is invalid, or there is no such model.
    """

    def __init__(
        self, model: str, sampling: Mapping[str, Any], run: str, vllm_args: Sequence[str]
    ) -> None:
        check_plugin_is_loaded()
        from activation_logging.vllm_plugin import calls

        _check_sampling(sampling)
        self._sampling = sampling
        self._run = run
        self._llm = _load(model, vllm_args)
        calls.watch(self._llm.llm_engine)
        scheduler = self._llm.llm_engine.vllm_config.scheduler_config
        self.capacity = 2 * int(scheduler.max_num_seqs)

    @property
    def in_flight(self) -> int:
        """How many requests are in the engine."""
        return int(self._llm.llm_engine.get_num_unfinished_requests())

    def fill(self, waiting: Iterator[PromptLine]) -> dict[int, str]:
        """Bring the engine up to its number of requests.

        Returns:
            Numbers of the lines that it refuses, with the reasons.

        Raises:
            EngineGone: the engine's process has died.
        """
        from vllm.exceptions import VLLMClientError

        from activation_logging.vllm_plugin import calls

        refused: dict[int, str] = {}
        while self.in_flight < self.capacity:
            line = next(waiting, None)
            if line is None:
                break
            try:
                with calls.engine_gone():
                    self._ask(line)
            except (VLLMClientError, ValueError) as error:
                # A prompt that is longer than the model's context, or a broken chat.
                refused[line.number] = " ".join(str(error).split())
        return refused

    def step(self) -> list[Answer]:
        """Run one step. When the last request of all ends, every row is in the store.

        Raises:
            EngineGone: the engine's process has died.
        """
        from activation_logging.vllm_plugin import calls

        found = []
        with calls.engine_gone():
            outputs = self._llm.llm_engine.step()
        for output in outputs:
            if output.finished:
                first, *_ = output.outputs
                answer = Answer(
                    line=output.request_id.removeprefix(request_id_of(self._run, "")),
                    request_id=output.request_id,
                    text=first.text,
                    finish_reason=str(first.finish_reason),
                    tokens=sum(len(choice.token_ids) for choice in output.outputs),
                    prompt_tokens=len(output.prompt_token_ids or ()),
                )
                found.append(answer)
        return found

    def close(self) -> None:
        """End vLLM's processes now; a program's exit may wait for them forever."""
        self._llm.llm_engine.engine_core.shutdown(timeout=_WRITE_S)

    def _ask(self, line: PromptLine) -> None:
        tags = {**line.tags, RUN_TAG: self._run, LINE_TAG: line.id}
        extra = {**(self._sampling.get("extra_args") or {}), "activation_tags": tags}
        params = _sampling_params({**self._sampling, "extra_args": extra})
        name = request_id_of(self._run, line.id)
        # By itself vLLM counts the requests of an engine, and two engines count alike.
        self._llm.request_counter = iter([name])
        if line.messages is None:
            self._llm.enqueue(line.prompt, params, use_tqdm=False)
        else:
            self._llm.enqueue_chat(list(line.messages), params, use_tqdm=False)


def _sampling_params(values: Mapping[str, Any]) -> SamplingParams:
    from vllm import SamplingParams

    return SamplingParams(**values)


def _check_sampling(sampling: Mapping[str, Any]) -> None:
    from vllm.exceptions import VLLMClientError

    try:
        _sampling_params(sampling)
    except (TypeError, ValueError, VLLMClientError) as error:
        raise SettingsError(f"sampling: {error}") from None


def _load(model: str, vllm_args: Sequence[str]) -> LLM:
    from vllm import LLM
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    def refuse(message: str) -> NoReturn:
        raise SettingsError(message)

    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    # Its own prints all flags and ends the process.
    parser.error = refuse
    try:
        args = parser.parse_args(list(vllm_args))
        args.model = model
        return LLM.from_engine_args(EngineArgs.from_cli_args(args))
    except (OSError, ValueError) as error:
        raise SettingsError(f"vLLM does not start: {brief(error, 500)}") from error
