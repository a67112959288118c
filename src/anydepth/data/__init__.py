"""Load a hub data set, a local file or folder, or the built-in `digits`, and make batches of it for a `LoadedModel`."""

from anydepth.data.batching import Batches, batches
from anydepth.data.columns import Columns
from anydepth.data.loading import LoadedData, load

__all__ = ["Batches", "Columns", "LoadedData", "batches", "load"]
