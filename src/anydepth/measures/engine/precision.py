"""Context managers for full float32 products and default arithmetic settings, independent of the caller's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from anydepth.core.overrides import SharedSetting


@contextmanager
def usual_settings() -> Iterator[None]:
    """Context manager: numpy's default warnings, and new tensors on the CPU, for values independent of the caller's.

    Example:
        >>> with np.errstate(all="raise"), usual_settings():
        ...     np.exp(np.array([-1000.0]))
        array([0.])
    """
    with np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"), torch.device("cpu"):
        yield


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Context manager: matrix products in true float32, without a graph for gradients.

    Autocast (a metric updated inside a training step), TF32 and `torch.set_float32_matmul_precision("medium")` turn
    them silently into ones with 8 to 11 bits, enough to move CKA in the second digit. The settings are put back.

    Example:
        >>> with torch.autocast("cpu", torch.bfloat16), full_precision(torch.device("cpu")):
        ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        torch.float32
    """
    with _IEEE, torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


@contextmanager
def _ieee() -> Iterator[None]:
    backends = (torch.backends.mkldnn.matmul, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


_IEEE = SharedSetting(_ieee)
