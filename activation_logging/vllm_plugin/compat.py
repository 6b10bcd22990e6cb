"""What differs between the supported versions of vLLM. No other module asks which one this is.

:data:`.symbols.SPANS` lists what is used here, and the gate looks for it before. So there is no
fallback: a branch uses its version's names, and fails where they are not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm import __version__

from activation_logging.vllm_plugin.symbols import minor_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheGroupSpec, KVCacheSpec

VERSION = minor_of(__version__)

OFFLINE = (
    "vllm.entrypoints.common.offline" if VERSION >= (0, 32) else "vllm.entrypoints.offline_utils"
)
"""The module of ``OfflineInferenceMixin``."""

CHAT_METHOD = "_make_parser" if VERSION >= (0, 32) else "_effective_chat_template_kwargs"
"""The method of ``OpenAIServingChat`` that is called when a chat's parser is made."""


def kv_cache_groups(
    config: VllmConfig, specs: Mapping[str, KVCacheSpec]
) -> tuple[Sequence[KVCacheGroupSpec], int]:
    """The groups that vLLM divides a model's layers into, and the bytes of a block of their pool.

    Args:
        config: the engine's.
        specs: what each layer keeps, by its name.
    """
    if VERSION >= (0, 33):
        from vllm.v1.core.kv_cache_planning import _pool_bytes_per_block, get_kv_cache_groups
    else:
        from vllm.v1.core.kv_cache_utils import _pool_bytes_per_block, get_kv_cache_groups

    groups = get_kv_cache_groups(config, dict(specs))
    if VERSION >= (0, 32):
        return groups, int(_pool_bytes_per_block(config, groups))
    return groups, int(_pool_bytes_per_block(groups))


def empty_step(num_groups: int) -> SchedulerOutput:
    """A scheduler output for no request.

    Args:
        num_groups: KV cache groups. Before vLLM 0.32, cascade attention wants a number for each.
    """
    from vllm.v1.core.sched.output import SchedulerOutput

    step = SchedulerOutput.make_empty()
    if VERSION < (0, 32):
        step.num_common_prefix_blocks = [0] * num_groups
    return step


def serve_arguments() -> tuple[Callable[..., Any], Callable[..., None]]:
    """``make_arg_parser`` and ``validate_parsed_serve_args`` of ``vllm serve``."""
    if VERSION >= (0, 33):
        from vllm.entrypoints.common.cli_args import make_arg_parser, validate_parsed_serve_args
    else:
        from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    return make_arg_parser, validate_parsed_serve_args


def noting(note: Callable[..., Any]) -> Callable[..., Any]:
    """What :data:`CHAT_METHOD` is to be wrapped with.

    Args:
        note: to be called instead of ``_make_parser``: with the function that makes a parser, and
            with its arguments. Before 0.32 the routes of a chat make theirs in place, after they
            have asked for the template's arguments.
    """
    if VERSION >= (0, 32):
        return note

    def template_kwargs(original: Callable[..., Any], serving: Any, request: Any) -> Any:
        kwargs = original(serving, request)
        if serving.parser_cls is not None:
            note(_make_parser, serving, request, serving.renderer.tokenizer, kwargs)
        return kwargs

    return template_kwargs


def _make_parser(serving: Any, request: Any, tokenizer: Any, kwargs: Any) -> Any:
    """As ``OpenAIServingChat._make_parser`` since vLLM 0.32."""
    return serving.parser_cls(
        tokenizer,
        request.tools,
        chat_template_kwargs=kwargs,
        model_config=serving.model_config,
    )


def tell_prompt(parser: Any, token_ids: Sequence[int]) -> None:
    """Give a parser the prompt of its answer. Before vLLM 0.32 parsers are not told."""
    if VERSION >= (0, 32):
        parser.set_prompt_token_ids(token_ids)


def replays_last_window(config: VllmConfig) -> bool:
    """Whether bounded replay, which came with vLLM 0.31, computes only a prompt's last window."""
    return (
        VERSION >= (0, 31)
        and config.model_config.architecture == "DeepseekV41ForCausalLM"
        and bool(config.cache_config.swa_bounded_replay)
    )


def runs_old_ray_executor(config: VllmConfig) -> bool:
    """Whether this is the older Ray executor, which vLLM 0.33 no longer has."""
    from vllm import envs

    return (
        VERSION < (0, 33)
        and config.parallel_config.distributed_executor_backend == "ray"
        and not envs.VLLM_USE_RAY_V2_EXECUTOR_BACKEND
    )
