"""`anydepth exit` and `anydepth predict`, end to end on small trained models."""

from __future__ import annotations

import csv
import json
import signal
import time
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch
import transformers
from run_cli import Command, in_a_process, in_folder

from anydepth import EarlyExit
from anydepth.core.heads import separate_heads
from anydepth.early_exit.curve import ExitCurve
from anydepth.exits.policies import POLICIES, AtDepth
from anydepth.jobs import settings

pytestmark = pytest.mark.usefixtures("timed_briefly", "charts_unchecked")

COUNT = 480


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT that has learnt whether a text says "good", the same with heads, and texts; read only."""
    root = tmp_path_factory.mktemp("assets")
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    words = [word for word in checkpoints.WORDS if word != "good"]
    texts = []
    for index in range(COUNT):
        found = list(rng.choice(words, size=rng.integers(3, 9)))
        if index % 2:
            found.insert(int(rng.integers(0, len(found))), "good")
        texts.append(" ".join(found))
    rows = [f"{text},{index % 2}" for index, text in enumerate(texts)]
    (root / "reviews.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    (root / "more.csv").write_text("\n".join(["text", *texts[:50]]) + "\n")
    checkpoints.bert(root / "bert", num_hidden_layers=4)
    model = transformers.BertForSequenceClassification.from_pretrained(root / "bert")
    inputs = checkpoints.tokenizer()(texts, padding=True, return_tensors="pt")
    labels = torch.arange(COUNT) % 2
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        pick = torch.randint(0, COUNT, (64,))
        model(**{name: values[pick] for name, values in inputs.items()}, labels=labels[pick]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for name in ("bert", "heads"):
        model.eval().save_pretrained(root / name)
        checkpoints.tokenizer().save_pretrained(root / name)
    separate_heads(model.classifier, 4).save(root / "heads")
    checkpoints.gpt2(root / "gpt2")
    (root / "corpus.txt").write_text("\n".join(texts[:20]) + "\n")
    return root


@pytest.fixture
def command(assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Command:
    """The command line in this process, in an empty folder; `~name` stands for an asset."""
    return in_folder(assets, tmp_path / "here", monkeypatch, capsys)


LOOSE = ("--tolerance", "0.05", "--confidence", "0.9")


@pytest.mark.parametrize("name", ["bert", "heads"])
def test_the_whole_way(command: Command, assets: Path, name: str) -> None:
    done = command("exit", f"~{name}", "--data", "~reviews.csv", *LOOSE, "--json")
    assert (done.status, done.err) == (0, "")
    found = json.loads(done.out)
    folder = Path(found["out"])
    assert folder.match(f"runs/{name}-reviews.csv-*-exit")
    assert {path.name for path in folder.iterdir()} >= {"exit.json", "curve.json", "report.html", "config.json"}
    distinct = len(set((assets / "reviews.csv").read_text().splitlines()[1:]))
    held_out = found["calibration"]["samples"][2]
    assert sum(found["calibration"]["samples"]) == distinct, "a text that repeats counts once"
    assert found["calibration"]["certificate"]["tolerance"] == 0.05
    assert sum(found["leaving"]) == held_out
    assert found["depth"] < 4, "else nothing was saved, and this shows nothing"
    curve = ExitCurve.from_plain(json.loads((folder / "curve.json").read_text()))
    assert curve.samples == held_out
    assert found["area"] == pytest.approx(curve.area)
    done = command("predict", str(folder), "--data", "~more.csv", "--json")
    assert (done.status, done.err) == (0, "")
    predicted = json.loads(done.out)
    with (Path(predicted["out"]) / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 50
    # the same by the library, one text at a time
    exits = EarlyExit.load(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = (assets / "more.csv").read_text().splitlines()[1:]
    for text, row in zip(texts, rows, strict=True):
        out = exits(dict(tokenizer(text, return_tensors="pt")))
        assert row["depth"] == str(int(out.depth))
        assert row["prediction"] == f"LABEL_{int(out.logits.argmax())}"
        assert float(row["probability"]) == pytest.approx(float(out.logits.softmax(1).max()), abs=1e-4)
    assert predicted["leaving"] == np.bincount([int(row["depth"]) for row in rows], minlength=5)[1:].tolist()
    assert predicted["blocks"] == sum(int(row["depth"]) for row in rows)


def test_its_settings_run_it_again(command: Command) -> None:
    options = ("--no-tune", "--depths", "1,2", "--seed", "5")  # which do not follow measured times
    assert command("exit", "~bert", "--data", "~reviews.csv", *LOOSE, *options, "--out", "out").status == 0
    assert command("exit", "--config", "out/settings.yaml", "--out", "again").status == 0
    before, after = (json.loads(Path(folder, "exit.json").read_text()) for folder in ("out", "again"))
    assert [after[name] for name in ("policy", "calibration")] == [before[name] for name in ("policy", "calibration")]
    assert Path("again/settings.yaml").read_bytes() == Path("out/settings.yaml").read_bytes()


def test_what_people_see(command: Command) -> None:
    done = command("exit", "~bert", "--data", "~reviews.csv", *LOOSE, "--depths", "1,2", "--out", "mine")
    assert done.status == 0
    assert "Certified at 90 % confidence: P(answer ≠ full model's) ≤ 5 % (" in done.out
    assert "assumes new inputs drawn like these); held out: " in done.out
    assert "by class: LABEL_0 " in done.out
    assert "full model" in done.out
    assert "one readout costs" in done.out
    assert "Calibrated model: mine; report: mine/report.html" in done.out
    assert EarlyExit.load("mine").tested == (1, 2)
    assert command("exit", "~bert", "--data", "~reviews.csv", *LOOSE, "--out", "mine").status == 0, "once more"
    done = command("predict", "mine", "--data", "~more.csv", "--out", "answers")
    assert "50 samples, mean depth" in done.out
    assert "50 of 50 samples also calibrated the model" in done.out
    assert "Predictions: answers/predictions.csv" in done.out


def test_the_validation_split_calibrates_and_the_test_split_is_answered(command: Command, assets: Path) -> None:
    head, *rows = (assets / "reviews.csv").read_text().splitlines()
    distinct = list(dict.fromkeys(rows))
    Path("data").mkdir()
    for split, part in (("train", distinct[:20]), ("validation", distinct[20:-20]), ("test", distinct[-20:])):
        Path(f"data/{split}.csv").write_text("\n".join([head, *part]) + "\n")
    options = (*LOOSE, "--depths", "1,2", "--no-tune")
    done = command("exit", "~bert", "--data", "data", *options, "--out", "mine", "--json")
    assert (done.status, done.err) == (0, "")
    assert sum(json.loads(done.out)["calibration"]["samples"]) == len(distinct) - 40
    assert json.loads(done.out)["data"] == "data (validation)"
    new = json.loads(command("predict", "mine", "--data", "data", "--out", "answers", "--json").out)
    assert new["data"] == "data (test)"
    assert not [note for note in new["notes"] if "calibrated the model" in note]
    again = command("predict", "mine", "--data", "data", "--split", "validation", "--out", "answers", "--json")
    count = f"{len(distinct) - 40:,}"
    assert f"{count} of {count} samples also calibrated the model" in json.loads(again.out)["notes"][0]
    Path("mine/samples.npy").write_bytes(b"torn")
    torn = command("predict", "mine", "--data", "data", "--out", "answers")
    assert torn.status == 2
    assert torn.err.startswith("anydepth: mine/samples.npy is damaged (")


def test_the_guarantee_is_for_inputs_made_as_they_were(command: Command) -> None:
    """Texts are cut as they were; what is done otherwise is allowed, said, and promised nothing of."""
    assert command("exit", "~bert", "--data", "~reviews.csv", *LOOSE, "--max-length", "6", "--out", "mine").status == 0
    inputs = json.loads(Path("mine/exit.json").read_text())["inputs"]
    assert (inputs["max_length"], inputs["columns"], inputs["kind"]) == (6, ["text"], "text")

    def predicted(*more: str, data: str = "~more.csv") -> tuple[str | None, str]:
        done = command("predict", "mine", "--data", data, "--out", "answers", *more, "--json")
        assert (done.status, done.err) == (0, "")
        found = json.loads(done.out)
        return found["promise"], " ".join(found["notes"])

    promise, notes = predicted()
    assert promise is not None
    assert promise.startswith("certified at 90 % confidence")
    assert "texts are cut at 6 tokens" in notes
    assert predicted("--max-length", "6")[0] == promise
    promise, notes = predicted("--max-length", "9")
    assert promise is None
    assert "nothing is guaranteed: texts are cut at 9 tokens, and were at 6 when it was calibrated" in notes
    Path("other.csv").write_text("review\nthe film was good\n")
    promise, notes = predicted(data="other.csv")
    assert promise is None
    assert "nothing is guaranteed: it reads 'review' of the data, and read 'text' when it was calibrated" in notes
    file = Path("mine/tokenizer.json")
    rules = json.loads(file.read_text())
    words = rules["model"]["vocab"]
    words["good"], words["film"] = words["film"], words["good"]
    file.write_text(json.dumps(rules))
    promise, notes = predicted()
    assert promise is None
    assert "nothing is guaranteed: the tokenizer is another than when it was calibrated" in notes


def test_nothing_to_certify(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("stats.certificates", "exits.exit_scores"):
        monkeypatch.setattr(f"anydepth.{place}.fails", lambda early, *rest: np.ones(len(early), dtype=bool))
    done = command("exit", "~bert", "--data", "~reviews.csv", *LOOSE, "--out", "mine")
    assert done.status == 0
    assert "Nothing could be certified: every sample goes to the last depth" in done.out
    assert EarlyExit.load("mine").policy == AtDepth(4)


def test_an_interrupted_pass_goes_on(command: Command, assets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read out before the interrupt is not read out again, and the result is the same."""
    arguments = ("exit", "~bert", "--data", "~reviews.csv", *LOOSE, "--no-tune", "--json")
    expected = json.loads(command(*arguments, "--out", "whole").out)
    from anydepth.exits import exit_scores as looking

    right, calls = looking._batch_inputs, []

    def failing(*given: Any) -> Any:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return right(*given)

    monkeypatch.setattr(looking, "_batch_inputs", failing)
    done = command(*arguments, "--out", "parted")
    assert done.status == 130
    assert "the same command goes on where this one stopped" in done.err
    assert {path.name for path in Path("parted").iterdir()} == {".partial"}
    done = command(*arguments, "--out", "parted")
    assert done.status == 0
    assert len(calls) == 6 + 15 - 5, "fifteen batches, of which five were there"
    found = json.loads(done.out)
    for name in ("calibration", "leaving", "agreement", "accuracy"):
        assert found[name] == expected[name]
    assert not Path("parted/.partial").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("~bert", "--data", "~reviews.csv"),
            "there are 479 distinct samples among 480, of which 239 can certify, and to certify a ",
        ),
        (("~bert", "--data", "~reviews.csv", "--tolerance", "0"), "tolerance is 0.0, expected a number between 0 and"),
        (("~bert", "--data", "~reviews.csv", "--against", "x"), "against is 'x', expected 'model' or"),
        (("~bert", "--data", "~reviews.csv", "--policy", "trust"), "unknown policy 'trust', expected one of confidenc"),
        (("~bert", "--data", "~reviews.csv", "--policy", "depth"), "AtDepth has no threshold to calibrate"),
        (("~bert", "--data", "~reviews.csv", "--depths", "0,1"), "the tested depths are [0, 1], expected some of 1"),
        (("~bert", "--data", "~reviews.csv", "--depths", "2,9"), "the policy tests depth 9, and the model has 4"),
        (("~bert", "--data", "~reviews.csv", "--depths", "few"), "the tested depths are 'few', expected whole numbers"),
        (("~gpt2", "--data", "~corpus.txt", *LOOSE), "no text of '"),
        (("nowhere/at/all", "--data", "~reviews.csv"), "no folder 'nowhere/at/all'"),
    ],
)
def test_bad_input(command: Command, arguments: tuple[str, ...], message: str) -> None:
    done = command("exit", *arguments, "--out", "mine")
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith(f"anydepth: {message}")
    assert done.err.count("\n") == 1
    assert not (Path("mine") / "exit.json").exists()


