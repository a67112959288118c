from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anydepth.errors import TraceFileError
from anydepth.storage.disk import atomic_write
from anydepth.storage.files import read_json, replacing_folder, require_space, write_json
from anydepth.storage.rows import RowFile, StoredStates
from anydepth.storage.sizes import as_bytes, in_words


def full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def one_line(caught: pytest.ExceptionInfo[BaseException]) -> str:
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.int64, np.uint64])
@pytest.mark.parametrize("columns", [None, 1, 5])
def test_rows_read_back_as_appended(dtype: Any, columns: int | None, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 99, size=(n,) if columns is None else (n, columns)).astype(dtype) for n in (3, 1, 0, 40)]
    file = RowFile(tmp_path / "rows.npy", dtype, columns)
    assert np.load(tmp_path / "rows.npy").shape == ((0,) if columns is None else (0, columns))
    for part in parts:
        file.append(part)
        file.commit()
    file.close()
    found = np.load(tmp_path / "rows.npy", allow_pickle=False)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, np.concatenate(parts))


def test_rows_are_cast_and_need_not_be_contiguous(tmp_path: Path) -> None:
    file = RowFile(tmp_path / "rows.npy", np.float32, 3)
    wide = np.arange(24.0).reshape(4, 6)
    file.append(wide[:, ::2])
    file.append(np.asfortranarray(wide[:, :3]))
    file.close()
    np.testing.assert_array_equal(np.load(tmp_path / "rows.npy"), np.concatenate([wide[:, ::2], wide[:, :3]]))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=8), st.data())
def test_a_file_taken_up_again_holds_what_was_kept(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, bool]], data: st.DataObject
) -> None:
    """Any sequence of appends and reopenings, each keeping any number of the rows there are."""
    path = tmp_path_factory.mktemp("rows") / "rows.npy"
    file, expected, number = RowFile(path, np.int64), [], 0
    for count, reopen in steps:
        new = list(range(number, number + count))
        number += count
        file.append(np.array(new, np.int64))
        expected += new
        if reopen:
            file.close()
            kept = data.draw(st.integers(0, len(expected)))
            file, expected = RowFile(path, np.int64, rows=kept), expected[:kept]
        else:
            file.commit()
        assert np.load(path).tolist() == expected
    file.close()


def test_a_reader_sees_what_was_committed_while_the_writer_goes_on(tmp_path: Path) -> None:
    file = RowFile(tmp_path / "rows.npy", np.float32, 2)
    file.append(np.ones((3, 2)))
    file.commit()
    reader = np.load(tmp_path / "rows.npy", mmap_mode="r")
    file.append(np.zeros((100, 2)))
    assert reader.shape == (3, 2)
    assert np.load(tmp_path / "rows.npy", mmap_mode="r").shape == (3, 2)
    file.close()
    file.close()
    assert np.load(tmp_path / "rows.npy").shape == (103, 2)


def test_rows_where_there_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(TraceFileError, match=r"cannot write .*rows.npy: No such file or directory") as caught:
        RowFile(tmp_path / "none" / "rows.npy", np.float32)
    one_line(caught)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_rows_on_a_full_disk(tmp_path: Path) -> None:
    file = RowFile(tmp_path / "rows.npy", np.float32, 2)
    file.append(np.ones((3, 2)))
    device = os.open("/dev/full", os.O_WRONLY)
    os.dup2(device, file._file.fileno())
    os.close(device)
    with pytest.raises(TraceFileError, match=r"cannot write .*rows.npy: No space left on device") as caught:
        file.commit()
    one_line(caught)
    with pytest.raises(TraceFileError, match="No space left"):
        file.close()
    assert file._file.closed
    file.close()


# --- states ----------------------------------------------------------------------------------------------------------


def stored(folder: Path, counts: tuple[int, ...], widths: tuple[int, ...] = (2, 3)) -> tuple[StoredStates, np.ndarray]:
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(count, sum(widths))).astype(np.float32) for count in counts]
    for index, part in enumerate(parts):
        np.save(folder / f"{index}.npy", part)
    return StoredStates([folder / f"{index}.npy" for index in range(len(parts))], widths), np.concatenate(parts)


