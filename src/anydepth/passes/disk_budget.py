"""How much disk the states of a pass may take: estimated at the first batch, watched as rows are written."""

from __future__ import annotations

import shutil
import warnings

from anydepth.errors import AnydepthWarning, TraceFileError
from anydepth.passes.workspace import Workspace
from anydepth.storage.sizes import in_words


class DiskBudget:
    """The disk that the states of a pass may take.

    Args:
        workspace: where the pass writes them.
        limit: most bytes; None for as many as the disk holds.
        batches: how many come; None where nobody knows, and then only what is written is known to be needed.
        ranks: how many processes write as many each, to one disk and under one limit.
    """

    def __init__(self, workspace: Workspace, limit: int | None, batches: int | None, ranks: int = 1) -> None:
        self._workspace, self._limit, self._batches, self._ranks = workspace, limit, batches, ranks
        self._resumed = workspace.batches > 0
        self._told = False
        self.expected: int | None = None
        """Bytes of all states, by those of the first batch; None before it, and where nobody knows how many come."""

    def take(self, size: int, *, each: bool) -> None:
        """Ask for the bytes of one more batch's states, before they are written.

        Args:
            size: bytes.
            each: whether every position has a row, so that one row for a sample would be fewer.

        Raises:
            TraceFileError: the states take more than the limit. Nothing is left of the pass, unless it went on from an
                interrupted one.
        """
        there = self._workspace.bytes_of("states") * self._ranks
        needed = there + size * self._ranks
        if self.expected is None and self._batches is not None:
            needed = self.expected = there + size * self._ranks * (self._batches - self._workspace.batches)
        less = "a smaller --limit" + (" or one row for a sample (--tokens mean)" if each else "")
        if self._limit is not None and needed > self._limit:
            if not self._resumed:
                self._workspace.discard()
            raise TraceFileError(
                f"the states take {self._words(needed)} on disk, and the limit is {in_words(self._limit)}: use {less}, "
                "or a higher limit (states_limit, --states-limit)"
            )
        free = shutil.disk_usage(self._workspace.folder).free + there
        if free / 2 < needed <= free and not self._told:
            self._told = True
            warnings.warn(
                f"the states take {self._words(needed)} on disk, more than half of the {in_words(free)} that were free "
                f"in {self._workspace.folder}: {less} takes less, a limit (states_limit, --states-limit) refuses more",
                AnydepthWarning,
                stacklevel=2,
            )

    def _words(self, needed: int) -> str:
        return ("about " if needed == self.expected else "") + in_words(needed)

    def told(self, what: str) -> str:
        """What is being done, and what its states will take on disk."""
        return what if self.expected is None else f"{what}, about {in_words(self.expected)} of states"
