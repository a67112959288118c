"""What the measures of one call share, each found when first asked for."""

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
from anydepth.stats.jackknife import PartSums, Split

INTERVAL_ROWS = 10_000  # rows whose influence on CKA is looked at: an error bar needs no more


def blank_notes(location: StateMoments, named: Callable[[int], str] = "depth {}".format) -> tuple[str, ...]:
    """Which depths no similarity is defined for, and why, in words."""
    return tuple(f"{named(depth)} {why}: no similarity is defined there" for depth, why in location.blank.items())


class ReportedStates:
    """States that move to a device and tell how far they have been read."""

    def __init__(self, states: States, device: torch.device, progress: Progress | None) -> None:
        self.states, self.device, self.progress = states, device, progress
        self.count, self.widths, self.groups = states.count, states.widths, states.groups
        self.epsilons, self.label = epsilons(states), ""

    def during(self, label: str) -> ReportedStates:
        """The same states, read for the purpose `label`."""
        watched = ReportedStates(self.states, self.device, self.progress)
        watched.label = label
        return watched

    def tell(self, done: int, total: int | None = None) -> None:
        """Say how many rows are done; or how many of `total` other things."""
        if self.progress is not None:
            self.progress(done, self.count if total is None else total, self.label)

    def samples(self, start: int, stop: int) -> Int64[np.ndarray, " b"]:
        """The sample that each of the rows start..stop belongs to."""
        return sample_ids(self.groups, start, stop)

    def quietly(self, size: int) -> Iterator[Tensor]:
        """The rows in chunks, on the device."""
        for rows in self.states.chunks(size):
            yield rows.to(self.device)

    def chunks(self, size: int) -> Iterator[Tensor]:
        """The same, telling after each chunk."""
        done = 0
        for rows in self.quietly(size):
            yield rows
            done += len(rows)
            self.tell(done)


