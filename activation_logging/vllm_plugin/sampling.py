"""The sampling parameters that an entry keeps."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from vllm import SamplingParams

from activation_logging.vllm_plugin.origin import is_own

if TYPE_CHECKING:
    from collections.abc import Sequence

_NOT_KEPT = frozenset(
    {
        # These affect how the answer is delivered, not which tokens are sampled.
        *("output_kind", "stream_interval", "skip_clone", "output_text_buffer_length"),
        *("flat_logprobs", "prompt_logprob_token_ids", "prompt_logprob_start"),
        *("routed_experts_prompt_start", "skip_reading_prefix_cache"),
    }
)
"""Fields of vLLM's sampling parameters that entries omit. All others are kept."""
_DEFAULTS = SamplingParams()


def sampling_record(
    params: SamplingParams, choices: int, processors: Sequence[str | type]
) -> dict[str, Any]:
    """The parameters that differ from vLLM's defaults, as JSON values.

    Args:
        params: parameters of one choice.
        choices: number of choices of the prompt (``n``, which vLLM sets to 1 for each choice).
        processors: the engine's own logits processors, which apply to every request.
    """
    found: dict[str, Any] = {}
    for name in params.__struct_fields__:
        value: Any = choices if name == "n" else getattr(params, name)
        if name[0] == "_" or name in _NOT_KEPT or value == getattr(_DEFAULTS, name):
            continue
        if name == "watermarking" and not value:  # vLLM sets an empty value for none
            continue
        if name == "extra_args":
            # Logits processors may read other packages' arguments. Ours are stored elsewhere.
            value = {key: arg for key, arg in value.items() if not is_own(key)}
        found[name] = _plain(value)
    if processors:
        found["logits_processors"] = [_name(processor) for processor in processors]
    return {name: value for name, value in found.items() if value not in (None, {})}


def _plain(value: Any) -> Any:
    """A sampling parameter as JSON; of a dataclass, the public fields that are set."""
    if is_dataclass(value) and not isinstance(value, type):
        members = {item.name: getattr(value, item.name) for item in fields(value)}
        return {
            name: _plain(member)
            for name, member in members.items()
            if name[0] != "_" and member not in (None, False)
        }
    return msgspec.to_builtins(value, str_keys=True, enc_hook=repr)


def _name(processor: str | type) -> str:
    """The name of a logits processor, as an entry stores it."""
    if isinstance(processor, str):
        return processor
    return f"{processor.__module__}:{processor.__qualname__}"
