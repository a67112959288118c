"""Run a causal language model between two of its depths, with a key-value cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor
from torch.nn import functional
from transformers.cache_utils import Cache

from anydepth.core.patching import forward_as
from anydepth.core.segments import Segments
from anydepth.core.stack import Stack
from anydepth.dependencies import cache_name
from anydepth.errors import GenerationError
from anydepth.generation.cache import FixedLengthCache, choose_positions, cut_back

# Tokens at the end of a prompt that a `Stack` is verified on.
_CHECKED = 16

# The model inputs that this file makes longer with every token; no other tensor may come.
_GROWING = ("attention_mask", "position_ids")


@dataclass
class GenerationStats:
    """Statistics of a generation: tokens, block calls, readouts, drafts.

    Attributes:
        tokens: generated, over all rows.
        blocks: calls of blocks, without those of `filled`.
        readouts: calls of the model's head.
        filled: calls of blocks that only wrote keys and values.
        rounds: of drafting and verifying.
        drafted: tokens that were proposed.
        accepted: of those, the ones that were kept.
        depths: exit depth of each generated token; empty where all are read out at one depth.
    """

    tokens: int = 0
    blocks: int = 0
    readouts: int = 0
    filled: int = 0
    rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    depths: tuple[int, ...] = ()

    def __add__(self, other: GenerationStats) -> GenerationStats:
        """The statistics of both together."""
        names = [field.name for field in fields(self)]
        return GenerationStats(**{name: getattr(self, name) + getattr(other, name) for name in names})

    @property
    def acceptance(self) -> float:
        """Accepted of drafted; NaN where nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else float("nan")


def checked_on(prompt: Int64[Tensor, "b t"], mask: Shaped[Tensor, "b p"] | None) -> dict[str, Tensor]:
    """The end of a prompt, as a batch to verify a `Stack` on; the mask may be of what a cache holds, too."""
    mask = torch.ones_like(prompt) if mask is None else mask[:, -prompt.shape[1] :]
    return {"input_ids": prompt[:2, -_CHECKED:], "attention_mask": mask[:2, -_CHECKED:]}


