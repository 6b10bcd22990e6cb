"""The independent reference: the same token ids through Hugging Face transformers, in float32."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from activation_logging import Entry


class Reference:
    """``hidden_states`` of one model, a whole sequence at a time."""

    def __init__(self, model: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._torch = torch
        self._model: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self.states = lru_cache(maxsize=64)(self._states)

    def _states(self, ids: tuple[int, ...]) -> list[npt.NDArray[np.float32]]:
        with self._torch.inference_mode():
            output = self._model(self._torch.tensor([ids]), output_hidden_states=True)
        return [state[0].numpy() for state in output.hidden_states]

    def worst_error(self, entry: Entry, layer: int) -> float:
        """Largest ``|row - reference| / |reference|`` over the rows of one layer."""
        ids = (*entry.prompt_token_ids, *entry.response_token_ids)
        expected = self.states(ids)[layer][entry.positions].astype(np.float64)
        difference = entry.layer(layer).astype(np.float64) - expected
        relative = np.linalg.norm(difference, axis=1) / np.linalg.norm(expected, axis=1)
        return float(relative.max())
