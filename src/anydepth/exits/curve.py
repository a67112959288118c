"""Data of an exit curve: quality, mean depth, operations and time at every threshold of a policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64

from anydepth.stats.intervals import wilson
from anydepth.storage.files import plain

if TYPE_CHECKING:
    import pandas

Array = Float64[np.ndarray, " p"]


@dataclass(frozen=True, kw_only=True, eq=False)
class CurveData:
    """The data of an exit curve: `anydepth.ExitCurve` without tables and charts; P thresholds.

    Attributes:
        last: L.
        tested: the depths below L at which samples may exit.
        level: (P,) of each threshold, from strict to loose; the first is +inf, where no sample exits early.
        depth: (P,) mean exit depth.
        agreement: (P,) share of predictions that are the full model's.
        accuracy: (P,) share of right predictions; None without labels.
        flops: (P,) floating-point operations, as a share of the plain model's.
        predicted: (P,) time as a share of the plain model's, as the measured costs of its steps predict it.
        measured: (P,) the same, as timed; NaN where it was not.
        batch: samples in each of the batches that the last two are for.
    """

    last: int
    tested: tuple[int, ...]
    samples: int
    level: Array
    depth: Array
    agreement: Array
    accuracy: Array | None
    flops: Array
    predicted: Array
    measured: Array
    batch: int

    @property
    def quality(self) -> Array:
        """Accuracy, or agreement with the full model where there are no labels."""
        return self.agreement if self.accuracy is None else self.accuracy

    @property
    def paper_speedup(self) -> Array:
        """The speed-up that papers report: L over the mean depth, without the cost of readouts."""
        return self.last / self.depth

    @property
    def area(self) -> float:
        """Area under quality against mean depth, from depth 1 to L, over L - 1: the mean quality over all depths.

        Below the mean depth of the loosest threshold, quality counts as at that threshold. It compares models of the
        same L.
        """
        depth, quality = np.append(self.depth, 1.0)[::-1], np.append(self.quality, self.quality[-1])[::-1]
        return float(np.trapezoid(quality, depth) / (self.last - 1))

    def interval(self, confidence: float = 0.95) -> Float64[np.ndarray, "2 p"]:
        """Confidence interval of quality, low and high (Wilson)."""
        return wilson(np.round(self.quality * self.samples), self.samples, confidence)

    def as_plain(self) -> dict[str, Any]:
        """Everything as values that JSON holds: None for what is infinite or was not measured."""
        return dict(plain(self))

    def to_frame(self) -> pandas.DataFrame:
        """One row for each threshold."""
        import pandas

        names = ("level", "depth", "agreement", "accuracy", "flops", "paper_speedup")
        columns = {name: values for name in names if (values := getattr(self, name)) is not None}
        columns |= {f"{name}_speedup": 1 / getattr(self, name) for name in ("predicted", "measured")}
        return pandas.DataFrame(columns)
