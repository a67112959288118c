"""What is trained: one classifier for every depth, and what it is compared with.

The aligned loss is `sum over l of lambda_l * CE(readout(h[l]), y)` with `lambda_l = 2 l / (L (L + 1))`
(arXiv:2406.14479). `AlignedLoss` computes it, and its relatives, for any model that `Stack` accepts and in any training
loop. Depth L is read from the forward's own answer, so that weight on the last depth alone is ordinary training.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from anydepth.calling import Batch
from anydepth.errors import NonFiniteLoss, ObjectiveError
from anydepth.measures.readout import readout_rows
from anydepth.questions import Questions, predicts_next_token, without_labels
from anydepth.stack import Stack
from anydepth.tokens import IGNORED, Policy, default_policy, select, valid_positions
from anydepth.vocabulary import Target, depth_losses
from anydepth.weights import EXITS, SCHEDULES, Exits, Weights, sampled, weights_of

# From so many classes on, a model that answers for every position never has the logits of several depths in memory.
_VOCABULARY = 1024


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
        if self.schedule not in SCHEDULES:
            raise ObjectiveError(f"unknown schedule {self.schedule!r}, expected one of {', '.join(SCHEDULES)}")
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
        exits = range(1, depth + 1) if isinstance(self.exits, str) else self.exits
        weights = weights_of(self.weights, list(exits), depth)
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
        exits = range(1, depth + 1) if isinstance(self.exits, str) else self.exits
        weights = weights_of(self.weights, list(exits), depth)
        if self.schedule == "mixture":
            weights = _half_final(weights, depth)
        return sampled(weights, depth, self.seed, step) if self.exits == "sampled" else weights

    def __call__(self, stack: Stack, batch: Any, *, step: int = 0, items: int | Tensor | None = None) -> Loss:
        """The loss of a batch.

        Args:
            stack: the model; with `heads`, depths below L are read out by theirs.
            batch: a dict with "labels", or a pair (x, y). A language model without labels is asked its own tokens.
            step: the optimizer step: it decides what alternates and what is sampled.
            items: how many labels the whole optimizer step has, if this is a part of it: what sums are divided by.

        Raises:
            ObjectiveError: nothing to learn with: a frozen classifier, a readout without gradient.
            LabelError: labels are missing, of the wrong shape, or out of range.
            NonFiniteLoss: the loss at some depth is NaN or infinite.
        """
        inputs, labels = without_labels(batch)
        plan = self.plan(step, stack.depth)
        if torch.is_grad_enabled():
            _require_learnable(stack, inputs, plan)
        states, answer = stack.forward(inputs)
        asked = Questions.of(stack, inputs, labels, answer)
        tally = _Tally(stack, asked, items, answer)
        total = tally.final(answer, plan.get(stack.depth, 0.0), self.label_smoothing)
        shallow = {depth: weight for depth, weight in plan.items() if depth < stack.depth and weight}
        if self.cosine:
            total = tally.final(answer, 1.0, self.label_smoothing)
            total = total + self.cosine * self._apart(stack, inputs, states, answer, shallow)
        elif shallow:
            total = total + tally.shallow(inputs, states, answer, shallow, self)
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


class _Tally:
    """The losses of one batch, depth by depth, and what to show of them."""

    def __init__(self, stack: Stack, asked: Questions, items: int | Tensor | None, answer: Tensor) -> None:
        self._stack, self._asked = stack, asked
        self._items = items.to(answer.device) if isinstance(items, Tensor) else items
        self._count = len(asked.rows)
        self.by_depth = torch.full((stack.depth,), float("nan"), device=answer.device)
        self.accuracy = self.by_depth.clone()

    def final(self, answer: Tensor, weight: float, smoothing: float) -> Tensor:
        """Depth L's loss, by the very operations of ordinary training."""
        logits, items = _rows(answer), self._items
        loss = functional.cross_entropy(
            logits,
            self._asked.labels,
            ignore_index=IGNORED,
            label_smoothing=smoothing,
            reduction="mean" if items is None else "sum",
        )
        with torch.no_grad():
            plain = loss if items is None else loss / self._count
            if smoothing:
                plain = functional.cross_entropy(logits, self._asked.labels, ignore_index=IGNORED)
            right = logits.argmax(1)[self._asked.rows] == self._asked.asked
            self._note([self._stack.depth], plain[None], right.float().mean()[None])
        return weight * (loss if items is None else loss / items)

    def shallow(
        self,
        batch: Batch,
        states: list[Tensor],
        answer: Tensor,
        weights: Mapping[int, float],
        objective: AlignedLoss,
    ) -> Tensor:
        """The weighted sum of the losses at the depths below L."""
        target = Target(
            self._asked.asked,
            objective.label_smoothing,
            objective.distillation,
            _rows(answer.detach()) if objective.distillation else None,
            self._asked.rows,
        )
        if answer.ndim == 3 and answer.shape[-1] >= _VOCABULARY:
            total = self._vocabulary(batch, states, weights, target)
        else:
            total = self._together(batch, states, weights, target)
        return total / (self._count if self._items is None else self._items)

    def _together(self, batch: Batch, states: list[Tensor], weights: Mapping[int, float], target: Target) -> Tensor:
        """Losses out of all the logits."""
        logits = []
        for depth in weights:
            logits.append(_rows(self._stack.readout(states[depth], batch, depth=depth)))
            _require_gradient(logits[-1], states[depth], depth)
        loss, nats, right = _losses(torch.stack(logits)[:, self._asked.rows], target)
        self._note(list(weights), nats, right)
        return loss @ loss.new_tensor(list(weights.values()))

    def _vocabulary(self, batch: Batch, states: list[Tensor], weights: Mapping[int, float], target: Target) -> Tensor:
        """Losses through a classifier too large for the logits of several depths."""
        stack = self._stack
        features = {depth: stack.features(states[depth], batch) for depth in weights}
        if any(one is None for one in features.values()):
            return self._one_by_one(batch, states, weights, target)
        total = []
        for depths in [list(weights)] if stack.heads is None else [[depth] for depth in weights]:
            head = stack.classifier(batch) if stack.heads is None else stack.heads[depths[0]]
            assert isinstance(head, nn.Linear)
            rows = [_rows(one)[self._asked.rows] for depth in depths if (one := features[depth]) is not None]
            for depth, one in zip(depths, rows, strict=True):
                _require_gradient(one, states[depth], depth)
            found = depth_losses(rows, head.weight, head.bias, target, [weights[depth] for depth in depths])
            self._note(depths, found.nats / self._count, found.right / self._count)
            total.append(found.total)
        return torch.stack(total).sum()

    def _one_by_one(self, batch: Batch, states: list[Tensor], weights: Mapping[int, float], target: Target) -> Tensor:
        """Where more than a linear map follows: the logits of one depth at a time, made again for the gradient."""

        def work(state: Tensor, depth: int) -> tuple[Tensor, Tensor, Tensor]:
            logits = _rows(self._stack.readout(state, batch, depth=depth))
            _require_gradient(logits, state, depth)
            return _losses(logits[None, self._asked.rows], target)

        total = []
        for depth, weight in weights.items():
            loss, nats, right = checkpoint(work, states[depth], depth, use_reentrant=False)
            self._note([depth], nats, right)
            total.append(weight * loss[0])
        return torch.stack(total).sum()

    def _note(self, depths: list[int], nats: Tensor, right: Tensor) -> None:
        where = [depth - 1 for depth in depths]
        self.by_depth[where] = nats.detach().to(self.by_depth)
        self.accuracy[where] = right.detach().to(self.accuracy)

    def require_finite(self, step: int) -> None:
        """See that no depth that was looked at has a loss that is NaN or infinite.

        Raises:
            NonFiniteLoss: one has.
        """
        # accuracy tells what was looked at: it is NaN nowhere else
        wrong = ~self.by_depth.isfinite() & ~self.accuracy.isnan()
        if self._count and wrong.any():
            depth = int(wrong.nonzero()[0, 0]) + 1
            value = float(self.by_depth[depth - 1])
            raise NonFiniteLoss(
                f"the loss at depth {depth} is {value} at optimizer step {step}; expected a finite number: lower the "
                "learning rate, clip gradients, or take float32 or bfloat16 instead of float16"
            )


