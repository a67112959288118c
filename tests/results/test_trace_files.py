from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import naive
import numpy as np
import pytest
import safetensors.torch
import tiny_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import same

import anydepth.results.trace_files
from anydepth.errors import TraceFileError
from anydepth.measures.engine.moments import Moments
from anydepth.results.trace_data import Rows
from anydepth.results.trace_files import FORMAT
from anydepth.storage.checksums import file_record, with_checksum
from anydepth.tracing.run import trace, trace_states
from anydepth.tracing.trace import Trace

pytestmark = pytest.mark.usefixtures("undrawn")

TEXTS, LABELS = naive.sentences(12), naive.classes(12)
BATCHES = naive.padded(TEXTS, LABELS, 5)


def equal(one: Trace, other: Trace) -> None:
    """Everything a trace says, down to types and order."""
    same(one, other)
    for group in ("similarity", "similarity_intervals", "quantiles"):
        assert list(getattr(one, group)) == list(getattr(other, group))
        for name, values in getattr(one, group).items():
            assert values.dtype == getattr(other, group)[name].dtype == np.float64
    assert (one.notes, one.provenance) == (other.notes, other.provenance)
    assert one.digests.dtype == other.digests.dtype == np.uint64
    assert [type(a) for a in one.ids] == [type(b) for b in other.ids]
    if one.rows is not None and other.rows is not None:
        assert one.rows.columns.keys() == other.rows.columns.keys()
        for name, a in one.rows.columns.items():
            b = getattr(other.rows, name)
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
    assert (one.moments is None) == (other.moments is None)
    if one.moments is not None and other.moments is not None:
        assert one.moments.widths == other.moments.widths
        assert torch.equal(one.moments.data, other.moments.data)
    assert (one.states is None) == (other.states is None)
    if one.states is not None and other.states is not None:
        assert (one.states.widths, one.states.count) == (other.states.widths, other.states.count)
        assert torch.equal(torch.cat(list(one.states.chunks(5))), torch.cat(list(other.states.chunks(3))))
        groups = [np.arange(s.count) if s.groups is None else s.groups for s in (one.states, other.states)]
        np.testing.assert_array_equal(*groups)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


ALWAYS = {"trace.json", "arrays.safetensors", "report.html"}


# --- there and back --------------------------------------------------------------------------------------------------


def arrays(count: int = 60, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=(count, 4)) for name in ("a", "b", "c")}


def vectors() -> Trace:
    """Enough rows for CKA to come from sums, and so to keep them."""
    torch.manual_seed(0)
    batches = [(torch.randn(150, 8), torch.randint(0, 5, (150,))) for _ in range(2)]
    return trace(tiny_models.Nobodys().eval(), batches, sums=True)


MADE: dict[str, Callable[[Path], Trace]] = {
    "a classifier": lambda _: trace(tiny_models.build("bert")[0], BATCHES),
    "a language model": lambda _: trace(tiny_models.build("gpt2")[0], naive.padded(TEXTS, None, 5)),
    "no classifier": lambda _: trace(tiny_models.build("bert without a head")[0], naive.padded(TEXTS, None, 5)),
    "no labels": lambda _: trace(tiny_models.build("bert")[0], BATCHES, labels=False),
    "no readout": lambda _: trace(tiny_models.build("bert")[0], BATCHES, readout=None),
    "no measures": lambda _: trace(tiny_models.build("bert")[0], BATCHES, measures=[]),
    "one measure": lambda _: trace(tiny_models.build("bert")[0], BATCHES, measures=["cka_biased"]),
    "sums": lambda _: vectors(),
    "arrays": lambda _: trace_states(arrays()),
    "blank depths": lambda _: trace_states({**arrays(), "d": np.ones((60, 4))}),
    "one row": lambda _: trace_states({name: array[:1] for name, array in arrays().items()}),
    "kept states": lambda folder: trace(tiny_models.build("bert")[0], BATCHES, out=folder / "kept", keep_states=True),
    "kept states of positions": lambda folder: trace(
        tiny_models.build("gpt2")[0], naive.padded(TEXTS, None, 5), out=folder / "kept", keep_states=True
    ),
}


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("kind", MADE)
def test_a_trace_reads_back_as_it_was_written(kind: str, tmp_path: Path) -> None:
    found = MADE[kind](tmp_path)
    assert found.save(tmp_path / "out") == tmp_path / "out"
    expected = set(ALWAYS)
    expected |= {"sums.safetensors"} if found.moments is not None else set()
    expected |= {"states"} if found.states is not None else set()
    assert names_in(tmp_path / "out") == expected
    back = Trace.load(tmp_path / "out")
    equal(back, found)
    assert (back.similarity_intervals.keys(), back.statistics) == (found.similarity_intervals.keys(), found.statistics)
    back.save(tmp_path / "again")
    equal(Trace.load(tmp_path / "again"), found)


