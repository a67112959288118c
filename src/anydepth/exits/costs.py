"""Cost of a forward, block by block and readout by readout, and the cost of early exit that follows from it.

Each kind of step is timed at two batch sizes, which gives a cost per call and one per sample: a batch that has
shrunk to a few samples does not cost a few samples' share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from anydepth.core.model_io import Batch, call_model, device_of, sample_count, samples_of, split_batch, to_device
from anydepth.core.overrides import SharedSetting
from anydepth.core.patching import evaluating
from anydepth.core.stack import Stack
from anydepth.core.timing import time_call
from anydepth.errors import DataError
from anydepth.exits.forward import ExitForward
from anydepth.exits.policies import AtDepth, Patience, Reads
from anydepth.exits.policy_inputs import PolicyReader
from anydepth.exits.prefix_slicing import PrefixSlicer

_ROUNDS = 7
"""Times each step is timed; the median counts."""
_MATH_ATTENTION = SharedSetting(lambda: sdpa_kernel(SDPBackend.MATH))


@dataclass(frozen=True)
class Cost:
    """Cost of a step: of each call, and of each sample in it."""

    call: float
    sample: float

    def of(self, samples: int | float, calls: int | float = 1) -> float:
        """Cost of some calls with so many samples in all."""
        return calls * self.call + samples * self.sample


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Costs of a forward, in seconds on this machine (`measure_costs`) or in floating-point operations.

    Attributes:
        batch: samples of the batch that was measured.
        whole: the plain model.
        start: what runs before the first block, and around the whole.
        blocks: of each block, 1..L; 0 for those of stages before the last, which are part of the start.
        readout: of one readout, with the test of it.
    """

    batch: int
    whole: Cost
    start: Cost
    blocks: tuple[Cost, ...]
    readout: Cost

    @property
    def readout_in_blocks(self) -> float:
        """How many blocks one readout of the whole batch costs."""
        blocks = [block.of(self.batch) for block in self.blocks]
        return self.readout.of(self.batch) * np.count_nonzero(blocks) / float(np.sum(blocks))

    def total(self, depth: Int64[np.ndarray, " n"], tested: Sequence[int], *, reads: Reads = Reads.LOGITS) -> float:
        """Cost of a batch whose samples have these exit depths (1..L), with a policy that tests these depths below L.

        If the policy does not read logits, there is a readout only where a sample exits.
        """
        last, size, by_logits = len(self.blocks), self.batch, reads == Reads.LOGITS
        total = self.start.of(size)
        for block, cost in enumerate(self.blocks, 1):
            remaining, exiting = float((depth >= block).mean()), float((depth == block).mean())
            total += cost.of(size * remaining, _any(remaining, size))
            if block in tested or block == last:
                likely = _any(remaining if by_logits else exiting, size)
                total += self.readout.of(size * remaining * (1 if by_logits else likely), likely)
        return float(total)

    def share(self, depth: Int64[np.ndarray, " n"], tested: Sequence[int], *, reads: Reads = Reads.LOGITS) -> float:
        """Cost of a batch whose samples exit like these, over the cost of the plain model."""
        return self.total(depth, tested, reads=reads) / self.whole.of(self.batch)


def _any(share: int | float, size: int) -> float:
    """The probability of at least one of so many samples, each with this probability."""
    return float(1 - (1 - share) ** size)


