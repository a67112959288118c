"""What a model is asked: the true class of each of its answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from anydepth.core.model_io import Batch, split_labels
from anydepth.core.stack import Stack
from anydepth.core.tokens import IGNORED, next_token_labels, valid_positions
from anydepth.errors import LabelError, UnsupportedHead


def predicts_next_token(model: nn.Module) -> bool:
    """Whether this is a causal language model, whose label at each position is the token after it."""
    can_generate = getattr(model, "can_generate", None)
    encoder_decoder = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    return bool(callable(can_generate) and can_generate() and not encoder_decoder)


def require_one_class(model: nn.Module, answer: Tensor, labels: Tensor | None, instead: str) -> None:
    """See that the model chooses one class among several for each of its answers.

    Args:
        model: whose config may say so.
        answer: what it gave.
        labels: what it is held against; None if there are none.
        instead: what to do, for the message.

    Raises:
        UnsupportedHead: it does something else: regression, or several labels at once.
    """
    kind = getattr(getattr(model, "config", None), "problem_type", None)
    if kind == "regression" or answer.shape[-1] == 1:
        what = "a regression head"
    elif kind == "multi_label_classification" or (
        labels is not None and labels.is_floating_point() and labels.shape[1:] == answer.shape[1:]
    ):
        what = "a multi-label head"
    else:
        return
    raise UnsupportedHead(f"{type(model).__name__} has {what}, expected one class for each answer; {instead}")


@dataclass(frozen=True)
class Targets:
    """The answers of a batch in rows, and the true class of each.

    Attributes:
        labels: (R,), `IGNORED` where there is none; R is B, or B x T for a model that answers for every position.
        rows: those of the R that have a label.
        per_sample: how many of the R belong to each sample.
    """

    labels: Int64[Tensor, " r"]
    rows: Int64[Tensor, " n"]
    per_sample: int

    @property
    def asked(self) -> Int64[Tensor, " n"]:
        """The labels of `rows`."""
        return self.labels[self.rows]

    @property
    def sample(self) -> Int64[Tensor, " n"]:
        """The sample of each of `rows`."""
        return self.rows // self.per_sample

    @classmethod
    def of(cls, stack: Stack, batch: Batch, labels: Tensor | None, answer: Float[Tensor, "b *t c"]) -> Targets:
        """The questions of a batch the way transformers asks them: a language model is given its own tokens.

        Raises:
            LabelError: labels are missing, no whole numbers, of another shape than the answers, or out of range.
            UnsupportedHead: the model's answer is no choice among classes.
        """
        model, classes = stack.model, answer.shape[-1]
        if not stack.answers_with_logits(labelled=True) or answer.ndim not in (2, 3):
            raise UnsupportedHead(
                f"{type(model).__name__} answers with {tuple(answer.shape)} that are no logits, expected a classifier "
                "or a language model"
            )
        require_one_class(model, answer, labels, "train it with its own loss, at depth L")
        found = _labels(model, batch, labels, answer).to(answer.device)
        flat = found.reshape(-1)
        rows = (flat != IGNORED).nonzero()[:, 0]
        asked = flat[rows]
        wrong = asked[(asked < 0) | (asked >= classes)]
        if len(wrong):
            raise LabelError(
                f"label {wrong[0].item()} is out of range, expected 0..{classes - 1} for {classes} classes"
            )
        return cls(flat, rows, flat.numel() // len(answer))


def _labels(model: nn.Module, batch: Batch, labels: Tensor | None, answer: Tensor) -> Tensor:
    expected = tuple(answer.shape[:-1])
    if answer.ndim == 3 and predicts_next_token(model):
        if labels is None:
            valid: Bool[Tensor, "b t"] = valid_positions(batch, answer)
            return next_token_labels(batch, None, valid).long()
        # padding is not looked for: labels are taken as given, as transformers takes them
        shifted = functional.pad(labels, (0, 1), value=IGNORED)[..., 1:] if labels.ndim == 2 else labels
        return _checked(shifted, expected)
    if labels is None:
        raise LabelError("the batch has no 'labels', expected one class for each answer of the model")
    return _checked(labels, expected)


def _checked(labels: Tensor, expected: tuple[int, ...]) -> Tensor:
    kind = str(labels.dtype).removeprefix("torch.")
    if labels.is_floating_point() or labels.dtype == torch.bool or tuple(labels.shape) != expected:
        raise LabelError(f"labels are {kind} of shape {tuple(labels.shape)}, expected whole numbers: {expected}")
    return labels.long()


def without_labels(batch: Any, model: nn.Module | None = None) -> tuple[Batch, Tensor | None]:
    """What the model takes, and the labels: out of a dict with labels (see `split_labels`), or a pair (x, y)."""
    if isinstance(batch, Mapping):
        return split_labels(batch, model)
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return batch[0], batch[1]
    return batch, None
