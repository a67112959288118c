"""What one batch is worth at every depth: its losses, to learn from, and its score, to be judged by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from anydepth.core.model_io import Batch, split_batch
from anydepth.core.stack import Stack
from anydepth.core.targets import Targets, predicts_next_token
from anydepth.core.tokens import IGNORED
from anydepth.errors import NonFiniteLoss, ObjectiveError, UnsupportedHead
from anydepth.training.chunked_loss import Target, depth_losses

# From so many classes on, a model that answers for every position never has the logits of several depths in memory.
_VOCABULARY = 1024


class DepthLossTerms:
    """The losses of one batch, depth by depth, and what to show of them.

    Args:
        stack: the model.
        asked: the questions of the batch.
        items: how many labels the whole optimizer step has; None if these are all.
        answer: the model's own.
        smoothing: share of each label spread evenly over all classes.
        imitation: share of the shallow depths' loss that imitates the answer rather than the labels.
    """

    def __init__(
        self,
        stack: Stack,
        asked: Targets,
        items: int | Tensor | None,
        answer: Tensor,
        *,
        smoothing: int | float = 0.0,
        imitation: int | float = 0.0,
    ) -> None:
        self._stack, self._asked, self._answer = stack, asked, answer
        self._smoothing, self._imitation = smoothing, imitation
        self._items = items.to(answer.device) if isinstance(items, Tensor) else items
        self._count = len(asked.rows)
        self.by_depth = torch.full((stack.depth,), float("nan"), device=answer.device)
        self.accuracy = self.by_depth.clone()

    def final(self, weight: float) -> Tensor:
        """Depth L's loss, by the very operations of ordinary training."""
        logits, items = answer_rows(self._answer), self._items
        loss = functional.cross_entropy(
            logits,
            self._asked.labels,
            ignore_index=IGNORED,
            label_smoothing=self._smoothing,
            reduction="mean" if items is None else "sum",
        )
        with torch.no_grad():
            plain = loss if items is None else loss / self._count
            if self._smoothing:
                plain = functional.cross_entropy(logits, self._asked.labels, ignore_index=IGNORED)
            right = logits.argmax(1)[self._asked.rows] == self._asked.labels_of_rows
            self._note([self._stack.depth], plain[None], right.float().mean()[None])
        return weight * (loss if items is None else loss / items)

    def shallow(self, batch: Batch, states: list[Tensor], weights: Mapping[int, float]) -> Tensor:
        """The weighted sum of the losses at the depths below L."""
        answer, imitation = self._answer, self._imitation
        teacher = answer_rows(answer.detach()) if imitation else None
        target = Target(self._asked.labels_of_rows, self._smoothing, imitation, teacher, self._asked.rows)
        if answer.ndim == 3 and answer.shape[-1] >= _VOCABULARY:
            total = self._vocabulary(batch, states, weights, target)
        else:
            total = self._together(batch, states, weights, target)
        return total / (self._count if self._items is None else self._items)

    def _together(self, batch: Batch, states: list[Tensor], weights: Mapping[int, float], target: Target) -> Tensor:
        """Losses out of all the logits."""
        logits = []
        for depth in weights:
            logits.append(answer_rows(self._read(batch, states[depth], depth)))
            _require_gradient(logits[-1], states[depth], depth)
        loss, nats, right = _losses(torch.stack(logits)[:, self._asked.rows], target)
        self._note(list(weights), nats, right)
        return loss @ loss.new_tensor(list(weights.values()))

    def _vocabulary(self, batch: Batch, states: list[Tensor], weights: Mapping[int, float], target: Target) -> Tensor:
        """Losses through a classifier too large for the logits of several depths."""
        stack = self._stack
        total = []
        for depths in [list(weights)] if stack.heads is None else [[depth] for depth in weights]:
            head = stack.classifier(batch) if stack.heads is None else stack.heads[depths[0]]
            linear = stack.heads is None or is_linear(head)  # of the model's own `features` knows
            features = [stack.features(states[depth], batch) for depth in depths] if linear else []
            rows = [answer_rows(one)[self._asked.rows] for one in features if one is not None]
            if not isinstance(head, nn.Linear) or len(rows) < len(depths):
                total.append(self._one_by_one(batch, states, {depth: weights[depth] for depth in depths}, target))
                continue
            self._require_classes(len(head.weight), depths[0])
            for depth, one in zip(depths, rows, strict=True):
                _require_gradient(one, states[depth], depth)
            found = depth_losses(rows, head.weight, head.bias, target, [weights[depth] for depth in depths])
            self._note(depths, found.nats / self._count, found.right / self._count)
            total.append(found.total)
        return torch.stack(total).sum()

    def _one_by_one(self, batch: Batch, states: list[Tensor], weights: Mapping[int, float], target: Target) -> Tensor:
        """Where more than a linear map follows: the logits of one depth at a time, made again for the gradient."""

        def work(state: Tensor, depth: int) -> tuple[Tensor, Tensor, Tensor]:
            logits = answer_rows(self._read(batch, state, depth))
            _require_gradient(logits, state, depth)
            return _losses(logits[None, self._asked.rows], target)

        total = []
        for depth, weight in weights.items():
            loss, nats, right = checkpoint(work, states[depth], depth, use_reentrant=False)
            self._note([depth], nats, right)
            total.append(weight * loss[0])
        return torch.stack(total).sum()

    def _read(self, batch: Batch, state: Tensor, depth: int) -> Tensor:
        logits = self._stack.readout(state, batch, depth=depth)
        self._require_classes(logits.shape[-1], depth)
        return logits

    def _require_classes(self, classes: int, depth: int) -> None:
        if classes != self._answer.shape[-1]:
            raise UnsupportedHead(
                f"the head of depth {depth} has {classes} classes, expected the model's {self._answer.shape[-1]}: give "
                "each depth a head for the same classes"
            )

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


def is_linear(head: nn.Module) -> bool:
    """Whether a head is a linear map and nothing else: no subclass that does more, no hooks on it."""
    hooks = (head._forward_hooks, head._forward_pre_hooks, head._backward_hooks, head._backward_pre_hooks)
    return type(head).forward is nn.Linear.forward and "forward" not in vars(head) and not any(hooks)


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


def answer_rows(answer: Tensor) -> Float[Tensor, "r c"]:
    """One row for each answer, as float32 at least."""
    rows = answer.reshape(-1, answer.shape[-1])
    return rows if rows.dtype == torch.float64 else rows.float()


def require_learnable(stack: Stack, batch: Batch, plan: Mapping[int, float]) -> None:
    """See that a classifier which is to answer at shallow depths can learn to.

    A language model's classifier is its vocabulary: adapters leave that frozen, and shallow depths learn to speak it.

    Raises:
        ObjectiveError: it is frozen.
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


def inputs_and_labels(model: nn.Module, batch: Any) -> tuple[Batch, Tensor | None]:
    """What the model takes of a batch, and the labels.

    An encoder-decoder reads the labels so far; where the batch does not hold them, they are made of the labels as
    transformers makes them.

    Args:
        model: that is to be trained.
        batch: a dict with "labels", or a pair (x, y).
    """
    inputs, labels, _ = split_batch(batch)
    shifted = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if labels is None or not callable(shifted) or not isinstance(inputs, Mapping):
        return inputs, labels
    if any(inputs.get(name) is not None for name in ("decoder_input_ids", "decoder_inputs_embeds")):
        return inputs, labels
    return {**inputs, "decoder_input_ids": shifted(labels=labels)}, labels
