"""What the dummy run notes of a layer."""

from __future__ import annotations

import torch
from torch import nn

from activation_logging.vllm_plugin.anatomy import _Recorder


class Adapted(nn.Module):
    """As vLLM's ``ReplicatedLinearWithLoRA``: calls the module that it wraps, and adds to it."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + 1


def test_a_wrapped_module_is_noted_once_with_what_its_wrapper_gives() -> None:
    gate = Adapted(nn.Linear(4, 3))
    layer = nn.Sequential(nn.Identity(), gate)
    recorder = _Recorder({0: layer}, hidden=8)
    given = layer(torch.ones(2, 4))
    recorder.remove()
    layer(torch.ones(2, 4))
    calls = recorder.calls[0]
    assert [call.module for call in calls] == [layer[0], gate, layer]
    assert calls[1].outputs[0] is given
