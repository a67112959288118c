"""What states may take on disk: told at the first batch, warned of, refused; and nothing of a refused pass stays."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import naive
import numpy as np
import pytest
import tiny_models
from naive import same

from anydepth.errors import AnydepthError, AnydepthWarning, DataError, TraceFileError
from anydepth.passes.disk_budget import DiskBudget
from anydepth.passes.workspace import Workspace
from anydepth.tracing.run import trace
from anydepth.tracing.trace import Trace

pytestmark = pytest.mark.usefixtures("undrawn")

COUNT, SIZE = 12, 4
TEXTS, LABELS = naive.sentences(COUNT), naive.classes(COUNT)
BATCHES = naive.padded(TEXTS, LABELS, SIZE)
ROW = 4 * 32 * (tiny_models.BLOCKS + 1)  # bytes of a sample's states at all depths


def kept(data: Any, out: Path, **settings: Any) -> Trace:
    return trace(tiny_models.build("bert")[0], data, out=out, keep_states=True, **settings)


def refusal(run: Callable[[], Any], error: type[AnydepthError] = TraceFileError) -> str:
    with pytest.raises(error) as caught:
        run()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def free(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 0, size))


def one_by_one() -> Iterator[Any]:
    yield from BATCHES


class Watched:
    """Batches, as many as are asked for."""

    def __init__(self, *, sized: bool) -> None:
        self.asked = 0
        if sized:
            self.__class__ = _WatchedSized

    def __iter__(self) -> Iterator[Any]:
        for batch in BATCHES:
            self.asked += 1
            yield batch


class _WatchedSized(Watched):
    def __len__(self) -> int:
        return len(BATCHES)


def test_the_size_of_a_row_is_as_taken_here(tmp_path: Path) -> None:
    found = kept(BATCHES, tmp_path)
    assert found.states is not None
    assert found.states.bytes == COUNT * ROW


# --- the limit -------------------------------------------------------------------------------------------------------


def test_what_would_be_over_the_limit_is_refused_at_the_first_batch(tmp_path: Path) -> None:
    data = Watched(sized=True)
    message = refusal(lambda: kept(data, tmp_path / "made" / "out", states_limit=COUNT * ROW - 1))
    size = f"{COUNT * ROW / 1000:.1f} kB"
    assert message == (
        f"the states take about {size} on disk, and states_limit is {size}: trace fewer samples, or raise states_limit"
    )
    assert data.asked == 1
    assert list(tmp_path.iterdir()) == []


def test_where_nobody_knows_how_many_come_the_limit_holds_as_rows_are_written(tmp_path: Path) -> None:
    data = Watched(sized=False)
    message = refusal(lambda: kept(data, tmp_path / "out", states_limit=f"{2 * SIZE * ROW} bytes"))
    assert message.startswith(f"the states take {COUNT * ROW / 1000:.1f} kB on disk, and states_limit is ")
    assert data.asked == 3
    assert list(tmp_path.iterdir()) == [], "what two batches left is gone as well"
    same(kept(one_by_one(), tmp_path / "out"), kept(BATCHES, tmp_path / "whole"))


def test_batches_that_turn_out_larger_than_the_first_are_refused_too(tmp_path: Path) -> None:
    uneven = [*naive.padded(TEXTS[:1], LABELS[:1], 1), *naive.padded(TEXTS[1:], LABELS[1:], 11)]
    message = refusal(lambda: kept(uneven, tmp_path, states_limit=5 * ROW))
    assert message.startswith(f"the states take {COUNT * ROW / 1000:.1f} kB on disk")


def test_a_limit_that_holds_changes_nothing(tmp_path: Path) -> None:
    same(kept(BATCHES, tmp_path / "a", states_limit=COUNT * ROW), kept(BATCHES, tmp_path / "b"))


def test_one_row_for_a_sample_is_the_way_out_where_every_position_has_one(tmp_path: Path) -> None:
    data = naive.padded(TEXTS, None, SIZE)
    model = tiny_models.build("gpt2")[0]
    message = refusal(lambda: trace(model, data, out=tmp_path, keep_states=True, states_limit="1 kB"))
    assert ": trace fewer samples or one row for a sample (tokens='mean'), or raise states_limit" in message


def test_states_that_are_not_kept_are_held_to_it_too() -> None:
    assert "and states_limit is 1.0 kB" in refusal(
        lambda: trace(tiny_models.build("bert")[0], BATCHES, states_limit="1 kB")
    )
    trace(tiny_models.build("bert")[0], BATCHES, measures=[], states_limit="1 kB")


def test_a_pass_that_goes_on_counts_what_is_there_and_keeps_it(tmp_path: Path) -> None:
    def stopping() -> Iterator[Any]:
        yield from BATCHES[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept(stopping(), tmp_path)
    message = refusal(lambda: kept(BATCHES, tmp_path, states_limit=COUNT * ROW - 1))
    assert message.startswith(f"the states take about {COUNT * ROW / 1000:.1f} kB on disk")
    assert (tmp_path / ".partial" / "rank-0" / "journal.json").exists(), "it is not of this call"
    same(kept(BATCHES, tmp_path, states_limit=COUNT * ROW), kept(BATCHES, tmp_path / "whole"))


@pytest.mark.parametrize("limit", ["", "much", "20 GiB", "-5GB", "0", 0, -1, "5 5", "1e9", "GB", "nan"])
def test_what_is_no_size(limit: Any, tmp_path: Path) -> None:
    message = refusal(lambda: kept(BATCHES, tmp_path / "out", states_limit=limit), DataError)
    assert message == f"states_limit is {limit!r}, expected a size such as '20GB', or a number of bytes"
    assert list(tmp_path.iterdir()) == []


# --- the warning -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sized", [True, False])
def test_states_that_take_most_of_the_disk_are_warned_of_once(
    sized: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, left = Watched(sized=sized), 2 * COUNT * ROW - 2000
    free(monkeypatch, left if sized else left - 2 * SIZE * ROW)  # before the first batch, and before the last
    with pytest.warns(AnydepthWarning) as caught:
        kept(data, tmp_path, measures=["cosine"], readout=None)
    (warned,) = caught
    about = "about " if sized else ""
    assert str(warned.message).startswith(
        f"the states take {about}{COUNT * ROW / 1000:.1f} kB on disk, more than half of the "
    )
    assert str(warned.message).endswith(": fewer samples take less, states_limit sets a limit")


def test_half_of_the_disk_is_no_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 2 * COUNT * ROW)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept(BATCHES, tmp_path, measures=[], readout=None)


def test_a_disk_without_room_for_one_more_batch_of_who_knows_how_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, SIZE * ROW - 1)
    message = refusal(lambda: kept(one_by_one(), tmp_path / "out"))
    assert message.startswith("keeping what one more batch shows takes ")
    assert "free; use a smaller limit" in message
    assert list(tmp_path.iterdir()) == []


# --- by itself -------------------------------------------------------------------------------------------------------


def test_processes_share_one_disk_and_one_limit(tmp_path: Path) -> None:
    with closing(Workspace(tmp_path, "key")) as workspace:
        room = DiskBudget(workspace, 1000, batches=5, ranks=2)
        room.reserve(100, each=False)
        assert room.expected == 1000
        message = refusal(lambda: DiskBudget(workspace, 999, batches=5, ranks=2).reserve(100, each=False))
        assert message.startswith("the states take about 1.0 kB on disk, and states_limit is 999 bytes")


def test_what_is_told(tmp_path: Path) -> None:
    with closing(Workspace(tmp_path, "key")) as workspace:
        known, unknown = DiskBudget(workspace, None, batches=3), DiskBudget(workspace, None, batches=None)
        assert known.describe("batches") == "batches"
        for room in (known, unknown):
            room.reserve(2000, each=False)
        assert known.describe("batches") == "batches, about 6.0 kB of states"
        assert unknown.describe("batches") == "batches"


def test_a_workspace_that_was_discarded_is_not_gone_on_from(tmp_path: Path) -> None:
    with closing(Workspace(tmp_path, "key")) as workspace:
        workspace.append("states", np.zeros((2, 3)), np.float32)
        assert workspace.bytes_of("states") == 24
        assert workspace.bytes_of("answers") == 0
        workspace.finish_batch(["a"], np.zeros(1, np.uint64), np.zeros(1, np.int64))
        workspace.commit()
        workspace.discard()
        workspace.commit()
    with closing(Workspace(tmp_path, "key")) as again:
        assert (again.batches, again.bytes_of("states")) == (0, 0)
