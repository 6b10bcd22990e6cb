"""Small real tokenizers of every kind that models have, trained on a few sentences."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SENTENCES = (
    "The largest planet is Jupiter, and the smallest one is Mercury.",
    "I don't know  what that is; nobody does!",
    "Zürich liegt in der Schweiz, naïve café.",
    "def hello(name):\n    return f'hello {name}'\n",
    "one two three four five six seven eight nine ten",
)
SPECIAL = ("<unk>", "<s>", "</s>", "<|im_end|>")
END = 2
MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
"""What parsers of reasoning and of tool calls look for."""
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level() -> Tokenizer:
    """As of GPT-2, Llama 3 and Qwen."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=list(SPECIAL),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    made.train_from_iterator(SENTENCES, trainer)
    return made


def llama() -> Tokenizer:
    """As of Llama 2, Mistral and TinyLlama: a mark for blanks, and bytes where letters lack."""
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=[*SPECIAL, *_BYTES], show_progress=False
    )
    made.train_from_iterator((_split(sentence) for sentence in SENTENCES), trainer)
    # The trainer takes bytes for special tokens only; in such a vocabulary they are plain ones.
    whole = json.loads(made.to_str())
    whole["added_tokens"] = [
        token for token in whole["added_tokens"] if token["content"] in SPECIAL
    ]
    made = Tokenizer.from_str(json.dumps(whole))
    made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return made


def _split(sentence: str) -> list[str]:
    # Words are learned one by one, so that tokens do not become whole sentences.
    return [f" {word}" for word in sentence.split()]


def unigram() -> Tokenizer:
    """As of T5 and Gemma: SentencePiece's unigrams."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=list(SPECIAL), unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator(SENTENCES, trainer)
    return made


def word_piece() -> Tokenizer:
    """As of BERT: small letters, pieces of words marked, blanks lost."""
    made = Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=200, special_tokens=list(SPECIAL), show_progress=False
    )
    made.train_from_iterator(SENTENCES, trainer)
    return made


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": byte_level,
    "llama": llama,
    "unigram": unigram,
    "word-piece": word_piece,
}


def fast(kind: str) -> Any:
    """A tokenizer as transformers has it, with added tokens that take up blanks beside them."""
    from transformers import PreTrainedTokenizerFast

    made = KINDS[kind]()
    made.add_tokens(
        [
            AddedToken("<tool>", lstrip=True, rstrip=True, normalized=False),
            AddedToken("<left>", lstrip=True, normalized=False),
            *(AddedToken(token, normalized=False) for token in MARKS),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="</s>",
        additional_special_tokens=["<|im_end|>"],
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def save(kind: str, folder: Path) -> int:
    """Write a tokenizer into a model's folder; the size of its vocabulary."""
    tokenizer = fast(kind)
    tokenizer.save_pretrained(folder)
    return len(tokenizer)
