"""Leaving token by token: a token is read out at the first tested depth that is sure enough of it.

Later tokens attend to every position at every depth, so the blocks that a token skipped must have keys and values of
it all the same. They are made from the state it left with (Schuster et al. 2022 copy it up): each skipped block is run
until it has handed them over, and no further. Left out, they would be silently wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from transformers.cache_utils import Cache

from anydepth.calling import call_with
from anydepth.errors import GenerationError
from anydepth.exits.policies import AtDepth, Policy
from anydepth.generation.cache import Filled, Seen, cut_back, whole_cache
from anydepth.generation.decoder import Spent, checked_on
from anydepth.generation.modes import Mode, refuse
from anydepth.legs import Legs
from anydepth.surgery import forward_as


class DynamicExit(Mode):
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
        refuse(generation_config, unless="dynamic exit")
        stack = self.stack(model, input_ids, given)
        given["past_key_values"] = whole_cache(given.get("past_key_values"), stack.depth)
        streamer = self.streaming(input_ids, streamer)
        forward = model.forward
        self.spent = Spent()
        with stack.in_legs(
            checked_on(input_ids, given.get("attention_mask")), lambda inputs: forward(**inputs)
        ) as legs:
            steps = _Steps(legs, self.policy, stack.depth, self.spent)
            with forward_as(model, steps):
                output = model._sample(
                    input_ids,
                    logits_processor=logits_processor,
                    stopping_criteria=stopping_criteria,
                    generation_config=generation_config,
                    streamer=streamer,
                    **given,
                )
        sequences = output if isinstance(output, Tensor) else output.sequences
        self.spent.tokens = sequences.shape[0] * (sequences.shape[1] - input_ids.shape[1])
        return output


class _Steps:
    """The forward that `generate` calls for each token, and once for the prompt."""

    def __init__(self, legs: Legs, policy: Policy, last: int, spent: Spent) -> None:
        self._legs, self._policy, self._last, self._spent = legs, policy, last, spent
        self._tested = policy.tested(last)
        self._prompted = False
        legs.notes = True

    def __call__(self, **inputs: Any) -> Any:
        cache: Cache = inputs["past_key_values"]
        seen = Seen(cache, cache.get_seq_length())
        self._legs.frozen = None
        self._legs.enter(0)
        with _all_or_nothing(cache, seen.length):
            # the prompt goes through all blocks: its last position says no more of the others than they of it
            tested, self._prompted = (self._tested if self._prompted else ()), True
            output = self._step({**inputs, "past_key_values": seen}, seen, tested)
        output.past_key_values = cache
        return output

    def _step(self, inputs: dict[str, Any], seen: Seen, tested: tuple[int, ...]) -> Any:
        logits: Tensor | None = None
        memory: Tensor | None = None
        depths = torch.zeros(0)
        for depth in (*tested, self._last):
            before = self._legs.depth
            output = self._legs.run(inputs, partial(_reached, depth))
            self._spent.blocks += depth - before
            self._spent.readouts += 1
            gone = self._legs.frozen
            if logits is None or gone is None:
                logits, depths = output.logits, torch.full_like(output.logits[:, 0, 0], depth, dtype=torch.long)
            else:
                logits = torch.where(gone[:, None, None], logits, output.logits)
                depths = torch.where(gone, depths, depth)
            if depth == self._last:
                break
            leaving, memory = self._leaving(depth, output.logits[:, -1], memory)
            self._legs.frozen = leaving if gone is None else leaving | gone
            if bool(self._legs.frozen.all()):
                self._fill(seen, depth)
                break
            if not bool(self._legs.frozen.any()):
                self._legs.frozen = None
        output.logits = logits
        self._spent.depths += tuple(depths.tolist()) if tested else (self._last,) * len(depths)
        return output

    def _leaving(self, depth: int, logits: Tensor, memory: Tensor | None) -> tuple[Bool[Tensor, " b"], Tensor | None]:
        reads_state = self._policy.reads == "state"
        seen = self._legs.state[:, -1] if reads_state else logits
        score, memory = self._policy.scores(depth, seen, memory)
        return score >= self._policy.level, memory

    def _fill(self, seen: Seen, depth: int) -> None:
        """Have the blocks behind a depth make keys and values of its state."""
        for number in range(depth + 1, self._last + 1):
            block, args, kwargs = self._legs.passed[number]
            with seen.filling():
                try:
                    call_with(block, self._legs.state.clone(), args, kwargs)
                except Filled:
                    self._spent.filled += 1
                    continue
            raise GenerationError(f"block {number} keeps no keys and values: tokens cannot leave before it")


def _reached(end: int, number: int, state: Tensor) -> bool:
    return number >= end


@contextmanager
def _all_or_nothing(cache: Cache, length: int) -> Iterator[None]:
    """Inside, blocks write to the cache; if that fails half-way, it is as it was."""
    try:
        yield
    except BaseException:
        cut_back(cache, length)
        raise


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
