"""Summary of a calibration: the certificate, and quality, depth and time on held-out samples."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anydepth.exits.calibration import Calibration
from anydepth.exits.curve import ExitCurve
from anydepth.exits.policies import Policy, as_plain
from anydepth.results.result import Result
from anydepth.results.tables import Column, Table, bounds, number, sentence
from anydepth.stats.intervals import wilson


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class ExitSummary(Result):
    """Result of the calibration of a model.

    Attributes:
        data: name of the data, with the split.
        policy: when a sample exits; `AtDepth(L)` if nothing could be certified.
        curve: the same policy at every threshold, on the held-out samples.
        leaving: (L,) how many of the held-out samples exit at each depth, from 1 on.
        agreement: share of their predictions that are the full model's.
        accuracy: share of their predictions that are right; None without labels.
        full_accuracy: the same of the full model; None without labels.
        predicted: time as a share of the plain model's, as the measured costs of its steps predict it.
        measured: the same, as timed.
        readout_in_blocks: the cost of one readout, in blocks.
    """

    folder: Path
    model: str
    data: str
    policy: Policy
    calibration: Calibration
    curve: ExitCurve
    leaving: tuple[int, ...]
    agreement: float
    accuracy: float | None
    full_accuracy: float | None
    predicted: float
    measured: float
    readout_in_blocks: float
    notes: tuple[str, ...]

    @property
    def last(self) -> int:
        """L."""
        return len(self.leaving)

    @property
    def depth(self) -> float:
        """Mean exit depth of the held-out samples."""
        return float(np.average(np.arange(1, self.last + 1), weights=self.leaving))

    def interval(self, share: float) -> tuple[float, float]:
        """95 % interval of a share of the held-out samples (Wilson)."""
        count = sum(self.leaving)
        low, high = wilson(np.array([round(share * count)]), count)[:, 0]
        return float(low), float(high)

    def line(self) -> str:
        """The model, its policy and its mean depth."""
        return f"{self.model} on {self.data}: {self.policy!r}, mean depth {self.depth:.2f} of {self.last}"

    def tables(self) -> tuple[Table, ...]:
        """The certified policy on the held-out test samples, beside the full model; none without a certificate."""
        if self.calibration.certificate is None:
            return ()
        speedups = {"speed-up": self.measured, "predicted": self.predicted, "blocks counted": self.depth / self.last}
        columns = [
            Column(head="", cells=("full model", "early exit"), kind="text"),
            Column(head="mean depth", cells=(str(self.last), f"{self.depth:.2f}")),
            Column(head="agreement", cells=("1.000", f"{self.agreement:.3f}"), rank=1),
            *(
                Column(head=head, cells=("1.00 ×", f"{1 / share:.2f} ×"), rank=rank)
                for rank, (head, share) in zip((0, 4, 3), speedups.items(), strict=True)
            ),
        ]
        if self.accuracy is not None:
            interval = ("", bounds(*self.interval(self.accuracy)))
            cells = (number(self.full_accuracy), number(self.accuracy))
            columns.insert(2, Column(head="accuracy", cells=cells, details=interval))
        return (Table(title=f"{self.model} on {self.data}", columns=tuple(columns)),)

    def sentences(self) -> tuple[str, ...]:
        """The certificate, and the failures of the held-out samples."""
        guarantee = str(self.calibration)
        return (sentence(guarantee),)

    def as_plain(self) -> dict[str, Any]:
        """Everything but the folder, which may move, and the curve, as values that JSON holds."""
        kept = ("model", "data", "leaving", "agreement", "accuracy", "full_accuracy", "predicted", "measured")
        return {
            **{name: getattr(self, name) for name in (*kept, "readout_in_blocks", "notes")},
            "policy": as_plain(self.policy),
            "calibration": asdict(self.calibration),
            "promise": self.calibration.promise,
            "depth": self.depth,
            "area": self.curve.area,
        }
