"""What an interrupted pass leaves, and that the next one goes on from it as if nothing had happened."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import naive
import numpy as np
import pytest
import tiny_models
import torch
from naive import same
from torch import Tensor, nn

import anydepth.passes.workspace
from anydepth.errors import IncompatibleTraces, LabelError, NonFiniteStates, TraceFileError
from anydepth.passes.workspace import PassFacts, Workspace
from anydepth.tracing.run import trace
from anydepth.tracing.trace import Trace

pytestmark = pytest.mark.usefixtures("undrawn")

COUNT, SIZE = 22, 4
TEXTS, LABELS = naive.sentences(COUNT), naive.classes(COUNT)
BATCHES = naive.padded(TEXTS, LABELS, SIZE)


def bert() -> nn.Module:
    return tiny_models.build("bert")[0]


def until(batches: Sequence[Any], stop: int, error: type[BaseException] = KeyboardInterrupt) -> Iterator[Any]:
    """The batches before number `stop`, then an error."""
    yield from batches[:stop]
    raise error("stopped")


def interrupt(model: nn.Module, out: Path, stop: int, batches: Sequence[Any] = BATCHES, **settings: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        trace(model, until(batches, stop), out=out, **settings)


class Watch:
    """Which texts went through all of a model's blocks."""

    def __init__(self, model: Any) -> None:
        self.texts: set[tuple[int, ...]] = set()
        self._begun: set[tuple[int, ...]] = set()
        self._handles = [
            model.bert.embeddings.register_forward_hook(self._note, with_kwargs=True),
            model.bert.encoder.layer[-1].register_forward_hook(self._finish),
        ]

    def _note(self, module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
        self._begun = {tuple(token for token in row if token) for row in kwargs["input_ids"].tolist()}

    def _finish(self, *_: Any) -> None:
        self.texts |= self._begun

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()


def texts_of(batches: Sequence[Any]) -> set[tuple[int, ...]]:
    return {tuple(token for token in row if token) for batch in batches for row in batch["input_ids"].tolist()}


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


WRITTEN = {"trace.json", "arrays.safetensors", "report.html"}


# --- a trace that goes on --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """The trace that nothing interrupted."""
    return trace(bert(), BATCHES)


@pytest.mark.parametrize("stop", [0, 1, 3, len(BATCHES)])
def test_it_goes_on_where_it_stopped(stop: int, whole: Trace, tmp_path: Path) -> None:
    model = bert()
    interrupt(model, tmp_path, stop)
    assert names_in(tmp_path) <= {".partial"}
    with Watch(model) as watch:
        found = trace(model, BATCHES, out=tmp_path)
    assert watch.texts == texts_of(BATCHES[stop:]), "what was done must not be done again"
    same(found, whole)
    assert names_in(tmp_path) == WRITTEN


def test_it_may_be_interrupted_again_and_again(whole: Trace, tmp_path: Path) -> None:
    model = bert()
    for stop in (1, 2, 2, 5):
        interrupt(model, tmp_path, stop)
    with Watch(model) as watch:
        same(trace(model, iter(BATCHES), out=tmp_path), whole)
    assert watch.texts == texts_of(BATCHES[5:])


@pytest.mark.parametrize("block", [0, 3])
def test_an_interrupt_within_a_batch(block: int, whole: Trace, tmp_path: Path) -> None:
    model = bert()
    calls: list[int] = []

    def stop(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt

    handle = model.bert.encoder.layer[block].register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        trace(model, BATCHES, out=tmp_path)
    handle.remove()
    same(trace(model, BATCHES, out=tmp_path), whole)


@pytest.mark.parametrize("left", ["covariance", "intervals", "cosine"])
def test_an_interrupt_while_measuring(left: str, tmp_path: Path) -> None:
    def stop(done: int, total: int | None, what: str) -> None:
        if what == left:
            raise KeyboardInterrupt

    model = bert()
    with pytest.raises(KeyboardInterrupt):
        trace(model, BATCHES, out=tmp_path, sums=True, progress=stop)
    assert names_in(tmp_path) == {".partial"}
    with Watch(model) as watch:
        same(trace(model, BATCHES, out=tmp_path, sums=True), trace(bert(), BATCHES, sums=True))
    assert watch.texts == set(), "the pass was complete"


def test_an_interrupt_while_saving(whole: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(self: Trace, path: Path) -> None:
        raise KeyboardInterrupt

    model = bert()
    with monkeypatch.context() as patch:
        patch.setattr(Trace, "report", stop)
        with pytest.raises(KeyboardInterrupt):
            trace(model, BATCHES, out=tmp_path)
    assert names_in(tmp_path) == {".partial"}
    with Watch(model) as watch:
        same(trace(model, BATCHES, out=tmp_path), whole)
    assert watch.texts == set()


KILLED = """
import os, signal, sys
import anydepth.passes.workspace
import test_workspace as these
from anydepth.tracing.run import trace

anydepth.passes.workspace._SECONDS_BETWEEN_COMMITS = 0.0
model = these.bert()
model.bert.embeddings.register_forward_hook(lambda *_: print("forward", flush=True))

def killing():
    yield from these.BATCHES[:3]
    model.classifier.register_forward_hook(lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    yield from these.BATCHES[3:]

trace(model, killing(), out=sys.argv[1])
"""


def test_a_killed_process_is_taken_up(whole: Trace, tmp_path: Path) -> None:
    """No handler runs after SIGKILL: what counts is what lies on the disk at that moment."""
    root = Path(__file__).parents[2]
    places = (root / "src", root / "tests" / "helpers", Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places))}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert "forward" in done.stdout
    assert names_in(tmp_path) == {".partial"}
    model = bert()
    with Watch(model) as watch:
        found = trace(model, BATCHES, out=tmp_path)
    assert watch.texts == texts_of(BATCHES[3:])
    same(found, whole)
    assert names_in(tmp_path) == WRITTEN


def test_kept_states_survive_an_interrupt(tmp_path: Path) -> None:
    model = bert()
    expected = trace(model, BATCHES, out=tmp_path / "whole", keep_states=True)
    interrupt(model, tmp_path / "parts", 3, keep_states=True)
    found = trace(model, BATCHES, out=tmp_path / "parts", keep_states=True)
    same(found, expected)
    for one, other in zip(_all_states(found), _all_states(expected), strict=True):
        assert torch.equal(one, other)
    assert names_in(tmp_path / "parts") == {*WRITTEN, "states"}


def _all_states(found: Trace) -> list[Tensor]:
    assert found.states is not None
    return list(found.states.chunks(7))


@pytest.mark.parametrize("ids", [[f"a {i}\n\u2028" for i in range(COUNT)], list(range(1000, 1000 + COUNT))])
def test_ids_survive_an_interrupt(ids: list[Any], tmp_path: Path) -> None:
    model = bert()
    named = [batch | {"id": ids[at * SIZE : (at + 1) * SIZE]} for at, batch in enumerate(BATCHES)]
    interrupt(model, tmp_path, 2, named)
    assert trace(model, named, out=tmp_path).ids == tuple(ids)


def test_other_measures_need_no_second_pass(tmp_path: Path) -> None:
    model = bert()
    interrupt(model, tmp_path, len(BATCHES))
    with Watch(model) as watch:
        found = trace(model, BATCHES, out=tmp_path, measures=["cka_biased"])
    assert watch.texts == set()
    same(found, trace(model, BATCHES, measures=["cka_biased"]))


def test_the_progress_of_a_continued_pass_ends_at_the_end(tmp_path: Path) -> None:
    model = bert()
    interrupt(model, tmp_path, 3)
    told: list[tuple[int, int | None, str]] = []
    trace(model, BATCHES, out=tmp_path, progress=lambda *said: told.append(said))
    assert [said[:2] for said in told if said[2].startswith("batches")][-1] == (len(BATCHES), len(BATCHES))


# --- data that are not the same --------------------------------------------------------------------------------------


def changed(kind: str) -> Sequence[Any]:
    match kind:
        case "another order":
            return [BATCHES[1], BATCHES[0], *BATCHES[2:]]
        case "another order within a batch":
            return naive.padded([*TEXTS[1::-1], *TEXTS[2:]], [*LABELS[1::-1], *LABELS[2:]], SIZE)
        case "other texts":
            return naive.padded(naive.sentences(COUNT, seed=9), LABELS, SIZE)
        case "other ids":
            return [
                batch | {"id": [f"{at}-{row}" for row in range(len(batch["labels"]))]}
                for at, batch in enumerate(BATCHES)
            ]
        case "another batch size":
            return naive.padded(TEXTS, LABELS, SIZE + 1)
        case "other labels":
            return naive.padded(TEXTS, [(label + 1) % tiny_models.CLASSES for label in LABELS], SIZE)
    return BATCHES[:2]


@pytest.mark.parametrize(
    "kind",
    [
        "another order",
        "another order within a batch",
        "other texts",
        "other ids",
        "other labels",
        "another batch size",
        "fewer",
    ],
)
def test_other_data_are_refused(kind: str, whole: Trace, tmp_path: Path) -> None:
    model = bert()
    interrupt(model, tmp_path, 3)
    says = "the first 3 batches are not those .*interrupted trace.*same data in the same order, or start over"
    for _ in range(2):
        with (
            Watch(model) as watch,
            pytest.raises(IncompatibleTraces, match=says + ".*resume=False, --restart") as caught,
        ):
            trace(model, changed(kind), out=tmp_path)
        assert "\n" not in str(caught.value)
        assert watch.texts == set()
        assert names_in(tmp_path) == {".partial"}
    with Watch(model) as watch:
        same(trace(model, BATCHES, out=tmp_path), whole)  # the refusal has spoilt nothing
    assert watch.texts == texts_of(BATCHES[3:])


def test_start_over_on_request(tmp_path: Path) -> None:
    model = bert()
    interrupt(model, tmp_path, 3)
    others = changed("other texts")
    with Watch(model) as watch:
        same(trace(model, others, out=tmp_path, resume=False), trace(model, others))
    assert watch.texts == texts_of(others)
    assert names_in(tmp_path) == WRITTEN


@pytest.mark.parametrize("what", ["model", "tokens", "readout", "labels", "keep_states"])
def test_another_model_or_setting_starts_over(what: str, tmp_path: Path) -> None:
    model = bert()
    interrupt(model, tmp_path, 3)
    settings: dict[str, Any] = {
        "tokens": {"tokens": "mean"},
        "readout": {"readout": "raw"},
        "labels": {"labels": False},
    }
    settings |= {"model": {}, "keep_states": {"keep_states": True}}
    if what == "model":
        with torch.no_grad():
            model.bert.encoder.layer[1].output.dense.bias += 0.5
    with Watch(model) as watch:
        found = trace(model, BATCHES, out=tmp_path, **settings[what])
    assert watch.texts == texts_of(BATCHES)
    expected = {name: value for name, value in settings[what].items() if name != "keep_states"}
    same(found, trace(model, BATCHES, **expected))


def test_what_another_trace_left_is_not_taken_for_ones_own(whole: Trace, tmp_path: Path) -> None:
    """A stops; B starts over in the same folder and dies before it commits; A must not find its journal on B's rows."""
    a, b = bert(), bert()
    with torch.no_grad():
        b.classifier.weight += 1.0
    interrupt(a, tmp_path, 3)

    def killed_at_once() -> Iterator[Any]:
        yield from BATCHES[:2]
        shutil.copytree(tmp_path, tmp_path.with_name("as killed"))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trace(b, killed_at_once(), out=tmp_path)
    with Watch(a) as watch:
        found = trace(a, BATCHES, out=tmp_path.with_name("as killed"))
    assert watch.texts == texts_of(BATCHES)
    same(found, whole)


# --- failures --------------------------------------------------------------------------------------------------------


def test_a_failure_in_the_first_batch_leaves_nothing(tmp_path: Path) -> None:
    batches = [BATCHES[0] | {"labels": torch.full((SIZE,), 99)}]
    with pytest.raises(LabelError):
        trace(bert(), batches, out=tmp_path / "deep" / "out")
    assert names_in(tmp_path / "deep" / "out") == set()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    with pytest.raises(LabelError):
        trace(bert(), batches, out=tmp_path / "mine")
    assert names_in(tmp_path / "mine") == {"notes.txt"}


def test_a_failure_later_on_keeps_what_was_done(whole: Trace, tmp_path: Path) -> None:
    model = bert()
    spoilt = [*BATCHES[:3], BATCHES[3] | {"labels": torch.full((SIZE,), 99)}, *BATCHES[4:]]
    with pytest.raises(LabelError, match="in batch 3"):
        trace(model, spoilt, out=tmp_path)
    assert names_in(tmp_path) == {".partial"}
    with Watch(model) as watch:
        same(trace(model, BATCHES, out=tmp_path), whole)
    assert watch.texts == texts_of(BATCHES[3:])


def test_the_number_of_the_batch_in_a_message_counts_from_the_start(tmp_path: Path) -> None:
    model = bert()
    interrupt(model, tmp_path, 3)
    handle = model.bert.encoder.layer[1].register_forward_hook(lambda _, __, out: out * float("nan"))
    with pytest.raises(NonFiniteStates, match="own answer is NaN in batch 3, and the state not finite from depth 2 on"):
        trace(model, BATCHES, out=tmp_path)
    handle.remove()


def test_an_old_trace_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    model = bert()
    old = trace(model, BATCHES[:2], out=tmp_path)
    interrupt(model, tmp_path, 3)
    same(Trace.load(tmp_path), old)
    new = trace(model, BATCHES, out=tmp_path)
    assert len(new.ids) == COUNT
    same(Trace.load(tmp_path), new)


@pytest.mark.parametrize("place", ["file", "under a file", "/proc/anydepth"])
def test_a_folder_that_cannot_be_made(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    out = {"file": tmp_path / "file", "under a file": tmp_path / "file" / "out"}.get(place, Path(place))
    with pytest.raises(TraceFileError, match=f"cannot write {out}") as caught:
        trace(bert(), BATCHES, out=out)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_disk_that_is_too_small_is_found_on_the_first_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 5000, 5000))
    says = r"keeping what 6 batches show takes [\d.]+ kB, and .* has 5.0 kB free; use a smaller limit"
    model = bert()
    with Watch(model) as watch, pytest.raises(TraceFileError, match=says) as caught:
        trace(model, BATCHES, out=tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert watch.texts == texts_of(BATCHES[:1])
    assert names_in(tmp_path) == set()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
@pytest.mark.parametrize("files", [["states.npy"], ["ids.jsonl"], None])
def test_a_disk_that_fills_up(files: list[str] | None, tmp_path: Path, whole: Trace) -> None:
    """Files (None for all) become a device on which every write fails, as on a disk that is full."""
    model = bert()

    names = ["ids.jsonl", "states.npy", "states_sample.npy", "prediction.npy", "confidence.npy", "digest.npy"]

    def filling() -> Iterator[Any]:
        yield from BATCHES[:2]
        full = os.open("/dev/full", os.O_WRONLY)
        for handle in os.listdir("/proc/self/fd"):
            link = Path(f"/proc/self/fd/{handle}")
            if link.exists() and link.readlink().is_relative_to(tmp_path) and link.readlink().name in (files or names):
                os.dup2(full, int(handle))
        os.close(full)
        yield from BATCHES[2:]

    with pytest.raises(TraceFileError, match=r"cannot write .*: No space left on device") as caught:
        trace(model, filling(), out=tmp_path)
    assert "\n" not in str(caught.value)
    assert names_in(tmp_path) <= {".partial"}
    same(trace(model, BATCHES, out=tmp_path), whole)


# --- the workspace by itself -----------------------------------------------------------------------------------------


def fill(workspace: Workspace, batches: int, start: int = 0) -> None:
    for number in range(start, start + batches):
        ids, digests = [f"s{number}"], np.array([number], np.uint64)
        assert not workspace.already_has(ids, digests)
        workspace.append("values", np.full((2, 3), number), np.float32)
        workspace.finish_batch(ids, digests, np.array([number]))


def again(folder: Path, batches: int, key: str = "k") -> Workspace:
    """The workspace anew, after the data went by once more."""
    workspace = Workspace(folder, key)
    for number in range(batches):
        assert workspace.already_has([f"s{number}"], np.array([number], np.uint64))
    return workspace


def test_only_what_was_committed_counts(tmp_path: Path) -> None:
    folder, killed = tmp_path / "running", tmp_path / "killed"
    with closing(Workspace(folder, "k")) as running:
        fill(running, 3)
        running.commit()
        fill(running, 2, start=3)
        assert len(running.ids()) == 5  # asked for, so written
        shutil.copytree(folder, killed)  # what a kill at this moment would leave
    with closing(again(killed, 3)) as second:
        assert (second.batches, second.samples, second.ids()) == (3, 3, ["s0", "s1", "s2"])
        assert values_in(second) == [0, 0, 1, 1, 2, 2]
        fill(second, 1, start=3)
        second.commit()
    with closing(again(killed, 4)) as third:
        assert values_in(third) == [0, 0, 1, 1, 2, 2, 3, 3]
        assert third.read("never written") is None


def values_in(workspace: Workspace) -> list[float]:
    values = workspace.read("values")
    assert values is not None
    return values[:, 0].tolist()


def test_rows_without_a_batch_that_finished_are_cut_off(tmp_path: Path) -> None:
    first = Workspace(tmp_path, "k")
    fill(first, 2)
    first.append("values", np.full((5, 3), 99), np.float32)  # a batch that an interrupt cut short
    first.commit()
    first.close()
    second = again(tmp_path, 2)
    fill(second, 1, start=2)
    second.close()
    assert np.load(tmp_path / "values.npy")[:, 0].tolist() == [0, 0, 1, 1, 2, 2]


def left_behind(folder: Path, batches: int = 3) -> None:
    workspace = Workspace(folder, "k")
    fill(workspace, batches)
    workspace.commit()
    workspace.close()


DAMAGE = {
    "a journal cut short": lambda folder: (folder / "journal.json").write_text('{"key": "k", "batches": 3'),
    "no journal": lambda folder: (folder / "journal.json").unlink(),
    "a journal of something else": lambda folder: (folder / "journal.json").write_text("[]"),
    "a journal that lacks entries": lambda folder: (folder / "journal.json").write_text('{"key": "k"}'),
    "rows cut short": lambda folder: os.truncate(folder / "values.npy", 140),
    "a file of rows that is empty": lambda folder: os.truncate(folder / "values.npy", 0),
    "no rows": lambda folder: (folder / "values.npy").unlink(),
    "no ids": lambda folder: (folder / "ids.jsonl").unlink(),
    "ids cut short": lambda folder: os.truncate(folder / "ids.jsonl", 7),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_is_started_over(damage: str, tmp_path: Path) -> None:
    left_behind(tmp_path)
    DAMAGE[damage](tmp_path)
    with closing(Workspace(tmp_path, "k")) as workspace:
        assert (workspace.batches, workspace.samples) == (0, 0)
        fill(workspace, 2)
        workspace.commit()
        assert values_in(workspace) == [0, 0, 1, 1]
        assert workspace.ids() == ["s0", "s1"]


def test_rows_of_another_key_are_never_counted_by_an_old_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after its rows were written and before its journal was."""
    left_behind(tmp_path)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with closing(Workspace(tmp_path, "other")) as other:
        fill(other, 3)
        monkeypatch.setattr(anydepth.passes.workspace, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            other.commit()
    with closing(Workspace(tmp_path, "k")) as mine:
        assert mine.batches == 0


def test_another_key_forgets_at_once(tmp_path: Path) -> None:
    left_behind(tmp_path)
    with closing(Workspace(tmp_path, "other")) as other:
        assert other.batches == 0
        with closing(Workspace(tmp_path, "k")) as mine:  # as if the other had been killed before it committed
            assert mine.batches == 0


def test_close_may_come_twice(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, "k")
    fill(workspace, 1)
    workspace.close()
    workspace.close()


FACTS: dict[str, Any] = {
    "tokens": "first",
    "tokens_chosen": True,
    "drawn": None,
    "readout": "tail",
    "has_classes": True,
    "labelled": True,
    "next_token": False,
    "per_position": False,
    "final_norm": True,
    "classes": 5,
    "width": 16,
}
"""As version 0.1.0 wrote them, before it had looked for padding."""


def with_facts(folder: Path, facts: Any) -> Workspace:
    """A pass that is taken up after a batch, its journal with these facts."""
    with closing(Workspace(folder, "k")) as workspace:
        fill(workspace, 1)
        workspace.commit()
    journal = folder / "journal.json"
    journal.write_text(json.dumps(json.loads(journal.read_text("utf-8")) | {"facts": facts}), "utf-8")
    return Workspace(folder, "k")


def test_facts_are_remembered(tmp_path: Path) -> None:
    facts = PassFacts(**FACTS, counts_padding=False)
    with closing(Workspace(tmp_path, "k")) as workspace:
        workspace.facts = facts
        fill(workspace, 1)
        workspace.commit()
    written = FACTS | {"counts_padding": False, "widths": None, "first_readout": 0, "queries": False}
    written |= {"one_by_one": False}
    assert json.loads((tmp_path / "journal.json").read_text("utf-8"))["facts"] == written
    with closing(Workspace(tmp_path, "k")) as taken_up:
        assert taken_up.facts == facts


def test_a_pass_of_the_earlier_version_is_taken_up(tmp_path: Path) -> None:
    with closing(with_facts(tmp_path, FACTS)) as taken_up:
        assert (taken_up.batches, taken_up.facts) == (1, PassFacts(**FACTS))


@pytest.mark.parametrize("facts", [{"tokens": "first"}, FACTS | {"no_such_fact": 1}, ["tokens"]])
def test_a_pass_with_other_facts_starts_over(facts: Any, tmp_path: Path) -> None:
    with closing(with_facts(tmp_path, facts)) as new:
        assert (new.batches, new.facts) == (0, None)
