"""Exit curve: quality against mean depth, operations and time, over the whole range of a policy's thresholds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float64, Int64

from anydepth.core.model_io import call_model, device_of, to_device
from anydepth.core.patching import evaluating
from anydepth.core.timing import time_call
from anydepth.errors import DataError, PolicyError
from anydepth.exits.costs import Costs, count_flops, measure_costs
from anydepth.exits.early_exit import EarlyExit
from anydepth.exits.exit_scores import ExitScores
from anydepth.exits.policies import AtDepth
from anydepth.exits.tuning import levels
from anydepth.passes.batches import as_batch
from anydepth.progress import Progress
from anydepth.results.result import Result
from anydepth.results.tables import Column, Table, bounds, number
from anydepth.stats.intervals import wilson
from anydepth.storage.files import plain

if TYPE_CHECKING:
    import pandas

_POINTS = 60
_ROWS = 12  # of its table
_TIMED_BATCHES = 4
_ROUNDS = 3
Array = Float64[np.ndarray, " p"]


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class ExitCurve(Result):
    """A policy at every threshold, from one at which no sample exits early to the loosest.

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

    Example:
        >>> depth, agreement, nan = np.array([4.0, 2.0]), np.array([1.0, 0.9]), np.full(2, np.nan)
        >>> curve = ExitCurve(last=4, tested=(2,), samples=100, level=nan, depth=depth, agreement=agreement,
        ...                   accuracy=None, flops=nan, predicted=nan, measured=nan, batch=8)
        >>> curve.paper_speedup.tolist(), round(curve.area, 3)
        ([1.0, 2.0], 0.933)
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

    def line(self) -> str:
        """The range of depths and of quality."""
        what = "agreement" if self.accuracy is None else "accuracy"
        return (
            f"{self.samples:,} samples, mean depth {self.depth[0]:.2f} to {self.depth[-1]:.2f} of {self.last}, {what} "
            f"{self.quality[0]:.3f} to {self.quality[-1]:.3f}, area {self.area:.3f}"
        )

    def tables(self) -> tuple[Table, ...]:
        """The curve at some of its thresholds."""
        chosen = np.unique(np.linspace(0, len(self.depth) - 1, _ROWS).round().astype(int))
        low, high = self.interval()[:, chosen]
        quality = "agreement" if self.accuracy is None else "accuracy"
        columns = (
            Column(head="threshold", cells=tuple(f"{level:.4g}" for level in self.level[chosen]), rank=1),
            Column(head="mean depth", cells=tuple(f"{depth:.2f}" for depth in self.depth[chosen])),
            Column(head=quality, cells=tuple(map(number, self.quality[chosen])), details=tuple(map(bounds, low, high))),
            *(
                Column(head=head, cells=tuple(number(1 / share, 2) for share in shares[chosen]), rank=rank)
                for head, shares, rank in (
                    ("speed-up", self.measured, 3),
                    ("predicted speed-up", self.predicted, 5),
                    ("fewer operations", self.flops, 4),
                )
            ),
        )
        return (Table(title=f"Exit curve of {self.samples:,} samples, L = {self.last}", columns=columns),)

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

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> ExitCurve:
        """The curve from the values of `as_plain`."""
        arrays = {
            name: np.array(values, dtype=np.float64)  # None becomes NaN
            for name, values in plain.items()
            if isinstance(values, list) and name != "tested"
        }
        arrays["level"][0] = np.inf
        return cls(**{**plain, **arrays, "tested": tuple(plain["tested"])})

    def to_frame(self) -> pandas.DataFrame:
        """One row for each threshold."""
        import pandas

        names = ("level", "depth", "agreement", "accuracy", "flops", "paper_speedup")
        columns = {name: values for name in names if (values := getattr(self, name)) is not None}
        columns |= {f"{name}_speedup": 1 / getattr(self, name) for name in ("predicted", "measured")}
        return pandas.DataFrame(columns)


