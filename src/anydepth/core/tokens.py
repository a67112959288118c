"""Which positions of a batch stand for its samples.

A state is (B, T, D); similarity needs rows. The policy says which: `first` (a class token), `last` (the rightmost
position that is not padding), `each` (every position that is not padding), `mean` (over all that are not padding).
The default is not read off the model's name: it is where the model's own readout looks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anydepth.core.model_io import Batch, first_samples
from anydepth.core.patching import evaluating
from anydepth.core.stack import Stack
from anydepth.errors import DataError, choose

Policy = Literal["first", "last", "each", "mean"]
IGNORED = -100
"""The label of a position that has none, as everywhere in torch."""

# A class token counts as what the readout looks at if it weighs this many times the median position. Heads that read
# it beside the mean of the patches (DINOv2) weigh it T times as much as each of them.
_CLEARLY = 2.0


def check_policy(name: str) -> Policy:
    """The policy of that name.

    Raises:
        DataError: there is none.
    """
    policy: Policy = choose(name, get_args(Policy), "token policy", DataError)
    return policy


def valid_positions(batch: Batch, state: Float[Tensor, "b *t d"]) -> Bool[Tensor, "b t"]:
    """The positions that are not padding: those of the attention mask, or all where there is none.

    Raises:
        DataError: the mask and the states differ in length.
    """
    size, length = state.shape[0], state.shape[1] if state.ndim == 3 else 1
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if not isinstance(mask, Tensor) or state.ndim == 2:
        return torch.ones(size, length, dtype=torch.bool, device=state.device)
    if tuple(mask.shape) != (size, length):
        raise DataError(
            f"the attention mask is {tuple(mask.shape)}, the states have {(size, length)} positions; "
            "virtual tokens (prompt tuning) are not supported: merge or drop the adapter"
        )
    return mask.to(state.device).bool()


def next_token_labels(
    batch: Batch, labels: Int[Tensor, "b t"] | None, valid: Bool[Tensor, "b t"]
) -> Int[Tensor, "b t"]:
    """The label of every position of a causal language model: the token after it, `IGNORED` where there is none."""
    tokens = labels
    if tokens is None:
        if not isinstance(batch, Mapping) or not isinstance(batch.get("input_ids"), Tensor):
            raise DataError("a language model's labels are its next tokens: expected 'input_ids' in the batch")
        tokens = batch["input_ids"]
    tokens = tokens.masked_fill(~valid, IGNORED)  # given labels, too, are often the ids with the padding left in
    shifted = torch.full_like(tokens, IGNORED)
    shifted[:, :-1] = tokens[:, 1:]
    return shifted.masked_fill(~valid, IGNORED)


def select(
    state: Float[Tensor, "b *t d"], valid: Bool[Tensor, "b t"], policy: Policy
) -> tuple[Float[Tensor, "n d"], Int[Tensor, " n"]]:
    """The rows that stand for a batch's samples under a policy, and the sample of each.

    Args:
        state: one state; (B, D) where the model has no token axis.
        valid: the positions that count.
        policy: which of them.

    Returns:
        The rows in float32 (or float64, if the state is), and for each the index of its sample in the batch. A sample
        without a valid position has no row.
    """
    state = state.unsqueeze(1) if state.ndim == 2 else state
    state = state if state.dtype == torch.float64 else state.float()
    if policy == "each":
        sample, position = valid.nonzero(as_tuple=True)
        return state[sample, position], sample
    sample = valid.any(dim=1).nonzero().squeeze(1)
    if policy == "mean":
        weights = valid[sample].to(state.dtype)
        # masked_fill, not a product: what stands at a padded position may be NaN
        kept = state[sample].masked_fill(~valid[sample].unsqueeze(-1), 0.0)
        return kept.sum(1) / weights.sum(1, keepdim=True), sample
    return state[sample, _end(valid[sample], policy)], sample


def some_of(valid: Bool[Tensor, "b t"], most: int, seeds: Sequence[Sequence[int]]) -> Bool[Tensor, "b t"]:
    """At most so many of each sample's valid positions, drawn at random.

    Args:
        valid: the positions that count.
        most: to keep of each sample.
        seeds: of each sample's draw; where padding lies makes no difference to it.
    """
    kept = valid.clone()
    for row, seed in enumerate(seeds):
        places = valid[row].nonzero()[:, 0]
        if len(places) > most:
            left_out = np.random.default_rng(list(seed)).permutation(len(places))[most:]
            kept[row, places[torch.as_tensor(left_out, device=valid.device)]] = False
    return kept


def _end(valid: Bool[Tensor, "b t"], policy: Policy) -> Int[Tensor, " b"]:
    """The first or the last valid position of each row."""
    if policy == "first":
        return valid.int().argmax(dim=1)
    return valid.shape[1] - 1 - valid.flip(1).int().argmax(dim=1)


def default_policy(stack: Stack, batch: Batch, *, labels_each: bool) -> Policy:
    """The policy that fits what the model's readout looks at, found by intervention on a few samples.

    Args:
        stack: the model.
        batch: any batch of it.
        labels_each: whether the model answers for every position (language models, taggers).

    Returns:
        `each` if it answers for every position. Else `first` or `last` if that position moves the readout clearly more
        than others do, and `mean` if none stands out. For a model that only gives states: `last` if it is causal,
        else `first`.
    """
    if labels_each:
        return "each"
    # its own copy, out of inference mode: what was made in there takes part in no gradient
    with torch.inference_mode(False), evaluating(stack.model):
        few = _copied(first_samples(batch, 2))
        with torch.no_grad():
            state = stack.states(few)[-1]
        if state.ndim == 2 or state.shape[1] == 1:
            return "first"
        valid = valid_positions(few, state)
        with torch.enable_grad():
            leaf = state.detach().clone().requires_grad_()
            answer = stack.readout(leaf, few)
            if answer.ndim == 3:
                return "last" if _is_causal(stack, few, valid) else "first"
            # all entries of the answer count alike; fixed weights of both signs, so that nothing cancels by symmetry
            weights = torch.linspace(1.0, 2.0, answer[0].numel(), dtype=answer.dtype, device=answer.device)
            weights[::2] *= -1
            (moved,) = torch.autograd.grad((answer.flatten(1) * weights).sum(), leaf)
    return _what_stands_out(moved.float().norm(dim=-1), valid)


def _copied(batch: Batch) -> Batch:
    if isinstance(batch, Tensor):
        return batch.clone()
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in batch.items()}


def _what_stands_out(weight: Float[Tensor, "b t"], valid: Bool[Tensor, "b t"]) -> Policy:
    rows = torch.arange(len(valid), device=valid.device)
    median = torch.stack([row[keep].median() for row, keep in zip(weight, valid, strict=True)])
    if (weight[rows, _end(valid, "first")] > _CLEARLY * median).all():
        return "first"
    if (weight[rows, _end(valid, "last")] > _CLEARLY * median).all():
        return "last"
    return "mean"


def _is_causal(stack: Stack, batch: Any, valid: Bool[Tensor, "b t"]) -> bool:
    """Whether the first position is deaf to the last one: the blocks run twice, the last position disturbed once."""
    with torch.no_grad():
        replay = stack.replay(batch)
        plain, disturbed = replay.state, replay.state.clone()
        rows = torch.arange(len(valid), device=valid.device)
        disturbed[rows, _end(valid, "last")] += 1.0
        for depth in range(1, stack.depth + 1):
            plain, disturbed = replay.step(plain, depth), replay.step(disturbed, depth)
        first = _end(valid, "first")
        return bool(torch.equal(plain[rows, first], disturbed[rows, first]))
