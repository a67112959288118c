"""What a policy trades: quality against depth, operations and time, over the whole range of its thresholds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float64

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
from anydepth.stats.intervals import wilson
from anydepth.storage.files import plain

if TYPE_CHECKING:
    import pandas

_POINTS = 60
_TIMED_BATCHES = 4
_ROUNDS = 3
Array = Float64[np.ndarray, " p"]


@dataclass(frozen=True)
class ExitCurve:
    """A policy at every threshold, from one that never lets go to the loosest.

    Attributes:
        last: L.
        tested: the depths below L at which samples may leave.
        samples: how many were looked at.
        level: (P,) of each threshold, from strict to loose; the first is +inf, where nobody leaves early.
        depth: (P,) mean depth at which samples leave.
        agreement: (P,) share of answers that are the full model's.
        accuracy: (P,) share of right answers; None without labels.
        flops: (P,) floating-point operations, as a share of the plain model's.
        predicted: (P,) time as a share of the plain model's, as the measured costs of its steps predict it.
        measured: (P,) the same, by the clock; NaN where it was not measured.
        batch: samples of the batches the last two are for.

    Example:
        >>> none = np.full(2, np.nan)
        >>> curve = ExitCurve(4, (2,), 100, none, np.array([4.0, 2.0]), np.array([1.0, 0.9]), None, none, none, none, 8)
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

    @property
    def quality(self) -> Array:
        """Accuracy, or agreement with the full model where there are no labels."""
        return self.agreement if self.accuracy is None else self.accuracy

    @property
    def paper_speedup(self) -> Array:
        """The speed-up that the paper counts: L over the mean depth, without readouts and without a clock."""
        return self.last / self.depth

    @property
    def area(self) -> float:
        """Area under quality against mean depth, from depth 1 to L, over L - 1: the mean quality over all depths.

        Shallower than the loosest threshold goes, quality counts as at that threshold. Several models can be
        compared by it if they have the same L.
        """
        depth, quality = np.append(self.depth, 1.0)[::-1], np.append(self.quality, self.quality[-1])[::-1]
        return float(np.trapezoid(quality, depth) / (self.last - 1))

    def interval(self, confidence: float = 0.95) -> Float64[np.ndarray, "2 p"]:
        """Of quality, low and high (Wilson)."""
        return wilson(np.round(self.quality * self.samples), self.samples, confidence)

    def as_plain(self) -> dict[str, Any]:
        """Everything as values that JSON holds: None for what is infinite or was not measured."""
        return dict(plain(self))

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> ExitCurve:
        """From what `as_plain` gave, read back."""
        arrays = {
            name: np.array([np.nan if one is None else one for one in values], dtype=np.float64)
            for name, values in plain.items()
            if isinstance(values, list) and name != "tested"
        }
        arrays["level"][0] = np.inf
        return cls(**{**plain, **arrays, "tested": tuple(plain["tested"])})

    def to_frame(self) -> pandas.DataFrame:
        """One row for each threshold."""
        import pandas

        columns = {
            "level": self.level,
            "depth": self.depth,
            "agreement": self.agreement,
            **({} if self.accuracy is None else {"accuracy": self.accuracy}),
            "flops": self.flops,
            "paper_speedup": self.paper_speedup,
            "predicted_speedup": 1 / self.predicted,
            "measured_speedup": 1 / self.measured,
        }
        return pandas.DataFrame(columns)


