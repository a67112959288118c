"""What is trained: one classifier for every depth, and what it is compared with.

The aligned loss is `sum over l of lambda_l * CE(readout(h[l]), y)` with `lambda_l = 2 l / (L (L + 1))`
(arXiv:2406.14479). `AlignedLoss` computes it, and its relatives, for any model that `Stack` accepts and in any training
loop. Depth L is read from the forward's own answer, so that weight on the last depth alone is ordinary training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from anydepth.core.model_io import Batch
from anydepth.core.stack import Stack
from anydepth.core.targets import Targets
from anydepth.core.tokens import Policy, default_policy, select, valid_positions
from anydepth.errors import ObjectiveError, choose
from anydepth.training.depth_weights import EXITS, SCHEDULES, Exits, Weights, sampled, weights_of
from anydepth.training.losses import DepthLossTerms, inputs_and_labels, require_learnable


@dataclass(frozen=True)
class Loss:
    """What a step's loss is made of.

    Attributes:
        loss: to backpropagate.
        by_depth: cross-entropy at each depth 1..L in nats per label, on its own; NaN where this step did not look.
        accuracy: share of labels whose logit is the largest, at each depth; NaN where this step did not look.
    """

    loss: Float[Tensor, ""]
    by_depth: Float[Tensor, " l"]
    accuracy: Float[Tensor, " l"]


@dataclass(frozen=True)
class AlignedLoss:
    """One classifier, trained at every depth.

    Args:
        weights: what each depth weighs: "linear" (the paper's), "uniform", "final" (ordinary training), "additive"
            (ordinary training with the shallow depths on top), one number for each exit, or a function of (depth, L).
        schedule: "every" step the same; "alternating" between depth L alone (steps 0, 2, ...) and the weights; or
            their "mixture", half and half at every step.
        exits: "all" depths; "sampled": depth L and one drawn at each step, unbiased; or the depths to train.
        distillation: share of the shallow depths' loss that imitates depth L's answer (without gradient to it) rather
            than the labels, in 0..1.
        cosine: the paper's regulariser: adds `cosine * sum over l < L of lambda_l * (1 - cos(h[l], h[L]))` and keeps
            the cross-entropy of depth L alone.
        label_smoothing: share of each label spread evenly over all classes, in 0..1.
        seed: of what is sampled.

    Raises:
        ObjectiveError: a setting out of range. Weights and exits are checked when the depth of the model is known.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Sequential(*(nn.Linear(4, 4) for _ in range(3))), nn.Linear(4, 2))
        >>> found = AlignedLoss()(Stack(model), (torch.eye(4), torch.tensor([0, 1, 0, 1])), step=0)
        >>> found.loss.backward()
        >>> torch.allclose(found.loss, (found.by_depth * torch.tensor([1 / 6, 2 / 6, 3 / 6])).sum())
        True
    """

    weights: Weights = "linear"
    schedule: str = "every"
    exits: Exits = "all"
    distillation: int | float = 0.0
    cosine: int | float = 0.0
    label_smoothing: int | float = 0.0
    seed: int = 0
    # where a model's readout looks, found once for each
    _policies: WeakKeyDictionary[Stack, Policy] = field(
        default_factory=WeakKeyDictionary, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        choose(self.schedule, SCHEDULES, "schedule", ObjectiveError)
        if isinstance(self.exits, str) and self.exits not in EXITS:
            raise ObjectiveError(f"exits are {self.exits!r}, expected 'all', 'sampled', or the depths to train")
        for name, most in (("distillation", 1.0), ("label_smoothing", 1.0), ("cosine", float("inf"))):
            value = getattr(self, name)
            if not 0 <= value <= most or value == float("inf"):
                raise ObjectiveError(f"{name} is {value}, expected a number from 0 " + ("to 1" if most == 1 else "on"))

    def expected(self, depth: int) -> dict[int, float]:
        """What each depth weighs, on the mean over steps.

        Args:
            depth: L.

        Raises:
            ObjectiveError: weights or exits that do not fit a model of L blocks.

        Example:
            >>> AlignedLoss(schedule="alternating").expected(2)
            {1: 0.16666666666666666, 2: 0.8333333333333333}
        """
        weights = self._weights(depth)
        return weights if self.schedule == "every" else _half_final(weights, depth)

    def plan(self, step: int, depth: int) -> dict[int, float]:
        """What each depth weighs at one optimizer step: a function of (seed, step), the same on every rank.

        Args:
            step: the optimizer step, from 0.
            depth: L.

        Example:
            >>> AlignedLoss(schedule="alternating").plan(0, depth=2)
            {2: 1.0}
        """
        if self.schedule == "alternating" and step % 2 == 0:
            return {depth: 1.0}
        weights = self._weights(depth)
        if self.schedule == "mixture":
            weights = _half_final(weights, depth)
        return sampled(weights, depth, self.seed, step) if self.exits == "sampled" else weights

    def _weights(self, depth: int) -> dict[int, float]:
        exits = range(1, depth + 1) if isinstance(self.exits, str) else self.exits
        return weights_of(self.weights, list(exits), depth)

    def __call__(self, stack: Stack, batch: Any, *, step: int = 0, items: int | Tensor | None = None) -> Loss:
        """The loss of a batch.

        Args:
            stack: the model; with `heads`, depths below L are read out by theirs.
            batch: a dict with "labels", or a pair (x, y). A language model without labels is asked its own tokens; an
                encoder-decoder is given the labels shifted to the right, as transformers shifts them.
            step: the optimizer step: it decides what alternates and what is sampled.
            items: how many labels the whole optimizer step has, if this is a part of it: what sums are divided by.

        Raises:
            ObjectiveError: nothing to learn with: a frozen classifier, a readout without gradient.
            LabelError: labels are missing, of the wrong shape, or out of range.
            NonFiniteLoss: the loss at some depth is NaN or infinite.
        """
        inputs, labels = inputs_and_labels(stack.model, batch)
        plan = self.plan(step, stack.depth)
        if torch.is_grad_enabled():
            require_learnable(stack, inputs, plan)
        states, answer = stack.forward(inputs)
        asked = Targets.of(stack, inputs, labels, answer)
        tally = DepthLossTerms(stack, asked, items, answer, smoothing=self.label_smoothing, imitation=self.distillation)
        shallow = {depth: weight for depth, weight in plan.items() if depth < stack.depth and weight}
        total = tally.final(1.0 if self.cosine else plan.get(stack.depth, 0.0))
        if self.cosine:
            total = total + self.cosine * self._apart(stack, inputs, states, answer, shallow)
        elif shallow:
            total = total + tally.shallow(inputs, states, shallow)
        tally.require_finite(step)
        if torch.is_grad_enabled() and not total.requires_grad:
            raise ObjectiveError(f"the loss of {type(stack.model).__name__} has no gradient: every parameter is frozen")
        return Loss(total, tally.by_depth, tally.accuracy)

    def _apart(
        self, stack: Stack, batch: Batch, states: list[Tensor], answer: Tensor, weights: Mapping[int, float]
    ) -> Tensor:
        """The mean over samples of `sum over l of lambda_l * (1 - cos(h[l], h[L]))`, where the readout looks."""
        if stack not in self._policies:
            self._policies[stack] = default_policy(stack, batch, labels_each=answer.ndim == 3)
        valid = valid_positions(batch, states[-1])
        rows = {depth: select(states[depth], valid, self._policies[stack])[0] for depth in (*weights, stack.depth)}
        apart = [
            weight * (1 - functional.cosine_similarity(rows[depth], rows[stack.depth], dim=1)).mean()
            for depth, weight in weights.items()
        ]
        return torch.stack(apart).sum() if apart else answer.new_zeros(())


def _half_final(weights: dict[int, float], depth: int) -> dict[int, float]:
    halves = {one: weight / 2 for one, weight in weights.items()}
    return {**halves, depth: halves.get(depth, 0.0) + 0.5}


@dataclass(frozen=True)
class Objective:
    """A way to train, by name.

    Attributes:
        name: on the command line and in results.
        purpose: what it is for, in one sentence.
        loss: its loss.
        separate_heads: whether each depth below L has a classifier of its own.
    """

    name: str
    purpose: str
    loss: AlignedLoss
    separate_heads: bool = False


_ALL = (
    Objective("standard", "Ordinary training of depth L: what the others are measured against.", AlignedLoss("final")),
    Objective("aligned", "The paper's: one classifier at every depth, weights proportional to depth.", AlignedLoss()),
    Objective(
        "uniform",
        "One classifier at every depth, all weighing the same: the most for the shallow ones.",
        AlignedLoss("uniform"),
    ),
    Objective(
        "additive",
        "Depth L at full weight with the shallower depths on top, for when the last depth must not give way.",
        AlignedLoss("additive"),
    ),
    Objective(
        "alternating",
        "Depth L alone and the aligned loss, step about, as the paper describes: half the cost of the readouts.",
        AlignedLoss(schedule="alternating"),
    ),
    Objective(
        "mixture",
        "Half the loss of depth L and half the aligned loss at every step: what the paper's code really ran.",
        AlignedLoss(schedule="mixture"),
    ),
    Objective(
        "sampled",
        "Depth L and one shallower depth at each step, unbiased: nearly the cost of ordinary training.",
        AlignedLoss(exits="sampled"),
    ),
    Objective(
        "distilled",
        "Shallow depths learn half from the labels and half from what depth L answers.",
        AlignedLoss(distillation=0.5),
    ),
    Objective(
        "cosine",
        "The paper's regulariser: depth L's loss, and states drawn towards the last; no readout at shallow depths.",
        AlignedLoss(cosine=1.0),
    ),
    Objective("heads", "One classifier for each depth: the rival of one for all.", AlignedLoss(), separate_heads=True),
)
OBJECTIVES: Mapping[str, Objective] = {objective.name: objective for objective in _ALL}
DEFAULT = "aligned"


def objective_named(name: str) -> Objective:
    """The objective of that name.

    Raises:
        ObjectiveError: there is none.

    Example:
        >>> objective_named("sampeld")
        Traceback (most recent call last):
        anydepth.errors.ObjectiveError: unknown objective 'sampeld', expected one of standard, aligned, uniform, ...
    """
    return OBJECTIVES[choose(name, OBJECTIVES, "objective", ObjectiveError)]
