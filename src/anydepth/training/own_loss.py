"""The model's own loss at each depth, for targets that it matches with its answers itself, as a detector does."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from anydepth.core.model_io import Batch, fields_of
from anydepth.core.overrides import Override
from anydepth.core.stack import Stack
from anydepth.core.verification import refusing
from anydepth.errors import LabelError, ObjectiveError, UnsupportedHead
from anydepth.training.losses import require_finite_losses, require_gradient


class OwnLossTerms:
    """The losses of one batch by the model's own loss function, depth by depth.

    The loss at depth l is what the model's own forward computes if block l is its last: its own matching, on all that
    it answers there. That of auxiliary outputs, if its config asks for it, is left out: they are the other depths.

    Args:
        stack: the model.
        labels: as the model's forward takes them.
        states: h[0..L] of the forward on this batch with these labels.
        batch: without its labels.

    Attributes:
        by_depth: (L,), the loss; NaN where none was computed.
        accuracy: (L,), NaN: which class is right depends on the matching.
    """

    def __init__(self, stack: Stack, labels: Any, states: list[Tensor], batch: Batch) -> None:
        self._stack, self._labels, self._states, self._batch = stack, labels, states, batch
        self.by_depth = torch.full((stack.depth,), float("nan"), device=states[-1].device)
        self.accuracy = self.by_depth.clone()
        self._computed = torch.zeros_like(self.by_depth, dtype=torch.bool)

    def final(self, weight: float) -> Tensor:
        """Depth L's weighted loss."""
        return weight * self._loss(self._stack.depth)

    def shallow(self, batch: Batch, states: list[Tensor], weights: Mapping[int, float]) -> Tensor:
        """The weighted sum of the losses at the depths below L."""
        return torch.stack([weight * self._loss(depth) for depth, weight in weights.items()]).sum()

    def require_finite(self, step: int) -> None:
        """Raise a `NonFiniteLoss` if a loss that was computed is NaN or infinite."""
        require_finite_losses(self.by_depth, self._computed, step)

    def _loss(self, depth: int) -> Tensor:
        model = type(self._stack.model).__name__
        with refusing(partial(_refused_labels, model)), _of_answer_alone(self._stack.model):
            output = self._stack.readout_output(self._states, self._batch, depth=depth, labels=self._labels)
        loss = fields_of(output).get("loss")
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise UnsupportedHead(
                f"{model} is given a mapping of targets for each sample and computes no loss of its own: expected "
                "'loss' in its output"
            )
        require_gradient(loss, self._states[depth], depth)
        self._computed[depth - 1] = True
        self.by_depth[depth - 1] = loss.detach().to(self.by_depth)
        return loss.reshape(())


def own_loss_terms(
    stack: Stack, batch: Batch, labels: Any, *, items: Any, smoothing: float, imitation: float
) -> tuple[OwnLossTerms, list[Tensor], Tensor]:
    """The model's own loss terms of a batch, and its states and answer.

    Raises:
        ObjectiveError: settings that are of cross-entropy, which the model's own loss is not.
    """
    wrong = "label_smoothing" if smoothing else "distillation" if imitation else "items" if items is not None else ""
    if wrong:
        raise ObjectiveError(
            f"{type(stack.model).__name__} matches its targets by its own loss, for which {wrong} has no meaning: "
            "leave it out"
        )
    stack.learn(batch)
    with refusing(partial(_refused_labels, type(stack.model).__name__)):
        states, answer = stack.forward(batch, labels=labels)
    return OwnLossTerms(stack, labels, states, batch), states, answer


def _refused_labels(model: str, reason: str) -> LabelError:
    return LabelError(
        f"{model} computes no loss of these labels ({reason}): expected them as its own forward takes them"
    )


@contextmanager
def _of_answer_alone(model: nn.Module) -> Iterator[None]:
    """Context manager: the model's loss is that of its answer, without those of auxiliary outputs."""
    # an adapter wraps the model that has the loss; its parts have one, too, which they never call
    owner: Any = next((module for module in model.modules() if hasattr(type(module), "loss_function")), None)
    if owner is None or not getattr(owner.config, "auxiliary_loss", False):
        yield
        return
    with Override(owner, "loss_function", partial(_without_auxiliary, owner.loss_function)):
        yield


def _without_auxiliary(loss: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    named = {name: _main(value) for name, value in kwargs.items()}
    return loss(*map(_main, args), **named)


def _main(value: Any) -> Any:
    """A config without auxiliary outputs; anything else as it is."""
    if not getattr(value, "auxiliary_loss", False):
        return value
    config = copy.copy(value)
    config.auxiliary_loss = False
    return config