class Decoder:
    """A causal language model with a key-value cache, run between two depths at a time; made by `decoding`.

    Attributes:
        cache: see `whole_cache`.
        stats: what it has run so far is added to them.
        length: positions that all blocks have run on, and that count.
    """

    def __init__(
        self,
        stack: Stack,
        segments: Segments,
        cache: Cache,
        model_inputs: dict[str, Any],
        sample: dict[str, Tensor],
        stats: GenerationStats,
    ) -> None:
        self._stack, self._segments, self.cache, self.stats = stack, segments, cache, stats
        self._classifier = stack.classifier(sample)
        mask = model_inputs.get("attention_mask")
        self._mask: Tensor | None = None if mask is None else mask.long()
        self._counts_positions = model_inputs.get("position_ids") is not None
        self._rest = {name: value for name, value in model_inputs.items() if name not in (*_GROWING, cache_name())}
        self.length = cache.get_seq_length()

    def run(
        self,
        tokens: Int64[Tensor, "b q"],
        *,
        upto: int,
        at: int | None = None,
        after: int = 0,
        state: Float[Tensor, "b q d"] | None = None,
        read: int = 0,
    ) -> tuple[Float[Tensor, "b q d"], Float[Tensor, "b r v"] | None]:
        """Run blocks `after` + 1 to `upto` on some tokens.

        Args:
            tokens: B rows of q.
            upto: the depth to stop at.
            at: positions before these tokens; `length` by default.
            after: the depth to start at.
            state: h[after] of these tokens, unless `after` is 0.
            read: how many of the last tokens are read out.

        Returns:
            h[upto], and the logits, float32, of the last `read` tokens.
        """
        at = self.length if at is None else at
        self._segments.enter(after, state)
        reading = nullcontext() if read else forward_as(self._classifier, lambda features: features)
        with reading:
            output = self._segments.run(self._inputs(tokens, at, max(read, 1)), lambda depth, _: depth >= upto)
        self.stats.blocks += upto - after
        self.stats.readouts += bool(read)
        logits = output.logits[:, -read:].to(dtype=torch.float32, device=tokens.device) if read else None
        return self._segments.state, logits

    def _inputs(self, tokens: Int64[Tensor, "b q"], at: int, read: int) -> dict[str, Any]:
        """The inputs of a forward, as the model's own class prepares them."""
        count, inputs = tokens.shape[1], dict(self._rest)
        if "logits_to_keep" in inputs:
            inputs["logits_to_keep"] = read
        mask = self._mask_of(at + count)
        if self._counts_positions:
            if mask is None:
                places = torch.arange(at, at + count, device=tokens.device).expand(len(tokens), -1)
            else:
                places = (mask.cumsum(1) - 1).clamp(min=0)[:, -count:]
            inputs["position_ids"] = places
        model: Any = self._stack.model
        prepared: dict[str, Any] = model.prepare_inputs_for_generation(
            tokens,
            next_sequence_length=count,
            attention_mask=mask,
            is_first_iteration=False,
            **{**inputs, cache_name(): FixedLengthCache(self.cache, at)},
        )
        return prepared

    def _mask_of(self, length: int) -> Int64[Tensor, "b t"] | None:
        """The attention mask up to a length; generated positions count."""
        known = self._mask
        return None if known is None else functional.pad(known, (0, length - known.shape[1]), value=1)

    def keep(self, counts: list[int], rows: list[int] | None = None) -> None:
        """Keep so many of the positions after `length` of each row, all rows or those at the places `rows`.

        Rows stay aligned at their ends: the shorter ones move, and padding that the mask hides comes before them.
        """
        self.length += max(counts)
        cut_back(self.cache, self.length)
        shifts = [max(counts) - count for count in counts]
        if rows is not None:
            which = torch.tensor(rows)
            self.cache.batch_select_indices(which)
            self._mask = None if self._mask is None else self._mask[which]
        if any(shifts):
            self._shift(shifts)
        if rows is not None or any(shifts):
            self._drop_padding()

    def _shift(self, shifts: list[int]) -> None:
        """Move each row towards the end, by its number of places."""
        mask = self._mask_of(self.length)
        if mask is None:
            mask = torch.ones(len(shifts), self.length, dtype=torch.long, device=self.cache.layers[0].keys.device)
        positions = torch.arange(self.length)[None] - torch.tensor(shifts)[:, None]
        positions = positions.to(mask.device)
        self._mask = mask.gather(1, positions.clamp(min=0)).masked_fill(positions < 0, 0)
        choose_positions(self.cache, positions.clamp(min=0))

    def _drop_padding(self) -> None:
        """Drop the positions that are padding in every row."""
        if self._mask is None:
            return
        padding = int((self._mask.cumsum(1) == 0).all(0).sum())
        self._mask = self._mask[:, padding:]
        self.length -= padding
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[..., padding:, :], layer.values[..., padding:, :]


def _are_counted(places: Tensor, mask: Tensor | None) -> bool:
    """Whether position ids are those that the mask gives: each row counts from 0, without padding."""
    mask = torch.ones_like(places) if mask is None else mask
    return places.shape == mask.shape and bool(((places == mask.long().cumsum(-1) - 1) | (mask == 0)).all())


@contextmanager
def decoding(
    stack: Stack, prompt: Int64[Tensor, "b t"], cache: Cache, model_inputs: dict[str, Any], stats: GenerationStats
) -> Iterator[Decoder]:
    """Context manager: a `Decoder`; afterwards every layer of its cache has the same positions.

    Raises:
        GenerationError: there are other inputs than text, or other position ids than those of the mask.
    """
    growing = sorted(name for name, value in model_inputs.items() if isinstance(value, Tensor) and name not in _GROWING)
    if growing:
        raise GenerationError(f"generate was given {', '.join(growing)} beside input_ids: expected text only")
    places, mask = model_inputs.get("position_ids"), model_inputs.get("attention_mask")
    if places is not None and not _are_counted(places, mask):
        raise GenerationError("position_ids of your own: expected those that attention_mask gives; leave them out")
    sample = checked_on(prompt, mask)

    def forward(inputs: dict[str, Any]) -> Any:
        return stack.model(**inputs, return_dict=True)

    with stack.segments(sample, forward) as segments:
        decoder = Decoder(stack, segments, cache, model_inputs, sample, stats)
        try:
            yield decoder
        finally:
            cut_back(cache, decoder.length)
