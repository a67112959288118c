"""Where a pass over the data keeps what it has so far, so that an interrupted one goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike, NDArray

from anydepth.distributed import rank_and_count, wait_for_all
from anydepth.errors import IncompatibleTraces, TraceFileError
from anydepth.storage.disk import remove_tree, write_errors
from anydepth.storage.files import read_json, write_json
from anydepth.storage.locks import scratch_folder
from anydepth.storage.output_folder import OutputKind, output
from anydepth.storage.rows import RowFile

_JOURNAL = "journal.json"
_SECONDS_BETWEEN_COMMITS = 2.0


class Workspace:
    """A folder of row files and a journal that says how much of each counts.

    Args:
        folder: made if missing. What an earlier pass with the same `key` committed there is taken up again; what
            another left is thrown away.
        key: stands for model and settings.

    The journal is written after the rows it counts, so that a kill at any moment leaves at worst rows that no journal
    counts, and these are cut off when the pass goes on.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key
        self.batches, self.samples = 0, 0
        self.facts: dict[str, Any] = {}
        """What the first batch decided, for the rest of the pass and for its continuation."""
        self._files: dict[str, RowFile] = {}
        self._journal: dict[str, Any] = {}
        self._committed = time.monotonic()
        with write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._take_up()
        self._seen = hashlib.blake2b(digest_size=16).hexdigest()
        self._seen_batches = 0

    def _take_up(self) -> None:
        journal = self._journal_left()
        if journal is None:
            # first of all: it must never be found beside the rows of this pass
            with write_errors(self.folder):
                (self.folder / _JOURNAL).unlink(missing_ok=True)
            with write_errors(self._ids_path):
                self._ids: BinaryIO = self._ids_path.open("wb")
            return
        self.batches, self.samples, self.facts = journal["batches"], journal["samples"], journal["facts"]
        self._journal = journal
        for name, layout in journal["files"].items():
            self._files[name] = RowFile(self._path(name), layout["dtype"], layout["columns"], rows=layout["rows"])
        with write_errors(self._ids_path):
            self._ids = self._ids_path.open("r+b")
            self._ids.truncate(journal["ids_bytes"])
            self._ids.seek(0, 2)

    def _journal_left(self) -> dict[str, Any] | None:
        """The journal of an interrupted pass of the same key, if everything it counts is there."""
        try:
            journal = read_json(self.folder / _JOURNAL)
            if journal["key"] != self.key or self._ids_path.stat().st_size < journal["ids_bytes"]:
                return None
            for name, layout in journal["files"].items():
                if len(np.load(self._path(name), mmap_mode="r", allow_pickle=False)) < layout["rows"]:
                    return None
            return {
                name: journal[name] for name in ("key", "batches", "samples", "chain", "ids_bytes", "facts", "files")
            }
        except (TraceFileError, OSError, EOFError, ValueError, KeyError, TypeError):
            return None

    @property
    def _ids_path(self) -> Path:
        return self.folder / "ids.jsonl"

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npy"

    def already_has(self, ids: list[Any], digests: NDArray[np.uint64]) -> bool:
        """Whether this batch, the next in order, was committed by an interrupted pass.

        Raises:
            IncompatibleTraces: earlier batches were committed, but not these.
        """
        self._seen = _chained(self._seen, ids, digests)
        self._seen_batches += 1
        if self._seen_batches == self.batches and self._seen != self._journal["chain"]:
            raise self._other_data()
        return self._seen_batches <= self.batches

    def require_all_seen(self) -> None:
        """Refuse data that end before an interrupted pass did.

        Raises:
            IncompatibleTraces: fewer batches went by than were committed.
        """
        if self._seen_batches < self.batches:
            raise self._other_data()

    def _other_data(self) -> IncompatibleTraces:
        return IncompatibleTraces(
            f"the first {self.batches} batches are not those that the interrupted trace in {self.folder} has seen; "
            "give the same data in the same order, or start over (resume=False, --restart); batches of another size "
            "are other batches"
        )

    def append(self, name: str, rows: NDArray[Any], dtype: DTypeLike) -> None:
        """Add rows to the file of that name."""
        if name not in self._files:
            columns = None if rows.ndim == 1 else rows.shape[1]
            self._files[name] = RowFile(self._path(name), dtype, columns)
        self._files[name].append(rows)

    def finish_batch(self, ids: list[Any], digests: NDArray[np.uint64], first: int) -> None:
        """Count one more batch, whose first sample is number `first` of the data; commit now and then."""
        with write_errors(self.folder):
            self._ids.writelines(json.dumps(one, ensure_ascii=False).encode() + b"\n" for one in ids)
        self.append("digest", digests, np.uint64)
        self.append("number", first + np.arange(len(ids)), np.int64)
        self.batches, self.samples = self.batches + 1, self.samples + len(ids)
        # in one assignment: an interrupt leaves either this batch counted in full or not at all
        self._journal = {
            "key": self.key,
            "batches": self.batches,
            "samples": self.samples,
            "chain": self._seen,
            "ids_bytes": self._ids.tell(),
            "facts": self.facts,
            "files": {
                name: {"dtype": file.dtype.str, "columns": file.columns, "rows": file.rows}
                for name, file in self._files.items()
            },
        }
        if time.monotonic() - self._committed > _SECONDS_BETWEEN_COMMITS:
            self.commit()

    def commit(self) -> None:
        """Make all finished batches survive the end of this process."""
        with write_errors(self.folder):
            self._ids.flush()
        for file in self._files.values():
            file.commit()
        if self._journal:
            write_json(self.folder / _JOURNAL, self._journal)
        self._committed = time.monotonic()

    def close(self) -> None:
        """Let go of the files, all of them even where one cannot be written any more."""
        with write_errors(self._ids_path), ExitStack() as letting_go:
            letting_go.callback(self._ids.close)
            for file in self._files.values():
                letting_go.callback(file.close)

    def discard(self) -> None:
        """Have what was committed count for nothing: no later pass goes on from here."""
        self._journal = {}
        with write_errors(self.folder):
            (self.folder / _JOURNAL).unlink(missing_ok=True)

    def bytes_of(self, name: str) -> int:
        """What the rows of a file take on disk so far."""
        return self._files[name].bytes if name in self._files else 0

    def read(self, name: str) -> NDArray[Any] | None:
        """The rows of a file, memory-mapped; None if nothing was ever written to it."""
        if name not in self._files:
            return None
        rows: NDArray[Any] = np.load(self._path(name), mmap_mode="r", allow_pickle=False)
        return rows

    def path(self, name: str) -> Path:
        """Where the file of that name lies."""
        return self._files[name].path

    def ids(self) -> list[Any]:
        """The ids of all samples, in order."""
        self._ids.flush()
        return [json.loads(line) for line in self._ids_path.read_bytes().splitlines()]


@contextmanager
def working_folder(out: str | Path | None, kind: OutputKind, *, resume: bool) -> Iterator[Path]:
    """A folder for a pass: of its own and for this call only, or in `out` until what is made there is complete.

    Args:
        out: the output folder, which several processes share; None for none.
        kind: what the job leaves there.
        resume: False to forget what an interrupted pass left there.
    """
    if out is None:
        with scratch_folder() as folder:
            yield folder
        return
    rank, ranks = rank_and_count()
    with output(out, kind, rank=rank, ranks=ranks) as opened:
        if not resume and rank == 0:
            with write_errors(opened.partial):
                for entry in opened.partial.iterdir():
                    if entry.is_dir():
                        remove_tree(entry)
        wait_for_all()
        yield opened.partial
        wait_for_all()


def _chained(chain: str, ids: list[Any], digests: NDArray[np.uint64]) -> str:
    content = chain.encode() + json.dumps(ids, ensure_ascii=False).encode() + digests.tobytes()
    return hashlib.blake2b(content, digest_size=16).hexdigest()
