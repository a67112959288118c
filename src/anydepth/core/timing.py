"""Time calls, with the work that they start on an accelerator."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch


def time_call(
    call: Callable[..., Any], *args: Any, clock: Callable[[], float] = time.perf_counter
) -> tuple[Any, float]:
    """The result of a call and the seconds that it took by the clock."""
    _synchronize()
    start = clock()
    result = call(*args)
    _synchronize()
    return result, clock() - start


def _synchronize() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
