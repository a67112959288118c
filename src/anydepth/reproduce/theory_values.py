"""Numbers of the theory for a trained model: `anydepth.theory` with its null models."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from anydepth.jobs.theory import with_random_weights
from anydepth.models import loading as models
from anydepth.reproduce.experiment import Experiment
from anydepth.theory.examine import examine
from anydepth.theory.findings import MEASURED, RANDOM_WEIGHTS, SHUFFLED_LABELS

NULLS = ("random walk", "shuffled", RANDOM_WEIGHTS)
"""Null models of similarity that falls off with distance."""


def theory_of(bench: Experiment, name: str, model: Path) -> dict[str, Any]:
    """Geometry and neural collapse of a model on what a subject holds out, made once.

    Returns:
        violations, the share of triples of depths of which the far pair is the more alike; and the same of each null,
        as "violations, random walk". By depth: nc1, nc2_angle and nc3, and nc1 with shuffled labels.
    """
    return dict(bench.remembered(f"{name}-theory", {"model": model.parent.name}, partial(_measure, bench, name, model)))


def _measure(bench: Experiment, name: str, model: Path, folder: Path) -> dict[str, Any]:
    loaded = models.load(str(model), device=bench.device)
    batches = bench.batches(bench.subjects[name], loaded)
    stack = models.stack_of(loaded, batches)
    reference, _ = with_random_weights(loaded, batches, blocks=None, trust_remote_code=False, seed=bench.seed)
    theory = examine(stack, batches, reference=reference, seed=bench.seed, progress=bench.progress)
    numbers: dict[str, Any] = {"violations": theory.geometry[MEASURED].violations.value}
    numbers |= {f"violations, {null}": theory.geometry[null].violations.value for null in NULLS}
    collapsed = theory.collapse[MEASURED]
    numbers |= {"nc1": collapsed.nc1, "nc2_angle": collapsed.nc2_angle, "nc3": collapsed.nc3}
    return {**numbers, "nc1, shuffled labels": theory.collapse[SHUFFLED_LABELS].nc1}