def exit_curve(
    exits: EarlyExit,
    data: Iterable[Any],
    *,
    labels: bool | None = None,
    timed: int = 5,
    progress: Progress | None = None,
) -> ExitCurve:
    """Evaluate a policy over the whole range of its thresholds.

    Args:
        exits: the model and policy; the policy's threshold does not matter.
        data: batches as `anydepth.trace` takes them, that can be iterated over again: some are run once more for
            timing. A curve on samples that tuned or certified the policy is optimistic.
        labels: whether they must carry labels; None to take them if the first batch has some.
        timed: at how many thresholds to measure the time; 0 for none.
        progress: called with what is done, how much there is, and what it is.

    Raises:
        PolicyError: the policy has no threshold (`AtDepth`), or tests no depth below L.
        DataError: there is no batch, or the data can be iterated over only once.

    Example:
        >>> from transformers import ViTConfig, ViTForImageClassification
        >>> from anydepth.exits.policies import Confidence
        >>> config = ViTConfig(image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=4, num_attention_heads=2,
        ...                    intermediate_size=32, num_channels=1, num_labels=5)
        >>> exits = EarlyExit(ViTForImageClassification(config).eval(), Confidence(0.5))
        >>> curve = exit_curve(exits, [{"pixel_values": torch.rand(20, 1, 8, 8)}], timed=0)
        >>> curve.depth[0], curve.depth[-1], curve.agreement[0]
        (np.float64(4.0), np.float64(1.0), np.float64(1.0))
    """
    require_threshold(exits)
    if isinstance(data, Iterator):
        raise DataError(
            "data can be iterated over only once, and a few batches are run again: give a list, or a loader"
        )
    first = list(islice(data, _TIMED_BATCHES))
    if labels is None:
        labels = bool(first) and as_batch(first[0], 0)[1] is not None
    scores = exits.look(data, labels=labels, progress=progress).under(exits.policy)
    return curve_of(exits, scores, first, costs=None, timed=timed, progress=progress)


def require_threshold(exits: EarlyExit) -> None:
    """Raise a `PolicyError` if the policy has no range of thresholds."""
    if isinstance(exits.policy, AtDepth) or not exits.tested:
        raise PolicyError(f"{exits.policy} has no range of thresholds: expected a policy that tests some depth below L")


def curve_of(
    exits: EarlyExit,
    scores: ExitScores,
    batches: Sequence[Any],
    *,
    costs: Costs | None,
    timed: int = 5,
    progress: Progress | None = None,
) -> ExitCurve:
    """Compute the curve from scores; see `exit_curve`.

    Operations are counted on the first of the batches, and time is measured on all: give a few. Costs are those of
    `measure_costs`; None to measure them now.
    """
    first, reads = as_batch(batches[0], 0, exits.stack.model)[0], exits.policy.reads
    costs = measure_costs(exits.stack, first) if costs is None else costs
    flops = count_flops(exits.stack, first)
    path = [np.inf, *levels(scores, _POINTS)]
    exit_depths = [scores.depth_of(level) for level in path]
    predictions = [scores.answers(level) for level in path]
    depth = np.array([depths.mean() for depths in exit_depths])
    measured = np.full(len(path), np.nan)
    for done, place in enumerate(places := _spread(depth, timed), 1):
        measured[place] = relative_time(EarlyExit(exits.stack, exits.policy.at_level(path[place])), batches)
        if progress:
            progress(done, len(places), "thresholds timed")

    def agreement(truth: Int64[np.ndarray, " n"]) -> Array:
        return np.array([(predicted == truth).mean() for predicted in predictions])

    return ExitCurve(
        last=exits.stack.depth,
        tested=exits.tested,
        samples=len(scores),
        level=np.array(path),
        depth=depth,
        agreement=agreement(scores.predictions[:, -1]),
        accuracy=None if scores.labels is None else agreement(scores.labels),
        flops=np.array([flops.share(depths, exits.tested, reads=reads) for depths in exit_depths]),
        predicted=np.array([costs.share(depths, exits.tested, reads=reads) for depths in exit_depths]),
        measured=measured,
        batch=costs.batch,
    )


def _spread(depth: Array, count: int) -> list[int]:
    """Points of the curve about evenly spread over the mean depth, without the first, where no sample exits early."""
    targets = np.linspace(depth[0], depth[-1], count)
    # Where many scores tie, several targets fall on one point.
    return sorted({max(1, int(np.abs(depth - target).argmin())) for target in targets})


def relative_time(exits: EarlyExit, batches: Sequence[Any]) -> float:
    """Time of early exit over the plain model's, on the same batches in turn; the median of some rounds."""
    model, ratios = exits.stack.model, []
    inputs = [to_device(as_batch(item, 0, model)[0], device_of(model)) for item in batches]
    for batch in inputs:  # checks that are made once are made here, and not while the clock runs
        exits(batch)

    def run(forward: Callable[[Any], Any]) -> None:
        for batch in inputs:
            forward(batch)

    with evaluating(model), torch.inference_mode():
        for _ in range(_ROUNDS):
            plain = time_call(run, lambda batch: call_model(model, batch))[1]
            ratios.append(time_call(run, exits)[1] / plain)
    return float(np.median(ratios))
