"""The list of all vLLM symbols that this package uses, and the check that a vLLM has them.

Few of these symbols are part of vLLM's public interface, so they are checked before anything is
logged. The check parses vLLM's sources and imports nothing. It is therefore fast, and also works
for a vLLM that is not installed.
"""

from __future__ import annotations

import ast
import gc
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence


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
        *_of("ParallelConfig", "enable_elastic_ep _api_process_count"),
        *_of("CacheConfig", "kv_sharing_fast_prefill swa_bounded_replay"),
        "CacheConfig.num_gpu_blocks_override",
        *_of("SchedulerConfig", "max_num_seqs max_num_batched_tokens"),
    ),
    "vllm.distributed.communication_op": ("tensor_model_parallel_all_gather(input_, ...)",),
    "vllm.distributed.parallel_state": (
        "get_tensor_model_parallel_world_size()",
        "get_pp_group()",
        "get_tp_group()",
        *_of("GroupCoordinator", "is_first_rank is_last_rank"),
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
    "vllm.entrypoints.common.cli_args or vllm.entrypoints.launchers.cli_args": (
        "make_arg_parser(parser)",
        "validate_parsed_serve_args(args)",
        *_of("FrontendArgs", "host uds api_key"),
    ),
    "vllm.entrypoints.common.offline": (
        "OfflineInferenceMixin._add_chat_requests(messages, params, ...)",
        "OfflineInferenceMixin._preprocess_chat_one(conversation, ...)",
    ),
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
        "LLM.enqueue(prompts, sampling_params, use_tqdm, ...)",
        "LLM.enqueue_chat(messages, sampling_params, use_tqdm, ...)",
    ),
    "vllm.entrypoints.openai.chat_completion.serving": (
        "OpenAIServingChat._make_parser(request, tokenizer, chat_template_kwargs)",
        "OpenAIServingChat.enable_auto_tools",
    ),
    "vllm.entrypoints.openai.models.serving": ("OpenAIServingModels.lora_requests",),
    "vllm.entrypoints.openai.responses.serving": (
        "OpenAIServingResponses._make_response_parser(request, tokenizer, chat_template_kwargs)",
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
    "vllm.model_executor.layers.attention_layer_base": ("AttentionLayerBase",),
    "vllm.model_executor.layers.linear": ("LinearBase",),
    "vllm.model_executor.models.interfaces_base": (
        "VllmModelForTextGeneration.compute_logits(hidden_states)",
    ),
    "vllm.outputs": (
        *_of("RequestOutput", "finished outputs prompt_token_ids"),
        "CompletionOutput.token_ids",
    ),
    "vllm.parser.abstract_parser": (
        "Parser.parse(model_output, request, enable_auto_tools, model_output_token_ids)",
        "Parser.set_prompt_token_ids(prompt_token_ids)",
    ),
    "vllm.sampling_params": (
        *_of("SamplingParams", "n temperature include_stop_str_in_output extra_args"),
        *_of("SamplingParams", "skip_special_tokens watermarking structured_outputs"),
    ),
    "vllm.snapshot.server": ("run_vllm_snapshot_child",),
    "vllm.utils.argparse_utils": ("FlexibleArgumentParser",),
    "vllm.v1.core.kv_cache_planning or vllm.v1.core.kv_cache_utils": (
        "_pool_bytes_per_block(vllm_config, kv_cache_groups)",
        "get_kv_cache_groups(vllm_config, kv_cache_spec)",
    ),
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
    ),
    "vllm.v1.engine": (
        *_of("EngineCoreOutput", "request_id finish_reason"),
        *_of("EngineCoreRequest", "request_id sampling_params arrival_time resumable"),
        "EngineCoreRequest.mm_features",
        "FinishReason.__str__()",
    ),
    "vllm.v1.engine.async_llm": (
        "AsyncLLM.__init__(vllm_config, ...)",
        *_of("AsyncLLM", "shutdown(timeout) vllm_config model_config engine_core errored"),
        *_of("AsyncLLM", "output_processor output_handler get_supported_tasks()"),
        "AsyncLLM.collective_rpc(method, timeout, args, kwargs)",
    ),
    "vllm.v1.engine.core_client": ("EngineCoreClient.shutdown(timeout)",),
    "vllm.v1.engine.detokenizer": (
        "IncrementalDetokenizer.output_token_ids",
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
        *_of("RequestState", "detokenizer logprobs_processor"),
    ),
    "vllm.v1.engine.parallel_sampling": ("ParentRequest.n",),
    "vllm.v1.executor.abstract": ("Executor.__init__(vllm_config)",),
    "vllm.v1.kv_cache_interface": (
        "AttentionSpec.tokens_per_state",
        "CircularBufferSpec",
        "FullAttentionSpec",
        "HiddenStateCacheSpec",
        "RSWASpec",
        *_of("KVCacheConfig", "num_blocks kv_cache_groups"),
        *_of("KVCacheGroupSpec", "layer_names kv_cache_spec host_resident"),
        "KVCacheSpec.block_size",
        "UniformTypeKVCacheSpecs.kv_cache_specs",
    ),
    "vllm.utils.torch_utils": (
        "direct_register_custom_op(op_name, op_func, mutates_args, fake_impl, target_lib, ...)",
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
        *_of("Worker", "_maybe_get_memory_pool_context(tag)"),
    ),
}
"""Symbols by module. If a module has moved, the key is its newer path ``or`` its older path.

``name`` is any name of the module. ``Class.name`` is a method, a field, or an attribute that a
method sets. With parentheses it is a function with exactly these parameters in this order;
``...`` at the end allows more of them.
"""


