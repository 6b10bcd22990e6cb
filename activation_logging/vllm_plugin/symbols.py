"""The list of all vLLM symbols that this package uses, and the check that a vLLM has them.

Few of these symbols are part of vLLM's public interface, so they are checked before anything is
logged. The check parses vLLM's sources and imports nothing. It is therefore fast, and also works
for a vLLM that is not installed.
"""

from __future__ import annotations

import gc
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from activation_logging.vllm_plugin.sources import Sources

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    Version = tuple[int, int]

_PARSER = "request, tokenizer, chat_template_kwargs"


def _of(owner: str, members: str) -> tuple[str, ...]:
    return tuple(f"{owner}.{member}" for member in members.split())


SYMBOLS: Mapping[str, tuple[str, ...]] = {
    "vllm": ("LLM", "SamplingParams", "__version__"),
    "vllm.config": (
        *_of("VllmConfig", "model_config parallel_config cache_config scheduler_config"),
        *_of("VllmConfig", "speculative_config diffusion_config kv_transfer_config"),
        *_of("VllmConfig", "ec_transfer_config additional_config"),
        *_of("VllmConfig", "is_mm_encoder_only shutdown_timeout compilation_config"),
        "CompilationConfig.static_forward_context",
        *_of("ModelConfig", "model served_model_name architecture runner_type dtype"),
        *_of("ModelConfig", "hf_text_config is_encoder_decoder is_diffusion rswa_window"),
        *_of("ModelConfig", "enable_prompt_embeds max_model_len get_hidden_size()"),
        "ModelConfig.logits_processors",
        *_of("ParallelConfig", "worker_cls distributed_executor_backend use_ubatching"),
        *_of("ParallelConfig", "pipeline_parallel_size decode_context_parallel_size"),
        *_of("ParallelConfig", "prefill_context_parallel_size data_parallel_index"),
        *_of("ParallelConfig", "enable_elastic_ep _api_process_count nnodes"),
        *_of("ParallelConfig", "data_parallel_size data_parallel_size_local"),
        "ParallelConfig.data_parallel_backend",
        *_of("CacheConfig", "kv_sharing_fast_prefill num_gpu_blocks_override"),
        *_of("SchedulerConfig", "max_num_seqs max_num_batched_tokens"),
    ),
    "vllm.distributed.communication_op": ("tensor_model_parallel_all_gather(input_, ...)",),
    "vllm.distributed.parallel_state": (
        "get_tensor_model_parallel_world_size()",
        "get_pp_group()",
        "get_tp_group()",
        *_of("GroupCoordinator", "is_first_rank is_last_rank ranks world_size rank_in_group"),
        "GroupCoordinator.broadcast(input_, src)",
        "GroupCoordinator.broadcast_object(obj, src)",
    ),
    "vllm.engine.arg_utils": (
        "EngineArgs.create_engine_config",
        "EngineArgs.from_cli_args(args)",
        "EngineArgs.add_cli_args(parser)",
        "AsyncEngineArgs.from_cli_args(args)",
        "AsyncEngineArgs.create_model_config()",
        "AsyncEngineArgs.hf_token",
    ),
    "vllm.entrypoints.cli.main": ("main()",),
    "vllm.entrypoints.cli.run_batch": ("RunBatchSubcommand",),
    "vllm.entrypoints.generate.base.protocol": ("RequestResponseMetadata.request_id",),
    "vllm.entrypoints.launchers.api_server.entry": (
        "build_app(args, supported_tasks, model_config)",
        "build_async_engine_client(args, ...)",
        "build_async_engine_client_from_engine_args",
        "init_app_state(engine_client, state, args, supported_tasks)",
    ),
    "vllm.entrypoints.launchers.run_batch": (
        "BatchRequestInput.custom_id",
        "BatchRequestInput.url",
        "run_request(serving_engine_func, request, ...)",
    ),
    "vllm.entrypoints.llm": (
        "LLM.from_engine_args(engine_args)",
        "LLM.llm_engine",
        "LLM.request_counter",
        "LLM.enqueue(prompts, sampling_params, use_tqdm, ...)",
        "LLM.enqueue_chat(messages, sampling_params, use_tqdm, ...)",
    ),
    "vllm.entrypoints.openai.chat_completion.serving": ("OpenAIServingChat.enable_auto_tools",),
    "vllm.entrypoints.openai.models.serving": ("OpenAIServingModels.lora_requests",),
    "vllm.entrypoints.openai.responses.serving": (
        f"OpenAIServingResponses._make_response_parser({_PARSER})",
        "OpenAIServingResponses.enable_auto_tools",
    ),
    "vllm.entrypoints.serve.middleware.authenticate": (
        "AuthenticationMiddleware.__init__(app, tokens)",
        "AuthenticationMiddleware.__call__(scope, receive, send)",
    ),
    "vllm.envs": (
        "VLLM_DISABLE_REQUEST_ID_RANDOMIZATION",
        "VLLM_PLUGINS",
        "VLLM_RAY_EXTRA_ENV_VAR_PREFIXES_TO_COPY",
        "VLLM_USE_RUST_FRONTEND",
        "VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS",
    ),
    "vllm.exceptions": (
        "VLLMClientError",
        "VLLMValidationError.__init__(message, parameter, ...)",
    ),
    "vllm.forward_context": (
        "get_forward_context()",
        "is_forward_context_available()",
        *_of("ForwardContext", "no_compile_layers slot_mapping"),
    ),
    "vllm.logprobs": ("Logprob.logprob",),
    "vllm.lora.layers.base_linear": ("BaseLinearLayerWithLoRA.base_layer",),
    "vllm.lora.request": ("LoRARequest.lora_name",),
    "vllm.model_executor.layers.attention_layer_base": ("AttentionLayerBase",),
    "vllm.model_executor.layers.linear": ("LinearBase",),
    "vllm.model_executor.models.interfaces_base": (
        "VllmModelForTextGeneration.compute_logits(hidden_states)",
    ),
    "vllm.outputs": (
        *_of("RequestOutput", "request_id finished outputs prompt_token_ids"),
        *_of("CompletionOutput", "index token_ids"),
    ),
    "vllm.parser.abstract_parser": (
        "Parser.parse(model_output, request, enable_auto_tools, model_output_token_ids)",
    ),
    "vllm.sampling_params": (
        *_of("SamplingParams", "n temperature include_stop_str_in_output extra_args"),
        *_of("SamplingParams", "skip_special_tokens watermarking structured_outputs"),
        *_of("RequestOutputKind", "DELTA"),
    ),
    "vllm.utils.argparse_utils": ("FlexibleArgumentParser",),
    "vllm.utils.network_utils": ("get_ip()",),
    "vllm.v1.core.kv_cache_utils": _of("KVCacheBlockCopy", "src_block_id dst_block_id"),
    "vllm.v1.core.sched.output": (
        *_of("NewRequestData", "req_id prompt_token_ids prompt_len sampling_params"),
        *_of("NewRequestData", "block_ids num_computed_tokens mm_features pooling_params"),
        *_of("NewRequestData", "lora_request prefill_token_ids"),
        *_of("CachedRequestData", "req_ids resumed_req_ids new_block_ids"),
        *_of("CachedRequestData", "num_computed_tokens num_output_tokens make_empty()"),
        *_of("SchedulerOutput", "scheduled_new_reqs scheduled_cached_reqs finished_req_ids"),
        *_of("SchedulerOutput", "num_scheduled_tokens total_num_scheduled_tokens"),
        *_of("SchedulerOutput", "preempted_req_ids kv_cache_block_copies make_empty()"),
        "GrammarOutput",
    ),
    "vllm.v1.engine": (
        *_of("EngineCoreOutput", "request_id new_token_ids new_logprobs new_sampling_mask"),
        *_of("EngineCoreOutput", "finish_reason stop_reason"),
        *_of("EngineCoreRequest", "request_id sampling_params arrival_time resumable"),
        *_of("EngineCoreRequest", "mm_features prompt_token_ids lora_request"),
        *_of("FinishReason", "STOP __str__()"),
    ),
    "vllm.v1.engine.async_llm": (
        "AsyncLLM.__init__(vllm_config, ...)",
        *_of("AsyncLLM", "shutdown(timeout) vllm_config model_config engine_core errored"),
        *_of("AsyncLLM", "output_processor output_handler get_supported_tasks()"),
    ),
    "vllm.v1.engine.core_client": (
        "EngineCoreClient.shutdown(timeout)",
        "MPClient.core_engines",
        "AsyncMPClient._call_utility_async(method, engine)",
        "SyncMPClient.outputs_queue",
        "MPClient.resources",
        "BackgroundResources.engine_dead",
    ),
    "vllm.v1.engine.detokenizer": (
        "IncrementalDetokenizer.output_token_ids",
        "IncrementalDetokenizer.num_output_tokens()",
        "IncrementalDetokenizer.token_ids",
        "IncrementalDetokenizer.from_new_request(tokenizer, request)",
        "BaseIncrementalDetokenizer.output_text",
        "BaseIncrementalDetokenizer.decode_next(next_token_id)",
    ),
    "vllm.v1.engine.exceptions": ("EngineDeadError",),
    "vllm.v1.engine.llm_engine": (
        "LLMEngine.__init__(vllm_config, ...)",
        *_of("LLMEngine", "step() vllm_config output_processor engine_core"),
        *_of("LLMEngine", "get_num_unfinished_requests() has_unfinished_requests()"),
        "LLMEngine.collective_rpc(method, timeout, args, kwargs)",
    ),
    "vllm.v1.engine.logprobs": ("LogprobsProcessor.logprobs",),
    "vllm.v1.engine.output_processor": (
        *_of("OutputProcessor", "request_states tokenizer"),
        "OutputProcessor.add_request(request, prompt, parent_req, request_index, queue)",
        "OutputProcessor.process_outputs(engine_core_outputs, ...)",
        "OutputProcessor._finish_request(req_state)",
        "OutputProcessor.abort_requests(request_ids, internal)",
        "OutputProcessor.propagate_error(e)",
        *_of("RequestState", "request_id external_req_id prompt prompt_token_ids lora_name"),
        *_of("RequestState", "detokenizer logprobs_processor output_kind queue"),
        "RequestState._new_completion_output(token_ids, finish_reason, stop_reason)",
        *_of("RequestOutputCollector", "aggregate output put(output) get() get_nowait()"),
        "OutputProcessorOutput.reqs_to_abort",
    ),
    "vllm.v1.engine.parallel_sampling": _of("ParentRequest", "n request_id"),
    "vllm.v1.executor.abstract": (
        "Executor.__init__(vllm_config)",
        *_of("Executor", "collective_rpc shutdown() uses_ray"),
    ),
    "vllm.v1.kv_cache_interface": (
        "AttentionSpec.tokens_per_state",
        "ChunkedLocalAttentionSpec",
        "CircularBufferSpec",
        "FullAttentionSpec",
        "HiddenStateCacheSpec",
        "MLAAttentionSpec",
        "RSWASpec",
        "SlidingWindowMLASpec",
        "SlidingWindowSpec",
        *_of("KVCacheConfig", "num_blocks kv_cache_groups"),
        *_of("KVCacheGroupSpec", "layer_names kv_cache_spec host_resident"),
        "KVCacheSpec.block_size",
        "UniformTypeKVCacheSpecs.kv_cache_specs",
    ),
    "vllm.utils.torch_utils": (
        "direct_register_custom_op(op_name, op_func, mutates_args, fake_impl, target_lib, ...)",
        "get_accelerator_view_from_cpu_tensor(cpu_tensor)",
    ),
    "vllm.v1.metrics.prometheus": ("get_prometheus_registry()",),
    "vllm.v1.outputs": (
        "AsyncModelRunnerOutput.get_output()",
        "ModelRunnerOutput.sampled_token_ids",
    ),
    "vllm.v1.worker.cpu_worker": (
        *_of("CPUWorker", "determine_available_memory() compile_or_warm_up_model()"),
        *_of("CPUWorker", "initialize_from_config(kv_cache_config) sleep(level)"),
    ),
    "vllm.v1.worker.gpu.model_runner": (
        *_of("GPUModelRunner", "model kv_cache_config get_model()"),
        "GPUModelRunner._dummy_run(num_tokens, ...)",
    ),
    "vllm.v1.worker.gpu_model_runner": (
        *_of("GPUModelRunner", "model kv_cache_config get_model()"),
        "GPUModelRunner._dummy_run(num_tokens, ...)",
    ),
    "vllm.v1.worker.gpu_worker": (
        *_of("Worker", "vllm_config model_runner device load_model get_kv_cache_spec()"),
        *_of("Worker", "determine_available_memory() compile_or_warm_up_model()"),
        *_of("Worker", "initialize_from_config(kv_cache_config) sleep(level) shutdown()"),
        *_of("Worker", "execute_model(scheduler_output) sample_tokens(grammar_output)"),
    ),
}
"""Symbols of every supported version, by module.

``name`` is any name of the module. ``Class.name`` is a method, a field, or an attribute that a
method sets. With parentheses it is a function with exactly these parameters in this order;
``...`` at the end allows more of them.
"""


