"""A small ViT traced on the same sixty images, in any order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import ViTConfig, ViTForImageClassification

import anydepth as ad

CLASSES, COUNT = 3, 60


def model(seed: int, blocks: int = 3, width: int = 16) -> ViTForImageClassification:
    torch.manual_seed(seed)
    config = ViTConfig(
        image_size=8,
        patch_size=4,
        num_channels=1,
        hidden_size=width,
        num_hidden_layers=blocks,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=CLASSES,
    )
    return ViTForImageClassification(config).eval()


def batches(order: list[int], size: int = 16) -> list[dict[str, Any]]:
    draw = torch.Generator().manual_seed(5)
    images, labels = torch.rand(COUNT, 1, 8, 8, generator=draw), torch.randint(CLASSES, (COUNT,), generator=draw)
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    return [
        {"pixel_values": images[part], "labels": labels[part], "id": [f"image {one}" for one in part]} for part in parts
    ]


def traced(out: Path, seed: int, order: list[int], **settings: Any) -> ad.Trace:
    return ad.trace(
        model(seed, **settings), batches(order), measures=["cka"], out=out, keep_states=True, describe=NAMED
    )


NAMED = {"data": {"name": "images", "split": "test"}}
