"""Language models that generate at a depth, draft with their own first blocks, or stop early token by token.

model.generate(**prompt, custom_generate=anydepth.generation.at_depth(6))
model.generate(**prompt, custom_generate=anydepth.generation.self_speculative(4))
model.generate(**prompt, custom_generate=anydepth.generation.dynamic_exit(Confidence(0.9, depths=(4, 8))))
"""

from anydepth.generation.calibration import calibrate
from anydepth.generation.costs import advise
from anydepth.generation.decoder import GenerationStats
from anydepth.generation.dynamic import dynamic_exit
from anydepth.generation.speculative import self_speculative
from anydepth.generation.static import at_depth

Spent = GenerationStats  # its name in 0.1.0

__all__ = ["GenerationStats", "Spent", "advise", "at_depth", "calibrate", "dynamic_exit", "self_speculative"]
