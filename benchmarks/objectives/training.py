"""A plain training loop around `AlignedLoss` that can be killed at any moment and goes on from its checkpoint.

What a run computes depends on task, stage, objective and seed alone. The order of the samples, the initial weights and
what dropout drops at a step depend on the seed alone: runs of different objectives differ in the objective only.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from settings import TASKS, Stage
from tasks import Batch, data_of, groups_of, model_of
from torch import nn

from anydepth import Stack
from anydepth.core.heads import separate_heads
from anydepth.storage.disk import atomic_write
from anydepth.training.objectives import OBJECTIVES

CHECKPOINT_SECONDS = 120
CLIP = 1.0
CURVE = 20
"""Points of the learning curve that is kept."""
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Run:
    """One training: all that its result depends on."""

    stage: Stage
    task: str
    objective: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.stage}-{self.task}-{self.objective}-{self.seed}"

    @property
    def base(self) -> Run | None:
        """The run whose final weights this one starts from."""
        task = TASKS[self.task].base
        return None if task is None else Run(self.stage, task, "standard", self.seed)


@dataclass
class Progress:
    """How far a training has come, and what it has taken.

    Attributes:
        step: optimizer steps done.
        cpu_seconds: of every one of them, with its batch, its readouts and its update.
        nats: training loss at depth L, of each step.
    """

    step: int = 0
    cpu_seconds: list[float] = field(default_factory=list)
    nats: list[float] = field(default_factory=list)

    @property
    def curve(self) -> list[float]:
        """The mean training loss at depth L over each twentieth of the steps."""
        edges = [round(len(self.nats) * i / CURVE) for i in range(CURVE + 1)]
        parts = [self.nats[a:b] for a, b in pairwise(edges) if b > a]
        return [statistics.fmean(part) for part in parts]


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear rise over the first tenth of the steps, then half a cosine down to 0.

    >>> [round(learning_rate(step, 20, 1.0), 3) for step in (0, 1, 2, 11, 19)]
    [0.5, 1.0, 1.0, 0.5, 0.008]
    """
    rise = max(1, steps // 10)
    if step < rise:
        return peak * (step + 1) / rise
    return peak * (1 + math.cos(math.pi * (step - rise) / (steps - rise))) / 2


class Training:
    """A model on its way: built from the seed, or as its checkpoint left it.

    Args:
        run: what to train.
        work: the folder of checkpoints.
        model: to start from, in the place of the task's own.
        name: of its checkpoint.
    """

    def __init__(self, run: Run, work: Path, model: nn.Module | None = None, name: str | None = None) -> None:
        self.run, self.file = run, work / f"{name or run.name}.safetensors"
        self._samples = data_of(run.task, run.stage).train
        self._groups = groups_of(run.task, run.stage, run.seed)
        model = model_of(run.task, run.seed) if model is None else model
        if run.base is not None:
            _copy(work / f"{run.base.name}.safetensors", dict(_named(model, None)))
        self.stack = _stack(model, self._samples.batch(self._groups[0]), heads=OBJECTIVES[run.objective].separate_heads)
        self.parameters = dict(_named(model, self.stack.heads))
        task = TASKS[run.task]
        self._size = task.sizes[run.stage]
        self._optimizer = torch.optim.AdamW(self.parameters.values(), lr=self._size.rate, weight_decay=task.decay)
        self.progress = self._restored() if self.file.exists() else Progress()

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole training."""
        return len(self._groups)

    def finish(self, say: Callable[[str], None]) -> None:
        """Train to the end, leaving a checkpoint every two minutes; the last holds the final weights."""
        self.stack.model.train()
        saved = time.monotonic()
        for step in range(self.progress.step, self.steps):
            started = time.process_time()
            nats = self._step(step)
            self.progress.cpu_seconds.append(time.process_time() - started)
            self.progress.nats.append(nats)
            self.progress.step = step + 1
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                self._save()
                saved = time.monotonic()
                say(
                    f"step {step + 1} of {self.steps}, loss at depth L {statistics.fmean(self.progress.nats[-50:]):.3f}"
                )
        self._save()

    def _step(self, step: int) -> float:
        # what dropout drops at this step: the same before and after a resume, and for every objective
        torch.manual_seed(self.run.seed * 1_000_003 + step)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(step, self.steps, self._size.rate)
        batch = self._samples.batch(self._groups[step])
        found = OBJECTIVES[self.run.objective].loss(self.stack, batch, step=step)
        found.loss.backward()
        nn.utils.clip_grad_norm_(self.parameters.values(), CLIP)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(found.by_depth[-1])

    def _save(self) -> None:
        tensors = {name: parameter.detach() for name, parameter in self.parameters.items()}
        if self.progress.step < self.steps:
            for name, parameter in self.parameters.items():
                state = self._optimizer.state.get(parameter, {})
                tensors |= {f"{moment} {name}": state[moment] for moment in _MOMENTS if moment in state}
        with atomic_write(self.file) as beside:
            save_file(tensors, beside, metadata={"progress": json.dumps(asdict(self.progress))})

    def _restored(self) -> Progress:
        _copy(self.file, self.parameters)
        with safe_open(str(self.file), framework="pt") as file:
            progress = Progress(**json.loads(file.metadata()["progress"]))
            kept = set(file.keys())
            for name, parameter in self.parameters.items():
                # a parameter the objective never reached has no moments
                if f"{_MOMENTS[0]} {name}" in kept:
                    moments = {moment: file.get_tensor(f"{moment} {name}") for moment in _MOMENTS}
                    self._optimizer.state[parameter] = {"step": torch.tensor(float(progress.step)), **moments}
        return progress


def steps_done(run: Run, work: Path) -> int:
    """Steps in the run's checkpoint; 0 where there is none."""
    path = work / f"{run.name}.safetensors"
    if not path.exists():
        return 0
    with safe_open(str(path), framework="pt") as file:
        return int(json.loads(file.metadata()["progress"])["step"])


def _stack(model: nn.Module, batch: Batch, *, heads: bool) -> Stack:
    stack = Stack(model)
    if not heads:
        return stack
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    return Stack(model, heads=separate_heads(stack.classifier(inputs), stack.depth))


def _named(model: nn.Module, heads: nn.Module | None) -> list[tuple[str, nn.Parameter]]:
    """Every parameter once, under a name of its own: tied ones have one entry."""
    modules = {"model": model} if heads is None else {"model": model, "heads": heads}
    return [(f"{part}.{name}", one) for part, module in modules.items() for name, one in module.named_parameters()]


def _copy(path: Path, parameters: Mapping[str, nn.Parameter]) -> None:
    """The checkpoint's values into parameters of the same names."""
    with safe_open(str(path), framework="pt") as file, torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(file.get_tensor(name))
