"""Finds the parts of a model that sites are read from, by structure and not by name.

One dummy run with hooks shows which modules run, in which order, and which tensors they take and
give. What an architecture calls its modules does not matter:

- The *decoder layers* are the list of ``num_hidden_layers`` modules that owns most attention.
- The *final norm* is the first module beside that list that runs after its last layer.
- The *output projection* of a layer is the first module that runs after its attention and gives
  states of the hidden width.
- The *MLP* of a layer is the last of its parts that gives such states, attention and norms aside.
  One with experts comes before others.
- The *router* is the part of the MLP that gives one number per expert.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from vllm.distributed.communication_op import tensor_model_parallel_all_gather
from vllm.distributed.parallel_state import (
    get_pp_group,
    get_tensor_model_parallel_world_size,
)

from activation_logging.errors import UnsupportedEngineError
from activation_logging.vllm_plugin.served_model import depth_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

_TOKENS = 8
"""Tokens of the dummy run."""
_ROUNDING = 0.1
"""Largest relative distance of one tensor on two ranks. Terms of a sum differ by their size."""
_SEED = 0
"""Of the noise that enters the first layer and that attention gives, in the dummy run."""


class Call(NamedTuple):
    """One call of a module in the dummy run. A module's parts are called before it ends.

    ``differs`` says that its first output is another on each tensor-parallel rank. It is for states
    of the hidden width only.
    """

    module: nn.Module
    inputs: tuple[torch.Tensor, ...]
    outputs: tuple[torch.Tensor, ...]
    differs: bool = False


@dataclass(frozen=True)
class Anatomy:
    """The parts of one model on one rank.

    Attributes:
        hidden: the width of the residual stream.
        layers: the decoder layers of this rank, by their number from 0.
        final_norm: the norm after them; None on ranks that do not have it.
        norm_adds: whether it adds a second input to its first.
        calls: what ran in each decoder layer, in order.
        gives_residual: whether a layer gives two tensors, of which the second may be a residual.
        adds_residual: whether it is one, to be added to the first. Only the rank with the final
            norm can tell.
    """

    hidden: int
    layers: Mapping[int, nn.Module]
    final_norm: nn.Module | None
    norm_adds: bool
    calls: Mapping[int, Sequence[Call]]
    gives_residual: bool
    adds_residual: bool

    def projection(self, layer: int) -> Call | None:
        """The output projection of a layer's attention; None in a layer without attention."""
        calls = self.calls[layer]
        ends = [number for number, call in enumerate(calls) if is_attention(call.module)]
        if not ends:
            return None
        for call in calls[ends[-1] + 1 :]:
            if self._gives_states(call) and is_linear(call.module):
                return call
        return None

    def mlp(self, layer: int) -> Call | None:
        """The MLP or mixture of experts of a layer; None if no single part is one."""
        parts = set(self.layers[layer].children())
        found = [
            call
            for call in self.calls[layer]
            if call.module in parts
            and self._gives_states(call)
            and any(map(_multiplies, call.module.modules()))
            and not any(map(is_attention, call.module.modules()))
        ]
        # Some layers have a dense MLP beside the experts, some the parts of their MLP as their own.
        experts = [call for call in found if any(map(_num_experts, call.module.modules()))]
        modules = [call for call in found if not is_linear(call.module)]
        return next(reversed(experts or modules or found), None)

    def router(self, layer: int) -> Call | None:
        """The part of a layer's mixture of experts that gives one number per expert."""
        mlp = self.mlp(layer)
        if mlp is None:
            return None
        inside = set(mlp.module.modules())
        experts = set(map(_num_experts, inside)) - {0}
        for call in self.calls[layer]:
            width = call.outputs[0].shape[-1] if call.outputs else 0
            if call.module in inside and width in experts and width != self.hidden:
                return call
        return None

    def normed(self, outputs: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """The last layer of the model, from what its deepest decoder layer gives.

        None if that is not to be checked: only two tensors can be taken for the wrong ones, and
        what has one may do more with it before the norm.
        """
        if self.final_norm is None or not self.gives_residual:
            return None
        stream = outputs[0] + outputs[1] if self.adds_residual else outputs[0]
        with torch.inference_mode():
            return _normed(self.final_norm, stream, torch.zeros_like(stream))

    def _gives_states(self, call: Call) -> bool:
        return bool(call.outputs) and call.outputs[0].shape[-1] == self.hidden

    def whole(self, layer: int) -> Call:
        """The call of a layer itself."""
        calls = reversed(self.calls[layer])
        return next(call for call in calls if call.module is self.layers[layer])


def ranks_differ(x: torch.Tensor) -> bool:
    """Whether the tensor-parallel ranks have different tensors here. All of them must ask."""
    ranks = get_tensor_model_parallel_world_size()
    if ranks == 1:
        return False
    every = tensor_model_parallel_all_gather(x.float().reshape(1, -1), dim=0)
    distances = (every - every[:1]).norm(dim=-1)
    return float(distances.max()) > _ROUNDING * float(every[0].norm())


def has_all_tokens(x: torch.Tensor) -> bool:
    """Whether a tensor of the dummy run has a row for each token, and not some on each rank."""
    return math.prod(x.shape[:-1]) >= _TOKENS


def is_attention(module: nn.Module) -> bool:
    """Whether a module is vLLM's attention itself, which reads and writes the KV cache."""
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

    return isinstance(module, AttentionLayerBase) and hasattr(module, "num_heads")


def dissect(worker: Any) -> Anatomy:
    """Run the model once with hooks, and find its parts.

    Raises:
        UnsupportedEngineError: the model has no list of decoder layers that can be told apart.
    """
    runner = worker.model_runner
    model = runner.get_model()
    hidden = worker.vllm_config.model_config.get_hidden_size()
    name, layers = _decoder_layers(model, worker.vllm_config)
    real = {number: layer for number, layer in enumerate(layers) if _is_real(layer)}
    parent = model.get_submodule(name.rpartition(".")[0])
    owned = worker.vllm_config.compilation_config.static_forward_context.values()
    recorder = _Recorder(real, hidden)
    recorder.watch_attention(filter(is_attention, owned))
    recorder.watch_beside(module for module in parent.children() if module is not layers)
    try:
        with eager(model):
            _dummy_run(runner)
    finally:
        recorder.remove()
    last, calls, norm = max(real), recorder.calls, recorder.after
    ended = next((call for call in reversed(calls[last]) if call.module is real[last]), None)
    if ended is None:
        raise UnsupportedEngineError(
            f"vLLM's {type(model).__name__} does not call its decoder layers as modules; "
            "start the server with ACTIVATION_LAYERS=last"
        )
    first, *others = ended.outputs
    gives_residual = bool(others) and others[0].shape == first.shape
    norm_adds = norm is not None and _norm_adds(norm)
    adds = gives_residual and (norm is None or _is_sum(norm, first, norm_adds))
    stages = get_pp_group()
    return Anatomy(
        hidden=hidden,
        layers=real,
        final_norm=norm.module if norm else None,
        norm_adds=norm_adds,
        calls=calls,
        gives_residual=gives_residual,
        adds_residual=stages.broadcast_object(adds, src=stages.world_size - 1),
    )


def _decoder_layers(model: nn.Module, vllm_config: Any) -> tuple[str, nn.ModuleList]:
    """The list of modules that owns most attention layers, and its name."""
    owned = vllm_config.compilation_config.static_forward_context
    depth = depth_of(vllm_config.model_config)
    found = [
        (
            len(module) == depth,
            sum(key.startswith(f"{name}.") or f".{name.split('.')[-1]}." in key for key in owned),
            -len(name),
            name,
        )
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module)
    ]
    if not found or not max(found)[0]:
        raise UnsupportedEngineError(
            f"vLLM's {type(model).__name__} has no list of {depth} decoder layers; start the "
            "server with ACTIVATION_LAYERS=last"
        )
    name = max(found)[-1]
    layers = model.get_submodule(name)
    assert isinstance(layers, nn.ModuleList)
    return name, layers


