"""Accuracy and cross-entropy of every depth during an evaluation, without gathering hidden states."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from anydepth.core.stack import Stack
from anydepth.core.targets import Targets
from anydepth.measures.readout import readout_rows
from anydepth.training.losses import answer_rows, inputs_and_labels


@torch.no_grad()
def by_sample(stack: Stack, batch: Any) -> Float[Tensor, "b l 3"]:
    """Right predictions, summed cross-entropy (nats) and number of labels of each sample at the depths 1..L.

    Depths of stages before the last, which cannot be read out, have no labels.

    A sample has one label, or a text's tokens. The batch is a dict with "labels", or a pair (x, y).

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Sequential(*(nn.Linear(4, 4) for _ in range(3))), nn.Linear(4, 2))
        >>> by_sample(Stack(model), (torch.eye(4), torch.tensor([0, 1, 0, 1]))).shape
        torch.Size([4, 3, 3])
    """
    inputs, labels = inputs_and_labels(stack.model, batch)
    states, output = stack.forward(inputs)
    targets = Targets.of(stack, inputs, labels, output)
    result = torch.zeros(len(output), stack.depth, 3, dtype=torch.float32)
    sample, truth = targets.sample.cpu(), targets.labels_of_rows
    for depth in range(stack.entry + 1, stack.depth + 1):
        logits = output if depth == stack.depth else stack.readout(states[depth], inputs, depth=depth)
        rows = readout_rows(answer_rows(logits)[targets.rows], truth)
        assert rows.cross_entropy is not None
        right = (rows.prediction == truth.cpu()).double()
        values = torch.stack([right, rows.cross_entropy, torch.ones_like(right)], dim=1)
        result[:, depth - 1] = torch.zeros(len(output), 3, dtype=torch.float64).index_add_(0, sample, values).float()
    return result.to(output.device)
