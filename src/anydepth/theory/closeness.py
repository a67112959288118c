"""Theorem 2.2 by counts: how often a class becomes more probable where the hidden state comes closer to the last."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from anydepth.errors import MeasureError
from anydepth.measures.engine.hsic import normalised
from anydepth.measures.engine.states import States
from anydepth.stats.means import Estimate, Means
from anydepth.theory.geometry import rises
from anydepth.theory.paths import Paths

NATS = 1e-6
"""Log-probabilities in float32 that are closer than this count as equal."""


@dataclass(frozen=True, kw_only=True)
class Closeness:
    """How often the probability of a class rises from one depth to the next, by whether the cosine with h[L] rises.

    Over the rows whose cosine and probability both change in that step. Shares, with Wilson's intervals.

    Attributes:
        closer: (L,) P(probability rises | cosine rises), from depth l - 1 to l. At the last step the cosine rises to 1
            by definition, and tests nothing.
        farther: (L,) P(probability rises | cosine falls), to compare with.
        counts: (2, L) number of rows of each of the two.
        all_closer: `closer` over all steps but the last.
        all_farther: `farther` over all steps but the last.
    """

    closer: Estimate
    farther: Estimate
    counts: Int64[np.ndarray, "2 l"]
    all_closer: Estimate
    all_farther: Estimate


def closeness(
    states: States, log_probability: Float[np.ndarray, "n k"], *, centred: bool = True, seed: int = 0
) -> Closeness:
    """Shares of rows whose probability rises, by whether the cosine rises, over all rows and steps.

    Args:
        states: of n rows, depths of one width.
        log_probability: of one class of each row, at every depth, in nats; a memory map is read piece by piece.
        centred: take cosines about each depth's mean, as the paper does.
        seed: of the split of samples for intervals.

    Raises:
        MeasureError: the rows do not correspond, or the states are no paths.

    Example:
        >>> from anydepth.measures.engine.states import ArrayStates
        >>> h = np.array([[[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], [[1.0, 0.0], [-1.0, 0.1], [0.0, -1.0]]])
        >>> states = ArrayStates({str(depth): h[:, depth] for depth in range(3)})
        >>> log_probability = np.log([[0.1, 0.2, 0.9], [0.3, 0.2, 0.9]])
        >>> result = closeness(states, log_probability, centred=False)
        >>> result.closer.value, result.farther.value
        (array([1., 1.]), array([ 0., nan]))
    """
    if log_probability.shape != (states.count, len(states.widths)):
        raise MeasureError(
            f"log-probabilities have shape {log_probability.shape}: expected one for each of the {states.count} rows "
            f"and {len(states.widths)} depths"
        )
    means = Means(states.count, states.groups, seed)
    for which, h in Paths(states, centred=centred):
        nearer = rises(normalised(h @ h.mT)[:, :, -1])
        likelier = rises(torch.from_numpy(np.array(log_probability[which], np.float64)), NATS)
        closer, farther = (torch.where(nearer == way, likelier, torch.nan) for way in (1, 0))
        means.add({"closer": closer, "farther": farther})
    return Closeness(
        closer=means.share("closer"),
        farther=means.share("farther"),
        counts=np.stack([means.count("closer"), means.count("farther")]),
        all_closer=means.pooled("closer", slice(-1)),
        all_farther=means.pooled("farther", slice(-1)),
    )


def log_probability(logits: Float[Tensor, "n c"], classes: Int64[Tensor, " n"]) -> Float64[Tensor, " n"]:
    """Log-probability of one class of each row, in nats, from differences: exact near 0.

    Example:
        >>> log_probability(torch.tensor([[30.0, 0.0]]), torch.tensor([0]))
        tensor([-9.3576e-14], dtype=torch.float64)
    """
    logits = logits.double()
    others = logits.scatter(1, classes[:, None], -torch.inf).logsumexp(1)
    return -torch.nn.functional.softplus(others - logits.gather(1, classes[:, None])[:, 0])
