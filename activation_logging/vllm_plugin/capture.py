"""Keeps rows of any site of a model, from inside its compiled graph.

A module's ``forward`` is replaced on the instance before vLLM traces the model. The new one calls
an operator of ours with the tensor of the site. The operator scatters the rows to the slots of the
step in the :class:`.RowArena`. vLLM's forward context tells it which engine runs, and which slots
the step has. So there is no hook, no graph break and no work after the step, and both of vLLM's
model runners, CUDA graphs and every executor take the same path.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.library import Library
from vllm.distributed.communication_op import tensor_model_parallel_all_gather
from vllm.distributed.parallel_state import (
    get_pp_group,
    get_tensor_model_parallel_world_size,
)
from vllm.forward_context import get_forward_context, is_forward_context_available
from vllm.utils.torch_utils import direct_register_custom_op

from activation_logging.errors import UnsupportedEngineError
from activation_logging.sites import PRENORM, RESID, SITES, RowShape, Site, Wanted, resolve, written
from activation_logging.vllm_plugin.anatomy import dissect, has_all_tokens, is_attention

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch import nn

    from activation_logging.vllm_plugin.anatomy import Anatomy, Call
    from activation_logging.vllm_plugin.arena import RowArena

_LIBRARY = Library("activation_logging", "FRAGMENT")

Side = Literal["in", "out"]
"""The input of a module, or its output."""

Split = Literal["whole", "columns", "terms"]
"""What a tensor-parallel rank has of a tensor: all of it, some columns, or a term of a sum.

A module gives a term if its decoder layer adds several of them, and sums over ranks only once.
"""


@dataclass(frozen=True)
class Tap:
    """Where a site is read.

    Attributes:
        site: what is read.
        module: the module whose call passes it.
        side: which of its tensors.
        shape: what one row of it is, all ranks together.
        split: what each tensor-parallel rank has of it.
        adds: a second tensor, if there is one, is added to the first: the residual of most layers,
            and the bias of a module that leaves the sum to others.
    """

    site: Site
    module: nn.Module
    side: Side
    shape: RowShape
    split: Split = "whole"
    adds: bool = False

    def states(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What a call of the module passes: a tensor, and what is to be added to it, if anything.

        Args:
            args: the call's positional arguments.
            kwargs: the call's other arguments.
            output: what it returned; not used for an input.
        """
        if self.side == "in":
            states, residual = _states_of(args, kwargs)
        elif isinstance(output, torch.Tensor):
            states, residual = output, None
        else:
            states, residual = output[0], output[1] if self.adds else None
        return states, residual if self.adds else None


_arenas: dict[int, tuple[RowArena, str]] = {}
"""For each engine, by the identity of its ``static_forward_context``: its arena, and the attention
layer whose slots the arena follows."""


def attach(vllm_config: Any, arena: RowArena, attention_layer: str) -> None:
    """Let the operator write into an arena from now on."""
    _arenas[id(vllm_config.compilation_config.static_forward_context)] = (arena, attention_layer)


def detach(vllm_config: Any) -> None:
    """Forget an engine's arena."""
    _arenas.pop(id(vllm_config.compilation_config.static_forward_context), None)


def _keep_rows(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    token: torch.Tensor,  # noqa: ARG001 - only that it counts as changed matters
    code: int,
) -> None:
    """Write one site's rows of the step to the slots of its tokens.

    ``token`` is an empty tensor that counts as changed, so that the call is not optimised away.
    """
    if not is_forward_context_available():
        return
    context = get_forward_context()
    known = _arenas.get(id(context.no_compile_layers))
    mappings = context.slot_mapping
    if known is None or not isinstance(mappings, dict):
        return  # while a model is profiled there is no KV cache
    arena, attention_layer = known
    slots = mappings.get(attention_layer)
    if slots is not None:
        arena.write(code, slots, x, residual)


def _keep_rows_fake(
    x: torch.Tensor,  # noqa: ARG001 - as the operator
    residual: torch.Tensor | None,  # noqa: ARG001
    token: torch.Tensor,  # noqa: ARG001
    code: int,  # noqa: ARG001
) -> None:
    return None


def _register() -> None:
    if not hasattr(torch.ops.activation_logging, "keep_rows"):
        direct_register_custom_op(
            "keep_rows",
            _keep_rows,
            mutates_args=["token"],
            fake_impl=_keep_rows_fake,
            target_lib=_LIBRARY,
        )


def plan_taps(
    worker: Any, sites: Sequence[Site], num_layers: int
) -> tuple[list[Tap], Anatomy | None]:
    """Where this rank reads these sites of a loaded model, and the model's anatomy.

    A rank reads the sites of its layers. The anatomy is None if only ``last`` is wanted. All ranks
    must call this.

    Raises:
        UnsupportedEngineError: the model does not have one of them; the text says which it has.
    """
    config = worker.vllm_config.model_config
    hidden = RowShape((config.get_hidden_size(),), _name(config.dtype))
    model = worker.model_runner.get_model()
    last = Site(RESID, num_layers)
    is_here = last in sites and get_pp_group().is_last_rank
    final = hidden._replace(shape=(_width_of_last(model, hidden.width),))
    taps = [Tap(last, model, "out", final)] if is_here else []
    others = [site for site in sites if site != last]
    if is_here and final != hidden and any(site.name == RESID for site in others):
        raise UnsupportedEngineError(
            f"the last layer of vLLM's {type(model).__name__} is {final.width} wide, the others "
            f"{hidden.width}: log either ACTIVATION_LAYERS=last or others"
        )
    if not others:
        return taps, None
    anatomy = dissect(worker)
    found = {s: _tap(s, anatomy, hidden, model) for s in others if _layer_of(s) in anatomy.layers}
    missing = [site for site, tap in found.items() if tap is None]
    if missing:
        every = resolve(tuple(Wanted(kind, "all") for kind in SITES), num_layers)
        having = [s for s in every if s == last or found.get(s) or _tap(s, anatomy, hidden, model)]
        raise UnsupportedEngineError(
            f"vLLM's {type(model).__name__} has no {written(missing)}: choose among "
            f"ACTIVATION_SITES={written(having)}"
        )
    taps += filter(None, found.values())
    return sorted(taps, key=lambda tap: tap.site.code), anatomy