class Span(NamedTuple):
    """Symbols that only some of the supported versions have: from ``first`` to ``last``."""

    first: Version
    last: Version
    module: str
    symbols: tuple[str, ...]


_OLDEST, _NEWEST = (0, 30), (0, 33)
_CHAT = "vllm.entrypoints.openai.chat_completion.serving"
_OFFLINE = (
    "OfflineInferenceMixin._add_chat_requests(messages, params, ...)",
    "OfflineInferenceMixin._preprocess_chat_one(conversation, ...)",
)
_ARGUMENTS = (
    "make_arg_parser(parser)",
    "validate_parsed_serve_args(args)",
    *_of("FrontendArgs", "host uds api_key"),
)
_GROUPS = "get_kv_cache_groups(vllm_config, kv_cache_spec)"
_BLOCK = "_pool_bytes_per_block(vllm_config, kv_cache_groups)"
_OLDER_BLOCK = "_pool_bytes_per_block(kv_cache_groups)"
_OLDER_CHAT = (
    "OpenAIServingChat._effective_chat_template_kwargs(request)",
    *_of("OpenAIServingChat", "parser_cls renderer model_config"),
)

SPANS: Sequence[Span] = (
    Span(_OLDEST, (0, 31), "vllm.entrypoints.offline_utils", _OFFLINE),
    Span((0, 32), _NEWEST, "vllm.entrypoints.common.offline", _OFFLINE),
    Span(_OLDEST, (0, 32), "vllm.entrypoints.launchers.cli_args", _ARGUMENTS),
    Span((0, 33), _NEWEST, "vllm.entrypoints.common.cli_args", _ARGUMENTS),
    Span(_OLDEST, (0, 31), _CHAT, _OLDER_CHAT),
    Span((0, 32), _NEWEST, _CHAT, (f"OpenAIServingChat._make_parser({_PARSER})",)),
    Span(
        *((0, 32), _NEWEST, "vllm.parser.abstract_parser"),
        ("Parser.set_prompt_token_ids(prompt_token_ids)",),
    ),
    Span(_OLDEST, (0, 31), "vllm.v1.core.kv_cache_utils", (_GROUPS, _OLDER_BLOCK)),
    Span((0, 32), (0, 32), "vllm.v1.core.kv_cache_utils", (_GROUPS, _BLOCK)),
    Span((0, 33), _NEWEST, "vllm.v1.core.kv_cache_planning", (_GROUPS, _BLOCK)),
    Span(
        *(_OLDEST, (0, 31), "vllm.v1.core.sched.output"),
        ("SchedulerOutput.num_common_prefix_blocks",),
    ),
    Span(_OLDEST, (0, 32), "vllm.envs", ("VLLM_USE_RAY_V2_EXECUTOR_BACKEND",)),
    Span((0, 31), _NEWEST, "vllm.config", ("CacheConfig.swa_bounded_replay",)),
    Span((0, 31), _NEWEST, "vllm.snapshot.server", ("run_vllm_snapshot_child",)),
)
"""What differs between versions. :mod:`.compat` alone uses it."""


