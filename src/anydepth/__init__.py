"""Logit lens, similarity and early exit at every depth of a transformer, and training of one classifier for all depths.

    import anydepth as ad

    trace = ad.trace(model, batches)
    trace.similarity["cka"], trace.accuracy, trace.saturation
    trace.report("report.html")

    ad.trace("gpt2", ["a text", "another"]), ad.calibrate(...), ad.predict(...)   # what the command line does, too

    objective = ad.AlignedLoss()
    objective(ad.Stack(model), batch, step=step).loss.backward()

Names are loaded when first used, so that `import anydepth` is fast.
"""

from typing import TYPE_CHECKING

from anydepth.lazy import lazy_names

if TYPE_CHECKING:
    from anydepth.core.stack import Stack
    from anydepth.early_exit.classifier import EarlyExit
    from anydepth.early_exit.curve import ExitCurve, exit_curve
    from anydepth.errors import AnydepthError
    from anydepth.exits.policies import AtDepth, Confidence, Convergence, Entropy, Margin, Patience
    from anydepth.jobs.align import align
    from anydepth.jobs.calibrate import calibrate
    from anydepth.jobs.compare import compare
    from anydepth.jobs.export import export
    from anydepth.jobs.generate import generate
    from anydepth.jobs.predict import predict
    from anydepth.jobs.trace import trace
    from anydepth.jobs.truncate import truncate
    from anydepth.lens.lens import Lens
    from anydepth.models.zero_shot import zero_shot
    from anydepth.report.charts.trace import plot
    from anydepth.theory.findings import Theory
    from anydepth.tracing.comparison import Comparison
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
    "Theory",
    "Trace",
    "TraceCallback",
    "align",
    "calibrate",
    "compare",
    "exit_curve",
    "export",
    "generate",
    "plot",
    "predict",
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
    "Comparison": "anydepth.tracing.comparison",
    "Confidence": "anydepth.exits.policies",
    "Convergence": "anydepth.exits.policies",
    "EarlyExit": "anydepth.early_exit.classifier",
    "Entropy": "anydepth.exits.policies",
    "ExitCurve": "anydepth.early_exit.curve",
    "Lens": "anydepth.lens.lens",
    "Margin": "anydepth.exits.policies",
    "Patience": "anydepth.exits.policies",
    "Stack": "anydepth.core.stack",
    "Theory": "anydepth.theory.findings",
    "Trace": "anydepth.tracing.trace",
    "TraceCallback": "anydepth.training.trace_callback",
    "align": "anydepth.jobs.align",
    "calibrate": "anydepth.jobs.calibrate",
    "compare": "anydepth.jobs.compare",
    "exit_curve": "anydepth.early_exit.curve",
    "export": "anydepth.jobs.export",
    "generate": "anydepth.jobs.generate",
    "plot": "anydepth.report.charts.trace",
    "predict": "anydepth.jobs.predict",
    "trace": "anydepth.jobs.trace",
    "trace_states": "anydepth.tracing.run",
    "truncate": "anydepth.jobs.truncate",
    "zero_shot": "anydepth.models.zero_shot",
    "generation": "anydepth.generation",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
