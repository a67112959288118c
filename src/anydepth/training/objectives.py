"""Training objectives: the protocol, the aligned loss of the paper, and its relatives by name.

The aligned loss is `sum over l of lambda_l * CE(readout(h[l]), y)` with `lambda_l = 2 l / (L (L + 1))`
(arXiv:2406.14479). Depth L is read from the model's own output, so that weight on the last depth alone is ordinary
training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from anydepth.core.model_io import Batch
from anydepth.core.stack import Stack
from anydepth.core.targets import Targets, are_matched
from anydepth.errors import ObjectiveError, choose
from anydepth.training.depth_weights import EXITS, SCHEDULES, Exits, Weights, sampled, weights_of
from anydepth.training.losses import (
    DepthLossTerms,
    LossTerms,
    cosine_distance,
    inputs_and_labels,
    require_learnable,
)
from anydepth.training.own_loss import own_loss_terms


@dataclass(frozen=True)
class Loss:
    """The loss of one step, and its parts by depth.

    Attributes:
        loss: to backpropagate.
        by_depth: cross-entropy at each depth 1..L in nats per label, or the model's own loss of targets that it matches
            itself; NaN where this step computed none.
        accuracy: share of labels whose logit is the largest, at each depth; NaN where this step computed none, and for
            matched targets.
    """

    loss: Float[Tensor, ""]
    by_depth: Float[Tensor, " l"]
    accuracy: Float[Tensor, " l"]


@runtime_checkable
class Objective(Protocol):
    """What `AlignedTrainer` minimises: `AlignedLoss`, or any callable with these two methods.

    Example:
        A hinge loss at every depth, to be used as `AlignedTrainer(model, args, objective=HingeLoss(), ...)`:

        >>> from torch.nn.functional import cross_entropy, multi_margin_loss
        >>> class HingeLoss:
        ...     def expected(self, depth):
        ...         return {each: 1 / depth for each in range(1, depth + 1)}
        ...
        ...     def __call__(self, stack, batch, *, step=0, items=None):
        ...         inputs, labels = inputs_and_labels(stack.model, batch)
        ...         states, _ = stack.forward(inputs)
        ...         logits = [stack.readout(states[depth], inputs, depth=depth) for depth in range(1, stack.depth + 1)]
        ...         hinge = torch.stack([multi_margin_loss(each, labels, reduction="sum") for each in logits])
        ...         nats = torch.stack([cross_entropy(each, labels) for each in logits])
        ...         right = torch.stack([(each.argmax(1) == labels).float().mean() for each in logits])
        ...         return Loss(hinge.mean() / (items or len(labels)), nats.detach(), right)
        >>> blocks = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(3)))
        >>> model = torch.nn.Sequential(blocks, torch.nn.Linear(4, 4))
        >>> loss = HingeLoss()(Stack(model), (torch.eye(4), torch.arange(4)))
        >>> loss.by_depth.shape
        torch.Size([3])
    """

    def __call__(self, stack: Stack, batch: Any, *, step: int, items: int | Tensor | None) -> Loss:
        """The loss of a batch.

        Args:
            stack: the model.
            batch: as the data loader gives it, with the labels.
            step: the optimizer step, from 0.
            items: number of labels in the whole optimizer step, by which sums are to be divided; None if this batch is
                all of it.
        """
        ...

    def expected(self, depth: int) -> Mapping[int, float]:
        """The weight of each depth's cross-entropy in `eval_loss`, for a model of `depth` blocks."""
        ...


