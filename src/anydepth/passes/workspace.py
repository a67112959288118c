"""Rows of a pass over the data on disk, with a journal, so that an interrupted pass resumes where it stopped."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from anydepth.core.tokens import Policy
from anydepth.distributed import rank_and_count, wait_for_all
from anydepth.errors import IncompatibleTraces, TraceFileError
from anydepth.storage.disk import remove_tree, write_errors
from anydepth.storage.files import read_json, write_json
from anydepth.storage.locks import scratch_folder
from anydepth.storage.output_folder import OutputKind, output
from anydepth.storage.rows import RowFile

_JOURNAL = "journal.json"
_COUNTED = ("key", "batches", "samples", "chain", "ids_bytes", "facts", "files")
_SECONDS_BETWEEN_COMMITS = 2.0

Readout = Literal["tail", "raw"] | None


@dataclass(frozen=True, kw_only=True)
class PassFacts:
    """Properties of model and data, found at the first batch of a pass; written to its journal under these names."""

    tokens: Policy
    """Which positions stand for a sample in the states kept."""
    tokens_chosen: bool
    """Whether that is the default, rather than the user's choice."""
    drawn: int | None
    """Most positions of a sample whose states are kept; None for all."""
    readout: Readout
    """How depths are read out; None where the model has no classifier, or is not to be read out."""
    has_classes: bool
    """Whether the model answers with the logits of a classifier."""
    labelled: bool
    """Whether there are labels to compare its answers with."""
    next_token: bool
    """Whether the label of a position is the token after it."""
    per_position: bool
    """Whether the model answers for every position."""
    final_norm: bool
    """Whether a norm reads the output of the last block."""
    classes: int | None
    """C; None without a classifier."""
    width: int
    """D, the features of the last hidden state."""
    queries: bool = False
    """Whether its answers are for queries of its own, with more than a class for each: no label is for one of them."""
    one_by_one: bool = False
    """Whether it scores classes one by one, and has none for no object."""
    counts_padding: bool | None = None
    """Whether padding on the left changes the answers; None as long as no batch has any."""
    widths: list[int] | None = None
    """D at each depth of a model in several stages; None where all depths have the same."""
    first_readout: int = 0
    """The first depth that can be read out: of a model in several stages, the first of the last one."""


