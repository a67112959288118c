"""The loop over the batches: every batch is computed once, however often the pass is interrupted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sized
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from anydepth.core.model_io import Batch
from anydepth.errors import DataError
from anydepth.passes.batches import Places, as_batch, digest
from anydepth.passes.workspace import Workspace
from anydepth.progress import Progress
from anydepth.storage.files import require_space


def run_pass(
    data: Iterable[Any],
    workspace: Workspace,
    rows_of: Callable[[int, Batch, Tensor | None, NDArray[np.int64]], Iterable[tuple[str, NDArray[Any], Any]]],
    *,
    labels: bool,
    progress: Progress | None = None,
    rank: int = 0,
    ranks: int = 1,
    model: nn.Module | None = None,
) -> None:
    """Write rows of all batches to a workspace; batches that it has of an interrupted pass are not computed again.

    Args:
        data: batches; every rank is given all of them and takes each `ranks`-th.
        workspace: this rank's own.
        rows_of: from a batch's index, the batch, its labels, and its samples' places in the data, to the rows to keep:
            the name of their file, the rows, and the dtype they are stored in.
        labels: whether the same samples with other labels are other data.
        progress: called with the batches done.
        rank: of this process.
        ranks: how many processes share the work.
        model: that the batches are for; arguments of its forward that are labels do not count as a sample's content.

    Raises:
        DataError: there is no batch, or one that is no dict of tensors, pair, or tensor.
        IncompatibleTraces: the interrupted pass has seen other data.
        TraceFileError: the disk has no room for the rows of all batches, extrapolated from the first one; where their
            number is unknown, for those of the next batch.
    """
    total = len(data) if isinstance(data, Sized) else None
    own, checked = batches_per_rank(total, ranks), False
    index, first, places = -1, 0, Places()
    try:
        for index, item in enumerate(data):
            batch, targets, ids = as_batch(item, first, model)
            numbers = places.of(item, len(ids))
            if index % ranks == rank:
                digests, content = digest(batch), ids
                if labels and targets is not None:
                    content = [*ids, targets.tolist()]
                if not workspace.already_has(content, digests):
                    tables = list(rows_of(index, batch, targets, numbers))
                    if own is None or not checked:
                        remaining = ranks * (1 if own is None else own - workspace.batches)
                        _require_space(workspace, remaining, sum(rows.nbytes for _, rows, _ in tables))
                        checked = True
                    for name, rows, dtype in tables:
                        workspace.append(name, rows, dtype)
                    workspace.finish_batch(ids, digests, numbers)
            first += len(ids)
            if progress:
                progress(index + 1, total, "batches")
    finally:
        workspace.commit()
    if index < 0:
        raise DataError("the data set is empty: expected at least one batch")
    workspace.require_all_seen()


def _require_space(workspace: Workspace, batches: int, size: int) -> None:
    content = "one more batch shows" if batches == 1 else f"{batches} batches show"
    require_space(workspace.folder, batches * size, f"keeping what {content}")


def batches_per_rank(total: int | None, ranks: int) -> int | None:
    """How many of `total` batches one of `ranks` processes computes at most; None where the total is unknown."""
    return None if total is None else -(-total // ranks)
