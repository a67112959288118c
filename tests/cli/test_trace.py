from __future__ import annotations

import csv
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch
import transformers
from naive import same
from PIL import Image
from run_cli import Command, in_a_fork, in_a_process, in_folder, write_csv

import anydepth as ad
import anydepth.passes.disk_budget
import anydepth.tracing.collect
from anydepth.jobs.settings import TraceSettings
from anydepth.report.sentences import what
from anydepth.tracing.trace import Trace

pytestmark = pytest.mark.usefixtures("undrawn")

ROWS = 24
NAMES = {"id2label": {0: "dull", 1: "great"}, "label2id": {"dull": 0, "great": 1}}


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and data of each kind; read only."""
    root = tmp_path_factory.mktemp("assets")
    torch.manual_seed(0)
    wide = {"initializer_range": 0.5}  # so that answers differ between samples and depths
    checkpoints.bert(root / "bert", **NAMES, **wide)
    checkpoints.bert(root / "features", "Model")
    checkpoints.bert(root / "regression", num_labels=1)
    checkpoints.gpt2(root / "gpt2", **wide)
    checkpoints.swin(root / "swin", num_labels=10, **wide)
    checkpoints.bart(root / "bart", **NAMES)
    checkpoints.vit(root / "vit", num_labels=10, **wide)
    checkpoints.vit(
        root / "colours", num_labels=2, channels=3, id2label={0: "blue", 1: "red"}, label2id={"blue": 0, "red": 1}
    )
    rng = np.random.default_rng(0)
    words = [" ".join(rng.choice(checkpoints.WORDS, size=rng.integers(2, 9))) for _ in range(ROWS)]
    named = [(text, ("dull", "great")[row % 2], f"review {row}") for row, text in enumerate(words)]
    write_csv(root / "reviews.csv", named, ("text", "label", "name"))
    write_csv(root / "odd.csv", [(text, "middling") for text in words])
    write_csv(root / "empty.csv", [])
    (root / "corpus.txt").write_text("\n".join(words) + "\n")
    for name, colour in (("red", 2), ("blue", 0)):
        folder = root / "pictures" / "test" / name
        folder.mkdir(parents=True)
        for index in range(4):
            pixels = rng.integers(0, 40, size=(9, 7, 3), dtype=np.uint8)
            pixels[..., 2 - colour] += 200
            Image.fromarray(pixels).save(folder / f"{index}.png")
    return root


@pytest.fixture
def command(assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Command:
    """The command line in this process, in an empty folder; `~name` stands for an asset."""
    return in_folder(assets, tmp_path / "here", monkeypatch, capsys)


def names_in(folder: Path | str) -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


WRITTEN = {"trace.json", "arrays.safetensors", "report.html", "settings.yaml"}


# --- what comes out --------------------------------------------------------------------------------------------------


@pytest.mark.drawn
def test_a_text_classifier_on_a_table(command: Command, assets: Path) -> None:
    done = command("trace", "~bert", "--data", "~reviews.csv", "--out", "out", "--batch-size", "5")
    assert (done.status, done.err) == (0, "")
    assert names_in("out") == WRITTEN
    assert (Path("out") / "report.html").stat().st_size > 100_000
    for head in (
        "depth",
        "accuracy",
        "cross-entropy",
        "top probability",
        "saturate here",
        "cosine to last",
        "cka to last",
    ):
        assert head in done.out
    assert f"{ROWS} samples" in done.out
    assert "Report: out/report.html" in done.out
    found = Trace.load("out")
    expected = by_hand(assets)
    np.testing.assert_allclose(found.accuracy[-1], expected["accuracy"], atol=1e-9)
    np.testing.assert_allclose(found.cross_entropy[-1], expected["cross_entropy"], atol=1e-5)
    assert 0 < expected["accuracy"] < 1
    for depth, value in enumerate(found.accuracy):
        assert re.search(rf"^ +{depth}  +{value:.3f} ", done.out, re.MULTILINE), f"depth {depth} in the table"
    assert set(found.by_class()["class"]) == {"dull", "great"}
    assert found.ids == tuple(range(ROWS))
    assert found.provenance["model"]["name"] == str(assets / "bert")
    assert found.provenance["data"]["name"] == str(assets / "reviews.csv")
    for note in found.notes:
        assert note in done.out


@torch.no_grad()
def by_hand(assets: Path) -> dict[str, float]:
    """What plain transformers says, one text at a time."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(assets / "bert").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(assets / "bert")
    with (assets / "reviews.csv").open() as file:
        rows = list(csv.DictReader(file))
    labels = torch.tensor([model.config.label2id[row["label"]] for row in rows])
    logits = torch.cat([model(**tokenizer(row["text"], return_tensors="pt")).logits for row in rows]).double()
    entropy = torch.nn.functional.cross_entropy(logits, labels)
    return {"accuracy": float((logits.argmax(1) == labels).double().mean()), "cross_entropy": float(entropy)}


