"""anydepth shows what every depth of a transformer knows, and trains one classifier to work at all of them.

    import anydepth as ad

    found = ad.trace(model, batches)
    found.similarity["cka"], found.accuracy, found.saturation
    found.report("report.html")

    objective = ad.AlignedLoss()
    objective(ad.Stack(model), batch, step=step).loss.backward()

Names are loaded when first used, so that `import anydepth` costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anydepth.comparing import Comparison, compare
    from anydepth.errors import AnydepthError
    from anydepth.exits.curve import ExitCurve, exit_curve
    from anydepth.exits.engine import EarlyExit
    from anydepth.exits.policies import AtDepth, Confidence, Convergence, Entropy, Margin, Patience
    from anydepth.lens import Lens
    from anydepth.objectives import AlignedLoss
    from anydepth.stack import Stack
    from anydepth.trace_ import Trace
    from anydepth.tracing import trace, trace_states
    from anydepth.truncating import truncate

__all__ = [
    "AlignedLoss",
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
    "compare",
    "exit_curve",
    "trace",
    "trace_states",
    "truncate",
]

_HOMES = {
    "AlignedLoss": "objectives",
    "AnydepthError": "errors",
    "AtDepth": "exits.policies",
    "Comparison": "comparing",
    "Confidence": "exits.policies",
    "Convergence": "exits.policies",
    "EarlyExit": "exits.engine",
    "Entropy": "exits.policies",
    "ExitCurve": "exits.curve",
    "Lens": "lens",
    "Margin": "exits.policies",
    "Patience": "exits.policies",
    "Stack": "stack",
    "Trace": "trace_",
    "compare": "comparing",
    "exit_curve": "exits.curve",
    "trace": "tracing",
    "trace_states": "tracing",
    "truncate": "truncating",
}


def __getattr__(name: str) -> Any:
    if name == "generation":  # a module of names, for `ad.generation.at_depth`
        return import_module("anydepth.generation")
    if name not in _HOMES:
        raise AttributeError(f"module 'anydepth' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(f"anydepth.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