@dataclass(frozen=True)
class AlignedLoss:
    """Weighted cross-entropy of one shared classifier at every depth.

    Args:
        weights: weight of each depth: "linear" (the paper's), "uniform", "final" (ordinary training), "additive"
            (ordinary training plus the shallow depths), one number for each exit, or a function of (depth, L).
        schedule: "every" step the same; "alternating" between depth L alone (steps 0, 2, ...) and the weights; or
            their "mixture", half and half at every step.
        exits: "all" depths; "sampled": depth L and one drawn at each step, unbiased; or the depths to train.
        distillation: share of the shallow depths' loss that imitates depth L's output (without gradient to it) rather
            than the labels, in 0..1.
        cosine: the paper's regulariser: adds `cosine * sum over l < L of lambda_l * (1 - cos(h[l], h[L]))` to the
            cross-entropy of depth L alone. It excludes `distillation`.
        label_smoothing: share of each label spread evenly over all classes, in 0..1.
        seed: of what is sampled.

    Raises:
        ObjectiveError: a setting out of range, or two that exclude each other. Weights and exits are checked when the
            depth of the model is known.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Sequential(*(nn.Linear(4, 4) for _ in range(3))), nn.Linear(4, 2))
        >>> result = AlignedLoss()(Stack(model), (torch.eye(4), torch.tensor([0, 1, 0, 1])), step=0)
        >>> result.loss.backward()
        >>> torch.allclose(result.loss, (result.by_depth * torch.tensor([1 / 6, 2 / 6, 3 / 6])).sum())
        True
    """

    weights: Weights = "linear"
    schedule: str = "every"
    exits: Exits = "all"
    distillation: int | float = 0.0
    cosine: int | float = 0.0
    label_smoothing: int | float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        choose(self.schedule, SCHEDULES, "schedule", ObjectiveError)
        if isinstance(self.exits, str) and self.exits not in EXITS:
            raise ObjectiveError(f"exits are {self.exits!r}, expected 'all', 'sampled', or the depths to train")
        for name, most in (("distillation", 1.0), ("label_smoothing", 1.0), ("cosine", float("inf"))):
            value = getattr(self, name)
            if not 0 <= value <= most or value == float("inf"):
                raise ObjectiveError(f"{name} is {value}, expected a number from 0 " + ("to 1" if most == 1 else "on"))
        if self.cosine and self.distillation:
            raise ObjectiveError(
                f"cosine is {self.cosine} and distillation {self.distillation}, expected one of them: with cosine the "
                "shallow depths have no readout that could imitate depth L"
            )

    def expected(self, depth: int, first: int = 1) -> dict[int, float]:
        """The weight of each depth's cross-entropy, on the mean over steps, in a model of L = `depth` blocks.

        Args:
            depth: L.
            first: the first depth that can be trained: of a model in several stages, that after the last one's first
                block.

        Raises:
            ObjectiveError: weights or exits that do not fit such a model.

        Example:
            >>> AlignedLoss(schedule="alternating").expected(2)
            {1: 0.16666666666666666, 2: 0.8333333333333333}
        """
        weights = self._weights(depth, first)
        if self.cosine:
            return {depth: 1.0}
        return weights if self.schedule == "every" else _half_final(weights, depth)

    def plan(self, step: int, depth: int, first: int = 1) -> dict[int, float]:
        """The weight of each depth at an optimizer step, from 0: a function of (seed, step), the same on every rank.

        With `cosine` they are the weights of the distances, not of the cross-entropy. `first` is as in `expected`.

        Example:
            >>> AlignedLoss(schedule="alternating").plan(0, depth=2)
            {2: 1.0}
        """
        if self.schedule == "alternating" and step % 2 == 0:
            return {depth: 1.0}
        weights = self._weights(depth, first)
        if self.schedule == "mixture":
            weights = _half_final(weights, depth)
        return sampled(weights, depth, self.seed, step) if self.exits == "sampled" else weights

    def _weights(self, depth: int, first: int) -> dict[int, float]:
        exits = range(first, depth + 1) if isinstance(self.exits, str) else self.exits
        return weights_of(self.weights, list(exits), depth, first)

    def __call__(self, stack: Stack, batch: Any, *, step: int = 0, items: int | Tensor | None = None) -> Loss:
        """The loss of a batch.

        Args:
            stack: the model; with `heads`, depths below L are read out by theirs.
            batch: a dict with "labels", or a pair (x, y). The labels of a language model default to its own tokens; an
                encoder-decoder is given the labels shifted to the right, as transformers shifts them. Where they are a
                mapping for each sample, as a detector's, the loss at a depth is the model's own, on its answer there.
            step: the optimizer step: it decides what alternates and what is sampled.
            items: number of labels in the whole optimizer step, if this is a part of it: what sums are divided by.

        Raises:
            ObjectiveError: nothing to learn with: a frozen classifier, a readout without gradient.
            LabelError: labels are missing, of the wrong shape, or out of range.
            NonFiniteLoss: the loss at some depth is NaN or infinite.
        """
        inputs, labels = inputs_and_labels(stack.model, batch)
        stack.learn(inputs)
        weights = self.plan(step, stack.depth, stack.entry + 1)
        if torch.is_grad_enabled():
            require_learnable(stack, inputs, weights)
        terms, states, output = self._terms(stack, inputs, labels, items)
        shallow = {depth: weight for depth, weight in weights.items() if depth < stack.depth and weight}
        loss = terms.final(1.0 if self.cosine else weights.get(stack.depth, 0.0))
        if self.cosine:
            loss = loss + self.cosine * cosine_distance(stack, inputs, states, output, shallow)
        elif shallow:
            loss = loss + terms.shallow(inputs, states, shallow)
        terms.require_finite(step)
        if torch.is_grad_enabled() and not loss.requires_grad:
            raise ObjectiveError(f"the loss of {type(stack.model).__name__} has no gradient: every parameter is frozen")
        return Loss(loss, terms.by_depth, terms.accuracy)

    def _terms(
        self, stack: Stack, inputs: Batch, labels: Any, items: int | Tensor | None
    ) -> tuple[LossTerms, list[Tensor], Tensor]:
        """The loss terms of a batch, and the states and the answer that they are of."""
        shares = {"smoothing": self.label_smoothing, "imitation": self.distillation}
        if are_matched(labels):
            return own_loss_terms(stack, inputs, labels, items=items, **shares)
        states, output = stack.forward(inputs)
        targets = Targets.of(stack, inputs, labels, output)
        return DepthLossTerms(stack, targets, items, output, **shares), states, output


