"""Small models of many architectures, with random weights: what :mod:`.models` serves and checks.

Each has four layers, most are 128 wide. Weights are larger than usual, so that the layers differ
much, and what a token attends to changes its states. The tokenizer has a token for each byte.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn

LAYERS = 4
SPECIAL = ("<pad>", "<s>", "</s>")
IMAGE = {
    "image": "<|image_pad|>",
    "video": "<|video_pad|>",
    "vision_start": "<|vision_start|>",
    "vision_end": "<|vision_end|>",
    "boi": "<start_of_image>",
    "eoi": "<end_of_image>",
}
"""Tokens of images in prompts, as Qwen's and Gemma's processors call them."""
VOCABULARY = 272
"""256 bytes, the special tokens, and a few that are never used."""
EVERY_SITE = "resid@all,resid_prenorm,attn_out@all,heads@all,mlp_out@all,router@all"
_FIRST_IMAGE = 256 + len(SPECIAL)
_WINDOW = 16
TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"


@dataclass(frozen=True)
class Architecture:
    """How to make a small model.

    Attributes:
        family: ``dense``, ``experts``, ``window``, ``MLA``, ``hybrid``, ``state space``, ``image``.
        config: transformers' class of the configuration, without ``Config``.
        model: its class of the model.
        options: what the configuration is given, beside the sizes that all share.
        alone: the configuration has sizes of its own, and is not given the shared ones.
        dtype: what vLLM computes in, where it cannot do so in float32.
        named: the architecture that ``config.json`` names, where vLLM has another name for it.
        sites: what is logged of it.
        sees: its prompts may have images.
        note: what a reader of the table must know.
    """

    family: str
    config: str
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    alone: bool = False
    dtype: str = "float32"
    named: str | None = None
    sites: str = EVERY_SITE
    sees: bool = False
    note: str = ""

    @property
    def needs_vision(self) -> bool:
        """Whether vLLM's file of it imports torchvision, even for text."""
        return self.family == "image" or self.config.startswith("Qwen3_5")


SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
TOKENS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_GPT2: dict[str, Any] = {"vocab_size": VOCABULARY, "n_embd": 128, "n_layer": LAYERS, "n_head": 4}
_FALCON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "bias": False,
    "alibi": False,
}
_OPT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "ffn_dim": 256,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
_HEAD = {"head_dim": 32}
_WHOLE = {"sliding_window": None}
_TURNS = {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": _WINDOW}
_EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
_LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
_ROUTED = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
_MLA = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
}
_MAMBA2 = {
    "mamba_n_heads": 8,
    "mamba_d_head": 32,
    "mamba_d_state": 32,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 512,
}
_DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 2,
}
_STATES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "num_hidden_layers": LAYERS,
    "tie_word_embeddings": False,
}
_MULTIPLIERS = {
    "embedding_multiplier": 2.0,
    "residual_multiplier": 0.5,
    "attention_multiplier": 0.2,
}
_VIT = {"depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2}
_CLIP = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}
_QWEN_IMAGE = {
    "image_token_id": _FIRST_IMAGE,
    "video_token_id": _FIRST_IMAGE + 1,
    "vision_start_token_id": _FIRST_IMAGE + 2,
    "vision_end_token_id": _FIRST_IMAGE + 3,
    "tie_word_embeddings": False,
}
_SECTIONS = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0}
_BF16 = "vLLM's CPU build computes it in bfloat16 only"
_MAMBA1 = "vLLM's CPU build cannot compute Mamba 1"


def _dense(name: str, **options: Any) -> Architecture:
    return Architecture("dense", name, f"{name}ForCausalLM", options)


def _experts(name: str, **options: Any) -> Architecture:
    return Architecture("experts", name, f"{name}ForCausalLM", options)


def _mamba1(name: str) -> Architecture:
    options = {**_STATES, "state_size": 16}
    return Architecture(
        "state space", name, f"{name}ForCausalLM", options, alone=True, note=_MAMBA1
    )


