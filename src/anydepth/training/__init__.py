"""Training one classifier to work at every depth: objectives, their weights, and a Trainer that takes them."""

from typing import TYPE_CHECKING

from anydepth.lazy import lazy_names

if TYPE_CHECKING:
    from anydepth.training.objectives import OBJECTIVES, AlignedLoss, Loss, Objective
    from anydepth.training.trace_callback import TraceCallback
    from anydepth.training.trainer import AlignedTrainer

__all__ = ["OBJECTIVES", "AlignedLoss", "AlignedTrainer", "Loss", "Objective", "TraceCallback"]
__getattr__, __dir__ = lazy_names(
    __name__,
    dict.fromkeys(("OBJECTIVES", "AlignedLoss", "Loss", "Objective"), "anydepth.training.objectives")
    | {"AlignedTrainer": "anydepth.training.trainer", "TraceCallback": "anydepth.training.trace_callback"},
)
