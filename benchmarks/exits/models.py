"""The trained models whose exits are looked at: of the objectives benchmark, DINOv2-S, and rivals without exits."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))  # run as a script, which knows its own folder only
sys.path.append(str(Path(__file__).parents[1] / "objectives"))

import numpy as np
import settings
import tasks
import training

from anydepth import Stack, truncate
from anydepth.assets.registry import path

ROOT = Path(__file__).parents[2]
OBJECTIVES = ("standard", "aligned", "heads")
TITLES = {"vit": "ViT, Fashion-MNIST", "minilm": "MiniLM-L6, MR", "dinov2-s": "DINOv2-S, Fashion-MNIST"}
SHALLOW = (2, 4, 6)
BATCH = 32
WORK = ROOT / "runs" / "exits"
TRAINED = ROOT / "runs" / "objectives"


@dataclass(frozen=True)
class Subject:
    """A trained model and what it is judged on: samples it was not trained on."""

    stack: Stack
    batches: list[Any]


class Missing(Exception):
    """A model that is not there; the message says which command makes it."""


def subject(task: str, objective: str) -> Subject:
    if task == "dinov2-s":
        return _dinov2(objective)
    run = training.Run("full", task, objective, 0)
    if training.steps_done(run, TRAINED) == 0:
        raise Missing(f"{run.name} is not trained: python benchmarks/objectives --full --tasks {task} --seeds 0")
    stack = training.Training(run, TRAINED).stack
    stack.model.eval()
    return Subject(stack, _batches(task))


@cache
def _batches(task: str) -> list[Any]:
    held_out = tasks.data_of(task, "full").held_out
    # in the order of a draw: a batch is a fair sample, as it would be in use
    order = np.random.default_rng(0).permutation(len(held_out)).tolist()
    return [held_out.batch(order[start : start + BATCH]) for start in range(0, len(order), BATCH)]


def _dinov2(objective: str) -> Subject:
    from anydepth import data
    from anydepth.models import loading as models

    folder = ROOT / "runs" / f"dinov2s-fashion-{objective}"
    if not (folder / "model.safetensors").exists():
        raise Missing(
            f"{folder.relative_to(ROOT)} is not trained: anydepth align runs/dinov2s-fashion --data FASHION-MNIST "
            f"--objective {objective} ... (docs/exit.md has the whole line)"
        )
    loaded = models.load(str(folder), device="cpu")
    rows = data.load(str(path("fashion-mnist")), split="test")
    found = data.batches(rows, loaded, batch_size=BATCH)
    return Subject(models.stack_of(loaded, found), found)  # type: ignore[arg-type]


def shallow(depth: int, seed: int, say: Callable[[str], None]) -> float:
    """Accuracy of the ViT trained with so many blocks from the start, on the same held-out images."""
    import torch

    run = training.Run("full", "vit", "standard", seed)
    start = truncate(tasks.model_of("vit", seed), depth)
    WORK.mkdir(parents=True, exist_ok=True)
    one = training.Training(run, WORK, model=start, name=f"vit-{depth}-blocks-{seed}")
    one.finish(say)
    model, right, count = one.stack.model.eval(), 0, 0
    with torch.inference_mode():
        for batch in _batches("vit"):
            right += int((model(pixel_values=batch["pixel_values"]).logits.argmax(1) == batch["labels"]).sum())
            count += len(batch["labels"])
    assert count == settings.TASKS["vit"].sizes["full"].held_out
    return right / count
