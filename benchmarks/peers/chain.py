"""A chain of depths like a residual network's, in a file, as anydepth and as its peers read it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

DEPTHS, WIDTH = 12, 384


def make_states(file: Path, n: int, width: int = WIDTH) -> None:
    """Each depth adds a little to the last; one feature lies far off."""
    rng = np.random.default_rng(0)
    rows = np.lib.format.open_memmap(file, "w+", np.float32, (n, DEPTHS * width))
    for start in range(0, n, 1000):
        steps = rng.standard_normal((min(1000, n - start), DEPTHS, width), dtype=np.float32)
        steps[:, 0] *= np.linspace(0.2, 3, width, dtype=np.float32)
        states = steps.cumsum(1, dtype=np.float32)
        states[:, :, 7] += 10
        rows[start : start + len(steps)] = states.reshape(len(steps), -1)
    rows.flush()


class FileStates:
    """States read through a memory map that is let go after each chunk, so that its pages do not count as ours."""

    groups = None

    def __init__(self, file: Path) -> None:
        self.file = file
        self.count, features = np.load(file, mmap_mode="r").shape
        self.widths = (features // DEPTHS,) * DEPTHS

    def chunks(self, size: int) -> Iterator[Any]:
        import torch

        for start in range(0, self.count, size):
            yield torch.from_numpy(np.load(self.file, mmap_mode="r")[start : start + size].copy())


def depths(file: Path) -> list[np.ndarray]:
    """The states of every depth in memory, (n, D) float32, and nothing else: read a piece at a time."""
    n, features = np.load(file, mmap_mode="r").shape
    width = features // DEPTHS
    parts = [np.empty((n, width), np.float32) for _ in range(DEPTHS)]
    for start in range(0, n, 500):
        rows = np.load(file, mmap_mode="r")[start : start + 500]
        for depth, part in enumerate(parts):
            part[start : start + 500] = rows[:, depth * width : (depth + 1) * width]
    return parts
