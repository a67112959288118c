"""App. B.4: what alignment is worth under a shift of the images, and on another task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor
from torch.nn import functional

from anydepth.models import loading as models
from anydepth.reproduce.claims import Claim
from anydepth.reproduce.experiment import Experiment
from anydepth.reproduce.recipe import Panel, Plan, Recipe, for_each_subject
from anydepth.reproduce.recipes.vision import FULL, SMALL
from anydepth.reproduce.results import RecipeResults, Values
from anydepth.tracing.run import trace

OBJECTIVES = ("standard", "aligned")
claim = partial(Claim, where="App. B.4")
OTHER = {"cpu": ("digits", "label"), "full": ("uoft-cs/cifar100", "fine_label")}
"""The other task, whose classes are new, and its column of labels."""
RIDGE = 0.01
"""Of the probe, per sample, of states in units of their spread: customary, and not tuned."""


def noisy(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """With noise of half the images' own spread."""
    return pixels + 0.5 * pixels.std() * torch.randn(pixels.shape, generator=generator)


def blurred(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Each pixel the mean of the 3 by 3 around it."""
    return functional.avg_pool2d(pixels, 3, stride=1, padding=1, count_include_pad=False)


def faded(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """With a third of the contrast."""
    mean = pixels.mean((1, 2, 3), keepdim=True)
    return mean + (pixels - mean) / 3


SHIFTS: Mapping[str, Callable[[Tensor, torch.Generator], Tensor]] = {"noisy": noisy, "blurred": blurred, "faded": faded}


@dataclass(frozen=True)
class _Known:
    """States of images at every depth, and their classes."""

    by_depth: list[np.ndarray]
    labels: np.ndarray


def measure(bench: Experiment) -> Values:
    """Accuracy by depth of shifted images, and of a linear probe of each depth on the other task."""
    values: dict[str, dict[str, Any]] = {}
    for name in bench.subjects:
        for objective in OBJECTIVES:
            model = bench.trained(name, objective)
            key = {"model": model.parent.name}
            values[f"{name} {objective}"] = {
                "accuracy": bench.traced(name, model).accuracy,
                **bench.remembered(f"{name}-shifted", key, partial(shifted, bench, name, model)),
                **bench.remembered(f"{name}-probed", key, partial(probed, *_other_task(bench, name, model))),
            }
    return values


def shifted(bench: Experiment, name: str, model: Path, folder: Path) -> dict[str, Any]:
    """Accuracy by depth on the held-out images under each shift."""
    loaded = models.load(str(model), device=bench.device)
    batches = bench.batches(bench.subjects[name], loaded)

    def under(shift: Callable[[Tensor, torch.Generator], Tensor]) -> Iterator[dict[str, Any]]:
        generator = torch.Generator().manual_seed(0)
        for batch in batches:
            yield {**batch, "pixel_values": shift(batch["pixel_values"], generator)}

    stack = models.stack_of(loaded, batches)
    return {
        key: trace(stack, under(shift), measures=(), out=folder / key, progress=bench.progress).accuracy
        for key, shift in SHIFTS.items()
    }


def _other_task(bench: Experiment, name: str, model: Path) -> tuple[_Known, _Known]:
    """The states of its training images and of its test images."""
    parts = []
    for split in ("train", "test"):
        source, column = OTHER[bench.scale]
        traced = bench.traced(
            name, model, source=source, split=split, measures=(), readout=None, labels=False, keep_states=True
        )
        states = traced.states
        assert states is not None
        rows = bench.samples(bench.subjects[name], source=source, split=split).dataset
        groups = np.arange(states.count) if states.groups is None else states.groups
        whole, edges = states.rows(np.arange(states.count)), np.cumsum((0, *states.widths))
        parts.append(_Known([whole[:, a:b] for a, b in pairwise(edges)], np.asarray(rows[column])[groups]))
    return parts[0], parts[1]


def probed(learn: _Known, held_out: _Known, folder: Path) -> dict[str, Any]:
    """Accuracy by depth of a linear probe on the other task, fitted to its training images."""
    both = zip(learn.by_depth, held_out.by_depth, strict=True)
    return {"probe": [probe(own, learn.labels, others, held_out.labels) for own, others in both]}


def probe(
    learn: np.ndarray, labels: Int64[np.ndarray, " n"], held_out: np.ndarray, truth: Int64[np.ndarray, " m"]
) -> float:
    """Accuracy of ridge regression on the classes, one against the others; NaN where no column varies.

    Args:
        learn: (n, D) states to fit to.
        labels: their classes.
        held_out: (m, D) states to judge on.
        truth: their classes.

    Example:
        >>> x = np.array([[0.0, 1.0], [0.1, 1.0], [1.0, 0.0], [0.9, 0.1]])
        >>> probe(x, np.array([0, 0, 1, 1]), x, np.array([0, 0, 1, 1]))
        1.0
    """
    mean, spread = learn.mean(0), learn.std(0)
    kept = spread > 1e-6 * max(float(spread.max()), 1e-30)
    if not spread.max() > 1e-6:
        return float("nan")
    x, y = ((rows[:, kept] - mean[kept]) / spread[kept] for rows in (learn, held_out))
    targets: Float64[np.ndarray, "n c"] = np.eye(int(labels.max()) + 1)[labels]
    gram = x.T @ x + RIDGE * len(x) * np.eye(x.shape[1])
    weights = np.linalg.solve(gram.astype(np.float64), x.T @ (targets - targets.mean(0)))
    return float(((y @ weights + targets.mean(0)).argmax(1) == truth).mean())


@for_each_subject
def claims(results: RecipeResults, name: str) -> list[Claim]:
    """Shallow layers under each shift, the last layer under them, and the probe."""

    def gain(quantity: str) -> np.ndarray:
        standard, aligned = (results.each(f"{name} {objective}", quantity) for objective in OBJECTIVES)
        return np.asarray(aligned - standard)

    shifts = np.mean([gain(shift) for shift in SHIFTS], axis=0)
    return [
        claim(
            paper="do shallow layers of an aligned model stay better when images shift?",
            measured=f"{name}: mean accuracy of depths 1 to L - 1 under noise, blur and fading, aligned minus standard",
            values=shifts[:, 1:-1].mean(1),
        ),
        claim(
            paper="and does the last stay as good?",
            measured=f"{name}: accuracy at depth L under them, aligned minus standard",
            values=shifts[:, -1],
            above=-0.01,
        ),
        claim(
            paper="does what aligned layers hold serve another task as well?",
            measured=f"{name}: mean accuracy of linear probes on other classes, depths 1 to L, aligned minus standard",
            values=gain("probe")[:, 1:].mean(1),
            above=-0.01,
        ),
    ]


def panels(results: RecipeResults) -> tuple[Panel, ...]:
    """Accuracy as images are and under each shift, and the probes."""
    return tuple(
        Panel(quantity, title, "share", start=1)
        for quantity, title in (
            ("accuracy", "Accuracy, images as they are"),
            *((shift, f"Accuracy, {shift}") for shift in SHIFTS),
            ("probe", "Linear probes on other classes"),
        )
    )


RECIPE = Recipe(
    name="transfer",
    title="Under a shift of the images, and on another task",
    figures=("App. B.4",),
    shows="Transfer, under a shift of the data and to other tasks. What the appendix shows was not at hand when this "
    "was written: the shifts, the other task and the claims are ours.",
    cpu=Plan(SMALL, 10, "CPU minutes", besides=(OTHER["cpu"][0],)),
    full=Plan(FULL, 4, "GPU hours", besides=(OTHER["full"][0],)),
    measure=measure,
    claims=claims,
    panels=panels,
)
