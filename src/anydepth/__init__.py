"""Logit lens, similarity and early exit at every depth of a transformer, and training of one classifier for all depths.

    import anydepth as ad

    trace = ad.trace(model, batches)
    trace.similarity["cka"], trace.accuracy, trace.saturation
    trace.report("report.html")

    objective = ad.AlignedLoss()
    objective(ad.Stack(model), batch, step=step).loss.backward()

Names are loaded when first used, so that `import anydepth` is fast.
"""

from typing import TYPE_CHECKING

from anydepth.lazy import lazy_names

if TYPE_CHECKING:
    from anydepth.core.stack import Stack
    from anydepth.core.truncation import truncate
    from anydepth.errors import AnydepthError
    from anydepth.exits.curve import ExitCurve, exit_curve
    from anydepth.exits.early_exit import EarlyExit
    from anydepth.exits.policies import AtDepth, Confidence, Convergence, Entropy, Margin, Patience
    from anydepth.jobs.trace import trace
    from anydepth.lens.lens import Lens
    from anydepth.models.zero_shot import zero_shot
    from anydepth.results.comparison import Comparison, compare
    from anydepth.tracing.run import trace_states
    from anydepth.tracing.trace import Trace
    from anydepth.training.objectives import AlignedLoss
    from anydepth.training.trace_callback import TraceCallback
    from anydepth.training.trainer import AlignedTrainer

__all__ = [
    "AlignedLoss",
    "AlignedTrainer",
    "AnydepthError",
    "AtDepth",
    "Comparison",
    "Confidence",
    "Convergence",
    "EarlyExit",
    "Entropy",
    "ExitCurve",
    "Lens",
    "Margin",
    "Patience",
    "Stack",
    "Trace",
    "TraceCallback",
    "compare",
    "exit_curve",
    "trace",
    "trace_states",
    "truncate",
    "zero_shot",
]

_HOMES = {
    "AlignedLoss": "anydepth.training.objectives",
    "AlignedTrainer": "anydepth.training.trainer",
    "AnydepthError": "anydepth.errors",
    "AtDepth": "anydepth.exits.policies",
    "Comparison": "anydepth.results.comparison",
    "Confidence": "anydepth.exits.policies",
    "Convergence": "anydepth.exits.policies",
    "EarlyExit": "anydepth.exits.early_exit",
    "Entropy": "anydepth.exits.policies",
    "ExitCurve": "anydepth.exits.curve",
    "Lens": "anydepth.lens.lens",
    "Margin": "anydepth.exits.policies",
    "Patience": "anydepth.exits.policies",
    "Stack": "anydepth.core.stack",
    "Trace": "anydepth.tracing.trace",
    "TraceCallback": "anydepth.training.trace_callback",
    "compare": "anydepth.results.comparison",
    "exit_curve": "anydepth.exits.curve",
    "trace": "anydepth.jobs.trace",
    "trace_states": "anydepth.tracing.run",
    "truncate": "anydepth.core.truncation",
    "zero_shot": "anydepth.models.zero_shot",
    "generation": "anydepth.generation",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
