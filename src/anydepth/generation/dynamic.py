"""Generate with early exit per token: each token exits at the first tested depth whose readout is confident enough.

Later tokens attend to every position at every depth, so the blocks that a token skipped need keys and values of it all
the same. They are made from its state at the exit (Schuster et al. 2022 copy it up): each skipped block is run until it
has written them, and no further.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers.cache_utils import Cache

from anydepth.core.model_io import call_with
from anydepth.core.patching import forward_as
from anydepth.core.segments import Segments
from anydepth.dependencies import cache_name
from anydepth.errors import GenerationError
from anydepth.exits.policies import AtDepth, Policy, Reads
from anydepth.generation.cache import FixedLengthCache, KeysWritten, levelled, require_filled
from anydepth.generation.decoder import GenerationStats
from anydepth.generation.modes import GenerationMethod, LoopArguments, require_supported


class DynamicExit(GenerationMethod):
    """See `dynamic_exit`."""

    def __init__(self, policy: Policy, *, blocks: str | None = None, streamer: Any = None) -> None:
        super().__init__(blocks=blocks, streamer=streamer)
        if isinstance(policy, AtDepth):
            raise GenerationError("AtDepth exits at the same depth for every token: use at_depth, which fills no cache")
        self.policy = policy

    def _generate(self, arguments: LoopArguments) -> Any:
        """Run `generate`'s own loop with a forward that exits early."""
        require_supported(arguments, "dynamic exit")
        model, stack = arguments.model, self._stack_of(arguments)
        cache = self._whole_cache(arguments, stack)
        prompt_length = cache.get_seq_length() + arguments.uncached_tokens(cache).shape[1]
        streamer = self._started_streamer(arguments)
        forward = model.forward
        stats = self._new_stats()
        with stack.segments(arguments.sample, lambda inputs: forward(**inputs)) as segments:
            early_forward = _EarlyForward(segments, self.policy, stack.depth, prompt_length, stats)
            with forward_as(model, early_forward), levelled(cache, stack.depth):
                return arguments.run(model._sample, stats, {"streamer": streamer, cache_name(): cache})


class _EarlyForward:
    """The forward that `generate` calls: of the prompt with all blocks, then of each token until it exits.

    The positions of the prompt go through all L (`last`) blocks, since the readout at its end says nothing of them.
    """

    def __init__(
        self, segments: Segments, policy: Policy, last: int, prompt_length: int, stats: GenerationStats
    ) -> None:
        self._segments, self._policy, self._last = segments, policy, last
        self._prompt_length, self._stats = prompt_length, stats
        self._tested = policy.tested(last)
        segments.notes = True

    def __call__(self, **inputs: Any) -> Any:
        name = cache_name()
        cache: Cache = inputs[name]
        length = cache.get_seq_length()
        fixed = FixedLengthCache(cache, length)
        tested = () if length < self._prompt_length else self._tested
        step = _Step(self._policy, tested, torch.zeros_like(inputs["input_ids"][:, 0], dtype=torch.bool))
        output = self._run(step, {**inputs, name: fixed})
        self._fill(fixed)
        length += inputs["input_ids"].shape[1]
        require_filled(cache, length)
        if length >= self._prompt_length:
            self._stats.depths += tuple(step.depths.tolist())
        output[name] = cache
        return output

    def _run(self, step: _Step, inputs: dict[str, Any]) -> Any:
        """Run blocks until all rows have exited; returns the model's last output."""
        segments = self._segments
        segments.enter(0)
        segments.frozen = None
        while True:
            before = segments.depth
            output = segments.run(inputs, step.stops)
            self._stats.blocks += segments.depth - before
            self._stats.readouts += 1
            step.read(segments.depth, output.logits)
            if segments.depth == self._last or bool(step.exited.all()):
                return output
            segments.frozen = step.exited if bool(step.exited.any()) else None

    def _fill(self, cache: FixedLengthCache) -> None:
        """Write the keys and values of the blocks that did not run, from the state at the last exit."""
        for number in range(self._segments.depth + 1, self._last + 1):
            block, args, kwargs = self._segments.passed[number]
            with cache.filling(), suppress(KeysWritten):
                call_with(block, self._segments.state.clone(), args, kwargs)
            self._stats.filled += 1


class _Step:
    """One token of each row on its way through the blocks.

    Attributes:
        exited: which rows have exited by now, (B,).
        depths: where each was read out, (B,).
    """

    def __init__(self, policy: Policy, tested: tuple[int, ...], exited: Bool[Tensor, " b"]) -> None:
        self._policy, self._tested, self.exited = policy, tested, exited
        self.depths = torch.zeros_like(exited, dtype=torch.long)
        self._memory: Tensor | None = None
        self._exiting = exited

    def stops(self, depth: int, state: Float[Tensor, "b t d"]) -> bool:
        """Whether the rows, after this block, are to be read out."""
        if depth not in self._tested:
            return False
        if self._policy.reads == Reads.LOGITS:
            return True
        self._exiting = self._test(depth, state[:, -1])
        return bool((self._exiting & ~self.exited).any())

    def _test(self, depth: int, values: Float[Tensor, "b m"]) -> Bool[Tensor, " b"]:
        score, self._memory = self._policy.scores(depth, values, self._memory)
        return score >= self._policy.level

    def read(self, depth: int, logits: Float[Tensor, "b t v"]) -> None:
        """Take the readout after a block, and let rows exit by it.

        The last readout is of all rows: those that exited before keep the state and the depth of their exit.
        """
        self.depths = torch.where(self.exited, self.depths, depth)
        if depth in self._tested:
            if self._policy.reads == Reads.LOGITS:
                self._exiting = self._test(depth, logits[:, -1])
            self.exited = self.exited | self._exiting


def dynamic_exit(policy: Policy, *, blocks: str | None = None, streamer: Any = None) -> DynamicExit:
    """Generate with early exit: each token exits at the first tested depth where the policy's score is high enough.

    Not lossless: a token that exits early may be another than the full model's, and all that follows builds on it.
    `anydepth.generation.calibrate` finds a threshold with a guarantee over whole sequences. In a batch, a step takes
    as many blocks as its least confident row; each row's tokens are what they would be alone.

    Args:
        policy: when to exit, one of `anydepth`'s; name two or three depths, since each test costs a readout.
        blocks: see `anydepth.Stack`.
        streamer: is given the tokens as they come; give it here, not to `generate`.

    Raises:
        GenerationError: a policy of one depth; and on use, as `self_speculative`.
        PolicyError: on use: a depth that the model does not have.

    Example:
        >>> import torch
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from anydepth import Confidence
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=3, n_embd=16, n_head=2, vocab_size=40, bos_token_id=1)).eval()
        >>> never = dynamic_exit(Confidence(1.0, depths=(1, 2)))
        >>> model.generate(torch.tensor([[3, 1, 4]]), max_new_tokens=4, custom_generate=never).shape
        torch.Size([1, 7])
        >>> never.spent.depths
        (3, 3, 3, 3)
    """
    return DynamicExit(policy, blocks=blocks, streamer=streamer)