@pytest.mark.parametrize("size", [1, 4, 7, 100])
@pytest.mark.parametrize("counts", [(10,), (3, 0, 7), (1, 1, 1)])
def test_states_come_in_order_whatever_the_chunk(size: int, counts: tuple[int, ...], tmp_path: Path) -> None:
    states, expected = stored(tmp_path, counts)
    assert (states.count, states.widths, states.bytes) == (sum(counts), (2, 3), 4 * 5 * sum(counts))
    for _ in range(2):  # as often as a measure needs
        chunks = list(states.chunks(size))
        assert all(len(chunk) <= size and chunk.dtype == torch.float32 for chunk in chunks)
        np.testing.assert_array_equal(torch.cat(chunks).numpy(), expected)


def test_a_chunk_may_be_written_to(tmp_path: Path) -> None:
    states, expected = stored(tmp_path, (6,))
    for chunk in states.chunks(3):
        chunk.zero_()
    np.testing.assert_array_equal(torch.cat(list(states.chunks(3))).numpy(), expected)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 5)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (cut, "cannot be read as kept states"),
        (lambda path: path.unlink(), "cannot be read as kept states: .*No such file"),
        (lambda path: path.write_bytes(b""), "cannot be read as kept states"),
        (lambda path: os.truncate(path, 60), "cannot be read as kept states"),
        (lambda path: path.write_bytes(b"PK nonsense"), "cannot be read as kept states"),
        (lambda path: np.save(path, np.zeros((6, 5))), r"holds float64 \(6, 5\), expected float32 rows of 5"),
        (
            lambda path: np.save(path, np.zeros((6, 4), np.float32)),
            r"holds float32 \(6, 4\), expected float32 rows of 5",
        ),
        (lambda path: np.save(path, np.zeros(6, np.float32)), r"holds float32 \(6,\), expected float32 rows of 5"),
        (
            lambda path: np.save(path, np.array([{}], dtype=object), allow_pickle=True),
            "cannot be read as kept states: .*allow_pickle=False|cannot be read as kept states: .*[Pp]ython objects",
        ),
    ],
)
def test_states_that_are_damaged(damage: Callable[[Path], Any], says: str, tmp_path: Path) -> None:
    stored(tmp_path, (6,))
    damage(tmp_path / "0.npy")
    with pytest.raises(TraceFileError, match=says) as caught:
        StoredStates([tmp_path / "0.npy"], (2, 3))
    assert str(tmp_path / "0.npy") in one_line(caught)


# --- whole files -----------------------------------------------------------------------------------------------------


def test_a_file_takes_its_place_when_all_went_well(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    for text in ("first", "second"):
        with atomic_write(path) as beside:
            beside.write_text(text)
            assert not path.exists() or path.read_text() == "first"
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
@pytest.mark.parametrize("there", [True, False])
def test_a_file_is_untouched_when_it_did_not(error: type[BaseException], there: bool, tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    if there:
        path.write_text("old")

    def half_way() -> None:
        with atomic_write(path) as beside:
            beside.write_text("half")
            raise error("stopped")

    with pytest.raises(TraceFileError if error is OSError else error):
        half_way()
    assert list(tmp_path.iterdir()) == ([path] if there else [])
    assert not there or path.read_text() == "old"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError, None])
def test_a_folder_likewise(error: type[BaseException] | None, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old.txt").write_text("old")

    def fill() -> None:
        with replacing_folder(folder) as beside:
            (beside / "new.txt").write_text("new")
            if error:
                raise error("stopped")

    if error is None:
        fill()
    else:
        with pytest.raises(TraceFileError if error is OSError else error):
            fill()
    assert [path.name for path in folder.iterdir()] == ["old.txt" if error else "new.txt"]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_file_in_the_way_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(TraceFileError, match="cannot write .*file/out: Not a directory") as caught,
        replacing_folder(tmp_path / "file" / "out"),
    ):
        pass
    one_line(caught)
    with pytest.raises(TraceFileError, match="cannot write .*file/out.json: "):
        write_json(tmp_path / "file" / "out.json", {})


