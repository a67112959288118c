"""Output folders: a kill, an interrupt or an error at any step leaves the old result or the new one; what is whose."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from forks import forked

import anydepth.storage.replacement
from anydepth.cli.default_folder import default_folder
from anydepth.errors import AnydepthError, ModelError, OutputError, TraceFileError
from anydepth.signals import Stopped, held_back, stopping
from anydepth.storage.checksums import imprint
from anydepth.storage.output_folder import OutputKind, output, settle

KIND = OutputKind(job="make", mark="made.json", names=("numbers.txt", "deep/er/part.txt"))
ALONE = replace(KIND, alone="holds something else already", error=ModelError)
STEPS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.listdir", "os.scandir"}


def make(folder: Path, words: str, *, extra: bool = False, kind: OutputKind = KIND) -> None:
    """A job: three files that say the same words, and a fourth that not every result has."""
    with output(folder, kind) as opened, opened.publish() as staged:
        (staged / "numbers.txt").write_text(words)
        (staged / "deep" / "er").mkdir(parents=True)
        (staged / "deep" / "er" / "part.txt").write_text(words)
        if extra:
            (staged / "deep" / "extra.txt").write_text(words)
        (staged / "made.json").write_text(json.dumps({"words": words}))


def result(folder: Path) -> set[str]:
    """What the files say, read as every reader does; empty where there is no result."""
    settle(folder)
    if not (folder / "made.json").exists():
        return set()
    content = json.loads((folder / "made.json").read_text())
    assert {name: imprint(folder / name) for name in content["written"]} == content["written"]
    return {content["words"], *((folder / name).read_text() for name in content["written"])}


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


MADE = {"made.json", "numbers.txt", "deep/er/part.txt"}


def at_step(number: int, happens: Callable[[], Any], folder: Path) -> Callable[[], None]:
    """A job of which the `number`th step on the file system below a folder is preceded by something."""
    steps = iter(range(sys.maxsize))

    def hook(event: str, given: tuple[Any, ...]) -> None:
        if event in STEPS and any(str(folder) in str(one) for one in given) and next(steps) == number:
            happens()

    def work() -> None:
        sys.addaudithook(hook)  # it cannot be removed, and so belongs to a process of its own
        make(folder, "new")

    return work


def interrupt() -> None:
    raise KeyboardInterrupt


def no_space() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that dies takes nothing with it that the system has; waiting for the disk would take minutes here."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("there", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("happens", [lambda: os.kill(os.getpid(), signal.SIGKILL), interrupt, no_space])
def test_at_every_step_the_old_result_or_the_new_one(happens: Callable[[], Any], there: bool, tmp_path: Path) -> None:
    seen: set[str] = set()
    for number in range(400):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "notes.txt").write_text("mine")
        if there:
            make(folder, "old", extra=True)
        status = forked(at_step(number, happens, folder))
        assert status in (0, 3, -signal.SIGKILL)
        words = result(folder)
        assert words in ([{"old"}, {"new"}] if there else [set(), {"new"}])
        seen |= words
        make(folder, "newer")
        assert result(folder) == {"newer"}
        assert files(folder) == {*MADE, "notes.txt"}
        assert (folder / "notes.txt").read_text() == "mine"
        if number > 20 and status == 0:
            break
    else:
        pytest.fail("the steps did not come to an end")
    assert seen == ({"old", "new"} if there else {"new"})


@pytest.mark.parametrize("happens", [interrupt, no_space])
def test_an_error_leaves_nothing_behind(happens: Callable[[], Any], tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "out"
    assert forked(at_step(12, happens, folder)) == 3
    assert list(tmp_path.iterdir()) == []


# --- one at a time ----------------------------------------------------------------------------------------------------


@contextmanager
def held_elsewhere(folder: Path) -> Iterator[int]:
    """Another process that has the folder."""
    ready, done = os.pipe(), os.pipe()

    def hold() -> None:
        with output(folder, KIND):
            os.write(ready[1], b"x")
            os.read(done[0], 1)

    child = os.fork()
    if not child:
        hold()
        os._exit(0)
    os.read(ready[0], 1)
    try:
        yield child
    finally:
        os.write(done[1], b"x")
        os.waitpid(child, 0)


def test_a_second_process_is_refused_and_told_of_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with held_elsewhere(folder) as child:
        with pytest.raises(OutputError, match=f"in use by process {child} on .*: wait for it to end") as caught:
            make(folder, "new")
        assert "\n" not in str(caught.value)
    make(folder, "new")
    assert files(folder) == MADE


def test_a_lock_ends_with_its_process_whatever_else_lives_on(tmp_path: Path) -> None:
    """The process is killed; a process that it had forked, to load data, is still there."""
    folder = tmp_path / "out"
    end = os.pipe()

    def die() -> None:
        with output(folder, KIND):
            if not os.fork():
                os.close(end[1])
                os.read(end[0], 1)  # until the test lets go
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)

    assert forked(die) == -signal.SIGKILL
    try:
        make(folder, "new")
        assert files(folder) == MADE
    finally:
        os.close(end[1])


def test_two_threads_are_two_and_one_is_one(tmp_path: Path) -> None:
    told: list[BaseException] = []

    def other() -> None:
        try:
            make(tmp_path, "other")
        except OutputError as error:
            told.append(error)

    with output(tmp_path, KIND) as opened:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        make(tmp_path, "inner")  # the same job
        assert opened.partial.exists()
    assert f"in use by process {os.getpid()} on" in str(told[0])
    assert files(tmp_path) == MADE


def test_what_can_be_gone_on_from_stays_and_belongs_to_its_job(tmp_path: Path) -> None:
    def stop() -> None:
        with output(tmp_path, KIND) as opened:
            (opened.partial / "rows").mkdir()
            (opened.partial / "rows" / "journal.json").write_text("{}")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        stop()
    assert caught.value.__notes__ == ["the same command goes on where this one stopped"]
    with pytest.raises(OutputError, match="holds an interrupted anydepth make: go on with that, remove"):
        make(tmp_path, "other", kind=replace(KIND, job="other"))
    with output(tmp_path, KIND) as opened:
        assert (opened.partial / "rows" / "journal.json").exists()
    assert files(tmp_path) == set()


# --- what is whose ----------------------------------------------------------------------------------------------------


def test_what_a_job_did_not_write_stays(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("notes.txt", "deep/notes.txt", ".new"):
        (tmp_path / name).write_text("mine")
    make(tmp_path, "old", extra=True)
    make(tmp_path, "new")
    assert files(tmp_path) == {*MADE, "notes.txt", "deep/notes.txt", ".new"}
    assert result(tmp_path) == {"new"}


@pytest.mark.parametrize("name", [*sorted(MADE), ".partial/thesis.tex", "deep", "made.json/x"])
@pytest.mark.parametrize("later", [False, True])
def test_a_name_that_is_taken_is_refused_before_the_work(name: str, later: bool, tmp_path: Path) -> None:
    if later:  # of a result that was there, and changed since
        make(tmp_path, "old")
        if name not in MADE:
            return
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    before = {one: (tmp_path / one).read_text() for one in files(tmp_path)}

    def work() -> None:
        with output(tmp_path, KIND):
            pytest.fail("the work must not begin")

    with pytest.raises(OutputError, match="move it away, or give another folder") as caught:
        work()
    assert "\n" not in str(caught.value)
    assert {one: (tmp_path / one).read_text() for one in files(tmp_path)} == before


def test_a_name_that_nobody_could_foresee_is_refused_at_the_end(tmp_path: Path) -> None:
    make(tmp_path, "old")
    (tmp_path / "deep" / "extra.txt").write_text("mine")
    with pytest.raises(OutputError, match="extra.txt' was not written by anydepth make"):
        make(tmp_path, "new", extra=True)
    assert result(tmp_path) == {"old"}
    assert (tmp_path / "deep" / "extra.txt").read_text() == "mine"


def test_a_job_that_is_to_be_alone(tmp_path: Path) -> None:
    make(tmp_path / "own", "old", kind=ALONE)
    (tmp_path / "own" / "notes.txt").write_text("mine")
    make(tmp_path / "own", "new", kind=ALONE)
    assert files(tmp_path / "own") == {*MADE, "notes.txt"}
    with pytest.raises(ModelError, match=r"holds something else already: give another folder with --out"):
        make(tmp_path, "new", kind=ALONE)


def test_links_lead_where_they_lead_and_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    make(tmp_path / "link", "old")
    make(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert result(tmp_path / "real") == {"new"}
    (tmp_path / "real" / "numbers.txt").rename(tmp_path / "numbers.txt")
    (tmp_path / "real" / "numbers.txt").symlink_to(tmp_path / "numbers.txt")
    with pytest.raises(OutputError, match="numbers.txt' was not written by anydepth make"):
        make(tmp_path / "link", "newer")
    (tmp_path / "nowhere").symlink_to("not there")
    with pytest.raises(OutputError, match="a link that leads nowhere"):
        make(tmp_path / "nowhere", "new")


def test_what_is_read_is_named_literally(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder whose very name begins with ~ is nobody's home."""
    monkeypatch.chdir(tmp_path)
    Path("~nosuchuser").mkdir()
    with (
        pytest.raises(OutputError, match="is the data to be read, or lies in it"),
        output(Path("~nosuchuser") / "out", KIND, inputs={"data": "~nosuchuser"}),
    ):
        pass