def _half_final(weights: dict[int, float], depth: int) -> dict[int, float]:
    halves = {each: weight / 2 for each, weight in weights.items()}
    return {**halves, depth: halves.get(depth, 0.0) + 0.5}


@dataclass(frozen=True, kw_only=True)
class NamedObjective:
    """An objective of the table `OBJECTIVES`; with `separate_heads` each depth below L has its own classifier."""

    name: str
    purpose: str
    loss: AlignedLoss
    separate_heads: bool = False


_TABLE = {
    "standard": (AlignedLoss("final"), "Ordinary training of depth L: the baseline of the others."),
    "aligned": (AlignedLoss(), "The paper's: one classifier at every depth, weights proportional to depth."),
    "uniform": (AlignedLoss("uniform"), "One classifier at every depth, all weighing the same."),
    "additive": (
        AlignedLoss("additive"),
        "Ordinary training of depth L plus the weighted loss of the shallower depths.",
    ),
    "alternating": (
        AlignedLoss(schedule="alternating"),
        "Depth L alone and the aligned loss in turn, as the paper says.",
    ),
    "mixture": (
        AlignedLoss(schedule="mixture"),
        "Half depth L, half the aligned loss: what the paper's code really ran.",
    ),
    "sampled": (AlignedLoss(exits="sampled"), "Depth L and one shallower depth at each step, unbiased and cheap."),
    "distilled": (AlignedLoss(distillation=0.5), "Shallow depths learn half from the labels and half from depth L."),
    "cosine": (AlignedLoss(cosine=1.0), "The paper's regulariser: depth L's loss, and states drawn towards the last."),
    "heads": (AlignedLoss(), "One classifier for each depth, to compare with one for all."),
}
OBJECTIVES: Mapping[str, NamedObjective] = {
    name: NamedObjective(name=name, purpose=purpose, loss=loss, separate_heads=name == "heads")
    for name, (loss, purpose) in _TABLE.items()
}
DEFAULT = "aligned"


def objective_named(name: str) -> NamedObjective:
    """The objective of that name; raises an `ObjectiveError` if there is none.

    Example:
        >>> objective_named("sampeld")
        Traceback (most recent call last):
        anydepth.errors.ObjectiveError: unknown objective 'sampeld', expected one of standard, aligned, uniform, ...
    """
    return OBJECTIVES[choose(name, OBJECTIVES, "objective", ObjectiveError)]
