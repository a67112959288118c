"""What a step of generating costs here, and what each way to generate would therefore save."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor
from transformers.cache_utils import DynamicCache

from anydepth.core.patching import evaluating
from anydepth.core.stack import Stack
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


@dataclass(frozen=True)
class DecodeCosts:
    """Seconds of the parts of a step, for one row and a cache of some length; on a CPU, of its time.

    Attributes:
        last: L.
        context: positions in the cache when it was measured.
        start: of a forward, whatever runs in it.
        block: of a block on one token.
        block_several: what it costs more on several tokens, however many: other kernels, and a mask.
        block_more: of a block, for each further token in the same forward.
        head: of a readout of one token.
        head_more: of a readout, for each further token.
        fill: of a block that only leaves the keys and values of one token.
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
        """What one forward costs.

        Args:
            blocks: how many run.
            tokens: that they run on.
            read: tokens that are read out.
        """
        body = self.start + blocks * (self.block + (tokens > 1) * self.block_several + (tokens - 1) * self.block_more)
        return body + (self.head + (read - 1) * self.head_more if read else 0.0)

    @property
    def token(self) -> float:
        """What a token costs the plain model."""
        return self.forward(self.last, read=1)

    @property
    def head_in_blocks(self) -> float:
        """How many blocks one readout costs."""
        return self.head / self.block

    def at_depth(self, depth: int) -> float:
        """The speed-up of generating at a depth: the plain model's time over its own."""
        return self.token / self.forward(depth, read=1)

    def draft(self, depth: int) -> tuple[float, float]:
        """What each draft adds to a round, and what a round costs beside them."""
        deep = self.last - depth
        each = self.forward(depth, read=1) + deep * self.block_more + self.head_more
        return each, self.forward(depth) + self.forward(deep, read=1) + deep * self.block_several

    def speculative(self, depth: int, length: int, acceptance: float) -> float:
        """The speed-up of self-speculation if each draft is accepted with a chance of its own.

        Args:
            depth: of the drafts, 1..L-1.
            length: drafts in a round.
            acceptance: that chance, 0..1.
        """
        each, round_ = self.draft(depth)
        return self.token * tokens_per_round(acceptance, length) / (length * each + round_)

    def dynamic(self, depths: Sequence[int], tested: Sequence[int]) -> float:
        """The speed-up of dynamic exit if tokens leave like these.

        Args:
            depths: where each token leaves, 1..L.
            tested: the depths below L that are tested.
        """
        spent = [
            depth * self.block
            + (self.last - depth) * self.fill
            + (1 + sum(test < depth for test in tested)) * (self.start + self.head)
            for depth in depths
        ]
        return self.token / float(np.mean(spent))


def tokens_per_round(acceptance: float, length: int) -> float:
    """Tokens that a round of `length` drafts yields in the mean, the one that is no draft among them.

    (1 - a^(g+1)) / (1 - a), Leviathan et al. 2023, equation 1.

    Example:
        >>> tokens_per_round(0.5, 2), tokens_per_round(1.0, 4)
        (1.75, 5.0)
    """
    return float(sum(acceptance**place for place in range(length + 1)))


