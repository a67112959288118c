"""What DATA means on the command line, and how it becomes batches a model takes.

`load` reads a hub data set, a local file or folder, or the built-in `digits`; `batches` turns it into what a
`LoadedModel` takes. Reading order: columns, sources, loading, inputs, labels, windowed, batching, training.
"""

from anydepth.data.batching import Batches, batches
from anydepth.data.columns import Columns
from anydepth.data.loading import LoadedData, load

__all__ = ["Batches", "Columns", "LoadedData", "batches", "load"]
