"""Tiny detectors of transformers, built from configs, with a batch and targets, and what they answer by a slow loop."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn

BLOCKS, QUERIES, CLASSES, WIDTH = 3, 6, 5, 32
_SIDES = {
    f"{side}_{name}": size
    for side in ("encoder", "decoder")
    for name, size in {"layers": BLOCKS, "attention_heads": 4, "ffn_dim": 48}.items()
}
_NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
_RESNET = {"embedding_size": 16, "hidden_sizes": [16] * 4, "depths": [1] * 4, "layer_type": "basic"}


def _queries(*stages: str) -> dict[str, Any]:
    backbone = transformers.ResNetConfig(**_RESNET, out_features=list(stages))
    own = {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone_config": backbone}
    return {**own, **_SIDES, **_NO_DROPOUT, "d_model": WIDTH, "num_queries": QUERIES}


def _real_time() -> dict[str, Any]:
    backbone = transformers.RTDetrResNetConfig(**_RESNET, out_features=["stage2", "stage3", "stage4"])
    sizes = {"d_model": WIDTH, "encoder_hidden_dim": WIDTH, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    sizes |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "decoder_layers": BLOCKS}
    channels = {"encoder_in_channels": [16] * 3, "decoder_in_channels": [WIDTH] * 3, "feat_strides": [8, 16, 32]}
    return {"backbone_config": backbone, **sizes, **channels, "num_queries": QUERIES, "num_denoising": 0}


_DEFORMABLE = {"num_feature_levels": 4, "auxiliary_loss": True}
_YOLOS = {"hidden_size": WIDTH, "num_hidden_layers": BLOCKS, "num_attention_heads": 4, "intermediate_size": 48}
_YOLOS |= {"image_size": [32, 32], "patch_size": 8, "num_detection_tokens": QUERIES, "hidden_dropout_prob": 0.0}
_THREE = ("stage2", "stage3", "stage4")
KINDS: dict[str, tuple[str, Any, int]] = {
    "detr": ("Detr", lambda: _queries("stage4"), 64),
    "conditional": ("ConditionalDetr", lambda: _queries("stage4"), 64),
    "dab": ("DabDetr", lambda: {**_queries("stage4"), "hidden_size": WIDTH}, 64),
    "deformable": ("DeformableDetr", lambda: _queries(*_THREE) | _DEFORMABLE, 128),
    "refined": ("DeformableDetr", lambda: _queries(*_THREE) | _DEFORMABLE | {"with_box_refine": True}, 128),
    "two stages": (
        "DeformableDetr",
        lambda: (
            _queries(*_THREE)
            | _DEFORMABLE
            | {"with_box_refine": True, "two_stage": True, "two_stage_num_proposals": QUERIES}
        ),
        128,
    ),
    "real time": ("RTDetr", _real_time, 64),
    "real time 2": ("RTDetrV2", _real_time, 64),
    "d-fine": ("DFine", _real_time, 64),
    "yolos": ("Yolos", lambda: _YOLOS | {"use_mid_position_embeddings": False}, 32),
    "yolos, positions between": ("Yolos", lambda: _YOLOS | {"use_mid_position_embeddings": True}, 32),
}


def build(name: str, *, apart: bool = False, **settings: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    """A detector with random weights, in evaluation mode, and a batch of three images.

    Args:
        name: a key of `KINDS`.
        apart: heads of the depths that the config ties get weights of their own, as checkpoints have them.
        settings: of the config.
    """
    kind, entries, side = KINDS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**(entries() | {"num_labels": CLASSES} | settings))
    model = getattr(transformers, f"{kind}ForObjectDetection")(config).eval()
    if apart:
        _set_apart(model)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if not key.endswith(("reg_scale", ".up")) and "layernorm" not in key:
                parameter.add_(0.15 * torch.randn_like(parameter))
    return model, {"pixel_values": torch.rand(3, 3, side, side)}


def _set_apart(model: nn.Module) -> None:
    for name in ("class_embed", "bbox_embed"):
        heads = getattr(model, name)
        for head in heads.modules():
            for own, parameter in list(head.named_parameters(recurse=False)):
                setattr(head, own, nn.Parameter(parameter.detach().clone()))
        if getattr(model.model.decoder, name, None) is not None:
            setattr(model.model.decoder, name, heads)


def targets() -> list[dict[str, Tensor]]:
    """The classes and boxes in three images."""
    torch.manual_seed(3)
    return [
        {"class_labels": torch.randint(CLASSES, (count,)), "boxes": 0.2 + 0.3 * torch.rand(count, 4)}
        for count in (2, 1, 3)
    ]


def first_of(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def slow_outputs(model: Any, batch: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Logits and boxes at the depths 1..L of a detector with one head for all, by hooks and the head itself."""
    yolos = hasattr(model, "vit")
    blocks = model.vit.encoder.layer if yolos else model.model.decoder.layers
    states: list[Tensor] = []
    handles = [
        block.register_forward_hook(
            lambda *args: states.append(args[-1][0] if isinstance(args[-1], tuple) else args[-1])
        )
        for block in blocks
    ]
    whole = model.vit(**batch) if yolos else model.model(**batch)
    for handle in handles:
        handle.remove()
    norm = model.vit.layernorm if yolos else model.model.decoder.layernorm
    outputs = []
    for state in states:
        features = norm(state)[:, -QUERIES:]
        boxes = model.bbox_predictor(features)
        if (reference := getattr(whole, "reference_points", None)) is not None:
            places = (reference / (1 - reference)).log().transpose(0, 1)
            boxes = torch.cat([boxes[..., :2] + places, boxes[..., 2:]], dim=-1)
        outputs.append((model.class_labels_classifier(features), boxes.sigmoid()))
    return outputs
