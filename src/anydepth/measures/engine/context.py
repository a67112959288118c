"""State shared by the measures of one call to `similarities`: covariances, samples, neighbours, CKA sums."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float64, Int64, Shaped
from torch import Tensor

from anydepth.measures.engine.covariance import Covariances
from anydepth.measures.engine.gram import gram_sums
from anydepth.measures.engine.hsic import cka, leave_one_out, row_shares
from anydepth.measures.engine.moments import GramSums, Moments
from anydepth.measures.engine.neighbours import LEAST_ROWS, NEIGHBOUR_ROWS, Neighbours, nearest
from anydepth.measures.engine.plan import Plan, plan
from anydepth.measures.engine.sample import Sample
from anydepth.measures.engine.states import StateMoments, States, epsilons, rows_per_chunk, sample_ids
from anydepth.progress import Progress
from anydepth.stats.intervals import around_correlation
from anydepth.stats.jackknife import PartSums, Split

_LONG = 1e12  # multiply-adds from which on a plan is reported: more than half a minute of a core
INTERVAL_ROWS = 10_000  # rows whose influence on CKA makes the interval: more would not change an error bar


def blank_notes(location: StateMoments, named: Callable[[int], str] = "depth {}".format) -> tuple[str, ...]:
    """Notes on the depths for which no similarity is defined, with the reason."""
    return tuple(f"{named(depth)} {why}: no similarity is defined there" for depth, why in location.blank.items())


class ReportedStates:
    """States that are moved to a device as they are read, with reports of progress."""

    def __init__(self, states: States, device: torch.device, progress: Progress | None) -> None:
        self.states, self.device, self.progress = states, device, progress
        self.count, self.widths, self.groups = states.count, states.widths, states.groups
        self.epsilons, self.label = epsilons(states), ""

    def during(self, label: str) -> ReportedStates:
        """The same states, with `label` in the reports."""
        states = ReportedStates(self.states, self.device, self.progress)
        states.label = label
        return states

    def report(self, done: int, total: int | None = None) -> None:
        """Report the number of rows done, or of `total` other things."""
        if self.progress is not None:
            self.progress(done, self.count if total is None else total, self.label)

    def samples(self, start: int, stop: int) -> Int64[np.ndarray, " b"]:
        """The sample of each of the rows start..stop."""
        return sample_ids(self.groups, start, stop)

    def quietly(self, size: int) -> Iterator[Tensor]:
        """The rows in chunks, on the device, without reports."""
        for rows in self.states.chunks(size):
            yield rows.to(self.device)

    def chunks(self, size: int) -> Iterator[Tensor]:
        """The rows in chunks, on the device, with a report after each."""
        done = 0
        for rows in self.quietly(size):
            yield rows
            done += len(rows)
            self.report(done)


@dataclass(kw_only=True)
class MeasureContext:
    """States, settings and shared intermediate results of one call to `similarities`; the latter are made lazily.

    Attributes:
        states: of all depths, side by side: those of one model, or of two, one after the other; of a size at which
            float32 products are right.
        location: mean and spread of the states.
        exponents: the powers of two by which depths were multiplied to be of such a size.
        first: number of depths of the first model, compared with the rest; None to compare all with all.
        intervals_of_cka: whether debiased CKA is wanted.
        jackknife_groups: parts into which samples are dealt for intervals; None for no intervals.
        memory: bytes that may be used.
        mergeable: whether CKA should give sums that can be merged.
        seed: of the split into parts, and of the choice of rows where not all are used.
    """

    states: ReportedStates
    location: StateMoments
    exponents: tuple[int, ...]
    first: int | None
    intervals_of_cka: bool
    jackknife_groups: int | None
    memory: int
    mergeable: bool
    seed: int
    _samples: dict[int, Sample] = field(default_factory=dict)

    @property
    def depths(self) -> int:
        """K, the number of all depths."""
        return len(self.states.widths)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """The pairs (k, l) of depths to compare: k < l, neither of them blank."""
        pairs = [(k, other) for k in self.whole for other in self.whole if k < other]
        return pairs if self.first is None else [(k, other) for k, other in pairs if k < self.first <= other]

    def block(self, values: Shaped[np.ndarray, "... k k"]) -> Shaped[np.ndarray, "... a b"]:
        """The wanted part of values over all pairs of depths: (K, K), or (K_a, K_b) across models."""
        return values if self.first is None else values[..., : self.first, self.first :]

    def named(self, depth: int) -> str:
        """Name of a depth in notes."""
        if self.first is None:
            return f"depth {depth}"
        side, number = ("first", depth) if depth < self.first else ("second", depth - self.first)
        return f"depth {number} of the {side} model"

    def filled(self, values: Mapping[tuple[int, int], float], own: set[int]) -> Float64[np.ndarray, "k k"]:
        """Values of pairs as a matrix over all depths, 1 on the diagonal of `own`, NaN elsewhere.

        (l, k) has the value of (k, l) unless `values` holds it, too.
        """
        matrix = np.full((self.depths, self.depths), np.nan)
        for (k, other), value in values.items():
            matrix[k, other] = value
            matrix[other, k] = values.get((other, k), value)
        for depth in own:
            matrix[depth, depth] = 1
        return matrix

    @property
    def blank_notes(self) -> list[str]:
        """Notes on the depths for which no similarity is defined, with the reason."""
        return list(blank_notes(self.location, self.named))

    @property
    def whole(self) -> list[int]:
        """The depths that are not blank."""
        return [depth for depth in range(self.depths) if depth not in self.location.blank]

    def split(self, rows: int) -> Split | None:
        """Split of the samples into jackknife parts, of which those used hold about `rows` rows."""
        if self.jackknife_groups is None:
            return None
        return Split.of(self.states.count, self.states.groups, self.jackknife_groups, rows=rows, seed=self.seed)

    @cached_property
    def covariances(self) -> Covariances:
        """Covariances between the depths that are not blank, and the principal axes of each."""
        return Covariances(self.states.during("covariances"), self.location, self.pairs, self.memory)

    @cached_property
    def products(self) -> Covariances:
        """Covariances without principal axes, in float32."""
        return Covariances(self.states.during("products"), self.location, self.pairs, self.memory, axes=False)

    def sample(self, most: int) -> Sample:
        """At most so many rows, the same in every call."""
        if most not in self._samples:
            self._samples[most] = Sample(self.states.states, most, self.seed)
        return self._samples[most]

    def parts_of(self, sample: Sample, rows: int) -> tuple[PartSums, Int64[np.ndarray, " m"]] | tuple[None, None]:
        """A split of a sample's rows, of which about `rows` make an interval, and the part of each row; or None."""
        if self.jackknife_groups is None:
            return None, None
        split = Split.of(sample.count, sample.ids, self.jackknife_groups, rows=rows, seed=self.seed)
        return PartSums(split, self.depths), split.part_of(sample.ids)

    def correlation_interval(
        self, value: Float64[np.ndarray, "k k"], parts: PartSums | None, count: int
    ) -> tuple[Float64[np.ndarray, "a b"], Float64[np.ndarray, "a b"]] | tuple[None, None]:
        """Jackknife interval, low and high, on Fisher's scale, of a value from `count` rows; None without parts."""
        if parts is None:
            return None, None
        low, high = around_correlation(value, parts.error(count), parts.freedom)
        return self.block(low), self.block(high)

    @cached_property
    def neighbours(self) -> dict[int, Neighbours]:
        """The nearest neighbours of rows at every depth that is not blank; none of too few rows."""
        states, by_depth = self.states.during("nearest neighbours"), dict[int, Neighbours]()
        sample = self.sample(NEIGHBOUR_ROWS)
        if sample.count >= LEAST_ROWS:
            for depth, unit in sample.directions(self.location, self.whole, self.memory // 4):
                by_depth[depth] = nearest(unit.to(states.device))
                states.report(len(by_depth), len(self.whole))
        return by_depth

    @cached_property
    def plan(self) -> Plan:
        """The route to CKA's sums; where it takes long, reported before it starts."""
        chosen = plan(self.states.count, self.states.widths, self.memory, mergeable=self.mergeable)
        if chosen.cost > _LONG:
            self.states.during(f"{chosen.note}; {chosen.cost / 1e12:.1f}e12 multiply-adds").report(0)
        return chosen

    @cached_property
    def moments(self) -> Moments | None:
        """The sums of CKA, where the plan is the covariance route."""
        if self.plan.route == "gram":
            return None
        moments = Moments.empty(self.states.widths, self.states.device)
        for rows in self.states.during("covariance").chunks(self.plan.rows):
            moments.update(rows)
        return moments

    @cached_property
    def cka_sums(self) -> tuple[GramSums, PartSums | None]:
        """The sums of CKA; and the influence of rows on it, where debiased CKA is to have an interval."""
        split = self.split(INTERVAL_ROWS) if self.intervals_of_cka and self.states.count > 4 else None
        if self.moments is not None:
            sums = self.moments.gram_sums()
            sums = replace(sums, location=replace(sums.location, coarse=self.location.coarse))
            if split is None:
                return sums, None
            panels = [panel.float() for panel in self.moments.centred_panels()]
            return sums, self._influence(sums, split, lambda rows, _: row_shares(panels, rows, self.states.widths))
        states, kept = self.states.during("Gram tiles"), None
        if split is not None:
            kept = torch.from_numpy(split.part_of(states.samples(0, states.count)) < split.used)
        sums, shares = gram_sums(
            lambda: states.quietly(self.plan.rows), self.location, states.widths, kept=kept, done=states.report
        )
        if split is None or shares is None:
            return sums, None
        return sums, self._influence(sums, split, lambda rows, first: shares[first : first + len(rows)])

    def _influence(self, sums: GramSums, split: Split, shares: Callable[[Tensor, int], Tensor]) -> PartSums:
        """Influence of rows on debiased CKA, leaving each out; `shares(rows, first)` is told how many came before."""
        states, value, parts = self.states.during("intervals"), cka(sums), PartSums(split, len(self.states.widths))
        start = first = 0
        for rows in states.chunks(rows_per_chunk(states.widths, megabytes=16)):
            part = split.part_of(states.samples(start, start + len(rows)))
            kept = part < split.used
            y = sums.location.centre(rows[torch.from_numpy(kept).to(rows.device)])
            without = leave_one_out(sums, y, shares(y, first), states.widths)
            parts.add(part[kept], ((states.count - 1) * (value - without)).cpu().numpy())
            start, first = start + len(rows), first + len(y)
        return parts