def _width_of_last(model: nn.Module, hidden: int) -> int:
    """What the output head takes: OPT-350m projects its states to another width before it."""
    width = getattr(getattr(model, "lm_head", None), "embedding_dim", hidden)
    return int(width)


def _layer_of(site: Site) -> int:
    """The number, from 0, of the decoder layer that a site is read from."""
    return max(site.layer - 1, 0)


def _tap(site: Site, anatomy: Anatomy, hidden: RowShape, model: nn.Module) -> Tap | None:
    """Where a site is read; None if this rank's part of the model does not have it."""
    number = _layer_of(site)
    if number not in anatomy.layers:
        return None
    if site.name == RESID and site.layer == 0:
        return Tap(site, anatomy.layers[number], "in", hidden, adds=True)
    if site.name in (RESID, PRENORM):
        layer = anatomy.whole(number)
        _refuse_divided(site, layer, model)
        if site.name == RESID:
            return Tap(site, layer.module, "out", hidden, adds=anatomy.adds_residual)
        norm = anatomy.final_norm
        return Tap(site, norm, "in", hidden, adds=anatomy.norm_adds) if norm else None
    find = {
        "attn_out": anatomy.projection,
        "heads": anatomy.projection,
        "mlp_out": anatomy.mlp,
        "router": anatomy.router,
    }[site.name]
    call = find(number)
    if call is None:
        return None
    if site.name == "heads":
        return _heads_tap(site, call, anatomy, hidden.dtype)
    given = call.outputs[0]
    _refuse_divided(site, call, model)
    dtype = _name(given.dtype) if site.name == "router" else hidden.dtype
    split: Split = "terms" if call.differs else "whole"
    adds = len(call.outputs) > 1 and call.outputs[1].shape == given.shape[-1:]
    return Tap(site, call.module, "out", RowShape((given.shape[-1],), dtype), split, adds)


def _refuse_divided(site: Site, call: Call, model: nn.Module) -> None:
    if not has_all_tokens(call.outputs[0]):
        raise UnsupportedEngineError(
            f"vLLM's {type(model).__name__} divides the tokens of {site} among its ranks; leave it "
            "out of ACTIVATION_SITES"
        )


def _heads_tap(site: Site, call: Call, anatomy: Anatomy, dtype: str) -> Tap | None:
    ranks = get_tensor_model_parallel_world_size()
    attention = next(
        found.module for found in anatomy.calls[site.layer - 1] if is_attention(found.module)
    )
    heads, width = int(attention.num_heads), call.inputs[0].shape[-1]
    if width % heads:
        return None
    shape = RowShape((heads * ranks, width // heads), dtype)
    return Tap(site, call.module, "in", shape, "columns" if ranks > 1 else "whole")


def install_taps(taps: Iterable[Tap], device: torch.device) -> None:
    """Wrap the modules of a model on ``device``. Call it before anything is traced."""
    _register()
    token = torch.zeros(0, device=device)
    for tap in taps:
        _wrap(tap, token)


def remove_taps(taps: Iterable[Tap]) -> None:
    """Give modules their own ``forward`` back.

    A wrapped module refers to itself, so only the garbage collector would free it. At the end of a
    program that is too late: vLLM's CPU kernels release memory then, and crash.
    """
    for tap in taps:
        vars(tap.module).pop("forward", None)


def _wrap(tap: Tap, token: torch.Tensor) -> None:
    inner: Callable[..., Any] = tap.module.forward
    code, split = tap.site.code, tap.split
    ranks = get_tensor_model_parallel_world_size()

    def keep(x: torch.Tensor, residual: torch.Tensor | None = None) -> None:
        if split == "columns":
            x = tensor_model_parallel_all_gather(x)
        elif split == "terms":
            # Not an all-reduce: on the CPU it writes into its argument, which the model needs.
            x = tensor_model_parallel_all_gather(x, dim=0).unflatten(0, (ranks, -1)).sum(0)
        torch.ops.activation_logging.keep_rows(x, residual, token, code)

    def forward(*args: Any, **kwargs: Any) -> Any:
        if tap.side == "in":
            keep(*tap.states(args, kwargs, None))
            return inner(*args, **kwargs)
        output = inner(*args, **kwargs)
        keep(*tap.states(args, kwargs, output))
        return output

    tap.module.forward = forward


def _states_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
    """The hidden states among a module's arguments, and the residual to add to them, if any."""
    states, residual = kwargs.get("hidden_states"), kwargs.get("residual")
    given = [a for a in args if isinstance(a, torch.Tensor) and a.is_floating_point()]
    if states is None:
        states = given[0] if given else next(iter(kwargs.values()))
        given = given[1:]
    if residual is None and given and given[0].shape == states.shape:
        residual = given[0]
    return states, residual


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
