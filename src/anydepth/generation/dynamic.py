"""Leaving token by token: a token is read out at the first tested depth that is sure enough of it.

Later tokens attend to every position at every depth, so the blocks that a token skipped must have keys and values of
it all the same. They are made from the state it left with (Schuster et al. 2022 copy it up): each skipped block is run
until it has handed them over, and no further. Left out, they would be silently wrong.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from transformers.cache_utils import Cache

from anydepth.core.model_io import call_with
from anydepth.core.patching import forward_as
from anydepth.core.segments import Segments
from anydepth.dependencies import cache_name
from anydepth.errors import GenerationError
from anydepth.exits.policies import AtDepth, Policy, Reads
from anydepth.generation.cache import FixedLengthCache, KeysWritten, levelled, require_filled, whole_cache
from anydepth.generation.decoder import GenerationStats, checked_on
from anydepth.generation.modes import GenerationMethod, new_tokens, require_supported, written


class DynamicExit(GenerationMethod):
    """See `dynamic_exit`."""

    def __init__(self, policy: Policy, *, blocks: str | None = None, streamer: Any = None) -> None:
        super().__init__(blocks=blocks, streamer=streamer)
        if isinstance(policy, AtDepth):
            raise GenerationError("AtDepth lets every token go at one depth: use at_depth, which fills no cache")
        self.policy = policy

    def __call__(
        self,
        model: Any,
        input_ids: Int64[Tensor, "b t"],
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        streamer: Any = None,
        **given: Any,
    ) -> Any:
        """What `generate` calls in place of its own loop: that loop itself, with a forward that may stop early."""
        require_supported(model, generation_config, unless="dynamic exit")
        stack = self.stack(model, input_ids, given)
        cache = whole_cache(given.get(cache_name()), stack.depth)
        prompted = cache.get_seq_length() + new_tokens(input_ids, cache, given, generation_config).shape[1]
        streamer = self.streaming(input_ids, streamer)
        forward = model.forward
        spent = self.counted()
        with stack.segments(
            checked_on(input_ids, given.get("attention_mask")), lambda inputs: forward(**inputs)
        ) as legs:
            steps = _Steps(legs, self.policy, stack.depth, prompted, spent)
            with forward_as(model, steps), levelled(cache, stack.depth):
                output = model._sample(
                    input_ids,
                    logits_processor=logits_processor,
                    stopping_criteria=stopping_criteria,
                    generation_config=generation_config,
                    streamer=streamer,
                    **{**given, cache_name(): cache},
                )
        spent.tokens = written(output, input_ids)
        return output


class _Steps:
    """The forward that `generate` calls for the prompt, and then for each token.

    Args:
        legs: the model's own forward in legs, open.
        policy: when a token leaves.
        last: L.
        prompted: positions of the prompt. They go through all blocks: what its last one shows says nothing of the
            others.
        spent: to add to.
    """

    def __init__(self, legs: Segments, policy: Policy, last: int, prompted: int, spent: GenerationStats) -> None:
        self._legs, self._policy, self._last, self._prompted, self._spent = legs, policy, last, prompted, spent
        self._tested = policy.tested(last)
        legs.notes = True

    def __call__(self, **inputs: Any) -> Any:
        name = cache_name()
        cache: Cache = inputs[name]
        length = cache.get_seq_length()
        seen = FixedLengthCache(cache, length)
        tested = () if length < self._prompted else self._tested
        step = _Step(self._policy, tested, torch.zeros_like(inputs["input_ids"][:, 0], dtype=torch.bool))
        output = self._run(step, {**inputs, name: seen})
        self._fill(seen)
        length += inputs["input_ids"].shape[1]
        require_filled(cache, length)
        if length >= self._prompted:
            self._spent.depths += tuple(step.depths.tolist())
        output[name] = cache
        return output

    def _run(self, step: _Step, inputs: dict[str, Any]) -> Any:
        """Run blocks until all rows have left; returns what the model answered last."""
        legs = self._legs
        legs.enter(0)
        legs.frozen = None
        while True:
            before = legs.depth
            output = legs.run(inputs, step.stops)
            self._spent.blocks += legs.depth - before
            self._spent.readouts += 1
            step.read(legs.depth, output.logits)
            if legs.depth == self._last or bool(step.gone.all()):
                return output
            legs.frozen = step.gone if bool(step.gone.any()) else None

    def _fill(self, seen: FixedLengthCache) -> None:
        """Have the blocks that did not run make keys and values of the state where all have left."""
        for number in range(self._legs.depth + 1, self._last + 1):
            block, args, kwargs = self._legs.passed[number]
            with seen.filling(), suppress(KeysWritten):
                call_with(block, self._legs.state.clone(), args, kwargs)
            self._spent.filled += 1


class _Step:
    """One token of each row on its way through the blocks.

    Args:
        policy: when a row leaves.
        tested: the depths where it may.
        gone: which rows have left before, (B,).

    Attributes:
        gone: which have left by now.
        depths: where each was read out, (B,).
    """

    def __init__(self, policy: Policy, tested: tuple[int, ...], gone: Bool[Tensor, " b"]) -> None:
        self._policy, self._tested, self.gone = policy, tested, gone
        self.depths = torch.zeros_like(gone, dtype=torch.long)
        self._memory: Tensor | None = None
        self._leaving = gone

    def stops(self, depth: int, state: Float[Tensor, "b t d"]) -> bool:
        """Whether the rows, after this block, are to be read out."""
        if depth not in self._tested:
            return False
        if self._policy.reads == Reads.LOGITS:
            return True
        self._leaving = self._test(depth, state[:, -1])
        return bool((self._leaving & ~self.gone).any())

    def _test(self, depth: int, seen: Float[Tensor, "b m"]) -> Bool[Tensor, " b"]:
        score, self._memory = self._policy.scores(depth, seen, self._memory)
        return score >= self._policy.level

    def read(self, depth: int, logits: Float[Tensor, "b t v"]) -> None:
        """Take what was read out after a block, and let go who has had enough.

        The last readout is of all rows: those that have left keep the state where they did.
        """
        self.depths = torch.where(self.gone, self.depths, depth)
        if depth in self._tested:
            if self._policy.reads == Reads.LOGITS:
                self._leaving = self._test(depth, logits[:, -1])
            self.gone = self.gone | self._leaving


def dynamic_exit(policy: Policy, *, blocks: str | None = None, streamer: Any = None) -> DynamicExit:
    """Generate with as many blocks for each token as it takes to be sure of it.

    Not lossless: a token that leaves early may be another than the full model's, and all that follows builds on it.
    `anydepth.generation.calibrate` says how sure is sure enough, counting whole sequences. In a batch, a step takes
    what its least sure row takes; each row's tokens are what they would be alone.

    Args:
        policy: when to leave, of `anydepth`'s policies; name two or three depths, since each test asks the head.
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