def minor_of(text: str) -> Version:
    """Major and minor of a version of vLLM, such as ``0.32.0+cpu``; (0, 0) for anything else."""
    parts = text.split(".")
    try:
        return int(parts[0]), int(parts[1])
    except (IndexError, ValueError):
        return 0, 0


def symbols_of(version: Version) -> dict[str, tuple[str, ...]]:
    """All symbols of one version that this package uses, by module."""
    found = dict(SYMBOLS)
    for span in SPANS:
        if span.first <= version <= span.last:
            found[span.module] = (*found.get(span.module, ()), *span.symbols)
    return found


def missing_symbols(version: Version, root: Path | None = None) -> list[str]:
    """The symbols of a version that a vLLM lacks, each with its module.

    Args:
        version: major and minor of that vLLM.
        root: the folder that contains the package ``vllm``; by default that of the installed one.
    """
    sources = Sources(root or _installed())
    missing: list[str] = []
    with _without_collections():
        for module, symbols in symbols_of(version).items():
            if not sources.has(module):
                missing.append(module)
                continue
            missing += [f"{module}.{name}" for name in symbols if not sources.find(module, name)]
    return missing


def missing_modules(version: Version) -> list[str]:
    """The modules of a version that the installed vLLM lacks. Checks only their files."""
    sources = Sources(_installed())
    return [module for module in symbols_of(version) if not sources.has(module)]


@contextmanager
def _without_collections() -> Iterator[None]:
    """Switch garbage collection off: it would take half of the time and find no garbage."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _installed() -> Path:
    spec = find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        return Path("vllm is not installed")
    return Path(next(iter(spec.submodule_search_locations))).parent
