"""The loss of one batch at each depth; the aligned loss, their weighted sum, is in `objectives.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from anydepth.core.model_io import Batch, predicts_next_token, split_batch
from anydepth.core.stack import Stack
from anydepth.core.targets import Targets
from anydepth.core.tokens import IGNORED, Policy, default_policy, select
from anydepth.errors import NonFiniteLoss, ObjectiveError, UnsupportedHead
from anydepth.training.chunked_loss import Target, depth_losses

# From so many classes on, a model that answers for every position never has the logits of several depths in memory.
_VOCABULARY = 1024

# The token positions that each model's readout uses, found by intervention at its first batch.
_POLICIES: WeakKeyDictionary[Stack, Policy] = WeakKeyDictionary()


@runtime_checkable
class LossTerms(Protocol):
    """The losses of one batch by depth: of an answer that is a class, or the model's own (`own_loss`).

    Attributes:
        by_depth: (L,), the loss without smoothing and imitation; NaN where none was computed.
        accuracy: (L,), share of labels whose logit is the largest; NaN where none was computed, or it has no meaning.
    """

    by_depth: Tensor
    accuracy: Tensor

    def final(self, weight: float) -> Tensor:
        """Depth L's weighted loss."""
        ...

    def shallow(self, batch: Batch, states: list[Tensor], weights: Mapping[int, float]) -> Tensor:
        """The weighted sum of the losses at the depths below L."""
        ...

    def require_finite(self, step: int) -> None:
        """Raise a `NonFiniteLoss` if a loss that was computed is NaN or infinite."""
        ...


class DepthLossTerms:
    """The cross-entropies of one batch, computed depth by depth, and their values for the logs.

    `items` is the number of labels in the whole optimizer step, None if those of the batch are all. `smoothing` is the
    share of each label spread evenly over all classes, `imitation` that of the shallow depths' loss that imitates the
    output rather than the labels.

    Attributes:
        by_depth: (L,), cross-entropy in nats per label; NaN where none was computed.
        accuracy: (L,), share of labels whose logit is the largest; NaN likewise.
    """

    def __init__(
        self,
        stack: Stack,
        targets: Targets,
        items: int | Tensor | None,
        output: Tensor,
        *,
        smoothing: int | float = 0.0,
        imitation: int | float = 0.0,
    ) -> None:
        self._stack, self._targets, self._output = stack, targets, output
        self._smoothing, self._imitation = smoothing, imitation
        self._items = items.to(output.device) if isinstance(items, Tensor) else items
        self._count = len(targets.rows)
        self.by_depth = torch.full((stack.depth,), float("nan"), device=output.device)
        self.accuracy = self.by_depth.clone()

    def final(self, weight: float) -> Tensor:
        """Depth L's weighted loss, by the very operations of ordinary training."""
        logits, items = answer_rows(self._output), self._items
        loss = functional.cross_entropy(
            logits,
            self._targets.labels,
            ignore_index=IGNORED,
            label_smoothing=self._smoothing,
            reduction="mean" if items is None else "sum",
        )
        with torch.no_grad():
            plain = loss if items is None else loss / self._count
            if self._smoothing:
                plain = functional.cross_entropy(logits, self._targets.labels, ignore_index=IGNORED)
            right = logits.argmax(1)[self._targets.rows] == self._targets.labels_of_rows
            self._record([self._stack.depth], plain[None], right.float().mean()[None])
        return weight * (loss if items is None else loss / items)

    def shallow(self, batch: Batch, states: list[Tensor], weights: Mapping[int, float]) -> Tensor:
        """The weighted sum of the losses at the depths below L."""
        output, imitation = self._output, self._imitation
        teacher = answer_rows(output.detach()) if imitation else None
        target = Target(
            labels=self._targets.labels_of_rows,
            smoothing=self._smoothing,
            imitation=imitation,
            teacher=teacher,
            rows=self._targets.rows,
        )
        large = output.ndim == 3 and output.shape[-1] >= _VOCABULARY
        total = (self._chunked if large else self._together)(batch, states, weights, target)
        return total / (self._count if self._items is None else self._items)

    def _together(self, batch: Batch, states: list[Tensor], weights: Mapping[int, float], target: Target) -> Tensor:
        """Losses from the logits of all depths at once."""
        logits = torch.stack([answer_rows(self._readout(batch, states[depth], depth)) for depth in weights])
        loss, nats, right = _losses(logits[:, self._targets.rows], target)
        self._record(list(weights), nats, right)
        return loss @ loss.new_tensor(list(weights.values()))

    def _chunked(self, batch: Batch, states: list[Tensor], weights: Mapping[int, float], target: Target) -> Tensor:
        """Losses through a classifier too large for the logits of several depths."""
        stack = self._stack
        total = []
        for depths in [list(weights)] if stack.heads is None else [[depth] for depth in weights]:
            head = stack.classifier(batch) if stack.heads is None else stack.heads[depths[0]]
            linear = stack.heads is None or is_linear(head)  # of the model's own `features` knows
            features = [stack.features(states[depth], batch) for depth in depths] if linear else []
            rows = [answer_rows(each)[self._targets.rows] for each in features if each is not None]
            if not isinstance(head, nn.Linear) or len(rows) < len(depths):
                total.append(self._one_by_one(batch, states, {depth: weights[depth] for depth in depths}, target))
                continue
            self._require_classes(len(head.weight), depths[0])
            for depth, each in zip(depths, rows, strict=True):
                require_gradient(each, states[depth], depth)
            losses = depth_losses(rows, head.weight, head.bias, target, [weights[depth] for depth in depths])
            self._record(depths, losses.nats / self._count, losses.right / self._count)
            total.append(losses.total)
        return torch.stack(total).sum()

    def _one_by_one(self, batch: Batch, states: list[Tensor], weights: Mapping[int, float], target: Target) -> Tensor:
        """Losses of a head that is no linear map: one depth at a time, its logits computed again for the gradient."""

        def work(state: Tensor, depth: int) -> tuple[Tensor, Tensor, Tensor]:
            return _losses(answer_rows(self._readout(batch, state, depth))[None, self._targets.rows], target)

        total = []
        for depth, weight in weights.items():
            loss, nats, right = checkpoint(work, states[depth], depth, use_reentrant=False)
            self._record([depth], nats, right)
            total.append(weight * loss[0])
        return torch.stack(total).sum()

    def _readout(self, batch: Batch, state: Tensor, depth: int) -> Tensor:
        logits = self._stack.readout(state, batch, depth=depth)
        self._require_classes(logits.shape[-1], depth)
        require_gradient(logits, state, depth)
        return logits

    def _require_classes(self, classes: int, depth: int) -> None:
        if classes != self._output.shape[-1]:
            raise UnsupportedHead(
                f"the head of depth {depth} has {classes} classes, expected the model's {self._output.shape[-1]}: give "
                "each depth a head for the same classes"
            )

    def _record(self, depths: list[int], nats: Tensor, right: Tensor) -> None:
        where = [depth - 1 for depth in depths]
        self.by_depth[where] = nats.detach().to(self.by_depth)
        self.accuracy[where] = right.detach().to(self.accuracy)

    def require_finite(self, step: int) -> None:
        """Raise a `NonFiniteLoss` if a loss that was computed is NaN or infinite."""
        # accuracy tells what was computed: it is NaN nowhere else
        if self._count:
            require_finite_losses(self.by_depth, ~self.accuracy.isnan(), step)