def test_bad_input_to_predict(command: Command, assets: Path) -> None:
    done = command("predict", "~bert", "--data", "~more.csv")
    assert (done.status, done.out) == (2, "")
    assert "exit.json does not exist: calibrate again" in done.err
    assert command("exit", "~bert", "--data", "~reviews.csv", *LOOSE, "--out", "mine").status == 0
    file = Path("mine/exit.json")
    content = json.loads(file.read_text())
    content["policy"]["threshold"] /= 2
    file.write_text(json.dumps(content))
    done = command("predict", "mine", "--data", "~more.csv")
    assert "exit.json was changed after it was written" in done.err
    assert not Path("runs").exists()


def test_what_is_there_is_not_overwritten(command: Command) -> None:
    Path("mine").mkdir()
    Path("mine/diary.txt").write_text("dear")
    done = command("exit", "~bert", "--data", "~reviews.csv", *LOOSE, "--out", "mine")
    assert done.status == 2
    assert done.err == "anydepth: 'mine' holds something else already: give another folder with --out\n"
    assert Path("mine/diary.txt").read_text() == "dear"


def test_the_policies_of_the_help_are_those_there_are() -> None:
    assert settings.POLICIES.split(", ") == [name for name in POLICIES if name != "depth"]


def test_ctrl_c_in_a_process(assets: Path, tmp_path: Path) -> None:
    process = in_a_process(
        "exit", str(assets / "bert"), "--data", str(assets / "reviews.csv"), *LOOSE, "--batch-size", "1", cwd=tmp_path
    )
    deadline = time.monotonic() + 120
    while (
        not list(tmp_path.glob("runs/bert-reviews.csv-*-exit/.partial/look/journal.json"))
        and process.poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert said.splitlines()[-1] == "anydepth: interrupted; the same command goes on where this one stopped"
