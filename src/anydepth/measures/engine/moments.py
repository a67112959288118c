r"""Mergeable sums over rows, made in one pass, from which CKA of all pairs of depths follows exactly.

Let `z_i` be row i of the K depths side by side, minus a fixed shift, `z_i^k` its part at depth k and
`q_i^k = |z_i^k|²`. Kept are

    n,   S = Σ z_i,   C = Σ z_i z_iᵀ,   V^k = Σ q_i^k z_i,   A^kl = Σ q_i^k q_i^l

and moving every row by t, `z → z + t`, moves them exactly. Write t^k for the part of t at depth k, T for the
(ΣD, K) matrix that holds t^k in column k, and `u = Tᵀ S`, `τ = Tᵀ t`, `Q^k = tr C^kk`. Since
`q_i^k → q_i^k + 2 t^k·z_i^k + τ^k`, with the sums of before on the right:

    C → C + S tᵀ + t (S + n t)ᵀ
    S → S + n t
    V → V + Q tᵀ + 2 (C T)ᵀ + 2 u tᵀ + τ (S + n t)ᵀ
    A → A + 2 V T + 2 (V T)ᵀ + Q τᵀ + τ Qᵀ + 4 Tᵀ C T + 2 (u τᵀ + τ uᵀ) + n τ τᵀ

`t = -S/n` centres. So the shift need only be near the mean for float32 products to lose nothing: it is the mean of the
first chunk until that turns out to be far off, and the rest is corrected at the end in float64. Two sets of
sums are merged by moving one to the other's shift and adding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from anydepth.errors import MeasureError
from anydepth.measures.engine.precision import full_precision
from anydepth.measures.engine.states import (
    StateMoments,
    by_feature,
    depth_slices,
    powers_of_two,
    squared_norms,
    sum_by_depth,
)

PIECE = 4096  # rows in one float32 product: bounds its rounding and the copy that is centred
SMALL = 256  # rows up to which float64 products cost little more than float32 ones and a pass to add them up
FAR = 0.1  # share of a depth's mean square that the shift's distance from the mean may make up
_SMALLEST, _LARGEST = 1e-6, 1e6  # largest numbers of a depth between which its products are float32
HEAVY = 100  # times the mean squared norm, from which on a row is summed in float64


@dataclass(frozen=True, kw_only=True)
class GramSums:
    """Sums for HSIC over the centred Gram matrices `G^k = Y^k Y^kᵀ` of K depths.

    Attributes:
        location: mean and spread of the rows.
        cross: Σ over i ≠ j of `G^k_ij G^l_ij`.
        diagonal: Σ over i of `G^k_ii G^l_ii`.
        trace: Σ over i of `G^k_ii`.
        weighted: Σ over i of `G^k_ii y_i`, the centred rows weighted by their squared norm at each depth.
    """

    location: StateMoments
    cross: Float64[Tensor, "k k"]
    diagonal: Float64[Tensor, "k k"]
    trace: Float64[Tensor, " k"]
    weighted: Float64[Tensor, "k w"]


@dataclass(frozen=True)
class Moments:
    """Mergeable sums over rows: the state of CKA (definitions and algebra above).

    All sums lie in one float64 vector, so that a process group gathers, a checkpoint saves and `merge` adds one thing;
    the properties are views of it. Only the upper triangle of depth blocks of C is kept.

    Attributes:
        widths: width D of each depth.
        data: shift, n, S, A, V, then for each depth k the panel `C[depth k, depths k..]`.

    Example:
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 1.0], [5.0, 6.0]])
        >>> moments = Moments.empty((1, 1)).update(x[:2]).update(x[2:])
        >>> moments.count, moments.location.mean
        (3, tensor([3., 3.], dtype=torch.float64))
    """

    widths: tuple[int, ...]
    data: Float64[Tensor, " m"]

    @classmethod
    def empty(cls, widths: tuple[int, ...], device: torch.device | str = "cpu") -> Moments:
        """The sums over no rows."""
        return cls(widths, torch.zeros(cls.size(widths), dtype=torch.float64, device=device))

    @classmethod
    def size(cls, widths: tuple[int, ...]) -> int:
        """Number of float64 numbers in the sums over depths of these widths.

        Example:
            >>> Moments.size((384,) * 12) * 8 // 2**20  # MB
            88
        """
        return sum(_layout(widths))

    def _part(self, index: int) -> Tensor:
        start, stop = list(pairwise(accumulate(_layout(self.widths), initial=0)))[index]
        return self.data[start:stop]

    @property
    def shift(self) -> Float64[Tensor, " w"]:
        """The vector subtracted from every row before it is summed: near the mean, and of float32 numbers."""
        return self._part(0)

    @property
    def count(self) -> int:
        """Number of rows n."""
        return int(self._part(1).item())

    @property
    def total(self) -> Float64[Tensor, " w"]:
        """S, the sum of the shifted rows."""
        return self._part(2)

    @property
    def norm_products(self) -> Float64[Tensor, "k k"]:
        """A, the sums of products of squared row norms."""
        return self._part(3).view(len(self.widths), -1)

    @property
    def norm_weighted(self) -> Float64[Tensor, "k w"]:
        """V, the sums of rows weighted by the squared norm at each depth."""
        return self._part(4).view(len(self.widths), -1)

    @property
    def panels(self) -> list[Float64[Tensor, "_ _"]]:
        """For each depth k, its rows of C from its own block rightwards."""
        return [self._part(5 + k).view(width, -1) for k, width in enumerate(self.widths)]

    @property
    def _traces(self) -> Float64[Tensor, " k"]:
        return torch.stack([panel.diagonal().sum() for panel in self.panels])

    @property
    def location(self) -> StateMoments:
        """Mean and spread of the rows seen."""
        offset = self.total / self.count
        mean = self.shift + offset
        variance = self._traces / self.count - sum_by_depth(offset.square(), self.widths)
        size = variance + sum_by_depth(mean.square(), self.widths)
        return StateMoments(count=self.count, mean=mean, variance=variance, size=size)

    def update(self, rows: Float[Tensor, "n w"]) -> Moments:
        """Add rows (n, sum of widths) in place, the depths side by side; returns self.

        Products are float32 (for any dtype of the rows and precision settings of the caller), sums float64.

        Raises:
            MeasureError: the rows are not as wide as the depths together.
        """
        if rows.shape[1] != sum(self.widths):
            raise MeasureError(
                f"rows are {rows.shape[1]} wide, but depths of widths {self.widths} make up {sum(self.widths)}"
            )
        with full_precision(self.data.device):
            for start in range(0, len(rows), PIECE):
                self._add(rows[start : start + PIECE].detach().to(self.data.device))
        return self

    def _add(self, rows: Tensor) -> None:
        exact = rows.dtype == torch.float64
        rows = rows.double() if len(rows) <= SMALL or exact else rows.float()
        if self.count == 0:
            mean = rows.mean(0)
            self.shift.copy_(mean if exact else mean.float())
        z = self._shifted(rows)
        count, total = self.count + len(rows), self.total + z.sum(0)
        norms = squared_norms(z, self.widths)
        far = sum_by_depth(total.square(), self.widths) > FAR * count * (self._traces + norms.sum(0))
        if count > SMALL and bool(far.any()):
            mean = self.shift + total / count
            self.data.copy_(self.about(mean if exact else mean.float().double()).data)
            z = self._shifted(rows)
            norms = squared_norms(z, self.widths)
        # Debiasing subtracts a row's product with itself again: where that is most of a sum, float32 is too coarse.
        heavy = (norms > HEAVY * norms.mean(0)).any(1)
        if z.dtype == torch.float32 and bool(heavy.any()):
            self._accumulate(z[heavy].double())
            z[heavy] = 0
        self._accumulate(z)
        self._part(1).add_(len(rows))

    def _shifted(self, rows: Tensor) -> Tensor:
        shift = self.shift.to(rows.dtype)
        if torch.equal(shift.double().nan_to_num(), self.shift.nan_to_num()):
            z = rows - shift  # of float32 rows the shift is a float32 number: taken off without rounding it
        else:
            z = rows.double() - self.shift
        if len(z) <= SMALL:
            return z
        return z.float() if self._multiply_in_float32(z) else z.double()

    def _multiply_in_float32(self, z: Tensor) -> bool:
        """Whether the squares of all depths, and their products, lie well within the range of float32."""
        largest = torch.stack([z[:, part].abs().amax() for part in depth_slices(self.widths) if part.stop > part.start])
        return bool(((largest == 0) | ((largest > _SMALLEST) & (largest < _LARGEST)) | largest.isnan()).all())

    def _accumulate(self, z: Tensor) -> None:
        """Add shifted rows to all sums but the count; in the precision of `z`."""
        norms = squared_norms(z, self.widths)
        sums = torch.cat([torch.ones_like(norms[:, :1]), norms], dim=1).T @ z
        self.total.add_(sums[0])
        self.norm_weighted.add_(sums[1:])
        self.norm_products.addmm_(norms.double().T, norms.double())
        panels = self.panels
        scratch = z.new_empty(max(panel.numel() for panel in panels))  # fresh memory costs as much as adding
        for part, panel in zip(depth_slices(self.widths), panels, strict=True):
            if z.dtype == torch.float64:
                panel.addmm_(z[:, part].T, z[:, part.start :])
            else:
                product = scratch[: panel.numel()].view_as(panel)
                panel.add_(torch.mm(z[:, part].T, z[:, part.start :], out=product))

    def about(self, shift: Float64[Tensor, " w"]) -> Moments:
        """The same sums about another shift, exactly (derivation above)."""
        t, moved = self.shift - shift, Moments(self.widths, torch.empty_like(self.data))
        moved.shift.copy_(shift)
        moved._part(1).fill_(self.count)
        moved.total.copy_(self.total + self.count * t)
        norm_products, norm_weighted = self._moved_norms(t)
        moved.norm_products.copy_(norm_products)
        moved.norm_weighted.copy_(norm_weighted)
        for part, panel, new in zip(depth_slices(self.widths), self.panels, moved.panels, strict=True):
            torch.addr(panel, self.total[part], t[part.start :], out=new)
            new.addr_(t[part], moved.total[part.start :])
        return moved

    def _moved_norms(self, t: Tensor) -> tuple[Tensor, Tensor]:
        # Tᵀx is taken depth by depth: in a product with T a NaN would spread to the other depths (0 · NaN).
        n, s, q, widths = self.count, self.total, self._traces, self.widths
        u, tau = sum_by_depth(t * s, widths), sum_by_depth(t * t, widths)
        ct = self._times_by_depth(t)
        vt, tct = sum_by_depth(self.norm_weighted * t, widths), sum_by_depth(ct.T * t, widths)
        v = self.norm_weighted + q.outer(t) + 2 * ct.T + 2 * u.outer(t) + tau.outer(s + n * t)
        half = 2 * vt + q.outer(tau) + 2 * u.outer(tau) + 2 * tct + n / 2 * tau.outer(tau)
        return self.norm_products + half + half.T, v

    def _times_by_depth(self, t: Tensor) -> Tensor:
        """C T, (ΣD, K), from the upper panels."""
        product, slices = t.new_empty(len(t), len(self.widths)), depth_slices(self.widths)
        for k, (part, panel) in enumerate(zip(slices, self.panels, strict=True)):
            for other_k, other in enumerate(slices[k:], start=k):
                block = panel[:, other.start - part.start : other.stop - part.start]
                product[part, other_k] = block @ t[other]
                product[other, k] = block.T @ t[part]
        return product

    def scaled(self, exponents: tuple[int, ...]) -> Moments:
        """The sums over the same rows with every depth multiplied by a power of two."""
        feature = by_feature(exponents, self.widths).to(self.data.device)
        depth = powers_of_two(exponents).to(self.data.device)
        moved = Moments(self.widths, self.data.clone())
        moved.shift.mul_(feature)
        moved.total.mul_(feature)
        moved.norm_products.mul_(depth.square().outer(depth.square()))
        moved.norm_weighted.mul_(depth.square().outer(feature))
        for part, factor, panel in zip(depth_slices(self.widths), depth, moved.panels, strict=True):
            panel.mul_(factor * feature[part.start :])
        return moved

    def centred_panels(self) -> Iterator[Float64[Tensor, "_ _"]]:
        """The panels of C about the mean, one at a time."""
        for part, panel in zip(depth_slices(self.widths), self.panels, strict=True):
            yield torch.addr(panel, self.total[part], self.total[part.start :] / -self.count)

    def gram_sums(self) -> GramSums:
        """The sums about the mean that HSIC needs: `Σ_ij G^k_ij G^l_ij = |C^kl|²`, `G^k_ii = q_i^k`."""
        depths = len(self.widths)
        products = self.data.new_zeros(depths, depths)
        traces = self.data.new_zeros(depths)
        for k, panel in enumerate(self.centred_panels()):
            traces[k] = panel.diagonal().sum()
            products[k, k:] = sum_by_depth(panel.square_().sum(0), self.widths[k:])
        products = products + products.triu(1).T
        diagonal, weighted = self._moved_norms(self.total / -self.count)
        return GramSums(
            location=self.location, cross=products - diagonal, diagonal=diagonal, trace=traces, weighted=weighted
        )

    def to_tensors(self) -> dict[str, Tensor]:
        """The sums as plain tensors, for safetensors or a wire."""
        return {"widths": torch.tensor(self.widths, dtype=torch.int64), "sums": self.data.cpu()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Moments:
        """The sums from what `to_tensors` returned.

        Raises:
            MeasureError: the tensors are not those of `to_tensors`.
        """
        missing = {"widths", "sums"} - tensors.keys()
        if missing:
            raise MeasureError(f"sums of CKA lack {', '.join(sorted(missing))}: expected widths and sums")
        widths, data = tuple(tensors["widths"].tolist()), tensors["sums"]
        if data.shape != (cls.size(widths),) or data.dtype != torch.float64:
            raise MeasureError(
                f"sums of CKA are {tuple(data.shape)} {data.dtype}, but depths of widths {widths} need "
                f"{cls.size(widths)} numbers of torch.float64"
            )
        return cls(widths, data)


def _layout(widths: tuple[int, ...]) -> list[int]:
    """Lengths of the parts of `Moments.data`, in order."""
    depths, total = len(widths), sum(widths)
    panels = [width * (total - part.start) for width, part in zip(widths, depth_slices(widths), strict=True)]
    return [total, 1, total, depths**2, depths * total, *panels]


def merge(a: Moments, b: Moments) -> Moments:
    """The sums over the rows of both, of the same depths, exactly; neither is changed.

    Raises:
        MeasureError: the widths differ.

    Example:
        >>> x = torch.randn(10, 4)
        >>> both = merge(Moments.empty((2, 2)).update(x[:3]), Moments.empty((2, 2)).update(x[3:]))
        >>> bool(torch.isclose(both.location.mean, x.double().mean(0)).all())
        True
    """
    if a.widths != b.widths:
        raise MeasureError(f"sums over depths of widths {a.widths} and {b.widths} cannot be merged")
    more, fewer = (a, b) if a.count >= b.count else (b, a)
    if fewer.count == 0:
        return Moments(more.widths, more.data.clone())
    merged = fewer.about(more.shift)
    merged.data[len(more.shift) :] += more.data[len(more.shift) :]
    return merged
