"""Finished runs read back, and put side by side: seeds together, candidate against reference on the same units."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from paired import Difference, Verdict, difference, mean_over_seeds, verdict
from settings import COMMON, MARGIN, TASKS, Score, Stage


@dataclass(frozen=True)
class Finished:
    """The runs of one objective on one task, one for each seed.

    Attributes:
        results: what each run wrote, by seed.
        losses: by seed, (N, L) what each unit lost at each depth: wrong answers, or nats.
        counts: (N,) answers of each unit.
    """

    task: str
    objective: str
    results: dict[int, dict[str, Any]]
    losses: dict[int, NDArray[np.float64]]
    counts: NDArray[np.float64]

    @property
    def score(self) -> Score:
        return TASKS[self.task].score

    @property
    def depth(self) -> int:
        return int(next(iter(self.results.values()))["depth"])

    def quality(self) -> NDArray[np.float64]:
        """Mean over seeds of accuracy, or geometric mean of perplexity, with its interval: (3, L)."""
        if self.score == "accuracy":
            return mean_over_seeds(self.column("accuracy"))
        return np.exp(mean_over_seeds(self.column("cross_entropy")))

    def column(self, name: str) -> NDArray[np.float64]:
        """A field of the results: (S, ...), NaN for null."""
        return np.array([result[name] for result in self.results.values()], dtype=float)

    def step(self) -> float:
        """CPU seconds of an optimizer step: the mean over steps, since some objectives change from step to step."""
        return float(np.mean([one["cpu_seconds"]["training"] / one["steps"] for one in self.results.values()]))

    def similarity(self, measure: str) -> NDArray[np.float64]:
        """To the last depth, at the depths 1..L: the mean over seeds."""
        found = [one["similarity_to_last"][measure][1:] for one in self.results.values()]
        return np.asarray(np.array(found, dtype=float).mean(axis=0))

    def settled(self) -> NDArray[np.float64]:
        """The share of answers that are the final ones from a depth on, at the depths 1..L: the mean over seeds."""
        counts = self.column("saturation")
        return np.asarray((counts.cumsum(axis=1) / counts.sum(axis=1, keepdims=True)).mean(axis=0))


@dataclass(frozen=True)
class Compared:
    """One objective against another at one depth.

    Attributes:
        loss: the difference in wrong answers, or nats, per answer: negative is better.
        over_units: the verdict for these models and other units.
        over_seeds: the verdict for other trainings, too.
    """

    score: Score
    loss: Difference
    over_units: Verdict
    over_seeds: Verdict

    def in_words(self) -> str:
        """The difference as people read it: points of accuracy (more is better), percent of perplexity (less is)."""
        low, high = (self.shown(bound) for bound in self.loss.over_units)
        unit = " points" if self.score == "accuracy" else " %"
        return f"{self.shown(self.loss.mean):+.2f}{unit} ({min(low, high):+.2f} to {max(low, high):+.2f})"

    def shown(self, loss: float) -> float:
        return -100 * loss if self.score == "accuracy" else 100 * math.expm1(loss)


def compare(candidate: Finished, reference: Finished, depth: int) -> Compared:
    """The candidate against the reference at a depth, over the seeds that both have."""
    seeds = [seed for seed in candidate.losses if seed in reference.losses]
    found = difference(
        np.stack([candidate.losses[seed][:, depth - 1] - reference.losses[seed][:, depth - 1] for seed in seeds]),
        candidate.counts,
    )
    margin = MARGIN[candidate.score] if candidate.score == "accuracy" else math.log1p(MARGIN[candidate.score])
    by_units, by_seeds = (verdict((-high, -low), margin) for low, high in (found.over_units, found.over_seeds))
    return Compared(candidate.score, found, by_units, by_seeds)


def finished(folder: Path, stage: Stage) -> dict[str, dict[str, Finished]]:
    """Task → objective → its runs, in the order of the settings and of the objectives; what is missing is left out.

    Raises:
        ValueError: a run had other settings than settings.py has today.
    """
    from anydepth.training.objectives import OBJECTIVES

    found: dict[tuple[str, str], dict[int, Path]] = defaultdict(dict)
    for path in sorted(folder.glob(f"{stage}-*.json")):
        result = json.loads(path.read_text())
        found[result["task"], result["objective"]][result["seed"]] = path
    names = [*OBJECTIVES, *sorted({objective for _, objective in found} - set(OBJECTIVES))]
    return {
        task: {name: _read(task, name, found[task, name]) for name in names if (task, name) in found}
        for task in TASKS
        if any(of == task for of, _ in found)
    }


def _read(task: str, objective: str, paths: dict[int, Path]) -> Finished:
    results = {seed: json.loads(path.read_text()) for seed, path in sorted(paths.items())}
    for seed, result in results.items():
        _require_current(result, paths[seed])
    rows = {seed: np.load(path.with_suffix(".npz"), allow_pickle=False) for seed, path in sorted(paths.items())}
    if TASKS[task].score == "accuracy":
        losses = {seed: _wrong(one) for seed, one in rows.items()}
        return Finished(task, objective, results, losses, np.ones(len(next(iter(losses.values())))))
    losses = {seed: one["nats"] for seed, one in rows.items()}
    return Finished(task, objective, results, losses, next(iter(rows.values()))["count"])


def _require_current(result: dict[str, Any], path: Path) -> None:
    """See that a run was made with today's settings: runs of different ones must not be compared."""
    task = TASKS[result["task"]]
    today = {name: getattr(task, name) for name in COMMON} | asdict(task.sizes[result["stage"]])
    changed = [f"{name} {result['settings'][name]}" for name in today if result["settings"][name] != today[name]]
    if changed:
        raise ValueError(
            f"{path.name} was trained with other settings ({', '.join(changed)}): remove it, and run again"
        )


def _wrong(rows: Any) -> NDArray[np.float64]:
    right = np.unpackbits(rows["right_bits"], axis=1)[:, : int(rows["units"])]
    return 1.0 - right.T
