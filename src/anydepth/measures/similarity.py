"""Similarity of all pairs of depths by several measures at once, sharing what they share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from anydepth.errors import MeasureError
from anydepth.measures.cka import cka, leave_one_out, row_shares
from anydepth.measures.cosine import cosine
from anydepth.measures.gram import gram_sums
from anydepth.measures.intervals import around, around_correlation
from anydepth.measures.jackknife import PartSums, Split
from anydepth.measures.moments import GramSums, Moments
from anydepth.measures.plan import Plan, available_memory, plan
from anydepth.measures.states import Location, States, locate, rows_per_chunk, sample_ids, undefined

Progress = Callable[[int, int, str], None]

INTERVAL_ROWS = 10_000  # rows whose influence on CKA is looked at: an error bar needs no more


@dataclass(frozen=True)
class Similarity:
    """One measure over all pairs of depths.

    Attributes:
        value: (K, K), NaN where undefined.
        low: lower end of the 95 % interval, where the measure has one.
        high: upper end.
        quantiles: distribution over rows at `cosine.QUANTILES`, of the cosines.
        moments: mergeable sums the value follows from, of CKA by the covariance route.
        notes: what is blank and why, and the route taken.
    """

    value: Float64[np.ndarray, "k k"]
    low: Float64[np.ndarray, "k k"] | None = None
    high: Float64[np.ndarray, "k k"] | None = None
    quantiles: Float64[np.ndarray, "5 k k"] | None = None
    moments: Moments | None = None
    notes: tuple[str, ...] = ()


def similarities(
    states: States,
    measures: Sequence[str] = ("cosine", "cka"),
    *,
    jackknife_groups: int | None = 100,
    memory: int | None = None,
    mergeable: bool = False,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Similarity]:
    """Measure the similarity of all pairs of depths, exactly over all rows; memory does not grow with their number.

    A depth that is constant or not finite is NaN in its row and column, and named in the notes.

    Args:
        states: of n rows at K depths.
        measures: names from `MEASURES`.
        jackknife_groups: parts into which whole samples are dealt for the 95 % intervals; None for no intervals.
        memory: bytes CKA may use; by default half of what is free.
        mergeable: have CKA leave sums that can be merged, at any cost that fits in memory.
        seed: of the dealing of samples into parts.
        device: where the products are made.
        progress: called with rows done, rows in all, and what is being done.

    Returns:
        One `Similarity` for each name.

    Raises:
        MeasureError: an unknown measure, no rows, or a product that does not fit in `memory`.

    Example:
        >>> from anydepth.measures.states import ArrayStates
        >>> x = np.random.default_rng(0).normal(size=(200, 8))
        >>> found = similarities(ArrayStates({"h0": x, "h1": x @ np.diag(np.arange(8.0))}), ["cosine", "cka"])
        >>> found["cosine"].value[0, 1].round(2), found["cka"].value[0, 1].round(2)
        (np.float64(0.85), np.float64(0.75))
    """
    unknown = [name for name in measures if name not in MEASURES]
    if unknown:
        raise MeasureError(f"unknown measure {unknown[0]!r}: choose from {', '.join(MEASURES)}")
    if states.count == 0:
        raise MeasureError("there are no rows to measure: expected at least one sample")
    allowed = available_memory() // 2 if memory is None else memory
    run = _Run(
        _Watched(states, torch.device(device), progress), "cka" in measures, jackknife_groups, allowed, mergeable, seed
    )
    return {name: MEASURES[name](run) for name in measures}


class _Watched:
    """States that move to a device and tell how far they have been read."""

    def __init__(self, states: States, device: torch.device, progress: Progress | None) -> None:
        self.states, self.device, self.progress = states, device, progress
        self.count, self.widths, self.groups = states.count, states.widths, states.groups
        self.label = ""

    def during(self, label: str) -> _Watched:
        """The same states, read for the purpose `label`."""
        watched = _Watched(self.states, self.device, self.progress)
        watched.label = label
        return watched

    def tell(self, done: int) -> None:
        if self.progress is not None:
            self.progress(done, self.count, self.label)

    def samples(self, start: int, stop: int) -> Int64[np.ndarray, " b"]:
        """The sample that each of the rows start..stop belongs to."""
        return sample_ids(self.groups, start, stop)

    def quietly(self, size: int) -> Iterator[Tensor]:
        for rows in self.states.chunks(size):
            yield rows.to(self.device)

    def chunks(self, size: int) -> Iterator[Tensor]:
        done = 0
        for rows in self.quietly(size):
            yield rows
            done += len(rows)
            self.tell(done)


@dataclass
class _Run:
    """What the measures of one call share, each found when first asked for."""

    states: _Watched
    intervals_of_cka: bool
    jackknife_groups: int | None
    memory: int
    mergeable: bool
    seed: int

    @cached_property
    def location(self) -> Location:
        rows = rows_per_chunk(self.states.widths, megabytes=8)
        return locate(self.states.during("mean").chunks(rows), self.states.widths)

    def split(self, rows: int) -> Split | None:
        """The samples dealt into parts, of which those that make an interval hold about `rows` rows."""
        if self.jackknife_groups is None:
            return None
        return Split.of(self.states.count, self.states.groups, self.jackknife_groups, rows=rows, seed=self.seed)

    @cached_property
    def plan(self) -> Plan:
        return plan(self.states.count, self.states.widths, self.memory, mergeable=self.mergeable)

    @cached_property
    def moments(self) -> Moments | None:
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


def blank_notes(location: Location) -> tuple[str, ...]:
    """Which depths no similarity is defined for, and why, in words."""
    return tuple(f"depth {depth} {reason}: no similarity is defined there" for depth, reason in location.blank.items())


def _cosine(run: _Run, *, centred: bool) -> Similarity:
    states = run.states.during("cosine" if centred else "raw cosine")
    split = run.split(run.states.count) if states.groups is not None else None
    found = cosine(states, centred=centred, location=run.location, split=split)
    blank = run.location.blank
    notes = list(blank_notes(run.location))
    if len(set(states.widths)) > 1:
        notes.append(f"cosine is undefined between depths of different widths {states.widths}")
    notes += [
        f"depth {depth} is the zero vector in {rows} of {states.count} rows, which have no cosine"
        for depth, rows in enumerate(found.directionless)
        if rows and depth not in blank
    ]
    low = high = None
    if run.jackknife_groups is not None and states.count > 1:
        error, freedom = found.std / np.sqrt(states.count), states.count - 1
        if found.parts is not None:
            error, freedom = found.parts.error(states.count), len(found.parts.sizes) - 1
        low, high = (undefined(blank, bound) for bound in around(found.mean, error, freedom))
    mean, quantiles = undefined(blank, found.mean), undefined(blank, found.quantiles)
    return Similarity(mean, low, high, quantiles, notes=tuple(notes))


def _cka(run: _Run, *, debiased: bool) -> Similarity:
    sums, parts = run.cka_sums
    value = cka(sums, debiased=debiased).cpu().numpy()
    n, blank = run.states.count, sums.location.blank
    notes = [run.plan.note, *blank_notes(sums.location)]
    if debiased and n <= 3:
        notes.append(f"debiased CKA is undefined for {n} rows: it needs at least 4")
    elif debiased:
        notes += [
            f"depth {depth} has no positive HSIC with itself: debiased CKA is undefined there"
            for depth in np.flatnonzero(np.isnan(value.diagonal()))
            if depth not in blank
        ]
    low = high = None
    if debiased and parts is not None and len(parts.sizes) > 1:
        low, high = around_correlation(value, parts.error(n), len(parts.sizes) - 1)
    return Similarity(value, low, high, moments=run.moments, notes=tuple(notes))


MEASURES: Mapping[str, Callable[[_Run], Similarity]] = MappingProxyType(
    {
        "cosine": lambda run: _cosine(run, centred=True),
        "cosine_raw": lambda run: _cosine(run, centred=False),
        "cka": lambda run: _cka(run, debiased=True),
        "cka_biased": lambda run: _cka(run, debiased=False),
    }
)
