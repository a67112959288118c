"""CKA and cosine as `torchmetrics.Metric`s, for training loops; accuracy by depth is in `results/trace_data.py`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial, reduce

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import rank_zero_warn

from anydepth.measures.cosine import pair_cosines
from anydepth.measures.engine.context import blank_notes
from anydepth.measures.engine.hsic import cka
from anydepth.measures.engine.moments import Moments, merge
from anydepth.measures.engine.precision import full_precision


class _PairMetric(Metric):
    """A metric of all pairs of depths, of the widths D of each."""

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.widths = tuple(widths)


class CKA(_PairMetric):
    """Linear CKA of all pairs of depths over all rows so far; see `anydepth.measures.engine.hsic.cka`.

    The state is one vector of float64 sums, `4 (ΣD)²` bytes. Each update touches all of it: large batches are cheaper.

    Args:
        widths: width D of each depth.
        debiased: by HSIC1 rather than HSIC0.

    Example:
        >>> metric = CKA((3, 3))
        >>> x = torch.randn(50, 3)
        >>> metric.update([x, 2 * x])
        >>> metric.compute()[0, 1].item()
        1.0000
    """

    sums: Tensor

    def __init__(self, widths: Sequence[int], *, debiased: bool = True) -> None:
        super().__init__(widths)
        self.debiased = debiased
        # Sums about different shifts do not add up: they are merged, by a reduction made for them.
        self.add_state("sums", Moments.empty(self.widths).data, dist_reduce_fx=partial(merge_stacked, self.widths))

    @property
    def moments(self) -> Moments:
        """The sums so far."""
        return Moments(self.widths, self.sums)

    def update(self, states: Sequence[Float[Tensor, "b _"]]) -> None:
        """Add the states (b, D) of a batch, one for each depth."""
        rows = torch.cat([state.detach() for state in states], dim=1)
        self.moments.update(rows if rows.dtype == torch.float64 else rows.float())

    def compute(self) -> Float64[Tensor, "k k"]:
        """(K, K); NaN where undefined, with a warning that names the depth."""
        sums = self.moments.gram_sums()
        for note in blank_notes(sums.location):
            rank_zero_warn(note)
        return cka(sums, debiased=self.debiased)


class Cosine(_PairMetric):
    """Mean raw cosine between every two depths of a row, over all rows so far; see `pair_cosines`.

    Centred cosine needs the global mean before the first row: use `anydepth.measures.similarities` on kept states.

    Args:
        widths: width D of each depth.

    Example:
        >>> metric = Cosine((2, 2))
        >>> metric.update([torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 4.0]])])
        >>> metric.compute()[0, 1].item()
        0.6000
    """

    total: Tensor
    count: Tensor

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__(widths)
        shape = (len(self.widths), len(self.widths))
        self.add_state("total", torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, states: Sequence[Float[Tensor, "b _"]]) -> None:
        """Add the states (b, D) of a batch, one for each depth."""
        rows = torch.cat([state.detach().float() for state in states], dim=1)
        with full_precision(rows.device):
            self.total += pair_cosines(rows, self.widths).sum(0)
        self.count += len(rows)

    def compute(self) -> Float64[Tensor, "k k"]:
        """(K, K), NaN between depths of different widths and where a state was the zero vector."""
        return self.total / self.count


def merge_stacked(widths: tuple[int, ...], data: Float64[Tensor, "r m"]) -> Float64[Tensor, " m"]:
    """Merge the stacked sums of several ranks."""
    return reduce(merge, [Moments(widths, sums) for sums in data]).data
