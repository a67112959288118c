"""The demo: a small vision transformer trained on real digits, to have something to trace within a minute."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from anydepth import data
from anydepth.models import LoadedModel
from anydepth.pixels import plain
from anydepth.store import replacing_folder, writing

BLOCKS, WIDTH, CLASSES, SIDE = 8, 64, 10, 8


def train_digits(
    folder: Path, *, epochs: int = 20, seed: int = 0, progress: Callable[[int, int, str], None] | None = None
) -> Path:
    """Train an 8-block ViT on scikit-learn's digits and save it as an ordinary model folder.

    Args:
        folder: where; written all or nothing.
        epochs: passes over the 1,347 training images.
        seed: of weights and order.
        progress: called after each epoch with (done, total, what).

    Returns:
        The folder, which `transformers` loads by itself.

    Raises:
        DataError: scikit-learn, which brings the digits, is not installed.
        TraceFileError: the folder cannot be written.
    """
    from transformers import ViTConfig, ViTForImageClassification

    generator = torch.Generator().manual_seed(seed)
    config = ViTConfig(
        image_size=SIDE,
        patch_size=2,
        num_channels=1,
        hidden_size=WIDTH,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        intermediate_size=2 * WIDTH,
        initializer_range=0.1,  # the default 0.02 is meant for widths ten times as large: training would hardly start
        id2label={digit: str(digit) for digit in range(CLASSES)},
        label2id={str(digit): digit for digit in range(CLASSES)},
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = ViTForImageClassification(config)
    images, labels = _digits(model)
    with writing(folder):  # before the work rather than after it
        folder.parent.mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    steps = epochs * -(-len(images) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=steps)
    for epoch in range(epochs):
        for chosen in torch.randperm(len(images), generator=generator).split(64):  # type: ignore[no-untyped-call]  # torch
            logits = model(pixel_values=images[chosen]).logits
            loss = functional.cross_entropy(logits, labels[chosen])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch
            optimizer.step()
            schedule.step()
        if progress:
            progress(epoch + 1, epochs, f"training, loss {loss.item():.2f}")
    with replacing_folder(folder) as beside:
        model.eval().save_pretrained(beside)
    return folder


def _digits(model: nn.Module) -> tuple[Tensor, Tensor]:
    """The training images, made into pixels the way a trace of the saved model will make them."""
    classes = tuple(str(digit) for digit in range(CLASSES))
    reader = LoadedModel(model, plain((SIDE, SIDE), 1), "image", "image-classification", "demo", classes)
    (batch,) = data.batches(data.load("digits", split="train"), reader, batch_size=10_000)
    return batch["pixel_values"], batch["labels"]