ARCHITECTURES: dict[str, Architecture] = {
    "llama": _dense("Llama", **_HEAD),
    "mistral": _dense("Mistral", **_HEAD, **_WHOLE),
    "ministral3": _dense("Ministral3", **_HEAD, **_WHOLE),
    "qwen2": _dense("Qwen2"),
    "qwen3": _dense("Qwen3", **_HEAD),
    "gemma": _dense("Gemma", **_HEAD, tie_word_embeddings=True),
    "phi": _dense("Phi", num_key_value_heads=4),
    "phi3": _dense("Phi3", **_WHOLE),
    "gpt2": Architecture("dense", "GPT2", "GPT2LMHeadModel", _GPT2, alone=True),
    "gpt_neox": _dense("GPTNeoX", num_key_value_heads=4),
    "gptj": Architecture(
        "dense",
        "GPTJ",
        "GPTJForCausalLM",
        {**_GPT2, "rotary_dim": 16, "tie_word_embeddings": False},
        alone=True,
    ),
    "gpt_bigcode": Architecture("dense", "GPTBigCode", "GPTBigCodeForCausalLM", _GPT2, alone=True),
    "starcoder2": _dense("Starcoder2", **_WHOLE),
    "opt": Architecture(
        "dense", "OPT", "OPTForCausalLM", {**_OPT, "word_embed_proj_dim": 128}, alone=True
    ),
    "opt_proj": Architecture(
        "dense",
        "OPT",
        "OPTForCausalLM",
        {**_OPT, "word_embed_proj_dim": 64, "do_layer_norm_before": False},
        alone=True,
        sites="resid@last",
        note="as OPT-350m: narrower before the head than inside, so that `last` is logged alone",
    ),
    "bloom": Architecture(
        "dense",
        "Bloom",
        "BloomForCausalLM",
        {"vocab_size": VOCABULARY, "hidden_size": 128, "n_layer": LAYERS, "n_head": 4},
        alone=True,
        note="vLLM and transformers compute GELU in two ways",
    ),
    "falcon": Architecture(
        "dense",
        "Falcon",
        "FalconForCausalLM",
        {
            **_FALCON,
            "multi_query": True,
            "parallel_attn": True,
            "new_decoder_architecture": False,
        },
        alone=True,
    ),
    "falcon_new": Architecture(
        "dense",
        "Falcon",
        "FalconForCausalLM",
        {**_FALCON, "num_kv_heads": 2, "new_decoder_architecture": True},
        alone=True,
    ),
    "olmo": _dense("Olmo"),
    "olmo2": _dense("Olmo2"),
    "granite": _dense("Granite", **_MULTIPLIERS, logits_scaling=2.0),
    "glm": _dense("Glm", **_HEAD),
    "glm4": _dense("Glm4", **_HEAD),
    "stablelm": _dense("StableLm"),
    "cohere": _dense("Cohere", tie_word_embeddings=True),
    "smollm3": _dense("SmolLM3"),
    "nemotron": _dense("Nemotron", **_HEAD),
    "ernie4_5": _dense("Ernie4_5", **_HEAD),
    "hunyuan_v1_dense": _dense("HunYuanDenseV1", **_HEAD),
    "seed_oss": _dense("SeedOss", **_HEAD),
    "apertus": _dense("Apertus"),
    "arcee": _dense("Arcee", **_HEAD),
    "helium": _dense("Helium", **_HEAD),
    "jais2": _dense("Jais2", **_HEAD),
    "nanochat": _dense("NanoChat"),
    "mixtral": _experts("Mixtral", **_HEAD, **_LOCAL, **_WHOLE),
    "qwen2_moe": _experts(
        "Qwen2Moe", **_EXPERTS, shared_expert_intermediate_size=128, decoder_sparse_step=1
    ),
    "qwen3_moe": _experts("Qwen3Moe", **_HEAD, **_EXPERTS),
    "phimoe": Architecture(
        "experts",
        "Phimoe",
        "PhimoeForCausalLM",
        {**_LOCAL, **_WHOLE},
        named="PhiMoEForCausalLM",
        note="transformers gives NaN",
    ),
    "olmoe": _experts("Olmoe", num_experts=4, num_experts_per_tok=2, num_key_value_heads=4),
    "flex_olmo": _experts("FlexOlmo", num_experts=4, num_experts_per_tok=2),
    "granitemoe": _experts("GraniteMoe", **_LOCAL, **_MULTIPLIERS),
    "granitemoeshared": _experts(
        "GraniteMoeShared", **_LOCAL, **_MULTIPLIERS, shared_intermediate_size=64
    ),
    "glm4_moe": _experts("Glm4Moe", **_HEAD, **_ROUTED),
    "ernie4_5_moe": _experts(
        "Ernie4_5_Moe",
        moe_num_experts=4,
        moe_k=2,
        moe_intermediate_size=64,
        moe_num_shared_experts=1,
        moe_layer_start_index=1,
    ),
    "dots1": _experts("Dots1", **_HEAD, **_ROUTED, **_WHOLE),
    "exaone_moe": _experts(
        "ExaoneMoe",
        **_HEAD,
        **_TURNS,
        num_experts=4,
        num_experts_per_tok=2,
        num_shared_experts=1,
        moe_intermediate_size=64,
        first_k_dense_replace=1,
    ),
    "gpt_oss": Architecture(
        "experts",
        "GptOss",
        "GptOssForCausalLM",
        {**_HEAD, **_LOCAL, **_TURNS},
        dtype="bfloat16",
        note=_BF16,
    ),
    "llama4": Architecture(
        "experts",
        "Llama4Text",
        "Llama4ForCausalLM",
        {
            **_HEAD,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 256,
            "interleave_moe_layer_step": 2,
            "attention_chunk_size": 128,
        },
    ),
    "mistral_window": Architecture(
        "window", "Mistral", "MistralForCausalLM", {**_HEAD, "sliding_window": _WINDOW}
    ),
    "ministral": Architecture(
        "window", "Ministral", "MinistralForCausalLM", {**_HEAD, "sliding_window": _WINDOW}
    ),
    "gemma2": Architecture(
        "window",
        "Gemma2",
        "Gemma2ForCausalLM",
        {**_HEAD, **_TURNS, "query_pre_attn_scalar": 32, "tie_word_embeddings": True},
    ),
    "gemma3": Architecture(
        "window",
        "Gemma3Text",
        "Gemma3ForCausalLM",
        {**_HEAD, **_TURNS, "query_pre_attn_scalar": 32, "tie_word_embeddings": True},
    ),
    "gemma3n": Architecture(
        "window",
        "Gemma3nText",
        "Gemma3nForCausalLM",
        {
            **_HEAD,
            **_TURNS,
            "num_kv_shared_layers": 0,
            "laurel_rank": 16,
            "hidden_size_per_layer_input": 32,
            "vocab_size_per_layer_input": VOCABULARY,
            "activation_sparsity_pattern": [0.0] * LAYERS,
            "intermediate_size": [256] * LAYERS,
            "altup_num_inputs": 2,
            "tie_word_embeddings": True,
        },
        note="its layers carry several streams; the rows are the first",
    ),
    "gemma4": Architecture(
        "window",
        "Gemma4Text",
        "Gemma4ForCausalLM",
        {
            **_HEAD,
            **_TURNS,
            "global_head_dim": 32,
            "num_kv_shared_layers": 0,
            "hidden_size_per_layer_input": 0,
            "tie_word_embeddings": True,
        },
    ),
    "vaultgemma": Architecture(
        "window",
        "VaultGemma",
        "VaultGemmaForCausalLM",
        {**_HEAD, **_TURNS, "query_pre_attn_scalar": 32, "tie_word_embeddings": True},
    ),
    "olmo3": Architecture("window", "Olmo3", "Olmo3ForCausalLM", _TURNS),
    "cohere2": Architecture(
        "window",
        "Cohere2",
        "Cohere2ForCausalLM",
        {**_TURNS, "tie_word_embeddings": True},
        note="vLLM's window is one token longer",
    ),
    "exaone4": Architecture("window", "Exaone4", "Exaone4ForCausalLM", _TURNS),
    "deepseek_v2": Architecture(
        "MLA",
        "DeepseekV2",
        "DeepseekV2ForCausalLM",
        {**_MLA, **_ROUTED, "q_lora_rank": None, "topk_method": "greedy"},
    ),
    "deepseek_v3": Architecture(
        "MLA",
        "DeepseekV3",
        "DeepseekV3ForCausalLM",
        {
            **_MLA,
            **_ROUTED,
            "q_lora_rank": 64,
            "topk_method": "noaux_tc",
            "scoring_func": "sigmoid",
        },
    ),
    "minicpm3": Architecture(
        "MLA",
        "MiniCPM3",
        "MiniCPM3ForCausalLM",
        {
            "num_key_value_heads": 4,
            "q_lora_rank": 64,
            "kv_lora_rank": 64,
            "qk_rope_head_dim": 32,
            "qk_nope_head_dim": 32,
            "v_head_dim": 64,
        },
    ),
    "granitemoehybrid": Architecture(
        "hybrid",
        "GraniteMoeHybrid",
        "GraniteMoeHybridForCausalLM",
        {
            **_LOCAL,
            **_MAMBA2,
            "shared_intermediate_size": 128,
            "layer_types": ["mamba", "attention"] * 2,
        },
    ),
    "falcon_h1": Architecture(
        "hybrid", "FalconH1", "FalconH1ForCausalLM", {**_HEAD, **_MAMBA2, "mamba_d_ssm": 256}
    ),
    "zamba2": Architecture(
        "hybrid",
        "Zamba2",
        "Zamba2ForCausalLM",
        {
            "num_key_value_heads": 4,
            "mamba_d_state": 32,
            "mamba_ngroups": 1,
            "n_mamba_heads": 8,
            "hybrid_layer_ids": [1, 3],
            "layers_block_type": ["mamba", "hybrid"] * 2,
            "tie_word_embeddings": True,
            "num_mem_blocks": 1,
            "use_mamba_kernels": False,
        },
    ),
    "nemotron_h": Architecture(
        "hybrid",
        "NemotronH",
        "NemotronHForCausalLM",
        {
            **_HEAD,
            "hybrid_override_pattern": "M*M-",
            "mamba_num_heads": 8,
            "mamba_head_dim": 32,
            "ssm_state_size": 32,
            "n_groups": 1,
            "chunk_size": 512,
        },
    ),
    "jamba": Architecture(
        "hybrid",
        "Jamba",
        "JambaForCausalLM",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "mamba_d_state": 16,
            "use_mamba_kernels": False,
        },
        note=_MAMBA1,
    ),
    "lfm2": Architecture(
        "hybrid",
        "Lfm2",
        "Lfm2ForCausalLM",
        {
            "layer_types": ["conv", "full_attention"] * 2,
            "block_auto_adjust_ff_dim": False,
            "block_dim": 128,
            "conv_dim": 128,
            "conv_L_cache": 3,
            "tie_word_embeddings": True,
        },
    ),
    "qwen3_next": Architecture(
        "hybrid",
        "Qwen3Next",
        "Qwen3NextForCausalLM",
        {**_HEAD, **_EXPERTS, **_DELTA, "shared_expert_intermediate_size": 64},
        dtype="bfloat16",
        note=_BF16,
    ),
    "qwen3_5": Architecture(
        "hybrid",
        "Qwen3_5Text",
        "Qwen3_5ForCausalLM",
        {**_HEAD, **_DELTA},
        dtype="bfloat16",
        note=_BF16,
    ),
    "mamba": _mamba1("Mamba"),
    "mamba2": Architecture(
        "state space",
        "Mamba2",
        "Mamba2ForCausalLM",
        {
            **_STATES,
            "state_size": 32,
            "num_heads": 8,
            "head_dim": 32,
            "n_groups": 1,
            "chunk_size": 512,
        },
        alone=True,
        note="refused: it has no attention",
    ),
    "falcon_mamba": _mamba1("FalconMamba"),
    "qwen2_5_vl": Architecture(
        "image",
        "Qwen2_5_VL",
        "Qwen2_5_VLForConditionalGeneration",
        {
            "text_config": {**SIZES, "rope_parameters": {**_SECTIONS, "type": "mrope"}},
            "vision_config": {**_VIT, "out_hidden_size": 128, "fullatt_block_indexes": [1]},
            **_QWEN_IMAGE,
        },
        alone=True,
        sees=True,
    ),
    "qwen3_vl": Architecture(
        "image",
        "Qwen3VL",
        "Qwen3VLForConditionalGeneration",
        {
            "text_config": {
                **SIZES,
                **_HEAD,
                "rope_parameters": {**_SECTIONS, "mrope_interleaved": True},
            },
            "vision_config": {**_VIT, "out_hidden_size": 128, "deepstack_visual_indexes": [0]},
            **_QWEN_IMAGE,
        },
        alone=True,
        sees=True,
    ),
    "gemma3_mm": Architecture(
        "image",
        "Gemma3",
        "Gemma3ForConditionalGeneration",
        {
            "text_config": {**SIZES, **_HEAD, **_TURNS, "query_pre_attn_scalar": 32},
            "vision_config": _CLIP,
            "mm_tokens_per_image": 4,
            "image_token_index": _FIRST_IMAGE,
            "boi_token_index": _FIRST_IMAGE + 4,
            "eoi_token_index": _FIRST_IMAGE + 5,
        },
        alone=True,
        note="text alone: vLLM wants Gemma's own tokens around an image",
    ),
    "llava": Architecture(
        "image",
        "Llava",
        "LlavaForConditionalGeneration",
        {
            "text_config": {"model_type": "llama", **SIZES, **_HEAD},
            "vision_config": {"model_type": "clip_vision_model", **_CLIP, "projection_dim": 64},
            "image_token_index": _FIRST_IMAGE,
        },
        alone=True,
        note="text alone: vLLM does not find its image tower's weights by their names",
    ),
}


