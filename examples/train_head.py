"""Train a classifier on a frozen image encoder: features once, then a linear head, then an ordinary model folder.

    python -m anydepth.assets.registry get dinov2-s fashion-mnist
    python examples/train_head.py --out runs/dinov2s-fashion
    anydepth trace runs/dinov2s-fashion --data ~/.cache/anydepth/assets/fashion-mnist --limit 2000 --out runs/trace

The data folder holds train.parquet and test.parquet with the columns `image` and `label`. The encoder sees every image
once; the head is then trained on what it said, and the epoch that is best on the validation images is kept.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from anydepth.assets.registry import cache_root

ASSETS = cache_root()
Features = tuple[Tensor, Tensor]  # (n, width of the head's input) float32, and n labels


@torch.inference_mode()
def features(model: Any, processor: Any, images: Any, what: str, batch_size: int = 50) -> Features:
    """What the model's classifier would be given, for every image: the model runs with the classifier taken out."""
    head, model.classifier = model.classifier, nn.Identity()
    try:
        rows = []
        for start in tqdm(range(0, len(images), batch_size), desc=what, unit="batch", mininterval=2):
            pixels = processor(images[start : start + batch_size]["image"], return_tensors="pt")
            rows.append(model(**pixels).logits)
    finally:
        model.classifier = head
    return torch.cat(rows), torch.tensor(images["label"][:])


def accuracy(head: nn.Module, data: Features) -> float:
    """The share of rows whose top class is their label."""
    with torch.inference_mode():
        return float((head(data[0]).argmax(-1) == data[1]).double().mean())


def fit(head: nn.Linear, train: Features, validation: Features, *, epochs: int, seed: int) -> list[float]:
    """Train `head` in place on standardized features, and return the validation accuracy of every epoch.

    Standardizing is linear, so it is folded into the weights: w.((x - m) / s) + b = (w / s).x + (b - w.(m / s)).
    """
    mean, scale = train[0].mean(0), train[0].std(0) + 1e-6
    rows, labels = (train[0] - mean) / scale, train[1]
    inner = nn.Linear(head.in_features, head.out_features)
    nn.init.zeros_(inner.weight)
    nn.init.zeros_(inner.bias)
    optimizer = torch.optim.AdamW(inner.parameters(), lr=1e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    generator = torch.Generator().manual_seed(seed)
    history: list[float] = []
    best = head.weight.detach().clone(), head.bias.detach().clone()
    for _ in tqdm(range(epochs), desc="head", unit="epoch", mininterval=2):
        for chosen in torch.randperm(len(rows), generator=generator).split(128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(inner(rows[chosen]), labels[chosen]).backward()
            optimizer.step()
        schedule.step()
        with torch.no_grad():
            head.weight.copy_(inner.weight / scale)
            head.bias.copy_(inner.bias - inner.weight @ (mean / scale))
        history.append(accuracy(head, validation))
        if history[-1] > max(history[:-1], default=0.0):
            best = head.weight.detach().clone(), head.bias.detach().clone()
    with torch.no_grad():
        head.weight.copy_(best[0])
        head.bias.copy_(best[1])
    return history


def save(model: Any, processor: Any, record: dict[str, Any], out: Path) -> None:
    """Write the folder whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        folder = Path(scratch) / "model"
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n")
        folder.rename(out)


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line, with every path checked before anything slow starts."""
    parser = argparse.ArgumentParser(description="Train a classifier on a frozen image encoder.")
    parser.add_argument("--model", type=Path, default=ASSETS / "dinov2-s", help="a folder (default: %(default)s)")
    parser.add_argument("--data", type=Path, default=ASSETS / "fashion-mnist", help="a folder (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write; must not exist")
    parser.add_argument("--pixels", type=int, default=98, help="the side images are scaled to (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=6000, help="training images (default: %(default)s)")
    parser.add_argument("--validation", type=int, default=1000, help="images held out (default: %(default)s)")
    parser.add_argument("--test", type=int, default=2000, help="the first so many test images (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    settings = parser.parse_args(arguments)
    if settings.out.exists():
        parser.error(f"{settings.out} exists: remove it or choose another --out")
    for folder in (settings.model, settings.data):
        if not folder.is_dir():
            parser.error(f"{folder} is not there: run 'python -m anydepth.assets.registry get {folder.name}'")
    return settings


def read_parts(settings: argparse.Namespace) -> dict[str, Any]:
    """Training and validation images drawn from train.parquet without overlap, test images from test.parquet."""
    from datasets import Dataset

    train, test = (Dataset.from_parquet(str(settings.data / f"{split}.parquet")) for split in ("train", "test"))
    drawn = train.shuffle(seed=settings.seed)
    return {
        "train": drawn.select(range(settings.limit)),
        "validation": drawn.select(range(settings.limit, settings.limit + settings.validation)),
        "test": test.select(range(settings.test)),
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    settings = read_arguments(arguments)

    from transformers import AutoImageProcessor, AutoModelForImageClassification

    torch.manual_seed(settings.seed)
    parts = read_parts(settings)
    names = parts["train"].features["label"].names
    model = AutoModelForImageClassification.from_pretrained(
        settings.model, id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)}
    ).eval()
    size = {"height": settings.pixels, "width": settings.pixels}
    processor = AutoImageProcessor.from_pretrained(settings.model, size=size, do_center_crop=False)

    started = time.process_time()
    seen = {split: features(model, processor, images, split) for split, images in parts.items()}
    encoded = time.process_time()
    history = fit(model.classifier, seen["train"], seen["validation"], epochs=settings.epochs, seed=settings.seed)
    record = {
        "settings": {key: str(value) if isinstance(value, Path) else value for key, value in vars(settings).items()},
        "images": {split: len(images) for split, images in parts.items()},
        "validation_accuracy_by_epoch": history,
        "features_cpu_seconds": round(encoded - started, 1),
        "head_cpu_seconds": round(time.process_time() - encoded, 1),
        "test_accuracy": accuracy(model.classifier, seen["test"]),
    }
    save(model, processor, record, settings.out)
    print(
        f"{settings.out}: test accuracy {record['test_accuracy']:.4f} on {len(parts['test'])} images, "
        f"{record['features_cpu_seconds']:.0f} CPU s for the features, {record['head_cpu_seconds']:.0f} for the head"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
