"""What a model is called, and how deep it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.config import ModelConfig


def depth_of(model: ModelConfig) -> int:
    """The number of decoder layers of a model."""
    return int(model.hf_text_config.num_hidden_layers)


def name_of(model: ModelConfig) -> str:
    """What entries call a model: the first name that it is served under."""
    served = model.served_model_name
    return str((served[0] if isinstance(served, list) else served) or model.model)