def exit_curve(
    exits: EarlyExit,
    data: Iterable[Any],
    *,
    labels: bool | None = None,
    timed: int = 5,
    progress: Progress | None = None,
) -> ExitCurve:
    """Look at a policy over the whole range of its thresholds.

    Args:
        exits: the policy's threshold does not matter.
        data: batches as `anydepth.trace` takes them, that can be gone through again: some are run once more for the
            clock. A curve on samples that tuned or certified the policy flatters it.
        labels: whether they must carry labels; None to take them if the first batch has some.
        timed: at how many thresholds to measure the time really taken; 0 for none.
        progress: called with what is done, how much there is, and what it is.

    Raises:
        PolicyError: the policy has no threshold (`AtDepth`), or tests no depth below L.
        DataError: there is no batch, or the data can be gone through only once.

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
        raise DataError("data can be gone through only once, and a few batches are run again: give a list, or a loader")
    first = list(islice(data, _TIMED_BATCHES))
    if labels is None:
        labels = bool(first) and as_batch(first[0], 0)[1] is not None
    shown = exits.look(data, labels=labels, progress=progress).under(exits.policy)
    return curve_of(exits, shown, first, costs=None, timed=timed, progress=progress)


def require_threshold(exits: EarlyExit) -> None:
    """See that there is a range of thresholds.

    Raises:
        PolicyError: there is not.
    """
    if isinstance(exits.policy, AtDepth) or not exits.tested:
        raise PolicyError(f"{exits.policy} has no range of thresholds: expected a policy that tests some depth below L")


def curve_of(
    exits: EarlyExit,
    shown: ExitScores,
    batches: Sequence[Any],
    *,
    costs: Costs | None,
    timed: int = 5,
    progress: Progress | None = None,
) -> ExitCurve:
    """The curve from what was seen of the samples.

    Args:
        exits: what was looked through.
        shown: what was seen.
        batches: a few, to count operations and to measure time on.
        costs: of the steps of a forward, measured; None to measure them now.
        timed: at how many thresholds to measure the time really taken.
        progress: called with what is done, how much there is, and what it is.
    """
    first, reads = as_batch(batches[0], 0, exits.stack.model)[0], exits.policy.reads
    costs = measure_costs(exits.stack, first) if costs is None else costs
    flops = count_flops(exits.stack, first)
    path = [np.inf, *levels(shown, _POINTS)]
    leaving = [shown.depth_of(level) for level in path]
    answers = [shown.answers(level) for level in path]
    depth = np.array([one.mean() for one in leaving])
    measured = np.full(len(path), np.nan)
    for done, place in enumerate(places := _spread(depth, timed), 1):
        measured[place] = relative_time(EarlyExit(exits.stack, exits.policy.at_level(path[place])), batches)
        if progress:
            progress(done, len(places), "thresholds timed")
    return ExitCurve(
        exits.stack.depth,
        exits.tested,
        len(shown),
        np.array(path),
        depth,
        np.array([(one == shown.predictions[:, -1]).mean() for one in answers]),
        None if shown.labels is None else np.array([(one == shown.labels).mean() for one in answers]),
        np.array([flops.share(one, exits.tested, reads=reads) for one in leaving]),
        np.array([costs.share(one, exits.tested, reads=reads) for one in leaving]),
        measured,
        costs.batch,
    )


def _spread(depth: Array, count: int) -> list[int]:
    """Places on the curve, about evenly spread over the mean depth; the first is where nobody leaves early."""
    wanted = np.linspace(depth[0], depth[-1], count)
    # a path of ties lets several wishes fall on one place; never the first but by its own wish: inf is no threshold
    return sorted({max(1, int(np.abs(depth - one).argmin())) for one in wanted})


def relative_time(exits: EarlyExit, batches: Sequence[Any]) -> float:
    """Time over the plain model's, on the same batches in turn; the median of some rounds."""
    model, ratios = exits.stack.model, []
    inputs = [to_device(as_batch(item, 0, model)[0], device_of(model)) for item in batches]
    for one in inputs:  # what is checked once is checked
        exits(one)
    with evaluating(model), torch.inference_mode():
        for _ in range(_ROUNDS):
            plain = _seconds(lambda one: call_model(model, one), inputs)
            ratios.append(_seconds(exits, inputs) / plain)
    return float(np.median(ratios))


def _seconds(run: Any, batches: Sequence[Any]) -> float:
    return time_call(lambda: [run(batch) for batch in batches])[1]
