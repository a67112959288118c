"""What is measured of a trained model, and how it is written: a JSON of results, and what paired tests need."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from settings import COMMON, TASKS
from tasks import Samples, data_of
from training import CLIP, Training

import anydepth as ad
from anydepth import Stack
from anydepth.core.provenance import versions
from anydepth.measures.readout import saturation_depth, saturation_histogram
from anydepth.storage.disk import atomic_write
from anydepth.training.evaluation import by_sample
from anydepth.training.objectives import OBJECTIVES

BATCH = 64
MEASURES = ("cosine", "cka")


@dataclass(frozen=True)
class Units:
    """What every depth got of every independent unit: an image, a sentence, or a document with all its tokens.

    Attributes:
        right: (n, L) answers right.
        nats: (n, L) summed cross-entropy.
        count: (n,) answers asked for.
    """

    right: np.ndarray
    nats: np.ndarray
    count: np.ndarray

    @property
    def accuracy(self) -> list[float]:
        return (self.right.sum(0) / self.count.sum()).tolist()

    @property
    def cross_entropy(self) -> list[float]:
        return (self.nats.sum(0) / self.count.sum()).tolist()

    def save(self, path: Path) -> None:
        """Write what paired tests need: a bit for each answer where a unit has one, else its sums."""
        with atomic_write(path) as beside, beside.open("wb") as file:
            if (self.count == 1).all():
                bits = np.packbits(self.right.T.astype(bool), axis=1)
                np.savez_compressed(file, right_bits=bits, units=np.array(len(self.count)))
            else:
                np.savez_compressed(file, right=self.right.astype(np.int32), nats=self.nats, count=self.count)


def measure(training: Training) -> tuple[dict[str, Any], Units]:
    """Quality, similarity and saturation at every depth of a finished training, on what was held out."""
    run, stack = training.run, training.stack
    task, data = TASKS[run.task], data_of(run.task, run.stage)
    size, started = task.sizes[run.stage], time.process_time()
    stack.model.eval()
    units = _units(stack, data.held_out, data.unit)
    evaluated = time.process_time() - started
    few = np.linspace(0, len(data.held_out) - 1, min(size.traced, len(data.held_out))).round().astype(int).tolist()
    progress = training.progress
    result = {
        **asdict(run),
        "settings": {
            **{name: getattr(task, name) for name in COMMON},
            **asdict(size),
            "clip": CLIP,
            "objective": _settings_of(run.objective),
        },
        "steps": training.steps,
        "depth": stack.depth,
        "parameters": sum(parameter.numel() for parameter in training.parameters.values()),
        "accuracy": units.accuracy,
        "cross_entropy": units.cross_entropy,
        "units": len(units.count),
        "answers": int(units.count.sum()),
        "similarity_to_last": _similarity(stack, data.held_out, few, "each" if task.score == "perplexity" else "first"),
        "saturation": _saturation(stack, data.held_out, few),
        "training_nats": progress.curve,
        "cpu_seconds": {
            "step": statistics.median(progress.cpu_seconds),
            "training": sum(progress.cpu_seconds),
            "evaluation": evaluated,
        },
        "versions": versions(),
    }
    return result, units


def write(result: dict[str, Any], units: Units, folder: Path, name: str) -> None:
    """`name`.npz, and then `name`.json, which says that the run is finished: one line a field, NaN as null."""
    units.save(folder / f"{name}.npz")
    lines = (
        f" {json.dumps(key)}: {json.dumps(_plain(value), allow_nan=False, default=str)}"
        for key, value in result.items()
    )
    with atomic_write(folder / f"{name}.json") as beside:
        beside.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def _units(stack: Stack, samples: Samples, unit: np.ndarray) -> Units:
    sums = np.zeros((int(unit.max()) + 1, stack.depth, 3))
    for rows in _batches(samples, range(len(samples))):
        np.add.at(sums, unit[rows], by_sample(stack, samples.batch(rows)).double().numpy())
    return Units(sums[:, :, 0], sums[:, :, 1], sums[:, 0, 2])


def _similarity(stack: Stack, samples: Samples, rows: Sequence[int], tokens: str) -> dict[str, list[float]]:
    batches = [samples.batch(some) for some in _batches(samples, rows)]
    found = ad.trace(stack, batches, measures=MEASURES, tokens=tokens, readout=None)
    return {name: found.similarity[name][:, -1].tolist() for name in MEASURES}


@torch.no_grad()
def _saturation(stack: Stack, samples: Samples, rows: Sequence[int]) -> list[int]:
    """How many answers are settled from depth 1, 2, ... L on."""
    found = []
    for some in _batches(samples, rows):
        batch = {name: value for name, value in samples.batch(some).items() if name != "labels"}
        states, answer = stack.forward(batch)
        logits = [stack.readout(states[depth], batch, depth=depth) for depth in range(1, stack.depth)]
        found.append(torch.stack([one.argmax(-1).flatten() for one in (*logits, answer)], dim=1))
    predictions = torch.cat(found)
    nothing = torch.full_like(predictions[:, :1], -1)  # depth 0 is not read out
    depths = saturation_depth(torch.cat([nothing, predictions], dim=1).numpy())
    return saturation_histogram(depths, stack.depth)[1:].tolist()


def _batches(samples: Samples, rows: Sequence[int]) -> list[list[int]]:
    order = sorted(rows, key=samples.length)
    return [order[start : start + BATCH] for start in range(0, len(order), BATCH)]


def _settings_of(objective: str) -> dict[str, Any]:
    found, loss = OBJECTIVES[objective], OBJECTIVES[objective].loss
    names = ("weights", "schedule", "exits", "distillation", "cosine", "label_smoothing", "seed")
    return {name: getattr(loss, name) for name in names} | {"separate_heads": found.separate_heads}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
