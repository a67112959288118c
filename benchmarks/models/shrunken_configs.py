"""Tiny configs of transformers: every entry that states a size is made small by a rule on its name.

A rule looks at the name of an entry and its default; nested configs (text, vision, audio, backbone) are made small the
same way. What no rule can know (a size that must equal a product of others) is in `EXCEPTIONS`, by model type.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

WIDTH, HEADS, HEAD_WIDTH, INNER, BLOCKS, OTHER_BLOCKS = 32, 4, 8, 48, 4, 3
VOCABULARY, CLASSES, IMAGE_SIDE = 128, 5, 32

SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 3, "sep_token_id": 4}
SPECIAL |= {"mask_token_id": 5, "decoder_start_token_id": 1, "unk_token_id": 6}
FIRST_PLACEHOLDER = 100  # tokens that stand for images or audio are numbered from here

BLOCK_NAMES = (
    r"(.*_)?(num_hidden_layers|n_layers?|num_layers|num_blocks|(encoder|decoder)_layers|encoder_depth)|depth|layers"
)
# (pattern of the whole name, value): the first that fits an integer entry is taken.
_SIZES: tuple[tuple[str, int], ...] = (
    (r"(.*_)?num_codebooks", 1),
    (r"vocab_size_per_layer_input|(.*_)?vocab_size.*|n_vocab|codebook_size|.*_vocabulary_size", VOCABULARY),
    (r"mamba_n_heads|mamba_num_heads|n_mamba_heads", 8),
    (r"(mamba_)?n_groups", 2),
    (r"(.*_)?(num_key_value_heads|num_kv_heads|n_head_kv|kv_n_heads|num_attention_groups|num_query_groups)", 2),
    (r"(.*_)?(num_attention_heads|attention_heads|num_heads|n_heads?|decoder_n_head|num_(key|value)_heads)", HEADS),
    (BLOCK_NAMES, BLOCKS),
    (r"qk_head_dim", 2 * HEAD_WIDTH),
    (r"rotary_dim", 4),
    (
        r"(.*_)?(rope_head_dim|nope_head_dim|v_head_dim|head_dim|head_size|d_kv|attention_head_size|mamba_d_head)",
        HEAD_WIDTH,
    ),
    (r"(.*_)?(kv_lora_rank|q_lora_rank|o_lora_rank|rank)", 16),
    (r"(.*_)?(expert|experts|moe)_(intermediate_size|ffn_hidden_size|hidden_size)", 16),
    (
        r"(.*_)?(intermediate_size|ffn_dim|d_ff|d_inner|n_inner|ffn_hidden_size|feed_forward_size|intermediate_dim)",
        INNER,
    ),
    (r"(.*_)?(ffn_embed_dim|dim_feedforward|ff_dim|feedforward_dim|d_ffn|ffn_size)", INNER),
    (
        r"(.*_)?(num_experts_per_tok|moe_topk|moe_top_k|moe_k|top_k_experts|expert_top_k|num_selects)|n_shared_experts",
        2,
    ),
    (r"(n_group|topk_group|num_expert_group|topk_groups?)", 1),
    (r"(.*_)?(num_local_experts|num_experts|n_routed_experts|n_experts|num_routed_experts|zero_expert_num)", 4),
    (r"max_source_positions", 16),
    (
        r"(.*_)?(max_position_embeddings|n_positions|max_sequence_length|max_seq_len(gth)?|n_ctx|context_length|"
        r"max_target_positions|seq_length|max_encoder_position_embeddings|max_decoder_position_embeddings)",
        512,
    ),
    (r"hidden_size_per_layer_input", 16),
    (
        r"(.*_)?(hidden_size|d_model|n_embd|embed_dim|hidden_dim|embedding_size|emb_dim|embedding_dim|model_dim|"
        r"projection_dim|projection_size|proj_dim|hidden_channels|decoder_dim|d_embed|output_dim|dim|d_latents|"
        r"conv_channels|conv_pos|encoder_hidden_dim)",
        WIDTH,
    ),
    (r"ssm_state_size|state_size|mamba_d_state", 8),
    (r"mamba_d_ssm", 2 * WIDTH),
    (r"(.*_)?chunk_size|lsh_attn_chunk_length|local_attn_chunk_length", 8),
    (r"(.*_)?sliding_window(_size)?", 4),
    (r"window_size", 2),
    (r"(.*_)?(num_queries|num_query_tokens|num_latents|num_qformer_tokens|num_image_tokens)", 6),
    (r"(.*_)?(num_mel_bins|n_mels|num_mel_channels|input_feat_per_channel)", 16),
)

_SECOND = ["full_attention", "sliding_attention"]


def _resnet(*stages: str) -> Any:
    """A tiny backbone for detectors."""
    from transformers import ResNetConfig

    sizes = {"embedding_size": 16, "hidden_sizes": [16] * 4, "depths": [1] * 4, "layer_type": "basic"}
    return ResNetConfig(**sizes, out_features=list(stages))


def _detector() -> dict[str, Any]:
    return {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone_config": _resnet("stage4")}


def _deformable() -> dict[str, Any]:
    return _detector() | {"backbone_config": _resnet("stage2", "stage3", "stage4"), "num_feature_levels": 4}


def _real_time() -> dict[str, Any]:
    from transformers import RTDetrResNetConfig

    sizes = {"embedding_size": 16, "hidden_sizes": [16] * 4, "depths": [1] * 4, "layer_type": "basic"}
    backbone = RTDetrResNetConfig(**sizes, out_features=["stage2", "stage3", "stage4"])
    return {
        "backbone_config": backbone,
        "encoder_in_channels": [16] * 3,
        "decoder_in_channels": [WIDTH] * 3,
        "feat_strides": [8, 16, 32],
        "encoder_hidden_dim": WIDTH,
        "num_denoising": 0,
    }


# What no rule can know, by model type.
EXCEPTIONS: dict[str, dict[str, Any] | Callable[[], dict[str, Any]]] = {
    "detr": _detector,
    "conditional_detr": _detector,
    "table-transformer": _detector,
    "dab-detr": _detector,
    "deformable_detr": _deformable,
    "rt_detr": _real_time,
    "rt_detr_v2": _real_time,
    "d_fine": _real_time,
    "dpt": {"backbone_out_indices": [0, 1, 2, 3]},
    "beit": {"out_indices": [1, 2, 3, 4]},
    "data2vec-vision": {"out_indices": [0, 1, 2, 3]},
    "layoutlmv3": {"coordinate_size": 5, "shape_size": 6, "input_size": IMAGE_SIDE},
    "pix2struct_vision_model": {"patch_embed_hidden_size": 3 * 8**2, "seq_len": 64},
    "neomme": {"head_dim": 16},
    "levit": {"image_size": 64, "patch_size": 16},
    "siglip2_vision_model": {"num_patches": 16},
    "blip-2": {"image_token_index": FIRST_PLACEHOLDER},
    "instructblip": {"image_token_index": FIRST_PLACEHOLDER},
    "depth_pro": {"patch_size": 16},
    "bamba": {"attn_layer_indices": [1, 3]},
    "longformer": {"attention_window": [4] * BLOCKS},
    "led": {"attention_window": [4] * BLOCKS, "max_encoder_position_embeddings": 64},
    "mamba2": {"num_heads": 8},
    "cohere_compass_text": {
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]} for kind in _SECOND
        }
    },
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4}},
    "dots1": {"n_routed_experts": 4, "num_local_experts": 4},
    "gemma3n_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "intermediate_size": [INNER] * BLOCKS,
        "activation_sparsity_pattern": [0.0] * BLOCKS,
    },
    "gemma4_text": {"global_head_dim": HEAD_WIDTH},
    "gemma4_unified_text": {"global_head_dim": HEAD_WIDTH},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "attention_layers": ["global", "local"] * 2},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 2,
        "indexer_head_dim": HEAD_WIDTH,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local", "lsh"] * 2, "num_buckets": 4, "hash_seed": 0},
    "zamba": {
        "attention_hidden_size": 2 * WIDTH,
        "attention_head_dim": 16,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
    },
    "dory": {"n_input_layers": 1, "n_recurrent_layers": 2, "n_output_layers": 1},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "xmod": {"default_language": "en_XX"},
    "esm": {"vocab_size": VOCABULARY, "pad_token_id": 0, "mask_token_id": 5},
    "perceiver": {"d_model": WIDTH, "num_self_attends_per_block": BLOCKS, "max_position_embeddings": 16},
    "speech_to_text": {"max_source_positions": 64},
    "xlstm": {"qk_dim_factor": 1.0, "num_heads": 2},
}


def tiny_config(kind: type, *, blocks: int = BLOCKS, others: int = OTHER_BLOCKS, **settings: Any) -> Any:
    """A tiny config of a class.

    Args:
        kind: the class.
        blocks: how many blocks its main stack has.
        others: how many a vision or audio tower beside it has.
        settings: entries to set whatever the rules say.
    """
    return kind(**(tiny_entries(kind, blocks=blocks, others=others) | settings))


def tiny_entries(kind: type, *, blocks: int, others: int) -> dict[str, Any]:
    """The entries of a config that are to differ from its defaults."""
    defaults = _defaults(kind)
    entries: dict[str, Any] = {}
    placeholders = 0
    for name, value in defaults.items():
        if hasattr(value, "to_dict"):
            tower = others if _is_tower(name) and name != "backbone_config" else blocks
            nested = tiny_entries(type(value), blocks=tower, others=others)
            entries[name] = (
                nested | {"model_type": value.model_type} if name != "backbone_config" else type(value)(**nested)
            )
        elif name in SPECIAL:
            if value is not None or name == "pad_token_id":
                entries[name] = SPECIAL[name]
        elif re.search(r"token_(id|index)$", name) and isinstance(value, int) and value >= FIRST_PLACEHOLDER:
            entries[name] = FIRST_PLACEHOLDER + placeholders
            placeholders += 1
        elif name == "head_dim" and value is None:
            entries[name] = HEAD_WIDTH
        elif name.endswith("num_key_value_heads") and value == defaults.get(_heads_of(name)):
            entries[name] = HEADS
        elif (small := _small(name, value, blocks, defaults)) is not None:
            entries[name] = small
    if "rope_parameters" in defaults and re.search(
        r"(vl|glm4v|glm_ocr|omni|glm46v).*text|paddleocr_text", kind.model_type
    ):
        rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
        entries["rope_parameters"] = rope
    entries |= _image(defaults)
    entries |= _indices(defaults, blocks)
    exceptions = EXCEPTIONS.get(getattr(kind, "model_type", ""), {})
    return entries | (exceptions() if callable(exceptions) else exceptions)


def _heads_of(name: str) -> str:
    return name.replace("num_key_value_heads", "num_attention_heads")


def _is_tower(name: str) -> bool:
    return (
        re.search(r"vision|audio|speech|vq|qformer|backbone|perceiver|visual|prompt|projector|acoustic", name)
        is not None
    )


def _defaults(kind: type) -> dict[str, Any]:
    """The entries of a config class that its constructor takes, with the values they have in an instance by default."""
    names = [
        name
        for name, parameter in inspect.signature(kind.__init__).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY) and name != "self"
    ]
    default = kind()
    values = vars(default)  # `getattr` would refuse entries that differ between layers
    return {name: values[name] if name in values else getattr(default, name, None) for name in names}


def _small(name: str, value: Any, blocks: int, defaults: dict[str, Any]) -> Any:
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, dict) and "mrope_section" in value:
        return value | {"mrope_section": [2, 1, 1]}
    if isinstance(value, int):
        return _small_integer(name, value, blocks)
    if isinstance(value, list | tuple) and value and isinstance(value, list | tuple):
        return _small_list(name, list(value), blocks, defaults)
    return None


def _small_integer(name: str, value: int, blocks: int) -> int | None:
    if value <= 1:
        return None
    if re.fullmatch(BLOCK_NAMES, name):
        return blocks
    for pattern, size in _SIZES:
        if re.fullmatch(pattern, name):
            return min(value, size)
    return None


def _small_list(name: str, value: list[Any], blocks: int, defaults: dict[str, Any]) -> list[Any] | None:
    if name in ("depths", "num_blocks", "layers", "num_encoder_blocks", "stage_depths"):
        return [min(2, entry) for entry in value] if all(isinstance(entry, int) for entry in value) else None
    if re.search(r"hidden_sizes|embed_dims?$|channels$|(^|_)dims?$|widths?$", name) and isinstance(value[0], int):
        if len(set(value)) == 1:
            return [WIDTH] * len(value)
        return [16 * (entry // min(value)) for entry in value]
    if name in ("num_heads", "num_attention_heads"):
        smallest = min(value)
        return [max(1, entry // smallest) for entry in value]
    depths = {defaults.get(other) for other in ("num_hidden_layers", "n_layer", "num_layers", "n_layers")}
    if len(value) in depths and len(value) > blocks:
        return _first_of_each(value, blocks)
    return None


def _first_of_each(value: list[Any], blocks: int) -> list[Any]:
    """The first entries; the last of them is one of another kind, if the first are all of one."""
    first = value[:blocks]
    others = [entry for entry in value if entry not in first]
    return [*first[:-1], others[0]] if others and isinstance(others[0], str) else first


def _indices(defaults: dict[str, Any], blocks: int) -> dict[str, Any]:
    """The last blocks in place of those that a backbone outputs; stages stay as they are."""
    indices = defaults.get("out_indices") or defaults.get("_out_indices")
    if not isinstance(indices, list | tuple) or len(indices) < 2 or "num_hidden_layers" not in defaults:
        return {}
    return {"out_indices": list(range(blocks - len(indices) + 1, blocks + 1))} if len(indices) <= blocks else {}


def _image(defaults: dict[str, Any]) -> dict[str, Any]:
    """Image and patch sizes: 16 patches, or a side of 64 where stages make it smaller by and by."""
    entries: dict[str, Any] = {}
    patch, side = defaults.get("patch_size"), defaults.get("image_size")
    large = isinstance(patch, int) and patch >= 8
    if large:
        entries["patch_size"] = 8
    if isinstance(side, int):
        entries["image_size"] = IMAGE_SIDE if large or patch is None else 2 * IMAGE_SIDE
    elif isinstance(side, list | tuple) and len(side) == 2:
        entries["image_size"] = [IMAGE_SIDE if large else 2 * IMAGE_SIDE] * 2
    return entries