def _losses(logits: Float[Tensor, "k n c"], target: Target) -> tuple[Tensor, Tensor, Tensor]:
    """Of each of k depths: the summed loss, and without gradient its mean cross-entropy and the share right."""
    log_p = logits.log_softmax(2)
    nats = -log_p.gather(2, target.labels.expand(len(logits), -1)[..., None])[..., 0]
    loss = nats
    if target.smoothing:
        loss = (1 - target.smoothing) * nats - target.smoothing * log_p.mean(2)
    if target.teacher is not None:
        teacher = target.teacher[target.rows].log_softmax(1).expand_as(log_p)
        imitated = functional.kl_div(log_p, teacher, reduction="none", log_target=True).sum(2)
        loss = (1 - target.imitation) * loss + target.imitation * imitated
    right = logits.detach().argmax(2) == target.labels
    return loss.sum(1), nats.detach().mean(1), right.float().mean(1)


def _rows(answer: Tensor) -> Float[Tensor, "r c"]:
    rows = answer.reshape(-1, answer.shape[-1])
    return rows if rows.dtype == torch.float64 else rows.float()


def _require_learnable(stack: Stack, batch: Batch, plan: Mapping[int, float]) -> None:
    """See that a classifier which is to answer at shallow depths can learn to.

    A language model's classifier is its vocabulary: adapters leave that frozen, and shallow depths learn to speak it.
    """
    if not any(weight for depth, weight in plan.items() if depth < stack.depth) or stack.heads is not None:
        return
    classifier = stack.classifier(batch)
    frozen = not any(parameter.requires_grad for parameter in classifier.parameters())
    width = getattr(classifier, "out_features", 0)
    if frozen and width < _VOCABULARY and not predicts_next_token(stack.model):
        raise ObjectiveError(
            f"the classifier of {type(stack.model).__name__} is frozen, but is to serve every depth: unfreeze it "
            "(with PEFT: modules_to_save), or train depth L alone with weights='final'"
        )


