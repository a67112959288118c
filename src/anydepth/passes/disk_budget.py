"""Limit on the disk space of a pass's states: estimated at the first batch, checked at every batch."""

from __future__ import annotations

import shutil
import warnings

from anydepth.errors import AnydepthWarning, TraceFileError
from anydepth.passes.workspace import Workspace
from anydepth.storage.sizes import in_words


class DiskBudget:
    """Disk space that the states of a pass may take.

    Args:
        workspace: where the pass writes them.
        limit: most bytes; None for as many as the disk has.
        batches: of this process; None where unknown, so that only the bytes written so far count.
        ranks: how many processes share the disk and the limit, each writing as much.
    """

    def __init__(self, workspace: Workspace, limit: int | None, batches: int | None, ranks: int = 1) -> None:
        self._workspace, self._limit, self._batches, self._ranks = workspace, limit, batches, ranks
        self._resumed = workspace.batches > 0
        self._warned = False
        self.expected: int | None = None
        """Bytes of all states, extrapolated from the first batch; None before it, and where `batches` is unknown."""

    def reserve(self, size: int, *, each: bool) -> None:
        """Check that one more batch's states fit, before they are written; warn where all take more than half the disk.

        Args:
            size: bytes.
            each: whether every position has a row, so that one row for a sample would be fewer.

        Raises:
            TraceFileError: the states take more than the limit. The journal is removed, unless the pass was resumed.
        """
        written = self._workspace.bytes_of("states") * self._ranks
        needed = written + size * self._ranks
        if self.expected is None and self._batches is not None:
            needed = self.expected = written + size * self._ranks * (self._batches - self._workspace.batches)
        less = "fewer samples" + (" or one row for a sample (tokens='mean')" if each else "")
        if self._limit is not None and needed > self._limit:
            if not self._resumed:
                self._workspace.discard()
            raise TraceFileError(
                f"the states take {self._in_words(needed)} on disk, and states_limit is {in_words(self._limit)}: trace "
                f"{less}, or raise states_limit"
            )
        free = shutil.disk_usage(self._workspace.folder).free + written
        if free / 2 < needed <= free and not self._warned:
            self._warned = True
            warnings.warn(
                f"the states take {self._in_words(needed)} on disk, more than half of the {in_words(free)} that were "
                f"free in {self._workspace.folder}: {less} take less, states_limit sets a limit",
                AnydepthWarning,
                stacklevel=2,
            )

    def _in_words(self, needed: int) -> str:
        return ("about " if needed == self.expected else "") + in_words(needed)

    def describe(self, what: str) -> str:
        """A line of progress with the expected size of the states, where it is known."""
        return what if self.expected is None else f"{what}, about {in_words(self.expected)} of states"
