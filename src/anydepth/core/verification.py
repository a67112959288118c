"""The laws that a model must keep for its readouts to be right, and what it says when one is broken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from anydepth.errors import AnydepthError, ReadoutMismatch, UnknownArchitecture, one_line

# `Stack.verify` compares the same operations on the same numbers. These tolerances, relative to the largest entry, are
# for kernels that round differently from one call to the next.
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}


def tolerance_of(values: Tensor) -> float:
    """Largest difference, relative to the largest entry, at which two computations of these values count as equal."""
    return _TOLERANCE.get(values.dtype, 1e-5)


@dataclass(frozen=True, kw_only=True)
class Verification:
    """Result of `Stack.verify` on one batch: largest differences, relative to the largest entry."""

    readout: float
    """`readout(h[L])` against the model's own output."""
    cut: float
    """`readout(h[k])` against the model cut after block k (`depth`)."""
    replay: float
    """Block-by-block replay of one sample against the states of both."""
    plain: float
    """The answer with stubs in place against that of the untouched model."""
    prefix: float
    """h[0] from the kept outputs of what runs before block 1, twice, against h[0]."""
    depth: int
    tolerance: float


_BETWEEN = "this model passes something between or around its blocks that a state does not hold"
_LAWS = {
    "plain": "it answers otherwise without its caches (use_cache=False), or from one call to the next",
    "prefix": "what runs before the blocks is changed afterwards, or is not the same each time",
    "readout": _BETWEEN,
    "cut": _BETWEEN,
    "replay": f"{_BETWEEN}, or samples of a batch affect each other",
}


def check(model: str, path: str, verification: Verification) -> None:
    """Raise `ReadoutMismatch` unless every law holds, with the size of the error and what may be the reason."""
    for name, reason in _LAWS.items():
        # `not <=` so that NaN is a mismatch, too
        if not (error := getattr(verification, name)) <= verification.tolerance:
            raise ReadoutMismatch(
                f"{model}: the {name} law is broken at {path!r}: largest relative difference {error:.2g}, expected at "
                f"most {verification.tolerance:.0e}; {reason}"
            )


@contextmanager
def refusing(refusal: Callable[[str], AnydepthError]) -> Iterator[None]:
    """Context manager: what a model's own code raises is a refusal, made of the kind of error and its first line."""
    try:
        yield
    except (AnydepthError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise refusal(f"{type(error).__name__}: {one_line(error)}") from error


def without_stubs(model: nn.Module, reason: str) -> UnknownArchitecture:
    """The refusal of a model that fails once stubs stand in the place of its blocks."""
    return UnknownArchitecture(
        f"{type(model).__name__} runs by itself, but not with stubs in the place of its blocks ({reason}): it needs "
        "more of a block than its state"
    )
