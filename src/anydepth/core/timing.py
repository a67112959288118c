"""Time calls, with the work that they start on an accelerator."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

Clock = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Time of calls with batches of one size.

    Attributes:
        name: of what was called.
        batch: samples in each call.
        calls: how many were timed.
        p50: seconds of a call, the median.
        p95: the 95th percentile.
        throughput: samples per second over all calls.
    """

    name: str
    batch: int
    calls: int
    p50: float
    p95: float
    throughput: float


def time_call(call: Callable[..., Any], *args: Any, clock: Clock = time.perf_counter) -> tuple[Any, float]:
    """The result of a call and the seconds that it took by the clock."""
    _synchronize()
    start = clock()
    result = call(*args)
    _synchronize()
    return result, clock() - start


def latencies(
    functions: Mapping[str, Callable[[Any], Any]],
    inputs: Sequence[Any],
    batch: int,
    *,
    clock: Clock = time.perf_counter,
) -> tuple[Latency, ...]:
    """Time functions on the same inputs, each of `batch` samples, in turn; a call of each before them warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for call in functions.values():
        call(inputs[0])
    for each in inputs:
        for name, call in functions.items():
            seconds[name].append(time_call(call, each, clock=clock)[1])
    return tuple(
        Latency(
            name=name,
            batch=batch,
            calls=len(taken),
            p50=float(np.median(taken)),
            p95=float(np.quantile(taken, 0.95)),
            throughput=batch * len(taken) / sum(taken),
        )
        for name, taken in seconds.items()
    )


def relative_seconds(
    call: Callable[[Any], Any],
    other: Callable[[Any], Any],
    inputs: Sequence[Any],
    *,
    rounds: int = 3,
    clock: Clock = time.perf_counter,
) -> float:
    """Time of a function over another's, on the same inputs in turn: the median of some rounds."""

    def run(function: Callable[[Any], Any]) -> None:
        for each in inputs:
            function(each)

    ratios = []
    for _ in range(rounds):
        before = time_call(run, other, clock=clock)[1]
        ratios.append(time_call(run, call, clock=clock)[1] / before)
    return float(np.median(ratios))


def _synchronize() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