def test_json_is_for_machines(command: Command) -> None:
    done = command("trace", "~bert", "--data", "~reviews.csv", "--out", "out", "--json")
    assert (done.status, done.err) == (0, "")
    found = json.loads(done.out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert done.out.count("\n") == 1
    assert set(found) == {"out", "report", "depths", "notes", "provenance"}
    assert (found["out"], found["report"]) == ("out", "out/report.html")
    trace = Trace.load("out")
    assert [row["depth"] for row in found["depths"]] == ["0", "1", "2"]
    assert [row["accuracy"] for row in found["depths"]] == trace.accuracy.tolist()
    assert [row["saturated"] for row in found["depths"]] == trace.saturation.tolist()
    assert found["depths"][0]["cka_to_last"] is None, "blank under `first`"
    assert found["depths"][2]["cka_to_last"] == pytest.approx(1.0)
    assert found["provenance"] == trace.provenance
    assert found["notes"] == list(trace.notes)


def test_an_image_classifier_on_digits(command: Command) -> None:
    done = command("trace", "~vit", "--data", "digits", "--limit", "30", "--seed", "3", "--out", "out")
    assert (done.status, done.err) == (0, "")
    found = Trace.load("out")
    assert found.provenance["samples"] == 30
    assert found.provenance["data"]["split"] == "test"
    assert found.provenance["seed"] == 3
    assert any("30 of 450 rows, drawn with seed 3" in note for note in found.notes)
    other = command("trace", "~vit", "--data", "digits", "--limit", "30", "--split", "train", "--out", "train")
    assert other.status == 0
    assert Trace.load("train").provenance["data"]["split"] == "train"
    assert Trace.load("train").ids != found.ids


STAGES = {
    "swin": (("~swin", "--data", "digits"), {"swin.encoder.layers.0.blocks": 0, "swin.encoder.layers.1.blocks": 2}),
    "both": (
        ("~bart", "--data", "~reviews.csv", "--blocks", "both"),
        {"model.encoder.layers": 0, "model.decoder.layers": 3},
    ),
}


@pytest.mark.parametrize("kind", STAGES)
def test_stages_are_told_apart(kind: str, command: Command) -> None:
    arguments, stages = STAGES[kind]
    done = command("trace", *arguments, "--limit", "20", "--out", "out", "--json")
    assert (done.status, done.err) == (0, "")
    found, first = Trace.load("out"), max(stages.values())
    assert found.stages == stages
    assert np.flatnonzero(np.isfinite(found.accuracy)).tolist() == list(range(first, found.depth + 1))
    named = [row["stage"] for row in json.loads(done.out)["depths"]]
    assert {name: named.index(name) for name in named} == stages
    assert np.isfinite(found.similarity["cka"]).all()
    sentence = ", ".join(f"{name} at depth {begin}" for name, begin in stages.items())
    assert f"with a readout from depth {first} on. They run in 2 stages: {sentence}." in what(found)
    shown = command("trace", *arguments, "--limit", "20", "--out", "again").out
    for name, begin in zip(("0", "1") if kind == "swin" else ("encoder", "decoder"), stages.values(), strict=True):
        assert re.search(rf"^ +{begin}  {name} ", shown, re.MULTILINE)
    assert f"the readout exists from depth {first} on" in shown


def test_a_folder_of_images(command: Command) -> None:
    done = command("trace", "~colours", "--data", "~pictures", "--out", "out")
    assert (done.status, done.err) == (0, "")
    found = Trace.load("out")
    assert found.provenance["samples"] == 8
    assert found.by_class().groupby("class")["count"].first().to_dict() == {"blue": 4, "red": 4}


def test_a_language_model_on_a_text_file(command: Command) -> None:
    done = command("trace", "~gpt2", "--data", "~corpus.txt", "--out", "out")
    assert (done.status, done.err) == (0, "")
    found = Trace.load("out")
    assert found.provenance["tokens"] == "each"
    assert found.provenance["answers"] == found.provenance["positions"] - ROWS
    assert "accuracy" in found.statistics


def test_a_model_without_a_classifier_says_what_is_missing(command: Command) -> None:
    done = command("trace", "~features", "--data", "~reviews.csv", "--out", "out")
    assert (done.status, done.err) == (0, "")
    assert "has no classifier: accuracy, confidence and saturation are missing" in done.out
    (heads,) = (line for line in done.out.splitlines() if line.startswith("depth  "))
    assert heads.split("  ") == ["depth", "cka to last", "cosine to last"]
    found = json.loads(command("trace", "~features", "--data", "~reviews.csv", "--out", "out", "--json").out)
    assert set(found["depths"][0]) == {
        "depth",
        *(f"{name}_to_last" for name in ("cosine", "cosine_raw", "cka", "cka_biased")),
    }


def test_where_it_goes_if_nobody_says(command: Command, assets: Path) -> None:
    assert command("trace", "~bert", "--data", "~reviews.csv").status == 0
    (first,) = names_in("runs")
    assert first.startswith("bert-reviews.csv-")
    assert command("trace", "~vit", "--data", "digits", "--limit", "9").status == 0
    (second,) = names_in("runs") - {first}
    assert second.startswith("vit-digits-")
    assert names_in(f"runs/{second}") == WRITTEN


def test_its_settings_run_it_again(command: Command) -> None:
    options = ("--limit", "9", "--measures", "cka,cosine", "--readout", "raw", "--sums", "--seed", "3")
    assert command("trace", "~bert", "--data", "~reviews.csv", *options, "--out", "out").status == 0
    assert command("trace", "--config", "out/settings.yaml", "--out", "again").status == 0
    same(Trace.load("out"), Trace.load("again"))
    assert Path("again/settings.yaml").read_text() == Path("out/settings.yaml").read_text()
    settings = TraceSettings(**TraceSettings.read("out/settings.yaml"))
    assert (settings.limit, settings.measures, settings.sums, settings.seed) == (9, ("cka", "cosine"), True, 3)
    same(Trace.load("out"), ad.trace(**vars(settings), out="from-python"))


def test_settings_of_the_users_own_stay(command: Command) -> None:
    Path("out").mkdir()
    Path("out/settings.yaml").write_text("mine")
    done = command("trace", "~bert", "--data", "~reviews.csv", "--out", "out")
    assert (done.status, done.out) == (2, "")
    assert "'out/settings.yaml' was not written by anydepth trace, or was changed since" in done.err
    assert Path("out/settings.yaml").read_text() == "mine"


OPTIONS: dict[str, tuple[list[str], Callable[[Trace], bool]]] = {
    "no labels": (["--no-labels"], lambda t: t.statistics == ("confidence", "entropy", "agreement")),
    "tokens": (["--tokens", "mean"], lambda t: t.provenance["tokens"] == "mean"),
    "readout none": (["--readout", "none"], lambda t: t.rows is None and t.provenance["readout"] is None),
    "readout raw": (["--readout", "raw"], lambda t: any("raw" in note for note in t.notes)),
    "measures": (["--measures", "cka, cosine"], lambda t: list(t.similarity) == ["cka", "cosine"]),
    "states": (["--keep-states"], lambda t: t.states is not None and t.states.count == ROWS),
    "limit": (["--limit", "7"], lambda t: len(t.ids) == 7),
    "limit above": (["--limit", "700"], lambda t: len(t.ids) == ROWS),
    "max length": (["--max-length", "3"], lambda t: any("cut at 3 tokens" in note for note in t.notes)),
    "dtype": (["--dtype", "bfloat16"], lambda t: t.provenance["dtype"] == "bfloat16"),
    "device": (["--device", "cpu"], lambda t: t.provenance["device"] == "cpu"),
    "columns": (["--text-column", "text", "--label-column", "label"], lambda t: "accuracy" in t.statistics),
    "ids": (["--id-column", "name"], lambda t: t.ids[:2] == ("review 0", "review 1")),
    "blocks": (["--blocks", "bert.encoder.layer"], lambda t: t.depth == 2),
    "restart": (["--restart"], lambda t: len(t.ids) == ROWS),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_options_do_what_they_say(option: str, command: Command) -> None:
    arguments, holds = OPTIONS[option]
    done = command("trace", "~bert", "--data", "~reviews.csv", "--out", "out", *arguments)
    assert done.status == 0
    if option != "states":  # whose size is told beforehand
        assert done.err == ""
    assert holds(Trace.load("out"))
    assert ("states" in names_in("out")) == (option == "states")


def test_what_kept_states_take_is_told_warned_of_and_limited(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("trace", "~bert", "--data", "~reviews.csv", "--out", "out", "--keep-states")
    done = command(*arguments)
    first, *_ = done.err.splitlines()
    taken = Trace.load("out").states
    assert taken is not None
    assert re.fullmatch(r"1/1 batches, about [\d.]+ kB of states", first)
    assert first.split("about ")[1].startswith(f"{taken.bytes / 1000:.1f}")
    assert (command(*arguments, "--json").status, command(*arguments, "--json").err) == (0, "")
    done = command(*arguments, "--states-limit", "1kB")
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("anydepth: the states take about ")
    assert done.err.count("\n") == 1
    done = command(*arguments, "--states-limit", "lots")
    assert done.err == "anydepth: --states-limit is 'lots', expected a size such as '20GB', or a number of bytes\n"
    usage = SimpleNamespace(free=taken.bytes * 3 // 2)
    monkeypatch.setattr(anydepth.passes.disk_budget, "shutil", SimpleNamespace(disk_usage=lambda _: usage))
    done = command(*arguments, "--json")
    assert done.status == 0
    assert re.fullmatch(r"anydepth: the states take about .* more than half of the .*: fewer samples .*\n", done.err)
    assert json.loads(done.out)["out"] == "out"


def test_no_result_depends_on_the_batch_size(command: Command) -> None:
    for size in ("1", "7", "100"):
        assert command("trace", "~bert", "--data", "~reviews.csv", "--out", size, "--batch-size", size).status == 0
    for size in ("1", "7"):
        same(Trace.load(size), Trace.load("100"), tolerance=2e-6)


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["trace", "--help"], ["demo", "-h"], ["--version"]])
def test_help_and_version(arguments: list[str], command: Command) -> None:
    done = command(*arguments)
    assert (done.status, done.err) == (0, "")
    assert re.search(r"Usage: anydepth|anydepth \d+\.\d+", done.out)


def test_help_where_nothing_is_asked(command: Command) -> None:
    done = command()
    assert (done.status, done.err) == (2, "")
    assert "trace" in done.out
    assert "demo" in done.out


# --- errors of the user's --------------------------------------------------------------------------------------------

BAD: dict[str, tuple[list[str], str]] = {
    "no model": (["trace"], "MODEL is missing"),
    "no data": (["trace", "~bert"], "--data is missing"),
    "no such command": (["trase"], 'Unknown command "trase". Did you mean "trace"'),
    "no such option": (
        ["trace", "~bert", "--data", "~reviews.csv", "--limt", "3"],
        r"Unknown option: --limt. Did you mean --limit",
    ),
    "no value": (["trace", "~bert", "--data"], r"parameter --data requires an argument"),
    "one too many": (["trace", "~bert", "extra", "--data", "~reviews.csv"], r"Unused Tokens: .'extra'"),
    "a number that is text": (
        ["trace", "~bert", "--data", "~reviews.csv", "--batch-size", "many"],
        "--batch-size is 'many', expected a whole number",
    ),
    "a number too small": (
        ["trace", "~bert", "--data", "~reviews.csv", "--limit", "0"],
        "--limit is 0, expected at least",
    ),
    "a model path that leads nowhere": (["trace", "./nowhere", "--data", "~reviews.csv"], r"no folder './nowhere'"),
    "a hub that cannot be reached": (
        ["trace", "org/model", "--data", "~reviews.csv"],
        r"'org/model' is no local path, and the hub that may have this model cannot be reached .*go online",
    ),
    "a hub of data that cannot be reached": (
        ["trace", "~bert", "--data", "org/data"],
        r"'org/data' is no local path, and the hub that may have this data set cannot be reached .*go online",
    ),
    "a folder that is no model": (["trace", "~pictures", "--data", "~reviews.csv"], r"pictures.* no (model|config)"),
    "data that are nowhere": (["trace", "~bert", "--data", "nowhere.csv"], r"no file or folder 'nowhere.csv'"),
    "data without rows": (
        ["trace", "~bert", "--data", "~empty.csv"],
        r"empty.csv' is empty: expected at least one row",
    ),
    "images for a text model": (["trace", "~bert", "--data", "digits"], r"the model takes texts, and 'digits' has no"),
    "texts for an image model": (["trace", "~vit", "--data", "~reviews.csv"], r"the model takes images, and .*has no"),
    "labels of other classes": (
        ["trace", "~bert", "--data", "~odd.csv"],
        r"classes .middling. are not the classifier's",
    ),
    "no such split": (
        ["trace", "~bert", "--data", "~reviews.csv", "--split", "dev"],
        r"has no split 'dev', it has file",
    ),
    "no such column": (["trace", "~bert", "--data", "~reviews.csv", "--text-column", "body"], r"no column 'body'"),
    "a column that is no text": (
        ["trace", "~bert", "--data", "digits", "--text-column", "label"],
        r"column 'label' is class label, not text .row 0 holds \d.: name another .--text-column.",
    ),
    "no such measure": (
        ["trace", "~bert", "--data", "~reviews.csv", "--measures", "cka,ckaa"],
        r"unknown measure 'ckaa', expected one of cosine, cosine_raw, cka, cka_biased",
    ),
    "no such policy": (
        ["trace", "~bert", "--data", "~reviews.csv", "--tokens", "cls"],
        r"unknown token policy 'cls', expected one of first, last, each, mean",
    ),
    "no such readout": (
        ["trace", "~bert", "--data", "~reviews.csv", "--readout", "x"],
        r'Invalid value "x" for --readout. Choose from: "tail", "raw", "none"',
    ),
    "no such dtype": (["trace", "~bert", "--data", "~reviews.csv", "--dtype", "float8"], r"unknown dtype 'float8'"),
    "no such device": (["trace", "~bert", "--data", "~reviews.csv", "--device", "tpu"], r"device 'tpu' cannot be used"),
    "no such blocks": (
        ["trace", "~bert", "--data", "~reviews.csv", "--blocks", "x"],
        r"no module 'x'; the lists it has",
    ),
    "a length that is none": (
        ["trace", "~bert", "--data", "~reviews.csv", "--max-length", "999"],
        r"max length is 999",
    ),
    "a regression head": (
        ["trace", "~regression", "--data", "~reviews.csv"],
        r"has a regression head, .*--readout none",
    ),
    "a file in the way": (
        ["trace", "~bert", "--data", "~reviews.csv", "--out", "~corpus.txt"],
        r"cannot write .*corpus.txt",
    ),
    "a timm model there is not": (["trace", "timm:nothing", "--data", "digits"], r"timm has no model 'nothing'"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_users_error_is_one_line_and_status_2(kind: str, command: Command) -> None:
    arguments, says = BAD[kind]
    done = command(*arguments)
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("anydepth: ")
    assert done.err.count("\n") == 1
    assert done.err.endswith("\n")
    assert re.search(says, done.err), done.err
    assert names_in(".") == set(), "nothing half-written"


def test_debug_shows_where_an_error_comes_from(command: Command) -> None:
    done = command("trace", "~bert", "--data", "nowhere.csv", "--debug")
    assert done.status == 2
    assert done.err.startswith("Traceback (most recent call last)")
    assert "DataError: no file or folder 'nowhere.csv'" in done.err
    assert done.err.splitlines()[-1] == "anydepth: no file or folder 'nowhere.csv'"


def test_a_bug_of_ours_is_not_hidden(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("anydepth.tracing.run.build_trace", broken)
    monkeypatch.setattr(tempfile, "tempdir", str(Path.cwd()))
    done = command("trace", "~bert", "--data", "~reviews.csv", "--out", "out")
    assert (done.status, done.out) == (1, "")
    pattern = (
        r"anydepth: this is a bug in anydepth, ZeroDivisionError at test_trace.py:\d+: ours; "
        r"please report it with (.*)\n"
    )
    said = re.fullmatch(pattern, done.err)
    assert said is not None, done.err
    kept = Path(said[1]).read_text()
    assert kept.startswith("Traceback (most recent call last)")
    assert kept.endswith("ZeroDivisionError: ours\n")
    monkeypatch.setenv("ANYDEPTH_DEBUG", "1")
    done = command("trace", "~bert", "--data", "~reviews.csv", "--out", "out")
    assert (done.status, done.err.splitlines()[0]) == (1, "Traceback (most recent call last):")


def test_an_error_leaves_the_trace_that_was_there(command: Command) -> None:
    assert command("trace", "~bert", "--data", "~reviews.csv", "--out", "out").status == 0
    before = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    for arguments in (["--tokens", "cls"], ["--blocks", "x"], ["--text-column", "body"]):
        assert command("trace", "~bert", "--data", "~reviews.csv", "--out", "out", *arguments).status == 2
    assert command("trace", "~regression", "--data", "~reviews.csv", "--out", "out").status == 2
    assert {path.name: path.read_bytes() for path in Path("out").iterdir()} == before


# --- interrupts ------------------------------------------------------------------------------------------------------


def test_an_interrupt_is_status_130(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    collect = anydepth.tracing.collect.TracePass._collect

    def stopping(self: Any, *arguments: Any) -> Any:
        counted.append(1)
        if len(counted) == 4:
            raise KeyboardInterrupt
        return collect(self, *arguments)

    monkeypatch.setattr(anydepth.tracing.collect.TracePass, "_collect", stopping)
    again = ("trace", "~bert", "--data", "~reviews.csv", "--out", "out", "--batch-size", "3")
    done = command(*again)
    assert (done.status, done.out) == (130, "")
    assert done.err == "anydepth: interrupted; the same command goes on where this one stopped\n"
    assert names_in("out") == {".partial"}
    assert command(*again).status == 0
    assert len(counted) == 4 + ROWS // 3 - 3
    assert names_in("out") == WRITTEN
    assert command(*again[:-3], "whole", "--batch-size", "3").status == 0
    same(Trace.load("out"), Trace.load("whole"))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_what_schedulers_send_is_as_ctrl_c(name: str, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    collect = anydepth.tracing.collect.TracePass._collect

    def stopped(self: Any, *arguments: Any) -> Any:
        counted.append(1)
        if len(counted) == 4:
            signal.raise_signal(getattr(signal, name))
        return collect(self, *arguments)

    monkeypatch.setattr(anydepth.tracing.collect.TracePass, "_collect", stopped)
    again = ("trace", "~bert", "--data", "~reviews.csv", "--out", "out", "--batch-size", "3")
    done = command(*again)
    assert (done.status, done.out) == (128 + getattr(signal, name), "")
    assert done.err == f"anydepth: stopped by {name}; the same command goes on where this one stopped\n"
    assert command(*again).status == 0
    assert len(counted) == 4 + ROWS // 3 - 3


def test_restart_forgets_what_an_interrupt_left(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    collect = anydepth.tracing.collect.TracePass._collect

    def counting(self: Any, *arguments: Any) -> Any:
        counted.append(1)
        if len(counted) == 4:
            raise KeyboardInterrupt
        return collect(self, *arguments)

    monkeypatch.setattr(anydepth.tracing.collect.TracePass, "_collect", counting)
    again = ("trace", "~bert", "--data", "~reviews.csv", "--out", "out", "--batch-size")
    assert command(*again, "3").status == 130
    refused = command(*again, "4")
    assert refused.status == 2
    assert "start over (resume=False, --restart)" in refused.err
    assert command(*again, "4", "--restart").status == 0
    assert len(counted) == 4 + ROWS // 4


def test_ctrl_c_in_a_real_process(
    assets: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [("a good film " * 3, "great"), ("a dull plot", "dull")] * 100
    write_csv(tmp_path / "long.csv", rows)
    arguments = ("trace", str(assets / "bert"), "--data", str(tmp_path / "long.csv"), "--batch-size", "1")
    process = in_a_process(*arguments, "--out", "out", cwd=tmp_path)
    partial = tmp_path / "out" / ".partial" / "rank-0"
    wait_for(lambda: (partial / "digest.npy").exists() or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, ""), err
    *counts, last = err.splitlines()
    assert last == "anydepth: interrupted; the same command goes on where this one stopped"
    assert all(re.match(r"\d+/200 batches", line) for line in counts), "where it takes over ten seconds"
    assert names_in(tmp_path / "out") == {".partial"}
    done = json.loads((partial / "journal.json").read_text())["batches"]
    assert 0 < done < len(rows)

    counted: list[int] = []
    collect = anydepth.tracing.collect.TracePass._collect
    monkeypatch.setattr(
        anydepth.tracing.collect.TracePass,
        "_collect",
        lambda self, *given: (counted.append(1), collect(self, *given))[1],
    )
    assert command(*arguments, "--out", str(tmp_path / "out")).status == 0
    assert len(counted) == len(rows) - done
    assert len(Trace.load(tmp_path / "out").ids) == len(rows)
    assert names_in(tmp_path / "out") == WRITTEN


def wait_for(holds: Callable[[], bool], seconds: float = 60) -> None:
    start = time.monotonic()
    while not holds():
        assert time.monotonic() - start < seconds, "waited too long"
        time.sleep(0.02)


def test_one_line_from_a_real_process(tmp_path: Path) -> None:
    """No warning or log line of a library beside ours, and no traceback."""
    process = in_a_fork("trace", "org/model", "--data", "org/data", cwd=tmp_path)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert err.startswith("anydepth: 'org/model' is no local path, and the hub")
    assert err.count("\n") == 1
    assert names_in(tmp_path) == set()


def test_a_real_process_prints_the_result_and_nothing_else(assets: Path, tmp_path: Path) -> None:
    arguments = ("trace", str(assets / "bert"), "--data", str(assets / "reviews.csv"), "--json")
    process = in_a_process(*arguments, cwd=tmp_path)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    assert json.loads(out)["out"].startswith("runs/bert-reviews.csv-")


def test_a_stopped_process_ends_though_a_thread_of_a_library_does_not() -> None:
    """A signal in the middle of a lock leaves such threads, and the interpreter waits for them."""
    code = (
        "import threading\n"
        "from anydepth.cli import app as cli\n"
        "lock = threading.Lock()\n"
        "lock.acquire()\n"
        "threading.Thread(target=lock.acquire).start()\n"
        "cli.run, cli._PATIENCE = lambda arguments: 130, 0.1\n"
        "cli.main([])\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120, check=False).returncode == 130