def measure_costs(stack: Stack, batch: Any, *, rounds: int = _ROUNDS) -> Costs:
    """Time the steps of a forward on a batch, and on a quarter of it: each `rounds` times, and the median counts.

    The costs hold for the device that the model is on, the size of the batch, and texts of its length.

    Raises:
        DataError: the batch holds no sample.

    Example:
        >>> from transformers import ViTConfig, ViTForImageClassification
        >>> config = ViTConfig(image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
        ...                    intermediate_size=32, num_channels=1, num_labels=5)
        >>> stack = Stack(ViTForImageClassification(config).eval())
        >>> costs = measure_costs(stack, {"pixel_values": torch.rand(8, 1, 8, 8)}, rounds=2)
        >>> len(costs.blocks), costs.whole.of(8) > 0
        (3, True)
    """
    inputs = to_device(split_batch(batch, stack.model).inputs, device_of(stack.model))
    size = sample_count(inputs)
    if not size:
        raise DataError("a batch holds no sample, expected at least one")
    few = max(1, size // 4)
    stack.verify(inputs)  # before the clock runs
    with evaluating(stack.model), torch.inference_mode():
        large = _timed(stack, inputs, rounds)
        small = _timed(stack, samples_of(inputs, slice(few)), rounds) if few < size else large
    return _costs(size, [_line(few, a, size, b) for a, b in zip(small, large, strict=True)])


def _costs(size: int, costs: Sequence[Cost]) -> Costs:
    """Costs of: the plain model, the start, each block, a readout."""
    whole, start, *blocks, readout = costs
    return Costs(batch=size, whole=whole, start=start, blocks=tuple(blocks), readout=readout)


def _timed(stack: Stack, batch: Batch, rounds: int) -> Float64[np.ndarray, " k"]:
    """Medians of: the plain model, the start, each block, a readout. A round before them warms up.

    Start and readout are those of early exit: the forward that tests nowhere minus its blocks, and what testing
    everywhere adds to it, per test.
    """
    last, slicer = stack.depth, PrefixSlicer(stack)
    nowhere, everywhere = PolicyReader(stack, AtDepth(last)), PolicyReader(stack, Patience(last + 1))
    seconds = []
    for _ in range(rounds + 1):
        # New tensors each time: nothing is cached for them.
        fresh = [samples_of(batch, slice(None)) for _ in range(4)]
        whole = time_call(call_model, stack.model, fresh[0])[1]
        untested = time_call(ExitForward(nowhere, slicer, fresh[1]).run)[1]
        tested = time_call(ExitForward(everywhere, slicer, fresh[2]).run)[1]
        seconds.append([whole, untested, tested, *_measure_blocks(time_call, stack.replay(fresh[3]), stack)[1]])
    whole, untested, tested, *blocks = np.median(np.array(seconds[1:]), axis=0)
    readout = max(0.0, tested - untested) / max(1, len(everywhere.tested))
    return np.array([whole, max(0.0, untested - sum(blocks) - readout), *blocks, readout])


def count_flops(stack: Stack, batch: Any) -> Costs:
    """Count the floating-point operations of a forward's steps: matrix products and convolutions, as torch does."""
    inputs = to_device(split_batch(batch, stack.model).inputs, device_of(stack.model))
    stack.verify(inputs)
    # Fused attention has no formula on every device; unfused it is products of matrices.
    with evaluating(stack.model), torch.inference_mode(), _MATH_ATTENTION:
        whole = _operations(call_model, stack.model, inputs)[1]
        fresh = samples_of(inputs, slice(None))  # new tensors: nothing is cached for them
        replay, start = _operations(stack.replay, fresh)
        state, blocks = _measure_blocks(_operations, replay, stack)
        readout = _operations(partial(stack.readout, depth=stack.depth), state, fresh)[1]
    size = sample_count(inputs)
    return _costs(size, [Cost(0.0, flops / size) for flops in (whole, start, *blocks, readout)])


def _measure_blocks(measure: Callable[..., tuple[Any, float]], replay: Any, stack: Stack) -> tuple[Any, list[float]]:
    """The state after block L, and what each block took; 0 for blocks of earlier stages, which are not replayed."""
    state, amounts = replay.state, [0.0] * stack.entry
    for depth in range(stack.entry + 1, stack.depth + 1):
        state, amount = measure(replay.step, state, depth)
        amounts.append(amount)
    return state, amounts


def _operations(step: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    """Result of a call, and the floating-point operations it took."""
    with FlopCounterMode(display=False) as counter:
        result = step(*args)
    return result, float(counter.get_total_flops())


def _line(few: int, seconds_few: float, many: int, seconds_many: float) -> Cost:
    """The cost of a call and of a sample from two batch sizes; neither is negative, however noisy the clock."""
    if few == many:
        return Cost(0.0, float(seconds_many) / many)
    sample = min(max(0.0, float(seconds_many - seconds_few) / (many - few)), float(seconds_many) / many)
    return Cost(max(0.0, float(seconds_many) - many * sample), sample)
