"""Charts of traces, and figures of them as files."""

from anydepth.report.charts.files import save
from anydepth.report.charts.trace import plot

__all__ = ["plot", "save"]
