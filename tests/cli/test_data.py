"""What MODEL, DATA and prompts may be on the command line: what was named is read, or one line says why not."""

from __future__ import annotations

import json
import os
from pathlib import Path

import checkpoints
import pytest
from run_cli import Command, in_folder


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("assets")
    names = {0: "True", 1: "False"}
    checkpoints.bert(root / "bert", id2label=names, label2id={name: index for index, name in names.items()})
    checkpoints.gpt2(root / "gpt2")
    return root


@pytest.fixture
def anydepth(assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Command:
    return in_folder(assets, tmp_path / "here", monkeypatch, capsys)


def test_the_file_that_was_named_is_read(anydepth: Command) -> None:
    Path("d[1].csv").write_text("text,label\n" + "the film,True\n" * 5)
    Path("d1.csv").write_text("text,label\n" + "the plot,False\n" * 3)
    done = anydepth("trace", "~bert", "--data", "d[1].csv", "--measures", "cosine", "--out", "o", "--json")
    assert done.status == 0, done.err
    trace = json.loads(done.out)
    assert (trace["provenance"]["data"]["name"], trace["provenance"]["samples"]) == ("d[1].csv", 5)
    assert "labels are matched to the classifier's classes by name, not by number" in trace["notes"]


LONG = "a" * 300


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("trace", "./~nosuchuser/m", "--data", "digits"), "no folder './~nosuchuser/m'"),
        (("trace", LONG, "--data", "digits"), "is no usable path: file name too long"),
        (("trace", "~bert", "--data", f"{LONG}.csv"), "is no usable path: file name too long"),
        (("trace", "~bert", "--data", "loop"), "'loop' is no usable path: too many levels of symbolic links"),
        (("exit", "~bert", "--data", LONG), "is no usable path: file name too long"),
        (("predict", LONG, "--data", "digits"), "is no usable path: file name too long"),
        (("align", LONG, "--data", "digits", "--use-cpu"), "is no usable path: file name too long"),
        (("truncate", LONG, "--depth", "1"), "is no usable path: file name too long"),
        (("export", LONG), "is no usable path: file name too long"),
        (("trace", "~bert", "--data", "deep.json"), "is no JSON that can be read, in line 1: it is nested too deep"),
        (("trace", "~bert", "--data", "half.csv"), "(True, maybe) are not the classifier's (True, False), and"),
        (("generate", "~gpt2", "--prompts", "other.txt"), "the prompts in 'other.txt' cannot be read: 'oth"),
        (("generate", "~gpt2", "--prompts", LONG), "cannot be read: "),
        (("generate", "~gpt2", "--prompt", "a\udcff"), "the prompt 'a\\udcff' holds bytes that are no UTF-8"),
        (("trace", "~gpt2", "--data", "half.csv", "--lens", "a\udcff"), "holds bytes that are no UTF-8"),
    ],
)  # fmt: skip
def test_one_line_and_status_2(anydepth: Command, arguments: tuple[str, ...], says: str) -> None:
    os.symlink("loop", "loop")
    Path("deep.json").write_text("[" * 100_000)
    Path("half.csv").write_text("text,label\na film,True\na plot,maybe\n")
    Path("other.txt").write_bytes("日本語".encode("shift-jis"))
    out = () if arguments[0] == "generate" else ("--out", "o")
    done = anydepth(*arguments, *out)
    assert (done.status, done.out) == (2, "")
    assert done.err.count("\n") == 1
    assert says in done.err