# --- json ------------------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=30, deadline=None)
@given(JSON)
def test_json_reads_back_as_written(tmp_path_factory: pytest.TempPathFactory, content: Any) -> None:
    path = tmp_path_factory.mktemp("json") / "file.json"
    write_json(path, content)
    assert read_json(path) == content


def test_what_is_not_json_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"old": 1})
    for content in ({"x": float("nan")}, {"x": object()}):
        with pytest.raises((ValueError, TypeError)):
            write_json(path, content)
    assert read_json(path) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "does not exist: expected a folder written by anydepth"),
        (b'{"half": ', "is corrupt or cannot be read .Expecting value"),
        (b"\xff\xfe", "is corrupt or cannot be read .*utf-8"),
        (b"", "is corrupt or cannot be read"),
    ],
)
def test_json_that_cannot_be_read(content: bytes | None, says: str, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TraceFileError, match=says) as caught:
        read_json(path)
    assert str(path) in one_line(caught)


def test_a_folder_is_not_json(tmp_path: Path) -> None:
    with pytest.raises(TraceFileError, match="cannot be read"):
        read_json(tmp_path)


def test_json_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"old": 1})
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(TraceFileError, match=r"cannot write .*file.json: No space left on device") as caught:
        write_json(path, {"new": 2})
    one_line(caught)
    monkeypatch.undo()
    assert read_json(path) == {"old": 1}


@pytest.mark.parametrize(
    ("size", "count"),
    [
        (5, 5),
        ("5", 5),
        ("5 bytes", 5),
        ("20GB", 20 * 10**9),
        ("20 gb", 20 * 10**9),
        ("1.5kB", 1500),
        (".5 MB", 500_000),
        ("3 TB", 3 * 10**12),
    ],
)
def test_sizes_are_read_as_they_are_written(size: int | str, count: int) -> None:
    assert as_bytes(size, "limit") == count


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 10**15))
def test_sizes_in_words_read_back(size: int) -> None:
    assert abs(as_bytes(in_words(size), "limit") - size) <= 0.05 * size


def test_a_fingerprint_tells_states_apart(tmp_path: Path) -> None:
    states, _ = stored(tmp_path, (2500, 7))
    content = np.concatenate([np.load(tmp_path / f"{index}.npy") for index in (0, 1)])
    np.save(tmp_path / "whole.npy", content)

    def other(widths: tuple[int, ...] = (2, 3), groups: Any = None, **change: Any) -> str:
        changed = content.copy()
        if change:
            changed[change["row"], 0] += 1
        np.save(tmp_path / "other.npy", changed)
        return StoredStates([tmp_path / "other.npy"], widths, groups).fingerprint

    same = StoredStates([tmp_path / "whole.npy"], (2, 3)).fingerprint
    assert same == states.fingerprint == other() == other(groups=np.arange(2507)), "not of how they are cut into files"
    assert len({same, other(row=0), other(row=2506), other((3, 2)), other(groups=np.arange(2507)[::-1].copy())}) == 5
    empty, _ = stored(tmp_path, (0,))
    assert empty.fingerprint != same


# --- space -----------------------------------------------------------------------------------------------------------


def test_space_is_asked_for_before_it_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 0, 10**9))
    require_space(tmp_path, 10**9, "the trace")
    with pytest.raises(TraceFileError, match=r"the trace takes 1.5 GB, and .* has 1.0 GB free; use a smaller limit"):
        require_space(tmp_path, 1_500_000_000, "the trace")


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 bytes"),
        (1, "1 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (2_500_000, "2.5 MB"),
        (3 * 10**12, "3.0 TB"),
    ],
)
def test_sizes_in_words(size: int, words: str) -> None:
    assert in_words(size) == words


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**17))
def test_sizes_in_words_are_near_the_size(size: int) -> None:
    number, unit = in_words(size).split()
    scale = {"bytes": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}[unit]
    assert abs(float(number) * scale - size) <= 0.05 * scale
    assert float(number) < 1001 or unit == "TB"
