"""The table of exit policies by name. It imports nothing, so that the command line can show it without torch."""

POLICY_CLASSES = {
    "confidence": "Confidence",
    "margin": "Margin",
    "entropy": "Entropy",
    "patience": "Patience",
    "convergence": "Convergence",
    "depth": "AtDepth",
}
"""Name on the command line and in `exit.json`, and the class in `anydepth.exits.policies`."""
CALIBRATED_POLICIES = tuple(name for name in POLICY_CLASSES if name != "depth")
"""Names of the policies that have a threshold to calibrate."""
