"""A Llama of random weights, so small that Triton's interpreter keeps up with it.

Sampling costs the interpreter most, once for every thousand tokens of the vocabulary. So this model
has the default model's tokenizer with its first 1,024 tokens only, or a trained one of a few
hundred.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tests import tokenizers

VOCABULARY = 1024
LAYERS = 4


def make_tiny_model(default_model: Path, folder: Path) -> Path:
    """Write the model into ``folder``, with what the default model has beside its weights."""
    _make_weights(folder, VOCABULARY)
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(default_model / name, folder)
    tokenizer = json.loads((default_model / "tokenizer.json").read_text())
    _cut(tokenizer["model"])
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def make_model_with(kind: str, folder: Path) -> Path:
    """Write a model into ``folder`` whose tokenizer is of another kind."""
    _make_weights(folder, tokenizers.save(kind, folder))
    return folder


def _make_weights(folder: Path, vocabulary: int) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        # Five times the usual: what a token attends to is to change its states, and its successor.
        initializer_range=0.1,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def _cut(bpe: dict[str, Any]) -> None:
    """Leave the first tokens of a vocabulary, and the merges that make them."""
    bpe["vocab"] = {token: i for token, i in bpe["vocab"].items() if i < VOCABULARY}
    bpe["merges"] = [pair for pair in bpe["merges"] if "".join(pair) in bpe["vocab"]]
