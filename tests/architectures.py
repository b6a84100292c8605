"""Tiny models of transformers' families: a configuration with every size made small, and random weights."""

from __future__ import annotations

from typing import Any

SIZES: dict[str, Any] = {
    "vocab_size": 512,
    # Widths.
    **dict.fromkeys(["hidden_size", "d_model", "n_embd", "embed_dim", "dim", "emb_dim", "embedding_size"], 32),
    **dict.fromkeys(["word_embed_proj_dim", "attention_hidden_size", "dim_model", "out_hidden_size", "d_embed"], 32),
    **dict.fromkeys(["intermediate_size", "ffn_hidden_size", "ffn_dim", "d_ff", "n_inner", "hidden_dim"], 64),
    **dict.fromkeys(["decoder_ffn_dim", "encoder_ffn_dim", "d_inner", "dim_ff", "intermediate_size_mlp"], 64),
    **dict.fromkeys(["mlp_dim", "expert_intermediate_size", "prefix_dense_intermediate_size"], 64),
    **dict.fromkeys(["head_dim", "d_kv", "d_head", "dim_head", "kv_channels", "rotary_dim", "global_head_dim"], 8),
    **dict.fromkeys(["q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"], 8),
    **dict.fromkeys(["linear_key_head_dim", "linear_value_head_dim", "hidden_size_per_layer_input"], 8),
    # Layers and heads.
    **dict.fromkeys(["num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"], 2),
    **dict.fromkeys(["encoder_layers", "num_decoder_layers", "num_encoder_layers"], 2),
    **dict.fromkeys(["num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"], 4),
    **dict.fromkeys(["encoder_attention_heads", "linear_num_value_heads", "num_decoder_attention_heads"], 4),
    **dict.fromkeys(["num_encoder_attention_heads"], 4),
    **dict.fromkeys(["num_key_value_heads", "num_kv_heads", "linear_num_key_heads"], 2),
    # Positions; windows and chunks smaller than the texts.
    **dict.fromkeys(["max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "context_length"], 256),
    **dict.fromkeys(["max_sequence_length", "max_decoder_position_embeddings", "max_encoder_position_embeddings"], 256),
    **dict.fromkeys(["sliding_window", "attention_chunk_size", "window_size", "attention_window_size"], 16),
    **dict.fromkeys(["local_attention"], 16),
    # Experts.
    **dict.fromkeys(["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"], 4),
    **dict.fromkeys(["n_shared_experts", "n_group", "topk_group", "moe_num_shared_experts"], 1),
    **dict.fromkeys(["num_experts_per_tok", "moe_topk", "moe_k", "num_experts_per_token"], 2),
    **dict.fromkeys(["moe_intermediate_size", "shared_expert_intermediate_size", "moe_ffn_hidden_size"], 32),
    # States.
    **dict.fromkeys(["state_size", "mamba_d_state", "ssm_state_size"], 8),
    "conv_kernel_size": 9,
    **dict.fromkeys(["mamba_n_heads", "mamba_num_heads", "mamba_n_groups", "num_mem_blocks"], 2),
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
    "use_sliding_window": True,
    "max_window_layers": 1,
    "vocab_size_per_layer_input": 512,
    "num_kv_shared_layers": 0,
}
IMAGES = {
    **dict.fromkeys(["hidden_size", "embed_dim", "out_hidden_size"], 32),
    **dict.fromkeys(["num_attention_heads", "num_heads"], 2),
    **dict.fromkeys(["num_hidden_layers", "depth", "num_local_layers", "num_global_layers"], 1),
    "intermediate_size": 32,
    "image_size": 28,
    "patch_size": 14,
}

MIXED = {"layer_types": ["linear_attention", "full_attention"]}
HEADS = {"num_key_value_heads": 4}
START = {"decoder_start_token_id": 0}
SHARED = {
    "num_hidden_layers": 4,
    "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
    "attention_hidden_size": 64,
    "attention_head_dim": 16,
    "num_key_value_heads": 4,
}
MORE: dict[str, dict[str, Any]] = {
    **dict.fromkeys(["axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite"], HEADS),
    **dict.fromkeys(["glm_moe_dsa", "longcat_flash", "minicpm3", "youtu"], HEADS),
    "mistral4": HEADS | {"head_dim": 16},
    **dict.fromkeys(["kimi_linear", "bailing_hybrid"], HEADS | MIXED),
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "nemotron_h": {
        "layer_types": ["linear_attention", "moe", "full_attention", "mlp"],
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "n_groups": 2,
    },
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0}},
    **dict.fromkeys(["qwen3_5_text", "qwen3_5_moe_text", "qwen3_next", "qwen4_exp_text", "granitemoehybrid"], MIXED),
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "bamba": {"attn_layer_indices": [1]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "roc_bert": {"pronunciation_vocab_size": 8, "shape_vocab_size": 8},
    "luke": {"entity_vocab_size": 8, "entity_emb_size": 32},
    "funnel": {"block_sizes": [1, 1]},
    "layoutlmv3": {"visual_embed": False, "coordinate_size": 4, "shape_size": 8},
    "lilt": {"hidden_size": 48},
    **dict.fromkeys(["mt5", "t5", "umt5"], START),
    **dict.fromkeys(["zamba", "zamba2"], SHARED),
    "reformer": {
        "axial_pos_embds_dim": [16, 16],
        "axial_pos_shape": [16, 16],
        "attn_layers": ["local", "lsh"],
    },
    "zaya": {"num_experts_per_tok": 1},
    "xmod": {"default_language": "en_XX"},
}
"""What single families need besides: sizes that must fit each other, or that have names of their own."""
UNSET = {
    "xlnet": ("max_position_embeddings", "n_positions", "n_ctx"),
    "prophetnet": ("num_hidden_layers", "num_layers"),
    "funnel": ("num_hidden_layers", "num_layers"),
    "xlstm": ("v_head_dim",),
}
"""Sizes that a family names and refuses."""


def families(kind: str) -> list[str]:
    """Return the families that transformers lists for a kind of model, in its order."""
    from transformers.models.auto import modeling_auto

    found: list[str] = []
    for mapping in KINDS[kind]:
        found += [name for name in getattr(modeling_auto, mapping) if name not in found]
    return found


KINDS = {
    "causal": ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",),
    "classification": ("MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",),
    "encoder": (
        "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
        "MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES",
    ),
}


def tiny_config(family: str, **more: Any) -> Any:
    """Return a small configuration of a family, with the parts for text and images inside it."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = CONFIG_MAPPING[family]
    given = _given(kind)
    errors = []
    # Some families take a size and refuse it by its value.
    for refused in ("", "use_sliding_window", "num_key_value_heads", "head_dim", "sliding_window", "bos_token_id"):
        try:
            return kind(**_without(given, (refused, *UNSET.get(family, ()))) | MORE.get(family, {}) | more)
        except Exception as error:
            errors.append(error)
    raise errors[0]


def _without(given: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    kept = {name: value for name, value in given.items() if name not in names}
    return {name: _without(value, names) if isinstance(value, dict) else value for name, value in kept.items()}


def _given(kind: Any) -> dict[str, Any]:
    """Return the sizes that a configuration has, and those of the parts inside it, for text and for images."""
    whole = kind()
    try:
        text = whole.get_text_config()
    # A model of two parts for text.
    except ValueError:
        text = whole
    given = _small(whole, SIZES) if text is whole else {}
    for name in whole.sub_configs:
        part = getattr(whole, name, None)
        if part is not None:
            sizes = SIZES if part is text or "text" in name else IMAGES
            given[name] = _small(part, sizes) | MORE.get(part.model_type, {})
    return given


def _small(config: Any, sizes: dict[str, Any]) -> dict[str, Any]:
    kept = {}
    for name, size in sizes.items():
        try:
            own = getattr(config, name)
        # A size that each layer has its own of is no attribute.
        except Exception:
            continue
        kept[name] = size if not isinstance(own, list | tuple) else own
    return {name: size for name, size in kept.items() if not isinstance(size, list | tuple)}


def save(auto: Any, config: Any, tokenizer: Any, folder: Any) -> None:
    """Write a model with random weights, large enough that scores differ visibly, and a tokenizer."""
    import torch

    torch.manual_seed(0)
    model = auto.from_config(config).eval()
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count < 2e7, f"{count:,} weights are not few"
    for parameter in model.parameters():
        if parameter.dim() >= 2:
            torch.nn.init.normal_(parameter, 0, 0.15)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def bytewise_tokenizer(limit: int) -> Any:
    """Return a tokenizer with a token for each byte, so that any small vocabulary holds it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    bytewise = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=bytewise, pad_token="<pad>", eos_token="<eos>", model_max_length=limit
    )
