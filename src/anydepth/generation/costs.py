"""Measure the cost of a generation step, and predict the speed-up of each generation method."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor
from transformers.cache_utils import DynamicCache

from anydepth.core.patching import evaluating
from anydepth.core.stack import Stack
from anydepth.core.timing import time_call
from anydepth.errors import GenerationError
from anydepth.exits.policies import Confidence
from anydepth.generation.cache import cut_back, whole_cache
from anydepth.generation.decoder import Decoder, GenerationStats, checked_on, decoding
from anydepth.generation.dynamic import dynamic_exit
from anydepth.generation.modes import positions_of
from anydepth.generation.speculative import best_length
from anydepth.generation.static import at_depth

_ROUNDS = 21
"""Times each kind of step is timed; the median counts."""


@dataclass(frozen=True, kw_only=True)
class DecodeCosts:
    """Seconds of the parts of a generation step, for one row; on a CPU, processor time.

    Attributes:
        last: L.
        context: positions in the cache when it was measured.
        start: of a forward, whatever runs in it.
        block: of a block on one token.
        block_several: added to a block's on two or more tokens: other kernels, and a mask.
        block_more: of a block, for each further token in the same forward.
        head: of a readout of one token.
        head_more: of a readout, for each further token.
        fill: of a block that only writes the keys and values of one token.
    """

    last: int
    context: int
    start: float
    block: float
    block_several: float
    block_more: float
    head: float
    head_more: float
    fill: float = 0.0

    def forward(self, blocks: int | float, *, tokens: int = 1, read: int = 0) -> float:
        """Seconds of one forward: `blocks` run on `tokens`, of which `read` are read out."""
        body = self.start + blocks * (self.block + (tokens > 1) * self.block_several + (tokens - 1) * self.block_more)
        return body + (self.head + (read - 1) * self.head_more if read else 0.0)

    @property
    def token(self) -> float:
        """Seconds of a token of the plain model."""
        return self.forward(self.last, read=1)

    @property
    def head_in_blocks(self) -> float:
        """The cost of a readout over that of a block."""
        return self.head / self.block

    def at_depth(self, depth: int) -> float:
        """The speed-up of generating at a depth: the plain model's time over its own."""
        return self.token / self.forward(depth, read=1)

    def draft(self, depth: int) -> tuple[float, float]:
        """Seconds of each draft at a depth, and of the rest of a round."""
        deep = self.last - depth
        each = self.forward(depth, read=1) + deep * self.block_more + self.head_more
        return each, self.forward(depth) + self.forward(deep, read=1) + deep * self.block_several

    def speculative(self, depth: int, length: int, acceptance: float) -> float:
        """The speed-up of self-speculation by `length` drafts in a round, each accepted with the same probability."""
        each, round_ = self.draft(depth)
        return self.token * tokens_per_round(acceptance, length) / (length * each + round_)

    def dynamic(self, depths: Sequence[int], tested: Sequence[int]) -> float:
        """The speed-up of dynamic exit, from the exit depth of each token and the tested depths below L."""
        seconds = [
            depth * self.block
            + (self.last - depth) * self.fill
            + (1 + sum(test < depth for test in tested)) * (self.start + self.head)
            for depth in depths
        ]
        return self.token / float(np.mean(seconds))


def tokens_per_round(acceptance: float, length: int) -> float:
    """Mean number of tokens from a round of `length` drafts, with the one that is no draft.

    (1 - a^(g+1)) / (1 - a), Leviathan et al. 2023, equation 1.

    Example:
        >>> tokens_per_round(0.5, 2), tokens_per_round(1.0, 4)
        (1.75, 5.0)
    """
    return float(sum(acceptance**place for place in range(length + 1)))


