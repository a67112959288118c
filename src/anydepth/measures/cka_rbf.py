"""Debiased CKA with a Gaussian (RBF) kernel, from tiles of the kernel matrices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from math import exp

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from anydepth.measures.engine.context import MeasureContext
from anydepth.measures.engine.hsic import normalised
from anydepth.measures.engine.precision import full_precision
from anydepth.measures.engine.sample import Sample
from anydepth.measures.engine.states import depth_slices, squared_norms
from anydepth.measures.measure import Similarity

KERNEL_ROWS = 10_000  # rows of which all pairs are used
WIDTH_ROWS = 2000  # rows whose distances give the kernel's width

_INTERVAL_ROWS = 1000
_FEW = 1024  # rows up to which float64 tiles cost little
_HEAVY = 100  # times the mean squared norm, from which on float32 distances are too coarse
_TILES = (512, 256, 128, 64)
_MIDDLE = exp(-0.5)  # the kernel at the median distance
_NOTHING = 1e-10  # mean square about the middle, of all entries, below which a kernel is a constant and its rounding


@dataclass(frozen=True)
class KernelSums:
    """Sums for HSIC1 over the kernel matrices of K depths, minus a constant, without their diagonals.

    Attributes:
        cross: `Σ_ij K^k_ij K^l_ij`.
        rows: `Σ_j K^k_ij` of every row i.
    """

    cross: Float64[Tensor, "k k"]
    rows: Float64[Tensor, "k m"]

    def hsic(self) -> Float64[Tensor, "k k"]:
        """HSIC1 of Song et al. 2012, eq. 5, up to a factor; the same for any constant subtracted."""
        return _hsic(self.cross, self.rows.sum(1), self.rows @ self.rows.T, self.rows.shape[1])


def cka_rbf(run: MeasureContext) -> Similarity:
    """CKA with a Gaussian kernel, debiased: `HSIC1(k, l) / √(HSIC1(k, k) HSIC1(l, l))`.

    The kernel of depth k is `exp(-|x_i - x_j|² / (2 σ²))`, σ the median of the Euclidean distances `|x_i - x_j|` at
    that depth over all pairs i < j of 2,000 rows (of all, if there are fewer). In -1..1; a similarity; 0 on average
    for independent rows. Not changed by an orthogonal map, a factor or a shift of either depth; changed by other
    linear maps. Over at most 10,000 rows, drawn at random. Undefined for fewer than 4 rows, where half of the
    distances are 0, and where all are equal. Kornblith et al. 2019, with their σ at 1 times the median, and HSIC1.

    Its interval is the jackknife over samples on Fisher's scale, σ taken as known.
    """
    sample, notes = run.sample(KERNEL_ROWS), list(run.blank_notes)
    notes += sample.note("RBF-CKA")
    value = np.full((run.depths, run.depths), np.nan)
    if sample.count < 4:
        notes.append(f"similarity by RBF-CKA is undefined for {sample.count} rows: it needs at least 4")
        return Similarity(run.block(value), notes=tuple(notes))
    sigma = widths(run.sample(WIDTH_ROWS), run)
    kernels = _Kernels(sample, run, sigma)
    sums = kernels.sums()
    products = sums.hsic()
    own = products.diagonal()
    own[sums.cross.diagonal() <= _NOTHING * sample.count**2] = 0
    value = normalised(products).cpu().numpy()
    notes += [
        f"similarity by RBF-CKA is undefined at {run.named(depth)}: distances between rows are all equal, or half of "
        "them 0"
        for depth in run.whole
        if np.isnan(value[depth, depth])
    ]
    parts, part = run.parts_of(sample, _INTERVAL_ROWS) if sample.count > 4 else (None, None)
    if parts is not None and part is not None:
        kept = part < parts.split.used
        without = kernels.leave_one_out(sums, torch.from_numpy(kept))
        parts.add(part[kept], ((sample.count - 1) * (value - without.cpu().numpy())))
    low, high = run.correlation_interval(value, parts, sample.count)
    return Similarity(run.block(value), low=low, high=high, notes=tuple(notes))


def widths(sample: Sample, run: MeasureContext) -> list[float]:
    """The median distance of two rows at every depth; NaN at blank depths, and where it is only rounding."""
    medians = [float("nan")] * run.depths
    for depth, y in sample.centred(run.location, run.whole, run.memory // 4):
        width = median_distance(y)
        medians[depth] = width if width > run.location.rounding(depth) else float("nan")
    return medians


def median_distance(y: Float64[Tensor, "m d"]) -> float:
    """Median of the Euclidean distances of all pairs of different rows.

    Example:
        >>> round(median_distance(torch.tensor([[0.0], [1.0], [5.0]]).double()), 6)
        4.0
    """
    norms = y.square().sum(1)
    squares = (norms[:, None] + norms - 2 * y @ y.T).clamp_(min=0).numpy()
    return float(np.median(np.sqrt(squares[np.triu_indices(len(y), 1)])))


class _Kernels:
    """The kernel matrices of all depths, tile by tile."""

    def __init__(self, sample: Sample, run: MeasureContext, sigma: list[float]) -> None:
        self.sample, self.location, self.device = sample, run.location, run.states.device
        self.widths, self.states = sample.widths, run.states.during("kernel tiles")
        # A depth without a width has a kernel of zeros, and so no value.
        self.rates = [1 / (2 * width**2) for width in sigma]
        bytes_per_row = 8 * (4 * sum(self.widths) + 2 * len(self.widths) * _TILES[0])
        self.size = next((tile for tile in _TILES if bytes_per_row * tile <= run.memory), _TILES[-1])
        self.dtype = torch.float64 if sample.count <= _FEW or self._heavy() else torch.float32

    def _heavy(self) -> bool:
        """Whether some row is so far from the mean that float32 distances are too coarse."""
        most = torch.zeros(len(self.widths), dtype=torch.float32, device="cpu")
        for y in self.chunks(torch.float32):
            most = torch.maximum(most, squared_norms(y, self.widths).amax(0).cpu())
        return bool((most > _HEAVY * self.location.variance.cpu()).any())

    def chunks(self, dtype: torch.dtype, skipped: int = 0) -> Iterator[Tensor]:
        """The centred rows in chunks of one tile."""
        for rows in islice(self.sample.chunks(self.size), skipped, None):
            rows = rows.to(self.device)
            yield rows.double() - self.location.mean if dtype == torch.float64 else self.location.centre(rows)

    def tile(self, left: Float[Tensor, "b w"], right: Float[Tensor, "c w"]) -> Float[Tensor, "b k c"]:
        """The kernels of the rows of one chunk with those of another, minus their middle."""
        tile = left.new_zeros(len(left), len(self.widths), len(right))
        norms = squared_norms(left, self.widths), squared_norms(right, self.widths)
        for depth, part in enumerate(depth_slices(self.widths)):
            if np.isfinite(self.rates[depth]):
                squares = torch.addmm(
                    norms[1][:, depth].expand(len(left), -1), left[:, part], right[:, part].T, alpha=-2
                )
                squares.add_(norms[0][:, depth, None]).clamp_(min=0)
                torch.sub(squares.mul_(-self.rates[depth]).exp_(), _MIDDLE, out=tile[:, depth])
        return tile

    def sums(self) -> KernelSums:
        """The sums over all pairs of different rows."""
        depths, start = len(self.widths), 0
        cross = torch.zeros(depths, depths, dtype=torch.float64, device=self.device)
        rows = torch.zeros(depths, self.sample.count, dtype=torch.float64, device=self.device)
        with full_precision(self.device):
            for index, left in enumerate(self.chunks(self.dtype)):
                column = start
                for right in self.chunks(self.dtype, skipped=index):
                    tile = self.tile(left, right)
                    if column == start:
                        tile.diagonal(dim1=0, dim2=2).zero_()
                    # float32 within a row, float64 over rows: in one float32 sum over a tile, 1e-6 would be lost
                    cross += torch.bmm(tile, tile.mT).sum(0, dtype=torch.float64) * (1 if column == start else 2)
                    rows[:, start : start + len(left)] += tile.sum(2).T
                    if column > start:
                        rows[:, column : column + len(right)] += tile.sum(0)
                    column += len(right)
                start += len(left)
                self.states.report(start, self.sample.count)
        return KernelSums(cross, rows)

    def leave_one_out(self, sums: KernelSums, kept: Bool[Tensor, " m"]) -> Float64[Tensor, "b k k"]:
        """RBF-CKA without row i, for each of the kept rows, exact with the kernels' widths as they are."""
        values, start = [], 0
        with full_precision(self.device):
            for left in self.chunks(self.dtype):
                rows = kept[start : start + len(left)].nonzero()[:, 0].to(self.device)
                if len(rows):
                    own = start + rows
                    shares, carried = self._shares(left[rows], own, sums)
                    values.append(_without(sums, sums.rows[:, own].T, shares, carried))
                start += len(left)
        return torch.cat(values)

    def _shares(self, rows: Tensor, own: Tensor, sums: KernelSums) -> tuple[Tensor, Tensor]:
        """For each row i, `Σ_j K^k_ij K^l_ij` and `Σ_j s^k_j K^l_ij`, s the sums of rows."""
        depths, column = len(self.widths), 0
        shares = torch.zeros(len(rows), depths, depths, dtype=torch.float64, device=self.device)
        carried = torch.zeros_like(shares)
        for right in self.chunks(self.dtype):
            tile = self.tile(rows, right)
            here = ((own >= column) & (own < column + len(right))).nonzero()[:, 0]
            tile[here, :, own[here] - column] = 0
            shares += torch.bmm(tile, tile.mT)
            carried += sums.rows[:, column : column + len(right)].to(tile.dtype) @ tile.mT
            column += len(right)
        return shares, carried


def _without(
    sums: KernelSums,
    own: Float64[Tensor, "b k"],
    shares: Float64[Tensor, "b k k"],
    carried: Float64[Tensor, "b k k"],
) -> Float64[Tensor, "b k k"]:
    """RBF-CKA without each of some rows, whose sums are `own`: row j then sums to `s_j - K_ij`."""
    totals = sums.rows.sum(1) - 2 * own
    products = sums.rows @ sums.rows.T - own[:, :, None] * own[:, None, :] - carried - carried.mT + shares
    return normalised(_hsic(sums.cross - 2 * shares, totals, products, sums.rows.shape[1] - 1))


def _hsic(
    cross: Float64[Tensor, "*b k k"], totals: Float64[Tensor, "*b k"], products: Float64[Tensor, "*b k k"], n: int
) -> Float64[Tensor, "*b k k"]:
    total = totals[..., :, None] * totals[..., None, :]
    return cross + total / ((n - 1) * (n - 2)) - 2 / (n - 2) * products
