"""Tiny models of many kinds are cut, saved, loaded again, and held against the readout, or refused in a line.

    python benchmarks/reliability/training.py [--types bert gemma3n_text ...] [--seconds 600]

Every kind of model that transformers has a config for may be named; its config is made small by the usual names of
sizes. Prints a row for each kind and writes results/training.json beside this file.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from torch import Tensor, nn
from transformers import CONFIG_MAPPING
from transformers.models.auto import modeling_auto

from anydepth.core.blocks import _candidates
from anydepth.core.model_io import call_model, distance, model_output
from anydepth.core.stack import Stack
from anydepth.core.truncation import truncate
from anydepth.errors import AnydepthError, TruncationError

BLOCKS, TOLERANCE = 4, 2e-5
# fmt: off
TYPES = [
    "longformer", "big_bird", "deberta", "fnet", "convbert", "mra", "nystromformer", "megatron-bert", "ernie",
    "camembert", "modernbert-decoder", "gemma3n_text", "gemma3_text", "llama4_text", "gpt_oss", "qwen2_moe",
    "qwen3_moe", "qwen3_next", "olmo3", "phi", "opt", "bloom", "falcon", "gptj", "jetmoe", "lfm2", "minimax",
    "recurrent_gemma", "rwkv", "bart", "pegasus", "whisper", "wav2vec2", "hubert", "clip", "siglip_vision_model",
    "aimv2", "beit", "data2vec-vision", "dinov2_with_registers", "dinov3_vit", "ijepa", "vit_msn",
]
# fmt: on
_MANY = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers")
_MANY += ("num_decoder_layers", "num_attention_heads", "n_head", "n_heads", "num_heads", "num_experts")
_MANY += ("encoder_attention_heads", "decoder_attention_heads", "num_local_experts", "n_routed_experts")
_WIDE = (
    "hidden_size",
    "n_embd",
    "d_model",
    "dim",
    "word_embed_proj_dim",
    "embedding_size",
    "lru_width",
    "feat_proj_dim",
)
_INNER = ("intermediate_size", "ffn_dim", "hidden_dim", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim", "d_inner")
_INNER += ("intermediate_size_mlp", "ffn_hidden_size", "attention_hidden_size", "attn_hidden_size")
_SMALL = (
    "head_dim",
    "d_kv",
    "rotary_dim",
    "hidden_size_per_layer_input",
    "linear_key_head_dim",
    "linear_value_head_dim",
)
_SMALL += ("query_pre_attn_scalar", "attention_window", "attention_chunk_size", "patch_size")
SIZES: dict[str, Any] = {
    **dict.fromkeys(_MANY, BLOCKS),
    **dict.fromkeys(_WIDE, 32),
    **dict.fromkeys(_INNER, 48),
    **dict.fromkeys(_SMALL, 8),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), 99),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_target_positions"), 128),
    **dict.fromkeys(("num_key_value_heads", "num_kv_shared_layers", "num_experts_per_tok", "linear_num_key_heads"), 2),
    **{"linear_num_value_heads": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    **{
        "image_size": 16,
        "num_channels": 3,
        "projection_dim": 16,
        "num_labels": 5,
        "laurel_rank": 4,
        "sliding_window": 4,
    },
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "num_mel_bins": 16, "max_source_positions": 32},
    **{"conv_dim": [16, 16], "conv_kernel": [3, 3], "conv_stride": [2, 2], "num_feat_extract_layers": 2},
    **{"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "block_size": 4, "num_random_blocks": 1},
}


def small_config(kind: str) -> Any:
    """The config of a kind of model, and those in it, with what is known of its sizes made small."""
    kind_class = CONFIG_MAPPING[kind]
    whole = kind_class()
    given = {name: size for name, size in SIZES.items() if name in vars(whole)}
    for name in getattr(kind_class, "sub_configs", None) or {}:
        inner = getattr(whole, name, None)
        if inner is not None:
            own = {entry: size for entry, size in SIZES.items() if entry in vars(inner)}
            given[name] = {**own, "model_type": inner.model_type}
    return kind_class(**given)


def model_of(config: Any) -> nn.Module:
    """A model of that config with a head, if there is a class of one, its weights moved off their start."""
    for kind in ("SEQUENCE_CLASSIFICATION", "CAUSAL_LM", "IMAGE_CLASSIFICATION"):
        mapping = getattr(modeling_auto, f"MODEL_FOR_{kind}_MAPPING")
        if type(config) in mapping and "bart" not in config.model_type:
            made = mapping[type(config)](copy.deepcopy(config))
            break
    else:
        made = modeling_auto.MODEL_MAPPING[type(config)](copy.deepcopy(config))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return made.eval()


def batches(model: Any) -> Iterator[dict[str, Tensor]]:
    """What it may take, the likeliest first."""
    ids = torch.randint(5, 95, (3, 16))
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    images = {"pixel_values": torch.rand(3, 3, 16, 16)}
    sounds = ({"input_values": torch.rand(3, 400)}, {"input_features": torch.rand(3, 16, 64)})
    yield from (one for one in (*sounds, images, text) if model.main_input_name in one)
    yield {**text, **images}
    yield {**text, "decoder_input_ids": ids}


def batch_for(model: nn.Module) -> dict[str, Tensor]:
    """The first that it runs on."""
    for batch in batches(model):
        with contextlib.suppress(Exception), torch.no_grad():
            call_model(model, batch)
            return batch
    raise TruncationError("no batch of these fits it")


def stacks(model: nn.Module) -> list[Stack]:
    """The model seen by each of its lists of blocks."""
    try:
        return [Stack(model)]
    except AnydepthError:
        paths = [path for path, blocks in _candidates(model) if len(blocks) == BLOCKS]
        return [Stack(model, blocks=path) for path in paths]


def cut(stack: Stack, batch: dict[str, Tensor], depth: int) -> str:
    """Cut, save, load, compare: "equal", or what came instead."""
    try:
        small = truncate(stack, depth, batch=batch)
    except AnydepthError as error:
        return f"refused: {error}" if len(str(error).splitlines()) == 1 else f"WRONG: several lines: {error}"
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        small.save_pretrained(folder)
        loaded, report = type(small).from_pretrained(folder, output_loading_info=True)
        expected = stack.readout(stack.states(batch)[depth], batch)
        error = max(distance(model_output(call_model(one.eval(), batch))[1], expected) for one in (small, loaded))
    return "equal" if error <= TOLERANCE and not any(report.values()) else f"WRONG: {error:.1e} {report}"


def rows_of(kind: str) -> Iterator[tuple[str, str]]:
    """What became of the cuts of one kind."""
    torch.manual_seed(0)
    try:
        model = model_of(small_config(kind))
        batch = batch_for(model)
        found = stacks(model)
        for stack in found:
            stack.verify(batch)
    except Exception as error:
        yield kind, f"not tried: {type(error).__name__} {' '.join(str(error).split())[:120]}"
        return
    for stack in found:
        for depth in (1, BLOCKS // 2 + 1):
            try:
                outcome = cut(stack, batch, depth)
            except Exception as error:
                outcome = f"CRASH: {type(error).__name__} {' '.join(str(error).split())[:200]}"
            yield f"{type(model).__name__} {stack.path} {depth}", outcome


def main() -> None:
    """Try every kind, and write down what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--types", nargs="*", default=TYPES, help="kinds of models, as transformers names them")
    parser.add_argument("--seconds", type=float, default=1800, help="begin no further kind after so long")
    given = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    began, outcomes = time.monotonic(), {}
    for kind in given.types:
        if time.monotonic() - began > given.seconds:
            break
        for name, outcome in rows_of(kind):
            outcomes[name] = outcome
            print(f"{name:70} {outcome}", flush=True)
    kinds = ("equal", "refused", "not tried", "WRONG", "CRASH")
    counts = {kind: sum(outcome.startswith(kind) for outcome in outcomes.values()) for kind in kinds}
    print(counts)
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    written = {"counts": counts, "versions": versions, "outcomes": outcomes}
    path = Path(__file__).parent / "results" / "training.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