@dataclass
class MeasureContext:
    """What the measures of one call share, each found when first asked for.

    Attributes:
        states: of all depths, side by side: those of one model, or of two, one after the other; of a size at which
            float32 products are right.
        location: mean and spread of these.
        exponents: the powers of two by which depths were multiplied to be of such a size.
        first: how many of the depths are the first model's, compared with the rest; None to compare all with all.
        intervals_of_cka: whether debiased CKA was asked for.
        jackknife_groups: parts into which samples are dealt for intervals; None for no intervals.
        memory: bytes that may be used.
        mergeable: whether CKA is to leave sums that can be merged.
        seed: of the dealing of samples into parts, and of the choice of rows where not all are looked at.
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
        """The pairs of depths whose values are wanted and not known beforehand: k < l, none of them blank."""
        pairs = [(k, other) for k in self.whole for other in self.whole if k < other]
        return pairs if self.first is None else [(k, other) for k, other in pairs if k < self.first <= other]

    def block(self, values: Shaped[np.ndarray, "... k k"]) -> Shaped[np.ndarray, "... a b"]:
        """Of values over all pairs of depths, those that are wanted."""
        return values if self.first is None else values[..., : self.first, self.first :]

    def named(self, depth: int) -> str:
        """What a depth is called in notes."""
        if self.first is None:
            return f"depth {depth}"
        side, number = ("first", depth) if depth < self.first else ("second", depth - self.first)
        return f"depth {number} of the {side} model"

    def filled(self, values: Mapping[tuple[int, int], float], own: set[int]) -> Float64[np.ndarray, "k k"]:
        """Values of pairs as a matrix over all depths, 1 on the diagonal of `own`, NaN where there is none.

        A pair that is not in `values` the other way round is the same the other way round.
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
        """Which depths no similarity is defined for, and why, in words."""
        return list(blank_notes(self.location, self.named))

    @property
    def whole(self) -> list[int]:
        """The depths that are not blank."""
        return [depth for depth in range(self.depths) if depth not in self.location.blank]

    def split(self, rows: int) -> Split | None:
        """The samples dealt into parts, of which those that make an interval hold about `rows` rows."""
        if self.jackknife_groups is None:
            return None
        return Split.of(self.states.count, self.states.groups, self.jackknife_groups, rows=rows, seed=self.seed)

    @cached_property
    def covariances(self) -> Covariances:
        """Covariances between the depths that are not blank, and the principal axes of each."""
        return Covariances(self.states.during("covariances"), self.location, self.pairs, self.memory)

    @cached_property
    def products(self) -> Covariances:
        """The same without axes, where nothing is divided by what is small."""
        return Covariances(self.states.during("products"), self.location, self.pairs, self.memory, axes=False)

    def sample(self, most: int) -> Sample:
        """At most so many rows, the same whenever asked."""
        if most not in self._samples:
            self._samples[most] = Sample(self.states.states, most, self.seed)
        return self._samples[most]

    def parts_of(self, sample: Sample, rows: int) -> tuple[PartSums, Int64[np.ndarray, " m"]] | None:
        """A split of a sample's rows, of which about `rows` make an interval, and the part of each row."""
        if self.jackknife_groups is None:
            return None
        split = Split.of(sample.count, sample.ids, self.jackknife_groups, rows=rows, seed=self.seed)
        return PartSums(split, self.depths), split.part_of(sample.ids)

    @cached_property
    def neighbours(self) -> dict[int, Neighbours]:
        """The nearest neighbours of rows at every depth that has them."""
        watched, found = self.states.during("nearest neighbours"), dict[int, Neighbours]()
        sample = self.sample(NEIGHBOUR_ROWS)
        if sample.count >= LEAST_ROWS:
            for depth, unit in sample.directions(self.location, self.whole, self.memory // 4):
                found[depth] = nearest(unit.to(watched.device))
                watched.tell(len(found), len(self.whole))
        return found

    @cached_property
    def plan(self) -> Plan:
        """The route to CKA's sums."""
        return plan(self.states.count, self.states.widths, self.memory, mergeable=self.mergeable)

    @cached_property
    def moments(self) -> Moments | None:
        """The sums of CKA by the covariance route, if that is the one."""
        if self.plan.route == "gram":
            return None
        moments = Moments.empty(self.states.widths, self.states.device)
        for rows in self.states.during("covariance").chunks(self.plan.rows):
            moments.update(rows)
        return moments

    @cached_property
    def cka_sums(self) -> tuple[GramSums, PartSums | None]:
        """The sums of CKA; and, if debiased CKA is to have an interval, the influence of rows on it."""
        split = self.split(INTERVAL_ROWS) if self.intervals_of_cka and self.states.count > 4 else None
        if self.moments is not None:
            sums = self.moments.gram_sums()
            sums = replace(sums, location=replace(sums.location, coarse=self.location.coarse))
            return sums, None if split is None else self._by_covariance(self.moments, sums, split)
        return self._by_gram(split)

    def _by_covariance(self, moments: Moments, sums: GramSums, split: Split) -> PartSums:
        panels = [panel.float() for panel in moments.centred_panels()]
        return self._influence(sums, split, lambda rows, _: row_shares(panels, rows, self.states.widths))

    def _by_gram(self, split: Split | None) -> tuple[GramSums, PartSums | None]:
        watched = self.states.during("Gram tiles")
        kept = None
        if split is not None:
            kept = torch.from_numpy(split.part_of(watched.samples(0, watched.count)) < split.used)
        sums, shares = gram_sums(
            lambda: watched.quietly(self.plan.rows), self.location, watched.widths, kept=kept, done=watched.tell
        )
        if split is None or shares is None:
            return sums, None
        return sums, self._influence(sums, split, lambda rows, first: shares[first : first + len(rows)])

    def _influence(self, sums: GramSums, split: Split, shares: Callable[[Tensor, int], Tensor]) -> PartSums:
        """Influence of rows on debiased CKA, by leaving each out; `shares` of some, given how many came before."""
        watched, value, parts = self.states.during("intervals"), cka(sums), PartSums(split, len(self.states.widths))
        start = first = 0
        for rows in watched.chunks(rows_per_chunk(watched.widths, megabytes=16)):
            dealt = split.part_of(watched.samples(start, start + len(rows)))
            looked = dealt < split.used
            y = sums.location.centre(rows[torch.from_numpy(looked).to(rows.device)])
            without = leave_one_out(sums, y, shares(y, first), watched.widths)
            parts.add(dealt[looked], ((watched.count - 1) * (value - without)).cpu().numpy())
            start, first = start + len(rows), first + len(y)
        return parts
