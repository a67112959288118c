"""The output of an early-exit forward, in torch and in onnxruntime. It imports neither."""

from dataclasses import dataclass
from typing import Generic, TypeVar

ArrayT = TypeVar("ArrayT")
"""`torch.Tensor` from `EarlyExit`, `numpy.ndarray` from `Router`."""


@dataclass(frozen=True, kw_only=True)
class ExitOutput(Generic[ArrayT]):
    """Logits and exit depth of every sample, in the order of the batch, and what was computed for them.

    Attributes:
        logits: (B, C) of each sample, at the depth of its exit.
        depth: (B,) that depth, 1..L.
        blocks: (L,) how many samples each block ran on; 0 where all had exited before.
        readouts: (L,) how many samples were read out at each depth.
        undecided: (L,) at each depth, how many samples had a score that is NaN; they went on.
    """

    logits: ArrayT
    depth: ArrayT
    blocks: ArrayT
    readouts: ArrayT
    undecided: ArrayT