@dataclass(frozen=True, kw_only=True)
class Advice:
    """The draft depth and length with the highest predicted speed-up, on some prompts and this machine.

    Attributes:
        costs: measured.
        acceptance: at depths 1..L-1, the share of the full model's own tokens that a readout there proposes.
        depth: to draft at; None where no draft depth is faster than the plain model.
        length: drafts in a round; 0 where none is faster.
        speedup: predicted, over the plain model; 1 where none is faster.
    """

    costs: DecodeCosts
    acceptance: tuple[float, ...]
    depth: int | None = None
    length: int = 0
    speedup: float = 1.0

    def __str__(self) -> str:
        head = f"a readout costs {self.costs.head_in_blocks:.1f} blocks"
        if self.depth is None:
            return f"no draft depth pays: {head}, and drafts are accepted too rarely for that; generate plainly"
        share = self.acceptance[self.depth - 1]
        return (
            f"draft {self.length} at depth {self.depth} of {self.costs.last}: {share:.0%} accepted, {head}, "
            f"{self.speedup:.2f} x expected"
        )


def best_draft(costs: DecodeCosts, acceptance: Sequence[float]) -> Advice:
    """The draft depth and length with the highest predicted speed-up; `acceptance` is by depth, 1..L-1.

    Example:
        >>> costs = DecodeCosts(last=12, context=64, start=0.1, block=1.0, block_several=0.0,
        ...                     block_more=0.1, head=1.0, head_more=0.1)
        >>> best_draft(costs, [0.2] * 3 + [0.9] * 8).depth, best_draft(costs, [0.2] * 11).depth
        (4, None)
    """
    ways = [
        (costs.speculative(depth, length, share), depth, length)
        for depth, share in enumerate(acceptance, start=1)
        for length in [best_length(share, *costs.draft(depth))]
    ]
    speedup, depth, length = max(ways, default=(1.0, 0, 0))
    if speedup <= 1:
        return Advice(costs=costs, acceptance=tuple(acceptance))
    return Advice(costs=costs, acceptance=tuple(acceptance), depth=depth, length=length, speedup=speedup)


def advise(
    model: Any, prompts: Sequence[Int64[Tensor, "1 _"]], *, new_tokens: int = 64, blocks: str | None = None
) -> Advice:
    """Measure step costs and draft acceptance at every depth, and choose the fastest draft depth and length.

    The model generates greedily from each prompt, once; then every depth is read out along the generated tokens.

    Args:
        model: a causal language model, where it is to run.
        prompts: like those to come.
        new_tokens: generated from each.
        blocks: see `anydepth.Stack`.

    Raises:
        GenerationError: no prompt, or a model whose keys and values cannot be taken back.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=3, n_embd=16, n_head=2, vocab_size=40, bos_token_id=1)).eval()
        >>> advice = advise(model, [torch.tensor([[3, 1, 4]])], new_tokens=8)
        >>> len(advice.acceptance), advice.speedup >= 1
        (2, True)
    """
    if not prompts:
        raise GenerationError("there is no prompt to measure on, expected at least one")
    stack = Stack(model, blocks=blocks)
    stack.verify(checked_on(prompts[0], None))
    with evaluating(model), torch.inference_mode():
        texts = [
            model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=min(new_tokens, positions_of(model) - prompt.shape[1]),
                do_sample=False,
            )
            for prompt in prompts
        ]
        costs = measure_decode_costs(stack, max(texts, key=lambda text: text.shape[1]))
        return best_draft(costs, acceptance_by_depth(stack, texts, [prompt.shape[1] for prompt in prompts]))


def acceptance_by_depth(
    stack: Stack, texts: Sequence[Int64[Tensor, "1 _"]], prompts: Sequence[int]
) -> tuple[float, ...]:
    """At depths 1..L-1, the share of a model's own greedy tokens that a readout there would have proposed.

    Each text is a prompt, whose length is in `prompts`, and the tokens generated after it.
    """
    right, count = np.zeros(stack.depth - 1), 0
    for text, prompt in zip(texts, prompts, strict=True):
        batch = {"input_ids": text, "attention_mask": torch.ones_like(text)}
        states = stack.states(batch)
        generated = text[0, prompt:]
        for depth in range(1, stack.depth):
            proposed = stack.readout(states[depth], batch, depth=depth)[0, prompt - 1 : -1].argmax(-1)
            right[depth - 1] += int((proposed == generated).sum())
        count += len(generated)
    return tuple((right / count).tolist())