class Workspace:
    """A folder of row files and a journal that counts the committed rows of each.

    Args:
        folder: made if missing. Rows that an earlier pass with the same `key` committed are kept; those of another
            pass are discarded.
        key: stands for model and settings.

    The journal is written after the rows it counts. A kill at any moment leaves at worst rows beyond that count, which
    are cut off when the pass resumes.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key
        self.batches, self.samples = 0, 0
        self.facts: PassFacts | None = None
        """Set at the first batch, and read back when the pass resumes."""
        self._files: dict[str, RowFile] = {}
        self._journal: dict[str, Any] = {}
        self._committed = time.monotonic()
        with write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._resume()
        self._seen = hashlib.blake2b(digest_size=16).hexdigest()
        self._seen_batches = 0

    def _resume(self) -> None:
        journal = self._read_journal()
        if journal is None:
            # The old journal is removed first: it must never lie beside the rows of this pass.
            with write_errors(self.folder):
                (self.folder / _JOURNAL).unlink(missing_ok=True)
            with write_errors(self._ids_path):
                self._ids: BinaryIO = self._ids_path.open("wb")
            return
        self.batches, self.samples = journal["batches"], journal["samples"]
        self.facts = PassFacts(**journal["facts"]) if journal["facts"] else None
        self._journal = journal
        for name, layout in journal["files"].items():
            self._files[name] = RowFile(self._path(name), layout["dtype"], layout["columns"], rows=layout["rows"])
        with write_errors(self._ids_path):
            self._ids = self._ids_path.open("r+b")
            self._ids.truncate(journal["ids_bytes"])
            self._ids.seek(0, 2)

    def _read_journal(self) -> dict[str, Any] | None:
        """The journal of an interrupted pass of the same key, if everything it counts is there."""
        try:
            journal = read_json(self.folder / _JOURNAL)
            if journal["key"] != self.key or self._ids_path.stat().st_size < journal["ids_bytes"]:
                return None
            for name, layout in journal["files"].items():
                if len(np.load(self._path(name), mmap_mode="r", allow_pickle=False)) < layout["rows"]:
                    return None
            if journal["facts"]:
                PassFacts(**journal["facts"])
            return {name: journal[name] for name in _COUNTED}
        except (TraceFileError, OSError, EOFError, ValueError, KeyError, TypeError):
            return None

    @property
    def _ids_path(self) -> Path:
        return self.folder / "ids.jsonl"

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npy"

    def already_has(self, ids: list[Any], digests: NDArray[np.uint64]) -> bool:
        """Whether this batch, the next in order, was committed before; `IncompatibleTraces` if other batches were."""
        self._seen = _chained(self._seen, ids, digests)
        self._seen_batches += 1
        if self._seen_batches == self.batches and self._seen != self._journal["chain"]:
            raise self._other_data()
        return self._seen_batches <= self.batches

    def require_all_seen(self) -> None:
        """Raise `IncompatibleTraces` if the data have fewer batches than an interrupted pass committed."""
        if self._seen_batches < self.batches:
            raise self._other_data()

    def _other_data(self) -> IncompatibleTraces:
        return IncompatibleTraces(
            f"the first {self.batches} batches are not those that the interrupted trace in {self.folder} has seen; "
            "give the same data in the same order, or start over (resume=False, --restart); batches of another size, "
            "or of a version that did not sort texts by length, are other batches"
        )

    def append(self, name: str, rows: NDArray[Any], dtype: DTypeLike) -> None:
        """Append rows to the file of that name."""
        if name not in self._files:
            columns = None if rows.ndim == 1 else rows.shape[1]
            self._files[name] = RowFile(self._path(name), dtype, columns)
        self._files[name].append(rows)

    def finish_batch(self, ids: list[Any], digests: NDArray[np.uint64], numbers: NDArray[np.int64]) -> None:
        """Count one more batch, of samples that have these places in the data; commit every two seconds."""
        with write_errors(self.folder):
            self._ids.writelines(json.dumps(name, ensure_ascii=False).encode() + b"\n" for name in ids)
        self.append("digest", digests, np.uint64)
        self.append("number", numbers, np.int64)
        self.batches, self.samples = self.batches + 1, self.samples + len(ids)
        # in one assignment: an interrupt leaves either this batch counted in full or not at all
        self._journal = {
            "key": self.key,
            "batches": self.batches,
            "samples": self.samples,
            "chain": self._seen,
            "ids_bytes": self._ids.tell(),
            "facts": asdict(self.facts) if self.facts else {},
            "files": {
                name: {"dtype": file.dtype.str, "columns": file.columns, "rows": file.rows}
                for name, file in self._files.items()
            },
        }
        if time.monotonic() - self._committed > _SECONDS_BETWEEN_COMMITS:
            self.commit()

    def commit(self) -> None:
        """Write all finished batches and the journal to disk."""
        with write_errors(self.folder):
            self._ids.flush()
        for file in self._files.values():
            file.commit()
        if self._journal:
            write_json(self.folder / _JOURNAL, self._journal)
        self._committed = time.monotonic()

    def close(self) -> None:
        """Close all files, even where one of them cannot be written any more."""
        with write_errors(self._ids_path), ExitStack() as closing:
            closing.callback(self._ids.close)
            for file in self._files.values():
                closing.callback(file.close)

    def discard(self) -> None:
        """Remove the journal, so that no later pass resumes from here."""
        self._journal = {}
        with write_errors(self.folder):
            (self.folder / _JOURNAL).unlink(missing_ok=True)

    def bytes_of(self, name: str) -> int:
        """Bytes of the rows of a file so far; 0 where there is none."""
        return self._files[name].bytes if name in self._files else 0

    def read(self, name: str) -> NDArray[Any] | None:
        """The rows of a file, memory-mapped; None where there is none."""
        if name not in self._files:
            return None
        rows: NDArray[Any] = np.load(self._path(name), mmap_mode="r", allow_pickle=False)
        return rows

    @property
    def order(self) -> NDArray[np.intp]:
        """Where each sample lies among the rows of a file that has one for each, in the order of the data."""
        numbers = self.read("number")
        return np.empty(0, np.intp) if numbers is None else np.argsort(numbers, kind="stable")

    def path(self, name: str) -> Path:
        """The path of the file of that name."""
        return self._files[name].path

    def ids(self) -> list[Any]:
        """The ids of all samples, in the order of the pass."""
        self._ids.flush()
        return [json.loads(line) for line in self._ids_path.read_bytes().splitlines()]


@contextmanager
def working_folder(out: str | Path | None, kind: OutputKind, *, resume: bool) -> Iterator[Path]:
    """Context manager: a folder for the workspaces of a pass, temporary or inside `out` until the output is complete.

    Args:
        out: the output folder, which all processes share; None for a temporary folder.
        kind: the kind of output that the job writes there.
        resume: False to delete the workspaces of an interrupted pass.
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
