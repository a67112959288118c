"""`anydepth align` as a person types it."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import torch
from rich.console import Console
from run_cli import Command, in_a_process, in_folder
from safetensors.torch import load_file

from anydepth.cli import console, terminal
from anydepth.cli.app import run
from anydepth.jobs import settings
from anydepth.tracing.trace import Trace
from anydepth.training.objectives import DEFAULT, OBJECTIVES

FEW = ("--max-steps", "4", "--learning-rate", "3e-3", "--use-cpu", "--logging-steps", "2")


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config of an image model, a BERT without a classifier, a GPT-2, and data for them; read only."""
    root = tmp_path_factory.mktemp("assets")
    texts = checkpoints.to_train(root)
    (root / "odd.csv").write_text("\n".join(["text,label", *(f"{text},same" for text in texts)]) + "\n")
    return root


@pytest.fixture
def command(assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> Command:
    """The command line in this process, in an empty folder; `~name` stands for an asset."""
    monkeypatch.setattr("accelerate.utils.memory.gc.collect", lambda: 0)  # half a second for each training
    return in_folder(assets, tmp_path / "here", monkeypatch, capfd)


def names_in(folder: Path | str) -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


MODEL = {"README.md", "align.json", "config.json", "model.safetensors", "settings.yaml"}


# --- what comes out --------------------------------------------------------------------------------------------------


def test_images_from_a_config(command: Command) -> None:
    done = command("align", "~vit", "--data", "digits", "--limit", "40", *FEW)
    assert done.status == 0
    (folder,) = Path("runs").glob("vit-digits-*-aligned")
    assert names_in(folder) == MODEL
    result = json.loads((folder / "align.json").read_text())["result"]
    for depth, value in enumerate(result["values"], start=1):
        line = rf"^ +{depth}  {value:.3f} [\d.]+–[\d.]+$"
        assert re.search(line, done.out, re.MULTILINE), f"depth {depth} in the table"
    assert f"{'digits'}, {DEFAULT}: 4 steps; 40 rows (test)" in done.out
    assert f"Model: {folder}" in done.out
    assert "the weights are random, not the checkpoint's" in done.out
    lines = done.err.splitlines()
    assert re.fullmatch(r"2/4 training, accuracy at depth 1: [\d.]+, 2: [\d.]+, 3: [\d.]+", lines[0])
    assert re.fullmatch(r"5/5 evaluating, accuracy at depth 1: [\d.]+, 2: [\d.]+, 3: [\d.]+", lines[-1])


def test_its_settings_run_it_again(command: Command) -> None:
    options = ("--limit", "20", "--weights", "1,3", "--exits", "1,2", "--seed", "3", *FEW)
    assert command("align", "~bert", "--data", "~reviews.csv", *options, "--out", "out").status == 0
    assert command("align", "--config", "out/settings.yaml", "--out", "again").status == 0
    for name in ("model.safetensors", "settings.yaml"):
        assert Path("again", name).read_bytes() == Path("out", name).read_bytes(), name


@pytest.mark.usefixtures("undrawn")
def test_the_result_is_traced_as_it_is(command: Command) -> None:
    text = ("--data", "~reviews.csv")
    assert command("align", "~bert", *text, *FEW, "--objective", "heads", "--out", "out").status == 0
    values = json.loads(Path("out/align.json").read_text())["result"]["values"]
    assert command("align", "~bert", *text, *FEW, "--split", "file", "--eval-split", "file", "--out", "all").status == 0
    values = json.loads(Path("all/align.json").read_text())["result"]["values"]
    assert command("trace", "all", *text, "--out", "traced").status == 0
    assert Trace.load("traced").accuracy[1:].tolist() == pytest.approx(values)
    done = command("trace", "out", *text, "--out", "own")
    assert "each depth below the last is read out by a classifier of its own" in done.out
    weights = load_file("out/heads.safetensors")
    assert {name.split(".")[0] for name in weights} == {"1"}


def test_a_language_model_for_machines(command: Command) -> None:
    arguments = ("--data", "~corpus.txt", "--max-length", "16", "--objective", "sampled", "--out", "out", "--json")
    done = command("align", "~gpt2", *arguments, *FEW)
    assert (done.status, done.err) == (0, "")
    found = json.loads(done.out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert done.out.count("\n") == 1
    assert (found["out"], found["task"], found["measure"]) == ("out", "causal-lm", "perplexity")
    assert len(found["values"]) == 2
    assert found["settings"]["learning_rate"] == 3e-3
    assert "perplexity" in Path("out/README.md").read_text()


OPTIONS: dict[str, tuple[list[str], Callable[[dict[str, Any]], bool]]] = {
    "epochs": (["--num-train-epochs", "1", "--max-steps", "-1"], lambda s: s["training"]["num_train_epochs"] == 1),
    "batch": (["--per-device-train-batch-size", "4"], lambda s: s["training"]["per_device_train_batch_size"] == 4),
    "accumulation": (
        ["--gradient-accumulation-steps", "2"],
        lambda s: s["training"]["gradient_accumulation_steps"] == 2,
    ),
    "schedule": (["--lr-scheduler-type", "cosine"], lambda s: s["training"]["lr_scheduler_type"] == "cosine"),
    "warm-up": (["--warmup-steps", "0.5"], lambda s: s["training"]["warmup_steps"] == 0.5),
    "decay": (["--weight-decay", "0.1", "--max-grad-norm", "2"], lambda s: s["training"]["weight_decay"] == 0.1),
    "smoothing": (["--label-smoothing-factor", "0.1"], lambda s: s["training"]["label_smoothing_factor"] == 0.1),
    "bf16": (["--bf16"], lambda s: s["training"]["bf16"]),
    "checkpointing": (["--gradient-checkpointing"], lambda s: True),
    "evaluation": (["--eval-steps", "2", "--per-device-eval-batch-size", "3"], lambda s: True),
    "objective": (
        ["--objective", "distilled", "--weights", "1,2", "--exits", "1,2", "--distillation", "0.3"],
        lambda s: (s["weights"], s["exits"], s["distillation"]) == ([1.0, 2.0], [1, 2], 0.3),
    ),
    "data": (["--eval-data", "~reviews.csv", "--limit", "20"], lambda s: s["rows"] == [20, 20]),
    "columns": (["--text-column", "text", "--label-column", "label"], lambda s: s["wanted"]["text"] == "text"),
    "seed": (["--seed", "3"], lambda s: s["training"]["seed"] == s["wanted"]["seed"] == 3),
    "task": (["--task", "text-classification", "--from-scratch"], lambda s: s["from_scratch"]),
    "length": (["--max-length", "5", "--blocks", "bert.encoder.layer"], lambda s: s["max_length"] == 5),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_options_do_what_they_say(option: str, command: Command) -> None:
    arguments, holds = OPTIONS[option]
    done = command("align", "~bert", "--data", "~reviews.csv", "--out", "out", *FEW, *arguments)
    assert done.status == 0, done.err
    assert holds(json.loads(Path("out/align.json").read_text())["settings"])


def test_objectives_are_listed(command: Command) -> None:
    assert settings.OBJECTIVES.split(", ") == list(OBJECTIVES), "the help names them without importing them"
    done = command("align", "--list-objectives")
    assert (done.status, done.err) == (0, "")
    for objective in OBJECTIVES.values():
        assert re.search(rf"^ *{objective.name} +{re.escape(objective.purpose[:60])}", done.out, re.MULTILINE)


def test_help_names_the_objectives_and_the_default_is_the_librarys(command: Command) -> None:
    done = command("align", "--help")
    assert done.status == 0
    assert set(OBJECTIVES) <= set(re.findall(r"\w+", done.out))
    shown = re.search(r"--objective.*?default: (\w+)", done.out, re.DOTALL)
    assert shown is not None
    assert shown[1] == DEFAULT


# --- errors of the user's --------------------------------------------------------------------------------------------

TEXT = ["align", "~bert", "--data", "~reviews.csv"]
BAD: dict[str, tuple[list[str], str]] = {
    "no model": (["align"], "MODEL is missing"),
    "no data": (["align", "~bert"], "--data is missing"),
    "no such option": (
        [*TEXT, "--learning-rates", "1"],
        "Unknown option: --learning-rates. .* --learning-rate",
    ),
    "a number that is text": ([*TEXT, "--max-steps", "many"], "--max-steps is 'many', expected a whole number"),
    "a share above one": ([*TEXT, "--distillation", "2"], "--distillation is 2.0, expected a number from 0 to 1"),
    "a rate below zero": ([*TEXT, "--learning-rate", "-1"], r"--learning-rate is -1.0, expected at least 0"),
    "no such objective": ([*TEXT, "--objective", "algined"], r"unknown objective 'algined', .*did you mean aligned\?"),
    "weights": (
        [*TEXT, "--weights", "linaer"],
        r"unknown weights 'linaer', expected one of linear, .*, or numbers such as 1,2,3",
    ),
    "a weight too many": ([*TEXT, "--weights", "1,2,3"], r"there are 3 weights for 2 exits, expected one for each"),
    "exits": ([*TEXT, "--exits", "first"], r"exits are 'first', expected all, sampled, or depths: 4,8,12"),
    "no such depth": ([*TEXT, "--exits", "1,7"], r"exits are \[1, 7\], expected depths among 1..2, each once"),
    "no such schedule": ([*TEXT, "--lr-scheduler-type", "linaer"], r"linaer is not a valid SchedulerType"),
    "reports": ([*TEXT, "--report-to", "nobody"], r"cannot report to 'nobody' here"),
    "nothing to do": ([*TEXT, "--max-steps", "0"], r"--max-steps is 0, expected at least 1"),
    "a model that is nowhere": (["align", "./nowhere", "--data", "digits"], r"no folder './nowhere'"),
    "a model of timm's": (
        ["align", "timm:vit_tiny_patch16_224", "--data", "digits"],
        r"anydepth.AlignedLoss in a loop",
    ),
    "a hub that cannot be reached": (["align", "org/model", "--data", "~reviews.csv"], r"the hub .* cannot be reached"),
    "data that are nowhere": (["align", "~bert", "--data", "nowhere.csv"], r"no file or folder 'nowhere.csv'"),
    "images for texts": (["align", "~bert", "--data", "digits"], r"the model takes texts, and 'digits' has no column"),
    "texts for images": (["align", "~vit", "--data", "~reviews.csv"], r"the model takes images, and .*has no column"),
    "no labels": (["align", "~bert", "--data", "~corpus.txt"], r"a bert learns from labels, and none are known"),
    "one class": (["align", "~bert", "--data", "~odd.csv"], r"column 'label' holds one class \(same\)"),
    "a length that is none": ([*TEXT, "--max-length", "99"], r"max length is 99 tokens, expected at least 2"),
    "no such split": ([*TEXT, "--split", "dev"], r"has no split 'dev', it has file"),
    "no such eval split": ([*TEXT, "--eval-split", "dev"], r"has no split 'dev', it has file: .*--eval-split"),
    "no such task": ([*TEXT, "--task", "cls"], r"unknown task 'cls', expected one of text-classification"),
    "no such blocks": ([*TEXT, "--blocks", "x"], r"no module 'x'"),
    "both": ([*TEXT, "--resume", "--restart", "--out", "."], r"--resume goes on and --restart starts over"),
    "a file in the way": ([*TEXT, "--out", "~corpus.txt"], r"corpus.txt' is a file, expected a folder"),
    "views of texts": ([*TEXT, "--augment"], r"only images have random views: leave augment out"),
    "somebody's folder": ([*TEXT, "--out", "~vit"], r"holds other files than a training's"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_users_error_is_one_line_and_status_2(kind: str, command: Command) -> None:
    arguments, says = BAD[kind]
    done = command(*arguments)
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("anydepth: ")
    assert done.err.count("\n") == 1
    assert re.search(says, done.err), done.err
    assert names_in(".") == set(), "nothing half-written"


def test_a_finished_model_is_not_overwritten(command: Command) -> None:
    arguments = ("align", "~bert", "--data", "~reviews.csv", "--out", "out", *FEW)
    first = command(*arguments)
    before = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    done = command(*arguments)
    assert done.status == 2
    assert done.err.startswith("anydepth: 'out' holds a finished model: give another folder (--out), or --restart")
    again = command(*arguments, "--resume")
    assert (again.status, again.out, again.err) == (0, first.out, "")
    assert {path.name: path.read_bytes() for path in Path("out").iterdir()} == before
    assert command(*arguments, "--restart", "--seed", "1").status == 0
    assert Path("out/model.safetensors").read_bytes() != before["model.safetensors"]


# --- interrupts ------------------------------------------------------------------------------------------------------


def test_ctrl_c_in_a_real_process(assets: Path, tmp_path: Path, command: Command) -> None:
    """Status 130, a checkpoint, and with --resume the very weights of a training that was left alone."""
    arguments = (
        "align",
        str(assets / "vit"),
        "--data",
        "digits",
        "--limit",
        "60",
        "--use-cpu",
        "--learning-rate",
        "1e-3",
    )
    arguments += ("--max-steps", "100", "--logging-steps", "5", "--objective", "alternating", "--eval-steps", "100")
    process = in_a_process(*arguments, "--out", "cut", cwd=tmp_path)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("5/100 training, accuracy at depth ")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, ""), err
    lines = [line for line in err.splitlines() if " training, " not in line]
    assert lines == [
        "stopping after this step, with a checkpoint; once more to stop at once",
        "anydepth: interrupted; the same command with --resume goes on where this one stopped",
    ]
    assert names_in(tmp_path / "cut") == {".partial", "checkpoints"}
    refused = command(*arguments, "--out", str(tmp_path / "cut"))
    assert refused.status == 2
    assert "go on with it by --resume, or start over with --restart" in refused.err
    assert command(*arguments, "--out", str(tmp_path / "cut"), "--resume").status == 0
    assert command(*arguments, "--out", str(tmp_path / "whole")).status == 0
    cut, whole = (load_file(tmp_path / name / "model.safetensors") for name in ("cut", "whole"))
    assert all(torch.equal(cut[name], whole[name]) for name in whole)


@pytest.mark.slow
def test_two_processes_give_what_one_gives(assets: Path, tmp_path: Path) -> None:
    arguments = ("align", str(assets / "vit"), "--data", "digits", "--limit", "60", *FEW, "--json")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "anydepth"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    both = [*launch, *arguments, "--per-device-train-batch-size", "4", "--out", str(tmp_path / "two")]
    done = subprocess.run(both, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1, "one of them speaks"
    assert run([*arguments, "--out", str(tmp_path / "one")]) == 0
    two, one = (load_file(tmp_path / name / "model.safetensors") for name in ("two", "one"))
    assert max(float((two[name] - one[name]).abs().max()) for name in one) < 1e-4
    assert names_in(tmp_path / "two") == MODEL


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_file_gets_no_bars_whatever_its_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """FORCE_COLOR makes rich take any file for a terminal."""
    screen = Console(file=io.StringIO(), force_terminal=True, width=100, record=True)
    monkeypatch.setattr(console, "stderr", screen)
    with terminal.bars(enabled=True) as report:
        assert report is not None
        report(1, 2, "tracing")
    assert screen.export_text() == ""


def test_a_bar_for_each_kind_of_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bars of training and evaluating take turns; neither is drawn anew."""
    screen = Console(file=Terminal(), force_terminal=True, width=100, record=True)
    monkeypatch.setattr(console, "stderr", screen)
    with terminal.bars(enabled=True) as report:
        assert report is not None
        for step in range(1, 4):
            report(step, 3, f"training, accuracy at depth 1: {step / 10}")
            report(step, 3, "evaluating")
    shown = screen.export_text()
    last = shown.strip().splitlines()[-2:]
    assert "training, accuracy at depth 1: 0.3" in last[0]
    assert "evaluating" in last[1]