def measure_decode_costs(stack: Stack, text: Int64[Tensor, "1 t"], *, rounds: int = _ROUNDS) -> DecodeCosts:
    """Time forwards of some of the blocks on the end of a text, and fit the cost of each part.

    Each kind of step is timed `rounds` times, and the median counts. The text should be as long as later contexts.

    Raises:
        GenerationError: the text has fewer than 4 tokens, or see `whole_cache`.
    """
    few = min(9, text.shape[1] - 1)
    if few < 3:
        raise GenerationError(f"a text of {text.shape[1]} tokens is too short to measure on: expected at least 4")
    model: Any = stack.model
    last, ahead = stack.depth, text[:, : text.shape[1] - few]
    middle = max(1, last // 2)
    # (blocks, tokens, read)
    kinds = [(last, 1, 1), (last, 1, 0), (middle, 1, 1), (middle, 1, 0), (1, 1, 0)]
    kinds += [(last, count, read) for count in (2, few) for read in (count, 0)] + [(middle, few, few)]
    cache = whole_cache(DynamicCache(config=model.config.get_text_config(decoder=True)), last)
    inputs: dict[str, Any] = {"use_cache": True, "position_ids": torch.arange(ahead.shape[1])[None]}
    if model._supports_logits_to_keep():
        inputs["logits_to_keep"] = 1
    with evaluating(model), torch.inference_mode(), decoding(stack, ahead, cache, inputs, GenerationStats()) as decoder:
        decoder.run(ahead, upto=last, read=1)
        decoder.keep([ahead.shape[1]])
        times = np.array([[_seconds(decoder, text[:, -few:], *kind) for kind in kinds] for _ in range(rounds + 2)])
        costs = _fitted(kinds, np.median(times[2:], axis=0), last, ahead.shape[1])
    return replace(costs, fill=_fill_seconds(model, ahead, last)) if last > 1 else costs


def _fill_seconds(model: Any, prompt: Tensor, last: int, tokens: int = 12, rounds: int = 5) -> float:
    """Seconds of a block that only writes keys and values: exits at depth 1 minus generation at depth 1."""
    filling, static = dynamic_exit(Confidence(0.0, depths=(1,))), at_depth(1)
    prompt = prompt[:, : max(1, prompt.shape[1] - tokens)]  # a model may have no positions for more than it was given
    seconds: dict[Any, list[float]] = {filling: [], static: []}
    for _ in range(rounds + 1):
        for mode, times in seconds.items():
            generate = partial(
                model.generate,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                custom_generate=mode,
            )
            times.append(time_call(generate, prompt, clock=_clock(prompt))[1] / (tokens - 1))
    difference = float(np.median(seconds[filling][1:]) - np.median(seconds[static][1:]))
    return max(difference, 0.0) / (last - 1)


def _clock(tensor: Tensor) -> Callable[[], float]:
    """Processor time on a CPU, which other processes use too; else the time on the wall."""
    return time.process_time if tensor.device.type == "cpu" else time.perf_counter


def _seconds(decoder: Decoder, tokens: Tensor, blocks: int, count: int, read: int) -> float:
    """Seconds of one forward of the decoder, and of choosing the tokens that it reads out."""

    def step() -> None:
        _, logits = decoder.run(tokens[:, :count], upto=blocks, read=read)
        if logits is not None:
            logits.argmax(-1)

    _, seconds = time_call(step, clock=_clock(tokens))
    cut_back(decoder.cache, decoder.length)
    return seconds


def _fitted(
    kinds: list[tuple[int, int, int]], times: Float64[np.ndarray, " k"], last: int, context: int
) -> DecodeCosts:
    """The costs, none below zero, that add up to the times with the least relative error."""
    from scipy.optimize import nnls

    names = ("start", "block", "block_several", "block_more", "head", "head_more")
    parts = np.array(
        [[1, n, n * (count > 1), n * (count - 1), read > 0, max(read - 1, 0)] for n, count, read in kinds], dtype=float
    )
    seconds, _ = nnls(parts / times[:, None], np.ones(len(times)))
    return DecodeCosts(last=last, context=context, **dict(zip(names, seconds.tolist(), strict=True)))
