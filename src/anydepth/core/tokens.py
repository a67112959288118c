"""Which positions stand for a sample in similarities: first, last, each, or their mean (token policies).

A hidden state is (B, T, D), and similarity needs rows: the position `first` (a class token) or `last` (the rightmost
one), `each` position, or their `mean`, padding left out. The default is where the model's own readout looks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anydepth.core.model_io import Batch
from anydepth.core.patching import evaluating
from anydepth.core.stack import Stack
from anydepth.errors import DataError, LabelError, choose

Policy = Literal["first", "last", "each", "mean"]
IGNORED = -100
"""The label of a position that has none, as everywhere in torch."""

# The readout looks at a class token if that has this many times the weight of the median position. Heads that read it
# and the mean of the patches (DINOv2) give it T times the weight of each patch.
_CLEARLY = 2.0


def check_policy(name: str) -> Policy:
    """The policy of that name.

    Raises:
        DataError: there is none.
    """
    policy: Policy = choose(name, get_args(Policy), "token policy", DataError)
    return policy


def next_token_labels(
    batch: Batch, labels: Int[Tensor, "b t"] | None, valid: Bool[Tensor, "b t"]
) -> Int[Tensor, "b t"]:
    """The label of every position of a causal language model: the token after it, `IGNORED` where there is none."""
    tokens = labels
    if tokens is None:
        if not isinstance(batch, Mapping) or not isinstance(batch.get("input_ids"), Tensor):
            raise DataError("a language model's labels are its next tokens: expected 'input_ids' in the batch")
        tokens = batch["input_ids"]
    if tokens.shape != valid.shape:
        raise LabelError(
            f"the model answers at {valid.shape[1]} positions, and there are {tokens.shape[1]} tokens: which of its "
            "positions are theirs is not known; trace without labels (labels=False)"
        )
    tokens = tokens.masked_fill(~valid, IGNORED)  # labels, too, are often the ids with their padding
    shifted = torch.full_like(tokens, IGNORED)
    shifted[:, :-1] = tokens[:, 1:]
    return shifted.masked_fill(~valid, IGNORED)


def select(
    state: Float[Tensor, "b *t d"], valid: Bool[Tensor, "b t"], policy: Policy
) -> tuple[Float[Tensor, "n d"], Int[Tensor, " n"]]:
    """The rows that stand for a batch's samples under a policy, and the sample of each.

    Args:
        state: one hidden state; (B, D) where the model has no token axis.
        valid: the positions that are not padding.
        policy: which of them.

    Returns:
        The rows in float32 (or float64, if the state is), and for each the index of its sample in the batch. A sample
        without a valid position has no row.
    """
    state = state.unsqueeze(1) if state.ndim == 2 else state
    exact = torch.float64 if state.dtype == torch.float64 else torch.float32
    if policy == "each":
        sample, position = valid.nonzero(as_tuple=True)
        return state[sample, position].to(exact), sample
    sample = valid.any(dim=1).nonzero().squeeze(1)
    if policy == "mean":
        state = state.to(exact)
        weights = valid[sample].to(state.dtype)
        # masked_fill, not a product: a padded position may hold NaN
        kept = state[sample].masked_fill(~valid[sample].unsqueeze(-1), 0.0)
        return kept.sum(1) / weights.sum(1, keepdim=True), sample
    return state[sample, _end(valid[sample], policy)].to(exact), sample


def some_of(valid: Bool[Tensor, "b t"], most: int, seeds: Sequence[Sequence[int]]) -> Bool[Tensor, "b t"]:
    """At most `most` of each sample's valid positions, drawn by its own seed, wherever its padding is."""
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
    """The policy for the positions that the model's readout looks at, found by gradients on a few samples.

    Args:
        stack: the model.
        batch: any batch of it.
        labels_each: whether the model answers for every position (language models, taggers).

    Returns:
        `each` if it answers for every position, `mean` where each sample has several rows of positions. Else `first` or
        `last` if that position affects the readout clearly more than others, and `mean` if none does. For a model that
        only outputs states: `last` if it is causal, else `first`.
    """
    if labels_each:
        return "each"
    # a copy made outside inference mode: tensors made inside have no gradients
    with torch.inference_mode(False), evaluating(stack.model):
        few = _copied(stack.few(batch))
        with torch.no_grad():
            state = stack.states(few)[-1]
        if state.ndim == 2 or state.shape[1] == 1:
            return "first"
        if stack.learn(few).layout.joined:
            return "mean"
        valid = stack.valid_positions(few, state)
        with torch.enable_grad():
            leaf = state.detach().clone().requires_grad_()
            answer = stack.readout(leaf, few, depth=stack.depth)
            if answer.ndim == 3:
                return "last" if _is_causal(stack, few, valid) else "first"
            weights = _both_signs(answer[0].numel(), like=answer)
            try:
                (gradient,) = torch.autograd.grad((answer.flatten(1) * weights).sum(), leaf)
            except RuntimeError:  # the readout writes over what its gradient needs, or has none
                return _outstanding(_influence(partial(stack.readout, batch=few, depth=stack.depth), state), valid)
    return _outstanding(gradient.float().norm(dim=-1), valid)


def _both_signs(count: int, *, like: Tensor) -> Float[Tensor, " n"]:
    """Fixed weights of both signs, of which nothing cancels by symmetry."""
    weights = torch.linspace(1.0, 2.0, count, dtype=like.dtype, device=like.device)
    weights[::2] *= -1
    return weights


def _influence(readout: Callable[[Tensor], Tensor], state: Float[Tensor, "b t d"]) -> Float[Tensor, "b t"]:
    """How far the answer of each sample moves when one position after the other is disturbed."""
    with torch.no_grad():
        answer, by = readout(state), _both_signs(state.shape[-1], like=state) * state.std()
        distances = []
        for position in range(state.shape[1]):
            disturbed = state.clone()
            disturbed[:, position] += by
            distances.append((readout(disturbed) - answer).flatten(1).float().norm(dim=1))
    return torch.stack(distances, dim=1)


def _copied(batch: Batch) -> Batch:
    if isinstance(batch, Tensor):
        return batch.clone()
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in batch.items()}


def _outstanding(weight: Float[Tensor, "b t"], valid: Bool[Tensor, "b t"]) -> Policy:
    rows = torch.arange(len(valid), device=valid.device)
    median = torch.stack([row[keep].median() for row, keep in zip(weight, valid, strict=True)])
    if (weight[rows, _end(valid, "first")] > _CLEARLY * median).all():
        return "first"
    if (weight[rows, _end(valid, "last")] > _CLEARLY * median).all():
        return "last"
    return "mean"


def _is_causal(stack: Stack, batch: Any, valid: Bool[Tensor, "b t"]) -> bool:
    """Whether the first position does not depend on the last: the blocks run with and without a disturbance of it."""
    with torch.no_grad():
        replay = stack.replay(batch)
        plain, disturbed = replay.state, replay.state.clone()
        rows = torch.arange(len(valid), device=valid.device)
        disturbed[rows, _end(valid, "last")] += 1.0
        for depth in range(stack.entry + 1, stack.depth + 1):
            plain, disturbed = replay.step(plain, depth), replay.step(disturbed, depth)
        first = _end(valid, "first")
        return bool(torch.equal(plain[rows, first], disturbed[rows, first]))
