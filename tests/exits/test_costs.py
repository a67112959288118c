from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from exit_models import build
from hypothesis import given
from hypothesis import strategies as st

from anydepth.core.stack import Stack
from anydepth.core.timing import latencies, relative_seconds
from anydepth.early_exit.classifier import EarlyExit
from anydepth.early_exit.curve import exit_latencies
from anydepth.errors import DataError
from anydepth.exits.costs import Cost, Costs, count_flops, measure_costs
from anydepth.exits.policies import Confidence, Reads

LAST = 4


def made(call: float, sample: float, readout: float, batch: int = 8) -> Costs:
    block = Cost(call, sample)
    whole = Cost(LAST * call + call, LAST * sample + readout)
    return Costs(batch=batch, whole=whole, start=Cost(0.0, 0.0), blocks=(block,) * LAST, readout=Cost(call, readout))


def test_a_total_is_the_sum_over_blocks_and_readouts() -> None:
    """Without a cost per call, sample by sample: the blocks gone through, and a readout at each depth tested."""
    costs = made(0.0, 1.0, 0.25, batch=4)
    depth = np.array([1, 2, 4, 4])
    blocks = depth.sum()
    expected = blocks + 0.25 * (1 + 2 + 4 + 4)  # those who went on were tested three times, and read out at the last
    assert costs.total(depth, (1, 2, 3)) == pytest.approx(expected)
    # by states, those still there are read out where somebody leaves: at 3 nobody does
    likely = 1 - 0.75**4, 1 - 0.75**4, 0, 1 - 0.5**4
    read = sum(p * there for p, there in zip(likely, (4, 3, 2, 2), strict=True))
    assert costs.total(depth, (1, 2, 3), reads=Reads.STATE) == pytest.approx(blocks + 0.25 * read)
    assert costs.total(np.full(4, LAST), ()) == pytest.approx(costs.whole.of(4))
    assert costs.share(np.full(4, LAST), ()) == pytest.approx(1.0)


def test_a_call_is_paid_while_anybody_is_there() -> None:
    costs = made(1.0, 0.0, 0.0, batch=2)
    depth = np.array([1, LAST])
    # of batches of two drawn from these, block 2 runs unless both are of the kind that left: 1 - 1/4
    assert costs.total(depth, ()) == pytest.approx(1 + 3 * 0.75 + 0.75)


@given(st.lists(st.integers(1, LAST), min_size=1, max_size=20), st.integers(0, 19))
def test_leaving_later_never_costs_less(depths: list[int], which: int) -> None:
    costs = made(0.3, 1.0, 0.2)
    later = list(depths)
    later[which % len(depths)] = LAST
    assert costs.total(np.array(depths), (1, 2)) <= costs.total(np.array(later), (1, 2)) + 1e-9


def test_operations_are_counted_as_by_hand() -> None:
    """A linear model: two operations for each weight and sample."""
    model = tiny_models.Nobodys()
    x = torch.randn(6, 8)
    found = count_flops(Stack(model.eval()), x)
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert found.whole.of(1) == sum(2 * one.weight.numel() for one in linear)
    assert found.whole.of(6) == 6 * found.whole.of(1)
    blocks = [[one for one in block.modules() if isinstance(one, torch.nn.Linear)] for block in model.trunk]
    assert [one.of(1) for one in found.blocks] == [sum(2 * one.weight.numel() for one in own) for own in blocks]
    last = [one for one in model.last.modules() if isinstance(one, torch.nn.Linear)]
    assert found.readout.of(1) == sum(2 * one.weight.numel() for one in last)


def test_attention_counts_too() -> None:
    model, batch = tiny_models.build("bert")
    found = count_flops(Stack(model), batch)
    tokens = batch["input_ids"].shape[1]
    config = model.config
    width, inner = config.hidden_size, config.intermediate_size
    products = 2 * tokens * (4 * width * width + 2 * width * inner) + 4 * tokens * tokens * width
    assert [one.of(1) for one in found.blocks] == [products] * config.num_hidden_layers


def test_measured_costs_are_of_the_model() -> None:
    model, batch = tiny_models.build("bert")
    model.train()
    costs = measure_costs(Stack(model), batch, rounds=2)
    assert all(module.training for module in model.modules())
    assert len(costs.blocks) == model.config.num_hidden_layers
    assert all(cost.call >= 0 and cost.sample >= 0 for cost in (costs.whole, costs.start, *costs.blocks, costs.readout))
    assert costs.batch == len(batch["input_ids"])
    assert costs.readout_in_blocks >= 0


def test_an_empty_batch() -> None:
    model, batch = tiny_models.build("bert")
    with pytest.raises(DataError, match="a batch holds no sample"):
        measure_costs(Stack(model), {name: values[:0] for name, values in batch.items()})


# --- latency, by a clock that is made up -----------------------------------------------------------------------------


class Clock:
    """Goes on only by what the functions under test say that they take."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def taking(self, seconds: list[float]) -> Callable[[Any], None]:
        left = iter(seconds)

        def call(_: Any) -> None:
            self.now += next(left)

        return call


def test_latencies_are_quantiles_of_calls_in_turn() -> None:
    clock, taken = Clock(), [float(second) for second in range(1, 21)]
    functions = {"slow": clock.taking([99.0, *taken]), "fast": clock.taking([99.0, *([0.5] * 20)])}
    slow, fast = latencies(functions, list(range(20)), 8, clock=clock)
    assert (slow.name, slow.batch, slow.calls) == ("slow", 8, 20)
    assert (slow.p50, slow.p95) == (10.5, pytest.approx(np.quantile(taken, 0.95)))
    assert slow.throughput == pytest.approx(8 * 20 / 210)
    assert (fast.p50, fast.p95, fast.throughput) == (0.5, 0.5, 16.0)


def test_relative_seconds_are_the_median_of_rounds() -> None:
    clock = Clock()
    one, other = clock.taking([1.0, 1.0, 30.0, 30.0, 3.0, 3.0]), clock.taking([2.0] * 6)
    assert relative_seconds(one, other, [0, 1], rounds=3, clock=clock) == pytest.approx(1.5)


def test_exits_are_timed_at_the_sizes_that_batches_allow() -> None:
    model, batch = build("bert", 20)
    exits = EarlyExit(model, Confidence(0.3))
    clock = Clock()

    def watched(*_: Any) -> None:
        clock.now += 1.0

    model.bert.register_forward_pre_hook(watched)
    results = exit_latencies(exits, [batch, {name: values[:7] for name, values in batch.items()}], clock=clock)
    assert [(row.name, row.batch, row.calls) for row in results] == [
        ("full model", 1, 27), ("early exit", 1, 27), ("full model", 8, 2), ("early exit", 8, 2),
    ]  # fmt: skip
    assert all(row.p50 == 1.0 for row in results if row.name == "full model")
    assert [row.throughput for row in results if row.name == "full model"] == [1.0, 8.0]
    assert all(row.p50 >= 1.0 for row in results)
