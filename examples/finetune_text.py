"""Fine-tune a text encoder on labelled sentences: a plain PyTorch loop that ends in an ordinary model folder.

    python -m anydepth.assets.registry get minilm mr
    python examples/finetune_text.py --out runs/minilm-mr
    anydepth trace runs/minilm-mr --data ~/.cache/anydepth/assets/mr --out runs/minilm-mr-trace

The data folder holds train.csv, validation.csv and test.csv with the columns `text` and `label` (0, 1, ...). The epoch
that is best on the validation sentences is kept, and the test sentences are looked at once, at the end.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from anydepth.assets.registry import cache_root

ASSETS = cache_root()
Sentences = list[tuple[list[int], int]]  # token ids and the label of each sentence


def read(file: Path, tokenizer: Any, max_length: int, limit: int | None = None) -> Sentences:
    """The first `limit` rows of a csv, tokenized; the assets' rows come shuffled."""
    import pandas

    table = pandas.read_csv(file, nrows=limit, keep_default_na=False)
    tokens = tokenizer(table["text"].tolist(), truncation=True, max_length=max_length)["input_ids"]
    return list(zip(tokens, table["label"].tolist(), strict=True))


def batches(sentences: Sentences, size: int, tokenizer: Any, seed: int | None = None) -> Iterator[dict[str, Tensor]]:
    """Padded batches; with a seed shuffled, but of like lengths: half of the padding is saved."""
    order = list(range(len(sentences)))
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(sentences), generator=generator).tolist()
        pools = (order[i : i + 20 * size] for i in range(0, len(order), 20 * size))
        order = [i for pool in pools for i in sorted(pool, key=lambda i: len(sentences[i][0]))]
    groups = [order[i : i + size] for i in range(0, len(order), size)]
    if seed is not None:
        groups = [groups[i] for i in torch.randperm(len(groups), generator=generator).tolist()]
    for group in groups:
        batch = tokenizer.pad({"input_ids": [sentences[i][0] for i in group]}, return_tensors="pt")
        yield {**batch, "labels": torch.tensor([sentences[i][1] for i in group])}


@torch.inference_mode()
def accuracy(model: torch.nn.Module, sentences: Sentences, tokenizer: Any) -> float:
    """The share of sentences whose top class is their label."""
    model.eval()
    right = 0
    for batch in batches(sentences, 64, tokenizer):
        labels = batch.pop("labels")
        right += int((model(**batch).logits.argmax(-1) == labels).sum())
    return right / len(sentences)


def train(
    model: torch.nn.Module, train_set: Sentences, validation: Sentences, tokenizer: Any, settings: argparse.Namespace
) -> list[float]:
    """Train in place, end with the weights of the best epoch, and return the validation accuracy of every epoch."""
    from transformers import get_linear_schedule_with_warmup

    steps = settings.epochs * -(-len(train_set) // settings.batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.01)
    schedule = get_linear_schedule_with_warmup(optimizer, num_warmup_steps=steps // 10, num_training_steps=steps)
    history: list[float] = []
    best = copy.deepcopy(model.state_dict())
    with tqdm(total=steps, unit="step", mininterval=2) as progress:
        for epoch in range(settings.epochs):
            model.train()
            for batch in batches(train_set, settings.batch_size, tokenizer, seed=settings.seed + epoch):
                loss = model(**batch).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                progress.update()
                progress.set_postfix(loss=f"{loss.item():.3f}")
            history.append(accuracy(model, validation, tokenizer))
            progress.write(f"epoch {epoch + 1}: validation accuracy {history[-1]:.3f}")
            if history[-1] == max(history):
                best = copy.deepcopy(model.state_dict())
    model.load_state_dict(best)
    return history


def save(model: Any, tokenizer: Any, record: dict[str, Any], out: Path) -> None:
    """Write the folder whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        folder = Path(scratch) / "model"
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n")
        folder.rename(out)


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line, with every path checked before anything slow starts."""
    parser = argparse.ArgumentParser(description="Fine-tune a text encoder on labelled sentences.")
    parser.add_argument("--model", type=Path, default=ASSETS / "minilm", help="a folder (default: %(default)s)")
    parser.add_argument("--data", type=Path, default=ASSETS / "mr", help="a folder (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write; must not exist")
    parser.add_argument("--classes", nargs="+", default=["negative", "positive"], metavar="NAME")
    parser.add_argument("--limit", type=int, help="train on so many sentences (default: all)")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--max-length", type=int, default=64, help="in tokens (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    settings = parser.parse_args(arguments)
    if settings.out.exists():
        parser.error(f"{settings.out} exists: remove it or choose another --out")
    for folder in (settings.model, settings.data):
        if not folder.is_dir():
            parser.error(f"{folder} is not there: run 'python -m anydepth.assets.registry get {folder.name}'")
    return settings


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    settings = read_arguments(arguments)

    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(settings.seed)
    tokenizer = AutoTokenizer.from_pretrained(settings.model)
    model = AutoModelForSequenceClassification.from_pretrained(
        settings.model,
        id2label=dict(enumerate(settings.classes)),
        label2id={name: i for i, name in enumerate(settings.classes)},
    )
    train_set = read(settings.data / "train.csv", tokenizer, settings.max_length, settings.limit)
    validation = read(settings.data / "validation.csv", tokenizer, settings.max_length)
    test = read(settings.data / "test.csv", tokenizer, settings.max_length)

    started = time.process_time()
    history = train(model, train_set, validation, tokenizer, settings)
    record = {
        "settings": {key: str(value) if isinstance(value, Path) else value for key, value in vars(settings).items()},
        "sentences": {"train": len(train_set), "validation": len(validation), "test": len(test)},
        "validation_accuracy_by_epoch": history,
        "training_cpu_seconds": round(time.process_time() - started, 1),
        "test_accuracy": accuracy(model, test, tokenizer),
    }
    save(model, tokenizer, record, settings.out)
    print(
        f"{settings.out}: test accuracy {record['test_accuracy']:.4f} on {len(test)} sentences, "
        f"{record['training_cpu_seconds']:.0f} CPU s of training"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