def require_finite_losses(by_depth: Tensor, computed: Tensor, step: int) -> None:
    """Raise a `NonFiniteLoss` if the loss of a depth where one was computed is NaN or infinite."""
    wrong = ~by_depth.isfinite() & computed
    if wrong.any():
        depth = int(wrong.nonzero()[0, 0]) + 1
        value = float(by_depth[depth - 1])
        raise NonFiniteLoss(
            f"the loss at depth {depth} is {value} at optimizer step {step}; expected a finite number: lower the "
            "learning rate, clip gradients, or take float32 or bfloat16 instead of float16"
        )


def cosine_distance(
    stack: Stack, batch: Batch, states: list[Tensor], output: Tensor, weights: Mapping[int, float]
) -> Float[Tensor, ""]:
    """The mean over samples of `sum over l of lambda_l * (1 - cos(h[l], h[L]))`, at the positions the readout uses."""
    if stack not in _POLICIES:
        _POLICIES[stack] = default_policy(stack, batch, labels_each=output.ndim == 3)
    valid = stack.valid_positions(batch, states[-1])
    rows = {depth: select(states[depth], valid, _POLICIES[stack])[0] for depth in (*weights, stack.depth)}
    distances = [
        weight * (1 - functional.cosine_similarity(rows[depth], rows[stack.depth], dim=1)).mean()
        for depth, weight in weights.items()
    ]
    return torch.stack(distances).sum() if distances else output.new_zeros(())


def is_linear(head: nn.Module) -> bool:
    """Whether a head is a linear map and nothing else: no subclass that does more, no hooks on it."""
    hooks = (head._forward_hooks, head._forward_pre_hooks, head._backward_hooks, head._backward_pre_hooks)
    return type(head).forward is nn.Linear.forward and "forward" not in vars(head) and not any(hooks)


def _losses(logits: Float[Tensor, "k n c"], target: Target) -> tuple[Tensor, Tensor, Tensor]:
    """Of each of k depths: the summed loss, and without gradient its mean cross-entropy and accuracy."""
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


def answer_rows(output: Tensor) -> Float[Tensor, "r c"]:
    """One row of logits for each position, as float32 at least."""
    rows = output.reshape(-1, output.shape[-1])
    return rows if rows.dtype == torch.float64 else rows.float()


def require_learnable(stack: Stack, batch: Batch, weights: Mapping[int, float]) -> None:
    """Raise an `ObjectiveError` if a classifier that is to serve shallow depths is frozen.

    A language model's classifier is its vocabulary: adapters leave that frozen, and only the blocks below it learn.
    """
    if not any(weight for depth, weight in weights.items() if depth < stack.depth) or stack.heads is not None:
        return
    classifier = stack.classifier(batch)
    frozen = not any(parameter.requires_grad for parameter in classifier.parameters())
    width = getattr(classifier, "out_features", 0)
    if frozen and width < _VOCABULARY and not predicts_next_token(stack.model):
        raise ObjectiveError(
            f"the classifier of {type(stack.model).__name__} is frozen, but is to serve every depth: unfreeze it "
            "(with PEFT: modules_to_save), or train depth L alone with weights='final'"
        )


def require_gradient(readout: Tensor, state: Tensor, depth: int) -> None:
    """Raise an `ObjectiveError` if a readout has no gradient, though its state has."""
    if torch.is_grad_enabled() and state.requires_grad and not readout.requires_grad:
        raise ObjectiveError(
            f"the readout at depth {depth} has no gradient, though its state has: what follows the blocks detaches it "
            "or runs without gradients, so shallow depths cannot be trained"
        )


def inputs_and_labels(model: nn.Module, batch: Any) -> tuple[Batch, Any]:
    """The inputs of the model in a batch, and the labels; see `anydepth.core.model_io.split_batch`.

    Args:
        model: that is to be trained.
        batch: a dict with "labels", or a pair (x, y).
    """
    inputs, labels, _ = split_batch(batch, model)
    return inputs, labels
