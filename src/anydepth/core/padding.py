"""Checks of padding: models whose positions count padding on the left, and samples without any token."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from jaxtyping import Bool
from torch import Tensor

from anydepth.core.masks import with_positions_of
from anydepth.core.model_io import Batch, distance, samples_of
from anydepth.core.patching import evaluating
from anydepth.core.stack import Stack
from anydepth.core.verification import tolerance_of
from anydepth.errors import AnydepthWarning, DataError

_SLACK = 10
"""Masked positions are zeros in sums, so that rounding differs: this many times `tolerance_of` is allowed."""
COUNTED = (
    "texts are padded on the left without position_ids, and this model counts positions from the left, padding too: "
    "its answers depend on the longest text of the batch; pad on the right, or give position_ids"
)


def _mask_of(batch: Batch) -> Bool[Tensor, "b t"] | None:
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    return mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] else None


def require_tokens(batch: Batch, where: str) -> None:
    """Raise `DataError` if a sample is padding alone: the answer to it would depend on the length of the others.

    Args:
        batch: as the model takes it.
        where: which batch, for the message.
    """
    mask = _mask_of(batch)
    if mask is not None and not (filled := mask.any(1)).all():
        raise DataError(
            f"sample {int((~filled).nonzero()[0])} of {where} is padding alone (its attention_mask holds no 1), "
            "expected at least one token: leave it out"
        )


def counts_padding(stack: Stack, batch: Batch) -> bool | None:
    """Whether padding on the left changes the hidden states after it, found by running a text with and without it.

    Returns:
        None if the batch cannot show it: no text is padded on the left, or it has position ids.
    """
    mask = _mask_of(batch)
    if mask is None or not isinstance(batch, Mapping) or batch.get("position_ids") is not None:
        return None
    padded = (~mask[:, 0] & mask.any(1)).nonzero()[:, 0]
    if not len(padded):
        return None
    if not stack.learn(batch).cuttable:
        return None
    row = int(padded[0])
    text, valid = samples_of(batch, slice(row, row + 1)), mask[row]
    length, start, named = len(valid), int(valid.int().argmax()), dict(text)
    bare = named | {name: named[name][:, start:].clone() for name in with_positions_of(named, "attention_mask")}
    with torch.inference_mode(False), evaluating(stack.model), torch.no_grad():
        padded_state, state = stack.states(text)[-1], stack.states(bare)[-1]
    if padded_state.ndim != 3 or padded_state.shape[1] != length:
        return None
    kept = valid.to(state.device)
    return distance(padded_state[:, kept], state[:, kept[start:]]) > _SLACK * tolerance_of(state)


def warn_of_padding(stack: Stack, batch: Batch) -> bool | None:
    """`counts_padding`, with a warning if it is true."""
    counted = counts_padding(stack, batch)
    if counted:
        warnings.warn(COUNTED, AnydepthWarning, stacklevel=3)
    return counted
