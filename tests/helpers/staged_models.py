"""Tiny models whose blocks run in several stages, each with a batch and, by hand, its blocks and where stages begin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import odd_models
import torch
import transformers
from odd_models import Case, moved
from torch import Tensor, nn

CLASSES = 5


@dataclass(frozen=True, kw_only=True)
class Staged(Case):
    """A case with what is known of its stages by hand.

    Attributes:
        firsts: the first depth of every stage.
        entry: the depth before the blocks of the last stage that can be cut off.
    """

    firsts: tuple[int, ...]
    entry: int


def grid(state: Tensor) -> Tensor:
    """(B, D, H, W) as (B, T, D)."""
    return state.flatten(2).transpose(1, 2) if state.ndim == 4 else state


def rows(state: Tensor) -> Tensor:
    """(B, H, W, D) as (B, T, D)."""
    return state.flatten(1, 2) if state.ndim == 4 else state


def images(size: int) -> Callable[[], dict[str, Tensor]]:
    return lambda: {"pixel_values": torch.rand(5, 3, size, size)}


def swin(version: str = "") -> nn.Module:
    config = getattr(transformers, f"Swin{version}Config")(
        image_size=16,
        patch_size=1,
        embed_dim=8,
        depths=[1, 2, 3],
        num_heads=[1, 2, 2],
        window_size=4,
        num_labels=CLASSES,
    )
    return getattr(transformers, f"Swin{version}ForImageClassification")(config)


def hiera() -> nn.Module:
    config = transformers.HieraConfig(
        image_size=[64, 64],
        embed_dim=8,
        depths=[1, 2, 3],
        num_heads=[1, 2, 2],
        num_query_pool=2,
        mlp_ratio=2.0,
        num_labels=CLASSES,
    )
    return transformers.HieraForImageClassification(config)


def segformer() -> nn.Module:
    config = transformers.SegformerConfig(
        num_encoder_blocks=2,
        hidden_sizes=[8, 16],
        depths=[2, 3],
        sr_ratios=[2, 1],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=8,
        num_labels=CLASSES,
    )
    return transformers.SegformerForImageClassification(config)


def pvt() -> nn.Module:
    config = transformers.PvtConfig(
        image_size=32,
        num_encoder_blocks=4,
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 2, 2],
        num_attention_heads=[1, 1, 2, 2],
        mlp_ratios=[2, 2, 2, 2],
        num_labels=CLASSES,
    )
    return transformers.PvtForImageClassification(config)


def timm_convnext() -> nn.Module:
    timm = __import__("timm")
    return timm.models.ConvNeXt(depths=(1, 2, 2, 3), dims=(8, 8, 16, 16), num_classes=CLASSES)


def timm_swin() -> nn.Module:
    timm = __import__("timm")
    settings = {"img_size": 32, "patch_size": 4, "window_size": 4, "embed_dim": 8}
    return timm.models.SwinTransformer(**settings, depths=(2, 2), num_heads=(1, 2), num_classes=CLASSES)


def timm_hiera() -> nn.Module:
    timm = __import__("timm")
    settings = {"img_size": (64, 64), "embed_dim": 8, "num_heads": 1, "num_classes": CLASSES}
    return timm.models.Hiera(**settings, stages=(1, 2, 4), q_pool=2)


def _blocks(path: str, inner: str) -> Callable[[Any], list[nn.Module]]:
    """The blocks of stages that lie under a path, each in a list of this name (or in none)."""
    return lambda model: [
        block
        for stage in model.get_submodule(path).children()
        for block in (stage.get_submodule(inner) if inner else stage).children()
    ]


VISION = {
    "swin": Staged(
        build=swin,
        batch=images(16),
        blocks=_blocks("swin.encoder.layers", "blocks"),
        firsts=(0, 2, 4),
        entry=3,
    ),
    "swinv2": Staged(
        build=lambda: swin("v2"),
        batch=images(16),
        blocks=_blocks("swinv2.encoder.layers", "blocks"),
        firsts=(0, 2, 4),
        entry=3,
    ),
    "hiera": Staged(  # the first block of a stage makes its shape
        build=hiera, batch=images(64), blocks=_blocks("hiera.encoder.stages", "layers"), firsts=(0, 2, 4), entry=4
    ),
    "segformer": Staged(
        build=segformer, batch=images(32), blocks=_blocks("segformer.stages", "blocks"), firsts=(0, 3), entry=2
    ),
    "pvt": Staged(build=pvt, batch=images(32), blocks=_blocks("pvt.encoder.block", ""), firsts=(0, 2, 3, 5), entry=4),
    "timm convnext": Staged(
        build=timm_convnext,
        batch=lambda: torch.rand(5, 3, 64, 64),
        blocks=_blocks("stages", "blocks"),
        standard=grid,
        firsts=(0, 2, 4, 6),
        entry=5,
    ),
    "timm swin": Staged(
        build=timm_swin,
        batch=lambda: torch.rand(5, 3, 32, 32),
        blocks=_blocks("layers", "blocks"),
        standard=rows,
        firsts=(0, 3),
        entry=2,
    ),
    "timm hiera": Staged(  # one list
        build=timm_hiera,
        batch=lambda: torch.rand(5, 3, 64, 64),
        blocks=lambda model: list(model.blocks),
        firsts=(0, 2, 4),
        entry=4,
    ),
}


def _two(name: str, encoder: str, decoder: str, last: int) -> Staged:
    case = odd_models.CASES[name]
    return Staged(
        build=case.build,
        batch=case.batch,
        blocks=lambda model: [*model.get_submodule(encoder), *model.get_submodule(decoder)],
        settings={"stack": "both"},
        firsts=(0, last + 1),
        entry=last,
    )


BOTH = {
    "bart": _two("bart", "model.encoder.layers", "model.decoder.layers", 4),
    "t5": _two("t5", "encoder.block", "decoder.block", 4),
    "whisper": _two("whisper", "model.encoder.layers", "model.decoder.layers", 4),
}
CASES = {**VISION, **BOTH}


def build(name: str) -> tuple[nn.Module, Any, Staged]:
    """A fresh model in eval mode, its weights moved so that depths differ, with a batch and its case."""
    return *moved(CASES[name]), CASES[name]