def _is_real(layer: nn.Module) -> bool:
    """Whether this rank has the layer: vLLM leaves a stand-in for those of other pipeline ranks."""
    return type(layer).__name__ != "PPMissingLayer"


class _Recorder:
    """Hooks that note every call in the decoder layers, and the modules beside the list of layers.

    Attributes:
        calls: what ran in each layer, in order.
        after: the first module beside the layers that ran after them, with its arguments.
    """

    def __init__(self, layers: Mapping[int, nn.Module], hidden: int) -> None:
        self.calls: dict[int, list[Call]] = {number: [] for number in layers}
        self.after: Call | None = None
        self._hidden = hidden
        self._last = max(layers)
        self._current: int | None = None
        self._handles: list[Any] = []
        self._patched: list[nn.Module] = []
        self._noise = torch.Generator()
        # Embeddings of dummy tokens and the states of a dummy stage before may be zero.
        first = layers[min(layers)]
        self._handles.append(first.register_forward_pre_hook(self._enters, with_kwargs=True))
        for number, layer in layers.items():
            self._handles.append(layer.register_forward_pre_hook(partial(self._begins, number)))
            for module in _without_base_layers(layer):
                if not is_attention(module):
                    hook = module.register_forward_hook(self._ended, with_kwargs=True)
                    self._handles.append(hook)

    def watch_attention(self, modules: Iterable[nn.Module]) -> None:
        """VLLM's attention. Its Transformers backend calls ``forward``, which runs no hooks."""
        for module in modules:
            module.forward = partial(self._attends, module, module.forward)
            self._patched.append(module)

    def watch_beside(self, modules: Iterable[nn.Module]) -> None:
        """Modules of which the one that follows the layers is wanted."""
        for module in modules:
            self._handles.append(module.register_forward_pre_hook(self._beside, with_kwargs=True))

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        for module in self._patched:
            del module.forward

    def _like(self, x: torch.Tensor) -> torch.Tensor:
        """Noise of the same shape, the same on all ranks."""
        self._noise.manual_seed(_SEED)
        return torch.randn(x.shape, generator=self._noise).to(x)

    def _enters(self, _module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        def noise(value: Any) -> Any:
            is_states = isinstance(value, torch.Tensor) and value.shape[-1:] == (self._hidden,)
            return self._like(value) if is_states and value.is_floating_point() else value

        return tuple(map(noise, args)), {name: noise(value) for name, value in kwargs.items()}

    def _begins(self, number: int, _module: nn.Module, _args: Any) -> None:
        self._current = number

    def _ended(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if self._current is not None:
            inputs = tensors_of([*args, *kwargs.values()])
            outputs = tensors_of(output)
            # What comes next may write into them, so they are compared now.
            is_states = bool(outputs) and outputs[0].shape[-1] == self._hidden
            differs = is_states and ranks_differ(outputs[0])
            self.calls[self._current].append(Call(module, inputs, outputs, differs))

    def _attends(self, module: nn.Module, forward: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        if isinstance(output, torch.Tensor):
            # Without a KV cache attention gives zeros. What follows would be zero on every rank.
            output = self._like(output)
        self._ended(module, args, kwargs, output)
        return output

    def _beside(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self.after is None and self.calls[self._last]:
            self._current = None
            self.after = Call(module, tensors_of([*args, *kwargs.values()]), ())


def _without_base_layers(layer: nn.Module) -> list[nn.Module]:
    """The modules of a layer, but for those that vLLM has wrapped for LoRA.

    Some wrappers call the module that they wrap, which gives states without the adapter's part.
    """
    modules = list(layer.modules())
    wrapped = {getattr(module, "base_layer", None) for module in modules}
    return [module for module in modules if module not in wrapped]


@contextmanager
def eager(model: nn.Module) -> Iterator[None]:
    """Run the model without compiled graphs: what is traced with hooks would keep them."""
    compiled = [m for m in model.modules() if getattr(m, "do_not_compile", None) is False]
    for module in compiled:
        module.do_not_compile = True
    try:
        yield
    finally:
        for module in compiled:
            module.do_not_compile = False


def _dummy_run(runner: Any) -> None:
    """One step of a few tokens before there is a KV cache. Its numbers mean nothing."""
    # The V2 model runner wants to be told that there is no KV cache yet.
    is_v2 = "skip_attn" in signature(type(runner)._dummy_run).parameters
    options = {"skip_attn": True, "is_profile": True} if is_v2 else {}
    with torch.inference_mode():
        runner._dummy_run(_TOKENS, **options)


def _norm_adds(norm: Call) -> bool:
    """Whether a norm that is given two tensors adds them. It may ignore the second."""
    if len(norm.inputs) < 2 or norm.inputs[1].shape != norm.inputs[0].shape:
        return False
    with torch.inference_mode():
        x, y = map(torch.randn_like, norm.inputs[:2])
        zero = torch.zeros_like(x)
        both = _normed(norm.module, x, y)
        added, alone = _normed(norm.module, x + y, zero), _normed(norm.module, x, zero)
    return float((both - added).abs().max()) <= float((both - alone).abs().max())


def _is_sum(norm: Call, first: torch.Tensor, norm_adds: bool) -> bool:
    """Whether the stream after a layer that gives two tensors is their sum.

    Most layers give ``(h, r)``, and the stream is ``h + r``. Some give ``h`` whole, and an ``r``
    that is out of date. The final norm tells: it is given the stream.

    Args:
        norm: the call of the final norm.
        first: what the deepest layer gave first.
        norm_adds: whether the norm adds its second input.
    """
    given = [tensor for tensor in norm.inputs if tensor.shape == first.shape]
    if len(given) == 1:
        return given[0].data_ptr() != first.data_ptr()
    return norm_adds or not given


def _normed(norm: nn.Module, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """What a norm makes of a sum. It may write into its arguments, and may take one only."""
    try:
        output = norm(x.clone(), residual.clone())
    except TypeError:
        output = norm(x + residual)
    return output[0] if isinstance(output, tuple) else output


def tensors_of(value: Any) -> tuple[torch.Tensor, ...]:
    """The floating-point tensors among a module's arguments or results, one row per token."""
    items = value if isinstance(value, (list, tuple)) else [value]
    found = (item for item in items if isinstance(item, torch.Tensor) and item.ndim)
    return tuple(tensor for tensor in found if tensor.is_floating_point())


def is_linear(module: nn.Module) -> bool:
    """Whether a module is one matrix product, with an adapter or without.

    Its class says so. Its parameters need not: vLLM empties them where it packs the weights.
    """
    from vllm.model_executor.layers.linear import LinearBase

    return isinstance(module, LinearBase | nn.Linear) or hasattr(module, "base_layer")


def _multiplies(module: nn.Module) -> bool:
    """Whether a module is more than a norm or an activation function."""
    return is_linear(module) or _num_experts(module) > 0


def _num_experts(module: nn.Module) -> int:
    for name in ("global_num_experts", "num_experts", "n_routed_experts", "num_total_experts"):
        count = getattr(module, name, None)
        if isinstance(count, int) and count > 1:
            return count
    return 0