def _require_gradient(readout: Tensor, state: Tensor, depth: int) -> None:
    if torch.is_grad_enabled() and state.requires_grad and not readout.requires_grad:
        raise ObjectiveError(
            f"the readout at depth {depth} has no gradient, though its state has: what follows the blocks detaches it "
            "or runs without gradients, so shallow depths cannot be trained"
        )


@torch.no_grad()
def by_sample(stack: Stack, batch: Any) -> Float[Tensor, "b l 3"]:
    """What every depth of every sample is worth, for an evaluation that gathers no states.

    Args:
        stack: the model, in the mode it is to be evaluated in.
        batch: a dict with "labels", or a pair (x, y).

    Returns:
        For each sample at the depths 1..L: labels right, summed nats, labels counted (one, or a text's tokens).

    Example:
        >>> model = nn.Sequential(nn.Sequential(*(nn.Linear(4, 4) for _ in range(3))), nn.Linear(4, 2))
        >>> by_sample(Stack(model), (torch.eye(4), torch.tensor([0, 1, 0, 1]))).shape
        torch.Size([4, 3, 3])
    """
    inputs, labels = without_labels(batch)
    states, answer = stack.forward(inputs)
    asked = Questions.of(stack, inputs, labels, answer)
    found = torch.zeros(len(answer), stack.depth, 3, dtype=torch.float32)
    sample, truth = asked.sample.cpu(), asked.asked
    for depth in range(1, stack.depth + 1):
        logits = answer if depth == stack.depth else stack.readout(states[depth], inputs, depth=depth)
        rows = readout_rows(_rows(logits)[asked.rows], truth)
        assert rows.cross_entropy is not None
        right = (rows.prediction == truth.cpu()).double()
        values = torch.stack([right, rows.cross_entropy, torch.ones_like(right)], dim=1)
        found[:, depth - 1] = torch.zeros(len(answer), 3, dtype=torch.float64).index_add_(0, sample, values).float()
    return found.to(answer.device)


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
    if name in OBJECTIVES:
        return OBJECTIVES[name]
    near = difflib.get_close_matches(name, OBJECTIVES, n=1)
    hint = f": did you mean {near[0]}?" if near else ""
    raise ObjectiveError(f"unknown objective {name!r}, expected one of {', '.join(OBJECTIVES)}{hint}")
