"""What padding does to answers: models that count positions from the left, and samples that are padding alone."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from jaxtyping import Bool
from torch import Tensor

from anydepth.core.model_io import Batch, distance, samples_of
from anydepth.core.patching import evaluating
from anydepth.core.stack import Stack, tolerance_of
from anydepth.errors import AnydepthWarning, DataError

_SLACK = 10
"""Masked positions take part in sums as zeros, so that rounding differs: this many times what the law allows."""
COUNTED = (
    "texts are padded on the left without position_ids, and this model counts positions from the left, padding too: "
    "its answers depend on the longest text of the batch; pad on the right, or give position_ids"
)


def _mask_of(batch: Batch) -> Bool[Tensor, "b t"] | None:
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    return mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] else None


def require_tokens(batch: Batch, where: str) -> None:
    """See that no sample is padding alone: what a model answers to nothing depends on how long the others are.

    Args:
        batch: as the model takes it.
        where: which batch, for the message.

    Raises:
        DataError: a row of the attention mask holds no 1.
    """
    mask = _mask_of(batch)
    if mask is not None and not (filled := mask.any(1)).all():
        raise DataError(
            f"sample {int((~filled).nonzero()[0])} of {where} is padding alone (its attention_mask holds no 1), "
            "expected at least one token: leave it out"
        )


def counts_padding(stack: Stack, batch: Batch) -> bool | None:
    """Whether padding on the left moves the states of what follows it, found by running a text with it and without.

    Args:
        stack: the model.
        batch: of it.

    Returns:
        None if the batch does not tell: nothing in it is padded on the left, or it brings position ids.
    """
    mask = _mask_of(batch)
    if mask is None or not isinstance(batch, Mapping) or batch.get("position_ids") is not None:
        return None
    padded = (~mask[:, 0] & mask.any(1)).nonzero()[:, 0]
    if not len(padded):
        return None
    row = int(padded[0])
    text, valid = samples_of(batch, slice(row, row + 1)), mask[row]
    length, start = len(valid), int(valid.int().argmax())
    bare = {
        name: value[:, start:].clone()
        if isinstance(value, Tensor) and value.shape[1:2] == (length,) and not name.startswith("decoder_")
        else value
        for name, value in dict(text).items()
    }
    with torch.inference_mode(False), evaluating(stack.model), torch.no_grad():
        with_it, without = stack.states(text)[-1], stack.states(bare)[-1]
    if with_it.ndim != 3 or with_it.shape[1] != length:
        return None
    kept = valid.to(with_it.device)
    return distance(with_it[:, kept], without[:, kept[start:]]) > _SLACK * tolerance_of(without)


def warn_of_padding(stack: Stack, batch: Batch) -> bool | None:
    """`counts_padding`, with a warning where it does."""
    counted = counts_padding(stack, batch)
    if counted:
        warnings.warn(COUNTED, AnydepthWarning, stacklevel=3)
    return counted