@dataclass(frozen=True)
class Advice:
    """Which way to generate pays for a model, on some prompts and this machine.

    Attributes:
        costs: measured.
        acceptance: at depths 1..L-1, the share of the full model's own tokens that a readout there proposes.
        depth: to draft at; None where no draft pays.
        length: drafts in a round; 0 where none pays.
        speedup: that is then to be expected, over the plain model; 1 where none pays.
    """

    costs: DecodeCosts
    acceptance: tuple[float, ...]
    depth: int | None
    length: int
    speedup: float

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
    """The draft depth and length with the highest speed-up to be expected.

    Args:
        costs: measured.
        acceptance: by depth, 1..L-1.

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
        return Advice(costs, tuple(acceptance), None, 0, 1.0)
    return Advice(costs, tuple(acceptance), depth, length, speedup)


def advise(
    model: Any, prompts: Sequence[Int64[Tensor, "1 _"]], *, new_tokens: int = 64, blocks: str | None = None
) -> Advice:
    """Measure what generating costs, and how often shallow depths propose what the model says; pick what pays.

    The model generates greedily from each prompt, once; then every depth is read out along what it wrote.

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
        >>> found = advise(model, [torch.tensor([[3, 1, 4]])], new_tokens=8)
        >>> len(found.acceptance), found.speedup >= 1
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

    Args:
        stack: the model.
        texts: prompts and what it wrote.
        prompts: tokens of each that are the prompt.
    """
    right, seen = np.zeros(stack.depth - 1), 0
    for text, prompt in zip(texts, prompts, strict=True):
        batch = {"input_ids": text, "attention_mask": torch.ones_like(text)}
        states = stack.states(batch)
        written = text[0, prompt:]
        for depth in range(1, stack.depth):
            proposed = stack.readout(states[depth], batch, depth=depth)[0, prompt - 1 : -1].argmax(-1)
            right[depth - 1] += int((proposed == written).sum())
        seen += len(written)
    return tuple((right / seen).tolist())


def measure_decode_costs(stack: Stack, text: Int64[Tensor, "1 t"], *, rounds: int = _ROUNDS) -> DecodeCosts:
    """Time forwards of some of the blocks on the end of a text, and find what each part of them costs.

    Args:
        stack: the model, on the device it is to run on.
        text: as long as the contexts to come.
        rounds: times each kind of step is timed; the median counts.

    Raises:
        GenerationError: the text is too short to end in several tokens, or see `whole_cache`.
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
    given: dict[str, Any] = {"use_cache": True, "position_ids": torch.arange(ahead.shape[1])[None]}
    if model._supports_logits_to_keep():
        given["logits_to_keep"] = 1
    with evaluating(model), torch.inference_mode(), decoding(stack, ahead, cache, given, GenerationStats()) as decoder:
        decoder.run(ahead, upto=last, read=1)
        decoder.keep([ahead.shape[1]])
        times = np.array([[_timed(decoder, text[:, -few:], *kind) for kind in kinds] for _ in range(rounds + 2)])
        found = _fitted(kinds, np.median(times[2:], axis=0), last, ahead.shape[1])
    return replace(found, fill=_fill(model, ahead, last)) if last > 1 else found


def _fill(model: Any, prompt: Tensor, last: int, tokens: int = 12, rounds: int = 5) -> float:
    """What a block costs that only leaves keys and values: tokens that all leave at depth 1, with and without that."""
    with_it, without = dynamic_exit(Confidence(0.0, depths=(1,))), at_depth(1)
    prompt = prompt[:, : max(1, prompt.shape[1] - tokens)]  # a model may have no positions for more than it was given
    spent: dict[Any, list[float]] = {with_it: [], without: []}
    for _ in range(rounds + 1):
        for mode, times in spent.items():
            clock = _clock(prompt)
            start = clock()
            written = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                custom_generate=mode,
            )
            written[0, -1].item()
            times.append((clock() - start) / (tokens - 1))
    apart = float(np.median(spent[with_it][1:]) - np.median(spent[without][1:]))
    return max(apart, 0.0) / (last - 1)


def _clock(on: Tensor) -> Callable[[], float]:
    """On a processor that others use too, the time it was given counts, not the time it waited for it."""
    return time.process_time if on.device.type == "cpu" else time.perf_counter


def _timed(decoder: Decoder, tokens: Tensor, blocks: int, count: int, read: int) -> float:
    clock = _clock(tokens)
    start = clock()
    state, logits = decoder.run(tokens[:, :count], upto=blocks, read=read)
    (state if logits is None else logits.argmax(-1)).flatten()[0].item()  # a GPU is waited for
    spent = clock() - start
    cut_back(decoder.cache, decoder.length)
    return spent


def _fitted(
    kinds: list[tuple[int, int, int]], times: Float64[np.ndarray, " k"], last: int, context: int
) -> DecodeCosts:
    """The costs, none below zero, that add up to the times best, in proportion."""
    from scipy.optimize import nnls

    parts = np.array(
        [[1, n, n * (count > 1), n * (count - 1), read > 0, max(read - 1, 0)] for n, count, read in kinds], dtype=float
    )
    found, _ = nnls(parts / times[:, None], np.ones(len(times)))
    return DecodeCosts(last, context, *(float(one) for one in found))