def image_prompt() -> tuple[str, Any]:
    """A prompt with one image in it, as Qwen's processors want it, and the image."""
    import numpy as np
    from PIL import Image

    place = IMAGE["vision_start"] + IMAGE["image"] + IMAGE["vision_end"]
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return f"{place}What is to be seen there?", Image.fromarray(pixels)


def make(name: str, folder: Path) -> None:
    """Write a small model into a folder, with its tokenizer, and its processor of images.

    Raises:
        Exception: whatever transformers says against the configuration.
    """
    import torch
    import transformers

    architecture = ARCHITECTURES[name]
    given = {**({} if architecture.alone else SIZES), **TOKENS, **architecture.options}
    config = getattr(transformers, f"{architecture.config}Config")(**given)
    torch.manual_seed(0)
    model = getattr(transformers, architecture.model)(config).float().eval()
    _enlarge(model)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    _save_tokenizer(folder)
    if architecture.family == "image":
        _save_processor(architecture.config, folder)
    if architecture.named:
        path = folder / "config.json"
        written = json.loads(path.read_text())
        path.write_text(json.dumps({**written, "architectures": [architecture.named]}))


def _enlarge(model: nn.Module) -> None:
    """Random weights as large as keep the states' size from layer to layer."""
    import torch

    kept = ("conv", "A_log", "embed", "wte", "word_embeddings", "dt_", "norm", "ln_", "bias")
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.ndim >= 2 and not any(part in name for part in kept):
                weights.normal_(0, 1 / math.sqrt(weights.shape[-1]))
            elif weights.ndim == 1 and ("norm" in name or "ln_" in name):
                weights.add_(torch.randn_like(weights) * 0.1)
            elif name.endswith("bias") and "dt_" not in name and "conv" not in name:
                weights.add_(torch.randn_like(weights) * 0.05)


