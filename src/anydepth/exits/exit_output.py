"""The output of an early-exit forward, in torch and in onnxruntime. It imports neither."""

from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

ArrayT = TypeVar("ArrayT")
"""`torch.Tensor` from `EarlyExit`, `numpy.ndarray` from `Router`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ExitOutput(Generic[ArrayT]):
    """Logits and exit depth of every sample, in the order of the batch, and what was computed for them.

    Its entries are read as those of an output of transformers: `out.logits`, `out["logits"]`, `out[0]`, `out[:2]`.

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

    def __getitem__(self, key: str | int | slice) -> Any:
        return vars(self)[key] if isinstance(key, str) else self.to_tuple()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(vars(self))

    def __len__(self) -> int:
        return len(vars(self))

    def keys(self) -> KeysView[str]:
        """The names of its entries."""
        return vars(self).keys()

    def values(self) -> ValuesView[ArrayT]:
        """Its entries, in the order of their names."""
        return vars(self).values()

    def items(self) -> ItemsView[str, ArrayT]:
        """Its entries with their names."""
        return vars(self).items()

    def to_tuple(self) -> tuple[ArrayT, ...]:
        """Its entries, the logits first."""
        return tuple(vars(self).values())
