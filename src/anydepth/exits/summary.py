"""Summary of a calibration: the certificate, and quality, depth and time on held-out samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from anydepth.core.timing import Latency
from anydepth.exits.calibration import Calibration
from anydepth.exits.curve import CurveData
from anydepth.exits.policies import Policy, as_plain
from anydepth.results.result import Result
from anydepth.results.tables import Column, Style, Table, bounds, number, sentence
from anydepth.stats.intervals import wilson

_ROWS = 6  # thresholds in the table beside the certified one


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class ExitSummary(Result):
    """Result of the calibration of a model.

    Attributes:
        folder: where the calibrated model is; None if it was not saved.
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
        latencies: of the full model and of early exit, at several batch sizes.
    """

    folder: Path | None
    model: str
    data: str
    policy: Policy
    calibration: Calibration
    curve: CurveData
    leaving: tuple[int, ...]
    agreement: float
    accuracy: float | None
    full_accuracy: float | None
    predicted: float
    measured: float
    readout_in_blocks: float
    notes: tuple[str, ...]
    latencies: tuple[Latency, ...] = ()

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
        """Thresholds on the held-out test samples, with the certified one; latencies. None without a certificate."""
        if self.calibration.certificate is None:
            return ()
        return (self._thresholds(), *([latency_table(self.latencies)] if self.latencies else []))

    def _thresholds(self) -> Table:
        curve, level = self.curve, self.calibration.level
        assert level is not None
        full = _Row("full model", np.inf, self.last, self.full_accuracy, 1.0, 1.0, 1.0)
        own = _Row("certified", level, self.depth, self.accuracy, self.agreement, self.measured, self.predicted)
        others = [
            _Row(
                name="",
                level=curve.level[at],
                depth=curve.depth[at],
                accuracy=None if curve.accuracy is None else curve.accuracy[at],
                agreement=curve.agreement[at],
                measured=curve.measured[at],
                predicted=curve.predicted[at],
            )
            for at in np.unique(np.linspace(1, len(curve.depth) - 1, _ROWS).round().astype(int))
        ]
        rows = [full, *sorted([own, *others], key=lambda row: -row.level)]
        columns = [
            Column(head="", cells=tuple(row.name for row in rows), kind="text", styles=tuple(map(_style, rows))),
            Column(head="threshold", cells=tuple(map(self._threshold, rows)), rank=2),
            Column(head="mean depth", cells=tuple(f"{row.depth:.2f}" for row in rows)),
            self._share("accuracy", [row.accuracy for row in rows]),
            self._share("agreement", [row.agreement for row in rows], rank=1),
            Column(head="speed-up", cells=tuple(_times(row.measured) for row in rows)),
            Column(head="predicted", cells=tuple(_times(row.predicted) for row in rows), rank=4),
        ]
        if self.accuracy is None:
            del columns[3]
        return Table(title=f"{self.model} on {self.data}, held out", columns=tuple(columns))

    def _threshold(self, row: _Row) -> str:
        return "" if row.level == np.inf else f"{self.policy.at_level(row.level).threshold:.4g}"

    def _share(self, head: str, shares: Sequence[float | None], rank: int = 0) -> Column:
        """A column of shares of the held-out samples, with their intervals."""
        details = tuple("" if share is None else bounds(*self.interval(share)) for share in shares)
        return Column(head=head, cells=tuple(map(number, shares)), details=details, rank=rank)

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
            "promise": self.calibration.guarantee,
            "depth": self.depth,
            "area": self.curve.area,
            "latencies": [asdict(latency) for latency in self.latencies],
        }


class _Row(NamedTuple):
    """A row of the table: a threshold, or the full model; times are shares of the full model's."""

    name: str
    level: float
    depth: float
    accuracy: float | None
    agreement: float
    measured: float
    predicted: float


def _style(row: _Row) -> Style:
    return "good" if row.name == "certified" else ""


def _times(share: float) -> str:
    return "" if np.isnan(share) else f"{1 / share:.2f} ×"


def latency_table(latencies: Sequence[Latency]) -> Table:
    """One row for each batch size and function that was timed."""
    columns = (
        Column(head="batch", cells=tuple(str(latency.batch) for latency in latencies)),
        Column(head="", cells=tuple(latency.name for latency in latencies), kind="text"),
        Column(head="p50 (ms)", cells=tuple(number(1000 * latency.p50, 2) for latency in latencies)),
        Column(head="p95 (ms)", cells=tuple(number(1000 * latency.p95, 2) for latency in latencies)),
        Column(head="samples per s", cells=tuple(number(latency.throughput, 1) for latency in latencies), rank=1),
        Column(head="calls", cells=tuple(str(latency.calls) for latency in latencies), rank=2),
    )
    return Table(title="Latency and throughput on this machine", columns=columns)
