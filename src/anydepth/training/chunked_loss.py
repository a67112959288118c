"""Cross-entropy at several depths through one large classifier, computed in chunks of the logits.

All logits of a language model at all depths are L x B x T x V numbers: 19.8 GB for twelve depths of 8 x 1,024 tokens
of GPT-2's vocabulary. Here a chunk of them is computed, overwritten by its gradient, and multiplied into the
features' gradient and into one gradient of the classifier that all depths share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

# Logits in a chunk. Enough rows for a matrix product to run at full speed, few enough to be small beside the classifier
# itself: 2**24 are 67 MB in float32, 333 rows of GPT-2's vocabulary.
_AT_ONCE = 2**24


@dataclass(frozen=True, kw_only=True)
class Target:
    """The labels of a batch, and the teacher's logits, which every depth is trained to predict.

    Attributes:
        labels: the true class of each row.
        smoothing: share of each label spread evenly over all classes.
        imitation: share of the loss that imitates `teacher` rather than the labels, in 0..1.
        teacher: logits to imitate, of which `rows` are the labelled rows; None if imitation is 0.
        rows: indices of the labelled rows among the teacher's.
    """

    labels: Int64[Tensor, " n"]
    smoothing: float = 0.0
    imitation: float = 0.0
    teacher: Float[Tensor, "m c"] | None = None
    rows: Int64[Tensor, " n"] | None = None


@dataclass(frozen=True)
class DepthLosses:
    """Losses of k depths over n rows.

    Attributes:
        total: sum over depths and rows of coefficient times loss, to backpropagate.
        nats: summed cross-entropy of the labels at each depth, without smoothing and imitation; no gradient.
        right: rows at each depth whose label has the largest logit.
    """

    total: Float[Tensor, ""]
    nats: Float[Tensor, " k"]
    right: Int64[Tensor, " k"]


def depth_losses(
    features: Sequence[Float[Tensor, "n d"]],
    weight: Float[Tensor, "c d"],
    bias: Float[Tensor, " c"] | None,
    target: Target,
    coefficients: Sequence[float],
) -> DepthLosses:
    """Losses at several depths that share one linear classifier.

    The gradient is computed in the forward pass, since no logits are kept for a backward pass. It is that of
    `coefficient * ((1 - imitation) * cross_entropy(logits, labels, smoothing) + imitation * KL(teacher || logits))`,
    summed. Under autocast the products run in its dtype, sums and exponentials in float32. `features` are the input of
    the classifier at each depth, `coefficients` the factors of the depths' losses.

    Example:
        >>> x, w = torch.eye(2), torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> losses = depth_losses([x, 2 * x], w, None, Target(labels=torch.tensor([0, 1])), [0.5, 0.5])
        >>> losses.nats, losses.right
        (tensor([0.4402, 0.1451], dtype=torch.float64), tensor([2, 2]))
    """
    learning = torch.is_grad_enabled()
    total, nats, right = _DepthLosses.apply(weight, bias, target, tuple(coefficients), learning, *features)
    return DepthLosses(total, nats, right)


class _DepthLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        bias: Tensor | None,
        target: Target,
        coefficients: tuple[float, ...],
        learning: bool,
        *features: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        device = weight.device.type
        compute = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        with torch.autocast(device, enabled=False):
            head = weight.to(compute), bias if bias is None else bias.to(compute)
            needed = [need and learning for need in ctx.needs_input_grad]
            of_weight, of_bias = _gradient_buffer(weight, needed[0]), _gradient_buffer(bias, needed[1])
            results = []
            for rows, coefficient, need in zip(features, coefficients, needed[5:], strict=True):
                of_rows = torch.empty_like(rows) if need else None
                gradients = (of_rows, of_weight, of_bias)
                results.append((*_one_depth(rows, head, target, coefficient, gradients), of_rows))
        losses, nats, right, of_features = map(list, zip(*results, strict=True))
        ctx.gradients = (_cast(of_weight, weight), _cast(of_bias, bias), None, None, None, *of_features)
        values = torch.stack(nats), torch.stack(right)
        ctx.mark_non_differentiable(*values)
        return (torch.stack(losses).sum(), *values)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the losses of the depths can be backpropagated once; compute them again for a second")
        gradients, ctx.gradients = ctx.gradients, None
        return tuple(gradient if gradient is None else gradient.mul_(upstream[0]) for gradient in gradients)


def _gradient_buffer(parameter: Tensor | None, needed: bool) -> Tensor | None:
    """Zeros that the gradients of several depths are added to, so never in half precision."""
    if parameter is None or not needed:
        return None
    return torch.zeros_like(parameter, dtype=_at_least_float32(parameter.dtype))


def _cast(gradient: Tensor | None, like: Tensor | None) -> Tensor | None:
    return gradient if gradient is None or like is None else gradient.to(like.dtype)


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _one_depth(
    features: Tensor,
    head: tuple[Tensor, Tensor | None],
    target: Target,
    coefficient: float,
    gradients: tuple[Tensor | None, Tensor | None, Tensor | None],
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss (times the coefficient), nats and number of right rows of one depth; adds to the gradients, in place."""
    (weight, bias), (of_features, of_weight, of_bias) = head, gradients
    exact = torch.float64 if features.device.type != "mps" else torch.float32
    loss, nats = features.new_zeros((), dtype=exact), features.new_zeros((), dtype=exact)
    right = torch.zeros((), dtype=torch.int64, device=features.device)
    step = max(1, _AT_ONCE // len(weight))
    for start in range(0, len(features), step):
        part = slice(start, start + step)
        rows = features[part].to(weight.dtype)
        logits = functional.linear(rows, weight, bias)
        chunk = _Chunk(logits.to(_at_least_float32(logits.dtype)), target, part)
        loss += chunk.loss.sum(dtype=exact)
        nats += chunk.nats.sum(dtype=exact)
        right += chunk.right.sum()
        if of_features is None and of_weight is None and of_bias is None:
            continue
        gradient = chunk.gradient(coefficient).to(rows.dtype)
        if of_features is not None:
            of_features[part] = gradient @ weight
        if of_weight is not None and of_weight.dtype == rows.dtype:
            of_weight.addmm_(gradient.T, rows)  # no second matrix of the classifier's size
        elif of_weight is not None:
            of_weight += gradient.T @ rows
        if of_bias is not None:
            of_bias += gradient.sum(0, dtype=of_bias.dtype)
    return (coefficient * loss).to(_at_least_float32(features.dtype)), nats, right


class _Chunk:
    """The logits of some rows: their losses first, then, in the same memory, their gradient."""

    def __init__(self, logits: Tensor, target: Target, part: slice) -> None:
        self._target, self._label = target, target.labels[part, None]
        self._logits = logits.sub_(logits.amax(1, keepdim=True))
        at_label = logits.gather(1, self._label)[:, 0]
        self.right = at_label == 0
        mean = logits.mean(1) if target.smoothing else None
        self._teacher = self._teacher_probabilities(part)
        by_teacher = None if self._teacher is None else (self._teacher * logits).sum(1)
        # from here on the logits' memory holds probabilities
        self._logits.exp_()
        sums = self._logits.sum(1)
        self._logits /= sums[:, None]
        log_sum = sums.log()
        self.nats = log_sum - at_label
        self.loss = self.nats
        if mean is not None:
            self.loss = (1 - target.smoothing) * self.nats + target.smoothing * (log_sum - mean)
        if self._teacher is not None:
            assert by_teacher is not None
            own = torch.special.entr(self._teacher).sum(1)
            self.loss = (1 - target.imitation) * self.loss + target.imitation * (log_sum - by_teacher - own)

    def _teacher_probabilities(self, part: slice) -> Tensor | None:
        if self._target.teacher is None or self._target.rows is None:
            return None
        logits = self._target.teacher[self._target.rows[part]]
        return logits.to(_at_least_float32(logits.dtype)).softmax(1)

    def gradient(self, coefficient: float) -> Tensor:
        """The gradient of the loss with respect to the logits, times the coefficient; overwrites the chunk."""
        target, gradient = self._target, self._logits
        by_label = 1 - target.imitation
        if target.smoothing:
            gradient -= by_label * target.smoothing / gradient.shape[1]
        true = torch.full_like(self._label, -by_label * (1 - target.smoothing), dtype=gradient.dtype)
        gradient.scatter_add_(1, self._label, true)
        if self._teacher is not None:
            gradient.sub_(self._teacher, alpha=target.imitation)
        return gradient.mul_(coefficient)
