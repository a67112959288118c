"""The loop over the batches: what each shows is kept once, however often the pass is interrupted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sized
from typing import Any

from numpy.typing import NDArray
from torch import Tensor, nn

from anydepth.core.model_io import (
    Batch,
)
from anydepth.errors import DataError
from anydepth.passes.batches import as_batch, digest
from anydepth.passes.workspace import Workspace
from anydepth.progress import Progress
from anydepth.storage.files import require_space


def run_pass(
    data: Iterable[Any],
    workspace: Workspace,
    rows_of: Callable[[int, Batch, Tensor | None, int], Iterable[tuple[str, NDArray[Any], Any]]],
    *,
    labels: bool,
    progress: Progress | None = None,
    rank: int = 0,
    ranks: int = 1,
    model: nn.Module | None = None,
) -> None:
    """Keep rows of all batches; those that `workspace` has of an interrupted pass are not computed again.

    Args:
        data: batches; every rank is given all of them and takes each `ranks`-th.
        workspace: this rank's own.
        rows_of: from a batch's index, the batch, its labels, and the number of its first sample, to the rows to keep:
            the name of their file, the rows, and the type they are kept in.
        labels: whether the same samples with other labels are other data.
        progress: called with the batches done.
        rank: of this process.
        ranks: how many processes share the work.
        model: that the batches are for: what its forward takes for labels is no part of a sample's content.

    Raises:
        DataError: there is no batch, or one that is no dict of tensors, pair, or tensor.
        IncompatibleTraces: the interrupted pass has seen other data.
        TraceFileError: the disk has no room for what all batches show, judged by the first of them; or, where nobody
            knows how many there are, for what the next one shows.
    """
    total = len(data) if isinstance(data, Sized) else None
    own, asked = batches_per_rank(total, ranks), False
    index, first = -1, 0
    try:
        for index, item in enumerate(data):
            batch, truth, ids = as_batch(item, first, model)
            if index % ranks == rank:
                digests = digest(batch)
                if not workspace.already_has([*ids, truth.tolist()] if labels and truth is not None else ids, digests):
                    found = list(rows_of(index, batch, truth, first))
                    if own is None or not asked:
                        left = ranks * (1 if own is None else own - workspace.batches)
                        needed = left * sum(rows.nbytes for _, rows, _ in found)
                        what = "one more batch shows" if left == 1 else f"{left} batches show"
                        require_space(workspace.folder, needed, f"keeping what {what}")
                        asked = True
                    for name, rows, dtype in found:
                        workspace.append(name, rows, dtype)
                    workspace.finish_batch(ids, digests, first)
            first += len(ids)
            if progress:
                progress(index + 1, total, "batches")
    finally:
        workspace.commit()
    if index < 0:
        raise DataError("the data set is empty: expected at least one batch")
    workspace.require_all_seen()


def batches_per_rank(total: int | None, ranks: int) -> int | None:
    """How many of `total` batches one of `ranks` processes sees at most; None where nobody knows."""
    return None if total is None else -(-total // ranks)
