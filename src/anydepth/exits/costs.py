"""What a forward costs here, block by block and readout by readout, and what an exit policy would therefore save.

Each kind of step is timed at two batch sizes, which gives a cost per call and one per sample: a batch that has
shrunk to a few samples does not cost a few samples' share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from anydepth.exits.policies import AtDepth, Patience
from anydepth.exits.policy_inputs import PolicyReader
from anydepth.exits.prefix_slicing import PrefixSlicer

_ROUNDS = 7
"""Times each step is timed; the median counts."""
_ATTENTION_TAKEN_APART = SharedSetting(lambda: sdpa_kernel(SDPBackend.MATH))


@dataclass(frozen=True)
class Cost:
    """What a step costs: each call, and each sample in it."""

    call: float
    sample: float

    def of(self, samples: int | float, calls: int | float = 1) -> float:
        """What some calls cost with so many samples in all."""
        return calls * self.call + samples * self.sample


@dataclass(frozen=True)
class Costs:
    """What a forward costs, in seconds on this machine (`measure_costs`) or in floating-point operations.

    Attributes:
        batch: samples of the batch it was found on.
        whole: the plain model.
        start: what runs before the first block, and around the whole.
        blocks: of each block, 1..L.
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
        return self.readout.of(self.batch) / float(np.mean([block.of(self.batch) for block in self.blocks]))

    def total(self, depth: Int64[np.ndarray, " n"], tested: Sequence[int], *, reads: str = "logits") -> float:
        """What a batch costs if its samples leave like these.

        Args:
            depth: where each sample leaves, 1..L.
            tested: the depths below L that are tested.
            reads: what the policy looks at; if it is not logits, nobody is read out where nobody leaves.
        """
        last, size = len(self.blocks), self.batch
        there = np.array([(depth >= block).mean() for block in range(1, last + 1)])
        leaving = np.array([(depth == block).mean() for block in range(1, last + 1)])
        total = self.start.of(size)
        for block, cost in enumerate(self.blocks, 1):
            total += cost.of(size * there[block - 1], _any(there[block - 1], size))
            if block in tested or block == last:
                read = there if reads == "logits" else leaving
                likely = _any(read[block - 1], size)
                total += self.readout.of(size * there[block - 1] * (1 if reads == "logits" else likely), likely)
        return float(total)

    def share(self, depth: Int64[np.ndarray, " n"], tested: Sequence[int], *, reads: str = "logits") -> float:
        """What a batch costs if its samples leave like these, over what the plain model costs."""
        return self.total(depth, tested, reads=reads) / self.whole.of(self.batch)


def _any(share: int | float, size: int) -> float:
    """The probability that of so many samples at least one is there."""
    return float(1 - (1 - share) ** size)


def measure_costs(stack: Stack, batch: Any, *, rounds: int = _ROUNDS) -> Costs:
    """Time the steps of a forward on a batch, and on a quarter of it.

    Args:
        stack: the model, on the device it is to run on.
        batch: like those to come: what is measured holds for its size, and for texts of its length.
        rounds: times each step is timed; the median counts.

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
    stack.verify(inputs)  # now, not while the clock runs
    with evaluating(stack.model), torch.inference_mode():
        large = _timed(stack, inputs, rounds)
        small = _timed(stack, samples_of(inputs, slice(few)), rounds) if few < size else large
    costs = [_line(few, one, size, other) for one, other in zip(small, large, strict=True)]
    return Costs(size, costs[0], costs[1], tuple(costs[2:-1]), costs[-1])


def _timed(stack: Stack, batch: Batch, rounds: int) -> Float64[np.ndarray, " k"]:
    """Medians of: the plain model, the start, each block, a readout. A round before them warms up.

    Start and readout are what the engine makes of them: a flight that tests nowhere less its blocks, and what testing
    everywhere adds to it, a test.
    """
    last, lanes = stack.depth, PrefixSlicer(stack)
    nowhere, everywhere = PolicyReader(stack, AtDepth(last)), PolicyReader(stack, Patience(last + 1))
    found = []
    for _ in range(rounds + 1):
        clock = _Clock()
        # tensors not seen before: nothing is kept of them
        fresh = [samples_of(batch, slice(None)) for _ in range(4)]
        clock(call_model, stack.model, fresh[0])
        clock(ExitForward(nowhere, lanes, fresh[1]).run)
        clock(ExitForward(everywhere, lanes, fresh[2]).run)
        replay = stack.replay(fresh[3])
        state = replay.state
        for depth in range(1, last + 1):
            state = clock(replay.step, state, depth)
        found.append(clock.seconds)
    whole, untested, tested, *blocks = np.median(np.array(found[1:]), axis=0)
    readout = max(0.0, tested - untested) / max(1, last - 1)
    return np.array([whole, max(0.0, untested - sum(blocks) - readout), *blocks, readout])


def count_flops(stack: Stack, batch: Any) -> Costs:
    """Count the floating-point operations of a forward's steps: products of matrices and convolutions, as torch does.

    Args:
        stack: the model.
        batch: like those to come.
    """
    inputs = to_device(split_batch(batch, stack.model).inputs, device_of(stack.model))
    stack.verify(inputs)
    counter = _Counter()
    # fused attention has no formula on every device; taken apart it is products of matrices
    with evaluating(stack.model), torch.inference_mode(), _ATTENTION_TAKEN_APART:
        counter(call_model, stack.model, inputs)
        fresh = samples_of(inputs, slice(None))  # tensors not seen before: nothing is kept of them
        replay = counter(stack.replay, fresh)
        state = replay.state
        for depth in range(1, stack.depth + 1):
            state = counter(replay.step, state, depth)
        counter(stack.readout, state, fresh)
    size = sample_count(inputs)
    costs = [Cost(0.0, flops / size) for flops in counter.flops]
    return Costs(size, costs[0], costs[1], tuple(costs[2:-1]), costs[-1])


class _Clock:
    """Calls what it is given, and keeps how long each took."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __call__(self, step: Callable[..., Any], *args: Any) -> Any:
        result, seconds = time_call(step, *args)
        self.seconds.append(seconds)
        return result


class _Counter:
    """Calls what it is given, and keeps how many operations each took."""

    def __init__(self) -> None:
        self.flops: list[int] = []

    def __call__(self, step: Callable[..., Any], *args: Any) -> Any:
        with FlopCounterMode(display=False) as counted:
            result = step(*args)
        self.flops.append(counted.get_total_flops())
        return result


def _line(few: int, seconds_few: float, many: int, seconds_many: float) -> Cost:
    """The cost of a call and of a sample that two sizes show; neither is negative, however the clock shook."""
    if few == many:
        return Cost(0.0, float(seconds_many) / many)
    sample = min(max(0.0, float(seconds_many - seconds_few) / (many - few)), float(seconds_many) / many)
    return Cost(max(0.0, float(seconds_many) - many * sample), sample)