def test_what_trace_gives_back_is_what_it_saved(tmp_path: Path) -> None:
    equal(trace(tiny_models.build("bert")[0], BATCHES, out=tmp_path), Trace.load(str(tmp_path)))


IDS = st.lists(st.text(st.characters(exclude_categories=["Cs"])), unique=True) | st.lists(st.integers(), unique=True)
VALUES = st.floats(allow_infinity=False, width=64)


@settings(max_examples=30, deadline=None)
@given(ids=IDS, depths=st.integers(1, 4), seed=st.integers(0, 99), notes=st.lists(st.text()), data=st.data())
def test_any_trace_reads_back(
    tmp_path_factory: pytest.TempPathFactory, ids: list[Any], depths: int, seed: int, notes: list[str], data: Any
) -> None:
    rng = np.random.default_rng(seed)
    count, size = len(ids), (len(ids), depths)
    square = rng.normal(size=(depths, depths))
    square[rng.uniform(size=square.shape) < 0.3] = np.nan
    rows = Rows(
        sample=rng.integers(max(count, 1), size=count),
        position=rng.integers(9, size=count, dtype=np.int32),
        label=rng.integers(-100, 5, size=count),
        prediction=rng.integers(-1, 5, size=size, dtype=np.int32),
        cross_entropy=rng.normal(size=size).astype(np.float32),
        confidence=np.where(rng.uniform(size=size) < 0.2, np.nan, rng.uniform(size=size)).astype(np.float32),
        # a trace that was made before it was kept has none
        entropy=rng.exponential(size=size).astype(np.float32) if data.draw(st.booleans()) else None,
    )
    measures = data.draw(st.permutations(["cosine", "cka", "a name/with a slash", "ünï"]))
    found = Trace(
        names=tuple(f"depth {k}" for k in range(depths)),
        similarity={name: square + index for index, name in enumerate(measures)},
        similarity_intervals={measures[0]: np.stack([square, square])},
        quantiles={measures[1]: np.stack([square] * 5)},
        rows=rows if data.draw(st.booleans()) else None,
        ids=tuple(ids),
        digests=rng.integers(2**64 - 1, size=count, dtype=np.uint64),
        provenance={"measures": measures, "nested": {"x": [1, None, "ü", 2.5]}, "data": {}},
        notes=tuple(notes),
        moments=Moments.empty((2,) * depths).update(torch.randn(9, 2 * depths)) if data.draw(st.booleans()) else None,
    )
    folder = tmp_path_factory.mktemp("any")
    found.save(folder)
    equal(Trace.load(folder), found)


def test_provenance_becomes_plain(tmp_path: Path) -> None:
    odd = {
        "path": Path("a"),
        "tuple": (1, 2),
        "nan": float("nan"),
        "numpy": np.float64(0.5),
        "int": np.int64(7),
        3: True,
    }
    Trace(names=("0",), similarity={}, provenance=odd).save(tmp_path)
    back = Trace.load(tmp_path).provenance
    assert back == {"path": "a", "tuple": [1, 2], "nan": None, "numpy": 0.5, "int": 7, "3": True}
    json.loads((tmp_path / "trace.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_what_to_leave_out(tmp_path: Path) -> None:
    found = vectors()
    assert found.moments is not None
    found.save(tmp_path, report=False, sums=False)
    assert names_in(tmp_path) == {"trace.json", "arrays.safetensors"}
    assert Trace.load(tmp_path).moments is None


# --- over another ----------------------------------------------------------------------------------------------------


def test_nothing_stays_of_the_trace_that_was_there(tmp_path: Path) -> None:
    model, _ = tiny_models.build("bert")
    trace(model, BATCHES, out=tmp_path, keep_states=True)
    vectors().save(tmp_path)
    assert names_in(tmp_path) == {*ALWAYS, "sums.safetensors"}
    small = trace_states(arrays(), measures=["cosine"])
    assert small.moments is None
    small.save(tmp_path)
    assert names_in(tmp_path) == ALWAYS
    small.save(tmp_path, report=False)
    assert names_in(tmp_path) == {"trace.json", "arrays.safetensors"}
    equal(Trace.load(tmp_path), small)


def test_what_is_not_the_traces_stays(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("mine")
    (tmp_path / "notes.txt").write_text("mine")
    trace_states(arrays()).save(tmp_path)
    assert {"model", "notes.txt"} < names_in(tmp_path)
    assert (tmp_path / "model" / "weights").read_text() == "mine"


def test_a_trace_with_states_may_be_written_over_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = trace(tiny_models.build("bert")[0], BATCHES, out=tmp_path / "out", keep_states=True)
    noted = dataclasses.replace(found, notes=("noted",))
    noted.save(tmp_path / "out")
    equal(Trace.load(tmp_path / "out"), noted)
    monkeypatch.chdir(tmp_path)  # the same folder by another name
    noted.save("out")
    equal(Trace.load("out"), noted)


def test_states_may_be_written_over_those_they_are_made_of(tmp_path: Path) -> None:
    model, _ = tiny_models.build("bert")
    named = [batch | {"id": [f"{at}-{row}" for row in range(len(batch["labels"]))]} for at, batch in enumerate(BATCHES)]
    a = trace(model, named[:1], out=tmp_path / "a", keep_states=True)
    b = trace(model, named[1:], out=tmp_path / "b", keep_states=True)
    merged = a.merge(b)
    merged.save(tmp_path / "a")
    equal(Trace.load(tmp_path / "a"), merged)


# --- what is damaged -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace with every kind of file; copied before it is damaged."""
    folder = tmp_path_factory.mktemp("sound")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trace, "report", lambda self, path: Path(path).write_text("report"))
        torch.manual_seed(0)
        batches = [(torch.randn(150, 8), torch.randint(0, 5, (150,))) for _ in range(2)]
        trace(tiny_models.Nobodys().eval(), batches, out=folder / "trace", keep_states=True, sums=True)
    assert names_in(folder / "trace") == {*ALWAYS, "sums.safetensors", "states"}
    return folder / "trace"


def grow(path: Path) -> None:
    """Adds a byte."""
    with path.open("ab") as file:
        file.write(b"x")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-17] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 8)


