"""The formula of linear CKA, biased and debiased (HSIC), for all pairs of depths, exact over all rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from anydepth.measures.engine.moments import GramSums, Moments
from anydepth.measures.engine.precision import full_precision
from anydepth.measures.engine.states import depth_slices, squared_norms, sum_by_depth

# A depth's debiased HSIC with itself counts as zero below this share of the biased value: the products are rounded to
# float32. For rows that are all equally far apart it is zero.
NOTHING = 1e-6
_LARGEST = 1e100


def hsic(sums: GramSums, *, debiased: bool) -> Float64[Tensor, "k k"]:
    """HSIC of all pairs of depths, up to a factor common to all pairs.

    Biased: `Σ_ij G_ij G'_ij` of the centred Gram matrices (Gretton et al. 2005). Debiased: HSIC1 of Song et al. 2012,
    eq. 5, which for centred rows, whose Gram rows sum to zero, becomes

        Σ_{i≠j} G_ij G'_ij + tr G tr G' / ((n-1)(n-2)) - 2/(n-2) Σ_i G_ii G'_ii

    Returns:
        (K, K); debiased: NaN for n <= 3, where it is undefined. Debiased values may be negative.
    """
    n = sums.location.count
    if not debiased:
        return sums.cross + sums.diagonal
    if n <= 3:
        return torch.full_like(sums.cross, torch.nan)
    return sums.cross + sums.trace.outer(sums.trace) / ((n - 1) * (n - 2)) - 2 / (n - 2) * sums.diagonal


def cka(sums: Moments | GramSums, *, debiased: bool = True) -> Float64[Tensor, "k k"]:
    """Linear CKA of all pairs of depths: `HSIC(k, l) / sqrt(HSIC(k, k) HSIC(l, l))` (Kornblith et al. 2019).

    1 for depths that differ by an orthogonal map and a factor, and not in general for other linear maps. Biased CKA
    lies in 0..1 and is high for independent rows when n is not much larger than D; debiased CKA lies in -1..1 and is
    0 on average for independent rows.

    Returns:
        (K, K), symmetric, without a unit. NaN in the row and column of a depth that is constant, not finite, or
        (debiased) has HSIC1 <= 0, and everywhere when debiased and n <= 3.

    Example:
        >>> x = torch.randn(50, 3)
        >>> moments = Moments.empty((3, 3)).update(torch.cat([x, -2 * x.flip(1)], dim=1))
        >>> cka(moments)[0, 1].item()
        1.0000
    """
    sums = sums.gram_sums() if isinstance(sums, Moments) else sums
    products = hsic(sums, debiased=debiased)
    own = products.diagonal()
    own[own <= NOTHING * (sums.cross + sums.diagonal).diagonal()] = 0
    value = normalised(products)
    for depth in sums.location.blank:
        value[depth, :] = value[:, depth] = torch.nan
    return value


def normalised(products: Float64[Tensor, "*b k k"]) -> Float64[Tensor, "*b k k"]:
    """Cosines from inner products of K vectors; NaN where one has no positive product with itself."""
    own = products.diagonal(dim1=-2, dim2=-1)
    if bool(((own > _LARGEST) | ((own > 0) & (own < 1 / _LARGEST))).any()):
        # The product of two of them must be finite, too.
        size = torch.where(own > 0, own, 1.0).sqrt()
        products = products / size[..., :, None] / size[..., None, :]
        own = products.diagonal(dim1=-2, dim2=-1)
    own = torch.where(own > 0, own, torch.nan)
    return products / (own[..., :, None] * own[..., None, :]).sqrt()  # in this order the diagonal is exactly 1


def row_shares(
    panels: Sequence[Float[Tensor, "_ _"]], rows: Float[Tensor, "b w"], widths: tuple[int, ...]
) -> Float64[Tensor, "b k k"]:
    """For each centred row i, `Σ_{j ≠ i} G^k_ij G^l_ij = y^kᵀ C^kl y^l - q^k q^l`, by the covariance of all rows.

    `panels` are those of the centred covariance sums (`Moments.centred_panels`), in the rows' dtype.
    """
    norms = squared_norms(rows, widths).double()
    upper = torch.zeros(len(rows), len(widths), len(widths), dtype=torch.float64, device=rows.device)
    with full_precision(rows.device):
        for k, (part, panel) in enumerate(zip(depth_slices(widths), panels, strict=True)):
            upper[:, k, k:] = sum_by_depth((rows[:, part] @ panel).mul_(rows[:, part.start :]), widths[k:]).double()
    return upper + upper.triu(1).mT - norms[:, :, None] * norms[:, None, :]


def leave_one_out(
    sums: GramSums, rows: Float[Tensor, "b w"], shares: Float64[Tensor, "b k k"], widths: tuple[int, ...]
) -> Float64[Tensor, "b k k"]:
    """Debiased CKA without row i, for each of some centred rows y and their `shares`, see `row_shares`; exact.

    Of the off-diagonal Gram matrix of centred rows, row i sums to `-q_i`. Without row i, row j sums to `-q_j - G_ij`
    and the whole to `-tr G + 2 q_i`; put into HSIC1 of the n-1 others.

    Returns:
        (b, K, K); NaN where n <= 4.
    """
    n = sums.location.count
    if n <= 4:
        return torch.full_like(shares, torch.nan)
    norms = squared_norms(rows, widths).double()
    own = norms[:, :, None] * norms[:, None, :]
    by_norm = [rows[:, part].double() @ sums.weighted[:, part].T for part in depth_slices(widths)]
    across = torch.stack(by_norm, dim=1) - own  # Σ_{j ≠ i} G^k_ij q^l_j
    row_sums = sums.diagonal - own + across + across.mT + shares
    trace = sums.trace - 2 * norms
    traces = trace[:, :, None] * trace[:, None, :]
    return normalised(sums.cross - 2 * shares + traces / ((n - 2) * (n - 3)) - 2 / (n - 3) * row_sums)