def _save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([*SPECIAL, *IMAGE.values()])
    PreTrainedTokenizerFast(
        tokenizer_object=made,
        **dict(zip(("pad_token", "bos_token", "eos_token"), SPECIAL, strict=True)),
        additional_special_tokens=list(IMAGE.values()),
        chat_template=TEMPLATE,
    ).save_pretrained(folder)


def _save_processor(config: str, folder: Path) -> None:
    """Write what turns an image into numbers, and its place in a prompt into tokens."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for name, token in IMAGE.items():
        setattr(tokenizer, f"{name}_token", token)
        setattr(tokenizer, f"{name}_token_id", tokenizer.convert_tokens_to_ids(token))
    size = _CLIP["image_size"]
    if config == "Gemma3":
        images = transformers.Gemma3ImageProcessor(size={"height": size, "width": size})
        more: dict[str, Any] = {"image_seq_length": 4}
    elif config == "Llava":
        images = transformers.CLIPImageProcessor(size={"shortest_edge": size}, crop_size=size)
        more = {
            "patch_size": _CLIP["patch_size"],
            "vision_feature_select_strategy": "default",
            "image_token": IMAGE["image"],
            "num_additional_image_tokens": 1,
        }
    else:
        images = transformers.Qwen2VLImageProcessor(patch_size=16 if config == "Qwen3VL" else 14)
        videos = "Qwen3VLVideoProcessor" if config == "Qwen3VL" else "Qwen2VLVideoProcessor"
        more = {"video_processor": getattr(transformers, videos)()}
    kind = getattr(transformers, f"{config}Processor")
    processor = kind(image_processor=images, tokenizer=tokenizer, chat_template=TEMPLATE, **more)
    processor.save_pretrained(folder)