def rewritten(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / "trace.json").read_text())
        for name, value in changes.items():
            content.pop(name, None) if value is KeyError else content.update({name: value})
        (folder / "trace.json").write_text(json.dumps(content))

    return change


def restated(**changes: Any) -> Callable[[Path], None]:
    """Content that was never right, under a seal that is."""

    def change(folder: Path) -> None:
        rewritten(**changes)(folder)
        content = json.loads((folder / "trace.json").read_text())
        content.pop("checksum")
        (folder / "trace.json").write_text(json.dumps(with_checksum(content)))

    return change


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no trace.json": (
        lambda f: (f / "trace.json").unlink(),
        r"trace.json does not exist: expected a folder written by anydepth",
    ),
    "half a trace.json": (
        lambda f: os.truncate(f / "trace.json", 100),
        r"trace.json is corrupt or cannot be read",
    ),
    "an empty trace.json": (lambda f: os.truncate(f / "trace.json", 0), r"trace.json is corrupt or cannot be read"),
    "bytes for trace.json": (lambda f: (f / "trace.json").write_bytes(b"\xff\x00"), "trace.json is corrupt"),
    "another JSON": (
        lambda f: (f / "trace.json").write_text("[1, 2]"),
        "trace.json is not a trace: it states no format",
    ),
    "another object": (lambda f: (f / "trace.json").write_text('{"a": 1}'), "is not a trace: it states no format"),
    "a format that is text": (rewritten(format="1"), "is not a trace: it states no format"),
    "a newer format": (
        rewritten(format=FORMAT + 1),
        rf"is of format {FORMAT + 1}, and this anydepth reads up to {FORMAT}: upgrade anydepth",
    ),
    "a newer format that holds nothing known": (
        lambda f: (f / "trace.json").write_text(f'{{"format": {FORMAT + 1}}}'),
        "upgrade anydepth",
    ),
    "names of its own": (rewritten(names=["0"] * 6), "trace.json was changed after it was written: trace again"),
    "another provenance": (rewritten(provenance={"measures": []}), "trace.json was changed after it was written"),
    "another note": (rewritten(notes=["all is well"]), "trace.json was changed after it was written"),
    "no seal": (rewritten(checksum=KeyError), "trace.json was changed after it was written"),
    "an older format": (
        rewritten(format=1),
        "trace.json has format 1, expected 2: trace again with this version of any",
    ),
    "no names": (restated(names=KeyError), "trace.json is corrupt: .*names"),
    "no files": (restated(files=KeyError), "trace.json is corrupt: .*files"),
    "a list of files": (restated(files=["arrays.safetensors"]), "trace.json is corrupt"),
    "files left out": (restated(files={}), "trace.json is corrupt|cannot be read|is missing"),
    "no provenance": (restated(provenance=None), "trace.json is corrupt"),
    "states of no width": (restated(states={"rows": 5}), "trace.json is corrupt: .*widths"),
    "arrays cut short": (
        lambda f: cut(f / "arrays.safetensors"),
        r"arrays.safetensors has \d+ bytes, expected \d+: .*trunc",
    ),
    "arrays flipped": (
        lambda f: flip(f / "arrays.safetensors"),
        "arrays.safetensors was changed after it was written: its checksum is another",
    ),
    "no arrays": (
        lambda f: (f / "arrays.safetensors").unlink(),
        "arrays.safetensors is missing: trace again",
    ),
    "a folder of arrays": (
        lambda f: ((f / "arrays.safetensors").unlink(), (f / "arrays.safetensors").mkdir()),
        "arrays.safetensors is missing",
    ),
    "sums cut short": (lambda f: cut(f / "sums.safetensors"), r"sums.safetensors has \d+ bytes, expected \d+"),
    "sums flipped": (
        lambda f: flip(f / "sums.safetensors"),
        "sums.safetensors was changed after it was written: its checksum is another",
    ),
    "no sums": (lambda f: (f / "sums.safetensors").unlink(), "sums.safetensors is missing"),
    "states cut short": (lambda f: cut(f / "states" / "states.npy"), r"states.npy cannot be read as kept states"),
    "no states": (lambda f: (f / "states" / "states.npy").unlink(), r"states.npy cannot be read as kept states"),
    "states of other width": (
        lambda f: np.save(f / "states" / "states.npy", np.zeros((300, 5), np.float32)),
        r"states.npy holds float32 \(300, 5\), expected float32 rows of 96",
    ),
    "fewer states": (
        lambda f: np.save(f / "states" / "states.npy", np.zeros((299, 96), np.float32)),
        "states is truncated: 299 rows, expected 300",
    ),
    "states of something else": (
        lambda f: np.save(f / "states" / "states.npy", np.zeros((300, 96), np.float32)),
        "states is stale: its states are not those this trace was made of, but of another model or other data; trace",
    ),
    "states in another order": (
        lambda f: np.save(f / "states" / "states.npy", np.load(f / "states" / "states.npy")[::-1]),
        "states is stale",
    ),
    "states of other samples": (
        lambda f: np.save(f / "states" / "sample.npy", np.arange(300)[::-1].copy()),
        "states is stale",
    ),
    "no samples of states": (lambda f: (f / "states" / "sample.npy").unlink(), "sample.npy is missing or corrupt"),
    "samples of states cut short": (lambda f: cut(f / "states" / "sample.npy"), "sample.npy is missing or corrupt"),
    "samples of states emptied": (
        lambda f: os.truncate(f / "states" / "sample.npy", 0),
        "sample.npy is missing or corr",
    ),
    "states grown": (
        lambda f: grow(f / "states" / "states.npy"),
        "states.npy holds more than its rows: it was changed",
    ),
    "samples of states grown": (lambda f: grow(f / "states" / "sample.npy"), "sample.npy holds more than its rows"),
    "no states at all": (lambda f: shutil.rmtree(f / "states"), "sample.npy is missing or corrupt"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_trace_is_refused_in_one_line(kind: str, sound: Path, tmp_path: Path) -> None:
    damage, says = DAMAGE[kind]
    folder = tmp_path / "trace"
    shutil.copytree(sound, folder)
    Trace.load(folder)
    damage(folder)
    with pytest.raises(TraceFileError, match=says) as caught:
        Trace.load(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_states_that_no_fingerprint_was_stated_of_are_taken_as_they_are(sound: Path, tmp_path: Path) -> None:
    folder = tmp_path / "trace"
    shutil.copytree(sound, folder)
    restated(states={"widths": [16] * 6, "rows": 300})(folder)
    equal(Trace.load(folder), Trace.load(sound))


@pytest.mark.parametrize("linking", [True, False])
def test_states_that_a_pass_left_are_not_written_twice(
    linking: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []

    def link(there: Path, here: Path, real: Callable[[Path, Path], None] = os.link) -> None:
        if not linking:
            raise OSError(errno.EPERM, "Operation not permitted")
        made.append(here)
        real(there, here)

    monkeypatch.setattr(os, "link", link)
    found = trace(tiny_models.build("bert")[0], BATCHES, out=tmp_path / "one", keep_states=True)
    assert [path.name for path in made] == ["states.npy"] * linking
    states = tmp_path / "one" / "states" / "states.npy"
    assert states.stat().st_nlink == 1, "the other name went with the pass"
    found.save(tmp_path / "two")
    assert len(made) == linking, "a trace of its own has files of its own"
    equal(Trace.load(tmp_path / "two"), found)


def test_sums_of_something_else_are_refused(sound: Path, tmp_path: Path) -> None:
    folder = tmp_path / "trace"
    shutil.copytree(sound, folder)
    safetensors.torch.save_file({"widths": torch.tensor([1]), "sums": torch.zeros(3)}, folder / "sums.safetensors")
    content = json.loads((folder / "trace.json").read_text())
    content["files"]["sums.safetensors"] = file_record(folder / "sums.safetensors")
    restated(files=content["files"])(folder)
    with pytest.raises(TraceFileError, match="corrupt: .*sums of CKA") as caught:
        Trace.load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["nowhere", "file", "empty"])
def test_what_is_no_folder_of_a_trace(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    (tmp_path / "empty").mkdir()
    with pytest.raises(TraceFileError, match="trace.json (does not exist|is corrupt or cannot be read)") as caught:
        Trace.load(tmp_path / place)
    assert "\n" not in str(caught.value)


# --- what cannot be written ------------------------------------------------------------------------------------------


def no_space(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def fails_on(name: str) -> Callable[..., Any]:
    """`Path.write_bytes` on a disk that is full by the time it comes to `name`."""
    write = Path.write_bytes

    def writes(self: Path, content: Any) -> int:
        return no_space() if self.name == name else write(self, content)

    return writes


FULL: dict[str, tuple[Any, str, Any]] = {
    "arrays": (Path, "write_bytes", fails_on("arrays.safetensors")),
    "sums": (Path, "write_bytes", fails_on("sums.safetensors")),
    "states": (anydepth.results.trace_files.RowFile, "append", no_space),
    "samples of states": (np, "save", no_space),
    "report": (Trace, "report", no_space),
    "trace.json": (anydepth.results.trace_files, "write_json", no_space),
    "the folder": (Path, "mkdir", no_space),
}


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("step", FULL)
def test_a_disk_that_fills_up_leaves_the_old_trace(
    step: str, there: bool, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, out = Trace.load(sound), tmp_path / "out"
    old = trace_states(arrays())
    if there:
        old.save(out)
    before = {path.name: path.read_bytes() for path in out.iterdir()} if there else {}
    with monkeypatch.context() as patch:
        patch.setattr(*FULL[step])
        with pytest.raises(TraceFileError, match=f"cannot write {out}.*: No space left on device") as caught:
            found.save(out)
    assert "\n" not in str(caught.value)
    assert ({path.name: path.read_bytes() for path in out.iterdir()} if there else {}) == before
    assert out.exists() == there
    found.save(out)
    equal(Trace.load(out), found)


def test_too_little_space_is_found_before_anything_is_written(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, out = Trace.load(sound), tmp_path / "out"
    assert found.states is not None
    free = found.states.bytes  # enough for them alone
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 0, free))
    with pytest.raises(TraceFileError, match=r"the trace takes [\d.]+ kB, and .* has 115.2 kB free") as caught:
        found.save(out)
    assert "\n" not in str(caught.value)
    assert not out.exists()


@pytest.mark.parametrize("place", ["file", "under a file", "/proc/anydepth"])
def test_a_folder_that_cannot_be_made(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    out = {"file": tmp_path / "file", "under a file": tmp_path / "file" / "out"}.get(place, Path(place))
    with pytest.raises(TraceFileError, match=f"cannot write {out}") as caught:
        trace_states(arrays()).save(out)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupt_leaves_the_old_trace(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = trace_states(arrays())
    old.save(tmp_path)
    before = names_in(tmp_path)

    def stop(self: Trace, path: Path) -> None:
        raise error

    monkeypatch.setattr(Trace, "report", stop)
    with pytest.raises(error):
        trace_states(arrays(seed=1)).save(tmp_path)
    assert names_in(tmp_path) == before
    equal(Trace.load(tmp_path), old)


def test_what_a_kill_left_is_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "as killed"

    def stop(self: Trace, path: Path) -> None:
        shutil.copytree(tmp_path / "out", kept)
        raise KeyboardInterrupt

    found = trace_states(arrays())
    with monkeypatch.context() as patch:
        patch.setattr(Trace, "report", stop)
        with pytest.raises(KeyboardInterrupt):
            found.save(tmp_path / "out")
    assert names_in(kept) != set()
    with pytest.raises(TraceFileError, match="does not exist"):
        Trace.load(kept)
    found.save(kept)
    assert names_in(kept) == {*ALWAYS, "sums.safetensors"}


def test_the_report_is_written_with_the_trace(tmp_path: Path) -> None:
    trace_states(arrays()).save(tmp_path)
    assert (tmp_path / "report.html").read_text() == "report"