def missing_symbols(root: Path | None = None) -> list[str]:
    """The symbols of :data:`SYMBOLS` that a vLLM lacks, each with its module.

    Args:
        root: the folder that contains the package ``vllm``; by default that of the installed one.
    """
    sources = _Sources(root or _installed())
    missing: list[str] = []
    with _without_collections():
        for modules, symbols in SYMBOLS.items():
            module = next((name for name in modules.split(" or ") if sources.has(name)), None)
            if module is None:
                missing.append(modules)
                continue
            missing += [f"{module}.{name}" for name in symbols if not sources.find(module, name)]
    return missing


def missing_modules() -> list[str]:
    """The modules of :data:`SYMBOLS` that the installed vLLM lacks. Checks only their files."""
    sources = _Sources(_installed())
    return [names for names in SYMBOLS if not any(map(sources.has, names.split(" or ")))]


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


class _Definition(NamedTuple):
    """A definition, and the module that it is in. Base classes are looked up in that module."""

    module: str
    node: ast.AST


class _Sources:
    """The modules below a folder. Each is parsed on first use."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._parsed = cache(self._parse)
        self._set_by = cache(_attributes)

    def has(self, module: str) -> bool:
        return self._file(module).is_file()

    def find(self, module: str, symbol: str) -> bool:
        """Whether a module has a symbol in the notation of :data:`SYMBOLS`."""
        path, _, parameters = symbol.partition("(")
        owner, _, member = path.partition(".")
        found = self._lookup(module, owner)
        if found is not None and member:
            found = self._member(found, member)
        if found is None or "(" not in symbol:
            return found is not None
        wanted = [name for name in parameters.rstrip(")").split(", ") if name]
        return _takes(found.node, wanted)

    def _lookup(self, module: str, name: str) -> _Definition | None:
        """The definition of a module's top-level name; imports are followed."""
        if not self.has(module):
            return None
        node = self._parsed(module).get(name)
        if not isinstance(node, ast.ImportFrom):
            return None if node is None else _Definition(module, node)
        origin = self._origin(module, node)
        wanted = next(alias.name for alias in node.names if (alias.asname or alias.name) == name)
        found = self._lookup(origin, wanted)
        # A module, or an import from another package, exists but has no definition to inspect.
        is_opaque = not self.has(origin) or self.has(f"{origin}.{wanted}")
        return _Definition(module, node) if found is None and is_opaque else found

    def _member(self, owner: _Definition, name: str) -> _Definition | None:
        """A method, field or attribute of a class or of one of its bases."""
        if not isinstance(owner.node, ast.ClassDef):
            return None
        node = _names(owner.node.body).get(name)
        if node is None and name in self._set_by(owner.node):
            node = owner.node
        if node is not None:
            return _Definition(owner.module, node)
        for base in owner.node.bases:
            found = self._lookup(owner.module, base.id) if isinstance(base, ast.Name) else None
            inherited = None if found is None else self._member(found, name)
            if inherited is not None:
                return inherited
        return None

    def _file(self, module: str) -> Path:
        folder = self._root.joinpath(*module.split("."))
        package = folder / "__init__.py"
        return package if package.is_file() else folder.with_suffix(".py")

    def _parse(self, module: str) -> Mapping[str, ast.stmt]:
        return _names(ast.parse(self._file(module).read_bytes()).body)

    def _origin(self, module: str, node: ast.ImportFrom) -> str:
        """The absolute name of the module that a ``from`` import names."""
        if not node.level:
            return node.module or ""
        parts = module.split(".")
        is_package = self._file(module).name == "__init__.py"
        kept = parts[: len(parts) - node.level + is_package]
        return ".".join([*kept, *([node.module] if node.module else [])])


def _names(body: Iterable[ast.stmt]) -> dict[str, ast.stmt]:
    """Names that statements define or import. A definition takes precedence over an assignment."""
    found: dict[str, ast.stmt] = {}
    for node in _flat(body):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            found[node.name] = node
        elif isinstance(node, ast.ImportFrom):
            found.update({alias.asname or alias.name: node for alias in node.names})
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    found.setdefault(target.id, node)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.setdefault(node.target.id, node)
    return found


def _flat(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements, and those inside ``if``, ``try`` and ``with``."""
    for node in body:
        yield node
        if isinstance(node, (ast.If, ast.Try, ast.With)):
            for inner in ("body", "orelse", "handlers", "finalbody"):
                for part in getattr(node, inner, ()):
                    yield from _flat(part.body if isinstance(part, ast.ExceptHandler) else [part])


def _attributes(owner: ast.ClassDef) -> frozenset[str]:
    """Attributes that the methods of a class set on ``self``."""
    return frozenset(
        node.attr
        for node in ast.walk(owner)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    )


def _takes(node: ast.AST, wanted: Sequence[str]) -> bool:
    """Whether a function has exactly these parameters; with ``...``, at least these, in order."""
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return False
    arguments = node.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    names = [argument.arg for argument in every if argument.arg not in ("self", "cls")]
    if list(wanted[-1:]) != ["..."]:
        return names == list(wanted)
    return [name for name in names if name in wanted] == list(wanted[:-1])