def test_links_in_a_circle_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "data").mkdir()
    with (
        pytest.raises(AnydepthError, match="cannot write .*loop"),
        output(tmp_path / "loop" / "out", KIND, inputs={"data": tmp_path / "data"}),
    ):
        pass


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems hold no such names")
def test_a_name_that_is_no_text_is_refused_before_anything_is_there(tmp_path: Path) -> None:
    """What safetensors could write but not read again."""
    with pytest.raises(OutputError, match="is no UTF-8, and safetensors writes to no other: give another folder"):
        make(tmp_path / os.fsdecode(b"\xff\xfe") / "out", "new")
    assert list(tmp_path.iterdir()) == []


def test_the_folder_one_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make(Path("."), "old")
    make(Path("."), "new")
    assert files(tmp_path) == MADE


def test_what_cannot_be_replaced_is_seen_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "old")
    for name, answer, says in (
        ("_flags", lambda path: 0x10, "marked as one not to be changed"),
        ("os.path.ismount", lambda path: Path(path).name == "numbers.txt", "something is mounted there"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"anydepth.storage.replacement.{name}", answer)
            with pytest.raises(OutputError, match=says):
                make(tmp_path, "new")
    assert anydepth.storage.replacement._flags(tmp_path / "numbers.txt") & 0x30 == 0
    assert result(tmp_path) == {"old"}


@pytest.mark.parametrize("name", ["x" * 300, "loop", "file/out"])
def test_a_folder_that_cannot_be(name: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("")
    with pytest.raises(TraceFileError, match="cannot write") as caught:
        make(tmp_path / name, "new")
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"loop", "file"}


@pytest.mark.parametrize(
    ("out", "reads"),
    [
        ("model", {"model": "model"}),
        ("model", {"model": "link"}),
        ("images/out", {"data": "images"}),
        ("images", {"data": "images"}),
        ("p", {"data": "p/numbers.txt"}),
        ("p", {"data": "to numbers"}),
        ("p", {"model": "p/deep"}),
    ],
)
def test_what_is_read_is_not_written_to(
    out: str, reads: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("model", "images"):
        Path(name).mkdir()
    make(Path("p"), "old")
    Path("link").symlink_to("model")
    Path("to numbers").symlink_to("p/numbers.txt")
    before = files(tmp_path)
    with pytest.raises(OutputError, match=r"give another folder \(out\)"), output(out, KIND, inputs=reads):
        pytest.fail("the work must not begin")
    assert files(tmp_path) == before


def test_a_folder_beside_or_inside_what_is_read_is_fine(tmp_path: Path) -> None:
    reads = {
        "model": tmp_path,
        "data": tmp_path / "reviews.csv",
        "nothing": None,
        "far": "org/data",
        "no": "~nosuch/x",
    }
    (tmp_path / "reviews.csv").write_text("text")
    with output(tmp_path / "out", KIND, inputs=reads):
        pass


def test_files_have_the_mode_of_the_umask(tmp_path: Path) -> None:
    def work() -> None:
        os.umask(0o027)
        with output(tmp_path / "out", KIND) as opened, opened.publish() as staged:
            (staged / "made.json").write_text("{}")
            os.close(os.open(staged / "numbers.txt", os.O_CREAT | os.O_WRONLY, 0o600))

    assert forked(work) == 0
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()}
    assert modes == {"made.json": 0o640, "numbers.txt": 0o640}
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o750


# --- names ------------------------------------------------------------------------------------------------------------


def test_default_folders_never_fall_on_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("exp1/checkpoint-500", "exp2/checkpoint-500", "a-b", "a/b", "bert"):
        Path(name).mkdir(parents=True)
    models = ["exp1/checkpoint-500", "exp2/checkpoint-500", "a-b", "a/b", "bert", "org/bert", "org-bert", "gpt2"]
    pairs = [(model, data) for model in models for data in ("digits", "b-digits", "org/digits", "digits/train.csv")]
    pairs += [("a", "b-c"), ("a-b", "c"), ("x" * 300, "digits"), ("x" * 301, "digits")]
    folders = {str(default_folder(*pair)): pair for pair in pairs}
    assert len(folders) == len(pairs)
    assert max(map(len, folders)) < 150
    assert default_folder("exp1/checkpoint-500") == default_folder("./exp1/../exp1/checkpoint-500/")
    assert default_folder("exp1/checkpoint-500") == default_folder(tmp_path / "exp1" / "checkpoint-500")
    assert str(default_folder("bert", "digits", suffix="-exit")) == "runs/bert-digits-exit"


def test_nothing_stays_where_too_many_files_are_open(tmp_path: Path) -> None:
    """Clearing away takes a file handle itself."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    handles: list[int] = []

    def work() -> None:
        with output(tmp_path / "a" / "b", KIND):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(before[0], 256), before[1]))
            while True:
                handles.append(os.open(os.devnull, os.O_RDONLY))

    try:
        with pytest.raises(OSError, match="Too many open files"):
            work()
    finally:
        for handle in handles:
            os.close(handle)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert list(tmp_path.iterdir()) == []


# --- signals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_stop_and_are_handled_as_before_afterwards(number: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as caught, stopping():
        signal.raise_signal(number)
    assert caught.value.number == number
    assert signal.getsignal(number) is before


def test_a_signal_that_gets_lost_in_a_library_is_sent_again() -> None:
    """As in compiled code that asks Python whether two things are equal, and goes on whatever it hears."""

    class Careless:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    def work() -> None:
        with stopping():
            careless = Careless()
            del careless  # Python ignores what a finalizer raises
            going_on.append(True)
            time.sleep(30)

    going_on: list[bool] = []
    with pytest.raises(Stopped) as caught:
        work()
    assert going_on
    assert caught.value.number == signal.SIGTERM


def test_a_library_that_fails_for_a_lost_signal_was_stopped() -> None:
    def work() -> None:
        with stopping():
            with suppress(Stopped):
                signal.raise_signal(signal.SIGHUP)
            raise TypeError("'str' object is not an instance of 'tuple'")

    with pytest.raises(Stopped) as caught:
        work()
    assert caught.value.number == signal.SIGHUP
    assert caught.value.__notes__ == ["give the same command again"]


def test_an_ignored_signal_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_waits_for_the_end_of_a_short_step() -> None:
    done: list[str] = []

    def work() -> None:
        with stopping():
            with held_back():
                signal.raise_signal(signal.SIGTERM)
                signal.raise_signal(signal.SIGTERM)
                done.append("the step")
            done.append("the next one")

    with pytest.raises(Stopped):
        work()
    assert done == ["the step"]
