"""The vision transformers of several recipes: DeiT-S as the paper has it, and what two cores can train."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from anydepth.reproduce.subjects import Subject

FASHION: dict[str, Any] = {
    "data": "asset:fashion-mnist",
    "task": "image-classification",
    "eval_split": "test",
    "held_out": 2000,
}
"""The small scale's images; all recipes hold the same 2,000 out."""

SMALL_SCRATCH = Subject(
    title="ViT of 12 blocks and width 64 from scratch, Fashion-MNIST",
    model="made:vit-12",
    train=20_000,
    from_scratch=True,
    training={
        "num_train_epochs": 3.0,
        "per_device_train_batch_size": 64,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "weight_decay": 0.05,
    },
    **FASHION,
)
SCRATCH = Subject(
    title="DeiT-S from scratch, CIFAR-10",
    model="facebook/deit-small-patch16-224",
    data="uoft-cs/cifar10",
    task="image-classification",
    eval_split="test",
    columns={"image": "img", "label": "label"},
    from_scratch=True,
    augment=True,
    training={
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,
        "weight_decay": 0.05,
        "per_device_train_batch_size": 256,
        "bf16": True,
        "dataloader_num_workers": 8,
        "num_train_epochs": 200.0,
        "learning_rate": 1e-3,
    },
    # Of AdamW: it reads like a recipe for SGD, as do the steps down at epochs 100 and 150.
    printed={"learning_rate": 0.1},
)
IMAGENET = replace(
    SCRATCH,
    title="DeiT-S from scratch, ImageNet-1K",
    data="ILSVRC/imagenet-1k",
    eval_split="validation",
    columns={},
)

SMALL = {
    "from scratch": SMALL_SCRATCH,
    "fine-tuned": replace(
        SMALL_SCRATCH,
        title="DINOv2-S fine-tuned, Fashion-MNIST at 56 pixels",
        model="made:dinov2-s",
        train=2_000,
        from_scratch=False,
        training={
            **SMALL_SCRATCH.training,
            "num_train_epochs": 1.0,
            "per_device_train_batch_size": 16,
            "learning_rate": 1e-4,
            "weight_decay": 0.01,
        },
    ),
}
FULL = {
    "from scratch": SCRATCH,
    "fine-tuned": replace(
        SCRATCH,
        title="DeiT-S fine-tuned, CIFAR-10",
        from_scratch=False,
        training={**SCRATCH.training, "num_train_epochs": 10.0, "learning_rate": 1e-4},
        printed={},
    ),
}
"""Both ways to come by a vision transformer, at each scale."""
