"""Targets of a batch: the label of every answer of the model, and the checks that labels fit the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from anydepth.core.model_io import Batch, predicts_next_token
from anydepth.core.stack import Stack
from anydepth.core.tokens import IGNORED, next_token_labels
from anydepth.errors import LabelError, UnsupportedHead


def are_matched(labels: Any) -> bool:
    """Whether labels are a mapping for each sample (its boxes and their classes), to be matched by the model."""
    return isinstance(labels, Sequence) and len(labels) > 0 and all(isinstance(each, Mapping) for each in labels)


def require_one_class(model: nn.Module, answer: Tensor, labels: Tensor | None, instead: str) -> None:
    """Raise `UnsupportedHead` for regression, multi-label and segmentation: an answer must be one class among several.

    Args:
        model: its config may state the kind of problem.
        answer: its output.
        labels: of the batch; None if there are none.
        instead: what to do, for the message.
    """
    kind = getattr(getattr(model, "config", None), "problem_type", None)
    if kind == "regression" or answer.shape[-1] == 1:
        single = answer.ndim > 2 and kind != "regression"  # a detector given one text
        what = "a head that scores a single class" if single else "a regression head"
    elif kind == "multi_label_classification" or (
        labels is not None and labels.is_floating_point() and labels.shape[1:] == answer.shape[1:]
    ):
        what = "a multi-label head"
    elif answer.ndim > 3:
        what = f"a head that answers for every pixel, {tuple(answer.shape)}"
    else:
        return
    raise UnsupportedHead(f"{type(model).__name__} has {what}, expected one class for each answer; {instead}")


def whole_labels(labels: Tensor, shape: tuple[int, ...], where: str = "") -> Int64[Tensor, ...]:
    """Labels as int64; `LabelError` unless they are whole numbers (or booleans) of the expected shape.

    Args:
        labels: of the data.
        shape: (B,) for one label per sample, (B, T) for one per position.
        where: which batch, for the message (" in batch 3").
    """
    if labels.is_floating_point() or tuple(labels.shape) != shape:
        kind = str(labels.dtype).removeprefix("torch.")
        raise LabelError(f"labels are {kind} of shape {tuple(labels.shape)}{where}, expected whole numbers: {shape}")
    return labels.long()


def require_classes(labels: Int64[Tensor, " n"], classes: int, where: str = "") -> None:
    """Raise `LabelError` unless every label, `IGNORED` ones left out before, is one of 0..classes-1."""
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise LabelError(
            f"label {wrong[0].item()}{where} is out of range, expected 0..{classes - 1} for {classes} classes"
        )


@dataclass(frozen=True)
class Targets:
    """The label of every row of a batch's answers, and which rows have one.

    Attributes:
        labels: (R,), `IGNORED` where there is none; R is B, or B x T for a model that answers for every position.
        rows: those of the R that have a label.
        per_sample: how many of the R belong to each sample.
    """

    labels: Int64[Tensor, " r"]
    rows: Int64[Tensor, " n"]
    per_sample: int

    @property
    def labels_of_rows(self) -> Int64[Tensor, " n"]:
        """The labels of `rows`."""
        return self.labels[self.rows]

    @property
    def sample(self) -> Int64[Tensor, " n"]:
        """The sample of each of `rows`."""
        return self.rows // self.per_sample

    @classmethod
    def of(cls, stack: Stack, batch: Batch, labels: Any, answer: Float[Tensor, "b *t c"]) -> Targets:
        """The targets of a batch as transformers defines them: those of a language model are its own next tokens.

        Raises:
            LabelError: labels are missing, no whole numbers, of another shape than the answers, or out of range.
            UnsupportedHead: the model's answer is no choice among classes.
        """
        model = stack.model
        if are_matched(labels):
            raise LabelError(
                f"the labels of {type(model).__name__} are a mapping for each sample, which its own loss matches with "
                "its answers, expected one class for each answer: train it by AlignedLoss, evaluate by its metric"
            )
        if not stack.answers_with_logits(labelled=True) or answer.ndim not in (2, 3):
            raise UnsupportedHead(
                f"{type(model).__name__} answers with {tuple(answer.shape)} that are no logits, expected a classifier "
                "or a language model"
            )
        require_one_class(model, answer, labels, "train it with its own loss, at depth L")
        flat = _labels(stack, batch, labels, answer).to(answer.device).reshape(-1)
        targets = cls(flat, (flat != IGNORED).nonzero()[:, 0], flat.numel() // len(answer))
        require_classes(targets.labels_of_rows, answer.shape[-1])
        return targets


def _labels(stack: Stack, batch: Batch, labels: Tensor | None, answer: Tensor) -> Tensor:
    shape = tuple(answer.shape[:-1])
    if answer.ndim == 3 and predicts_next_token(stack.model):
        if labels is None:
            valid: Bool[Tensor, "b t"] = stack.valid_answers(batch, answer)
            return next_token_labels(batch, None, valid).long()
        # padding is not looked for: labels are taken as given, as transformers takes them
        return functional.pad(whole_labels(labels, shape), (0, 1), value=IGNORED)[:, 1:]
    if labels is None:
        raise LabelError("the batch has no 'labels', expected one class for each answer of the model")
    return whole_labels(labels, shape)
