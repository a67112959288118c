"""Intervals, tests and certificates, on numpy and scipy alone."""
