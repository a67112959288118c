"""What the theory comes to for a trained model, as numbers: `anydepth.theory` with every null it has."""

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
"""What similarity that falls off with distance is held against."""


def theory_of(bench: Experiment, name: str, model: Path) -> dict[str, Any]:
    """Geometry and neural collapse of a model on what a subject holds out, made once.

    Returns:
        violations, the share of triples of depths of which the far pair is the more alike; and the same of each null,
        as "violations, random walk". By depth: nc1, nc2_angle and nc3, and nc1 with shuffled labels.
    """
    return dict(
        bench.remembered(f"{name}-theory", {"model": model.parent.name}, partial(_examined, bench, name, model))
    )


def _examined(bench: Experiment, name: str, model: Path, folder: Path) -> dict[str, Any]:
    loaded = models.load(str(model), device=bench.device)
    batches = bench.batches(bench.subjects[name], loaded)
    stack = models.stack_of(loaded, batches)
    reference, _ = with_random_weights(loaded, batches, blocks=None, trust_remote_code=False, seed=bench.seed)
    found = examine(stack, batches, reference=reference, seed=bench.seed, progress=bench.progress)
    numbers: dict[str, Any] = {"violations": found.geometry[MEASURED].violations.value}
    numbers |= {f"violations, {null}": found.geometry[null].violations.value for null in NULLS}
    collapsed = found.collapse[MEASURED]
    numbers |= {"nc1": collapsed.nc1, "nc2_angle": collapsed.nc2_angle, "nc3": collapsed.nc3}
    return {**numbers, "nc1, shuffled labels": found.collapse[SHUFFLED_LABELS].nc1}
