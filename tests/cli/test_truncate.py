from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch
import transformers
from run_cli import Command, in_folder

import anydepth as ad
from anydepth import data
from anydepth.core.heads import separate_heads
from anydepth.core.stack import Stack
from anydepth.models import loading as models


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT classifier, the same with heads, a ViT, texts; read only."""
    root = tmp_path_factory.mktemp("assets")
    torch.manual_seed(0)  # else the weights, and what can be certified, depend on the tests before
    checkpoints.bert(root / "bert", num_hidden_layers=3)
    checkpoints.bert(root / "heads", num_hidden_layers=3)
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(checkpoints.WORDS, size=rng.integers(2, 9))) for _ in range(320)]
    rows = [f"{text},{index % 2}" for index, text in enumerate(texts)]
    (root / "reviews.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    model = transformers.BertForSequenceClassification.from_pretrained(root / "heads").eval()
    heads = separate_heads(model.classifier, 3)
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.normal_()
    heads.save(root / "heads")
    checkpoints.gpt2(root / "gpt2")
    (root / "corpus.txt").write_text("\n".join(texts[:20]) + "\n")
    return root


@pytest.fixture
def command(assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Command:
    """The command line in this process, in an empty folder; `~name` stands for an asset."""
    return in_folder(assets, tmp_path / "here", monkeypatch, capsys)


def answers(folder: str, assets: Path) -> torch.Tensor:
    """Of a model loaded by transformers alone, on the first texts."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model, report = transformers.AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(value for name, value in report.items() if name != "unexpected_keys"), report
    texts = [line.split(",")[0] for line in (assets / "reviews.csv").read_text().splitlines()[1:9]]
    with torch.no_grad():
        return model.eval()(**tokenizer(texts, padding=True, return_tensors="pt")).logits


def readout(folder: str, depth: int, assets: Path, *, heads: bool = False) -> torch.Tensor:
    """Of the uncut model at a depth, on the same."""
    loaded = models.load(folder)
    batches = data.batches(data.load(str(assets / "reviews.csv")), loaded, batch_size=8, labels=False)
    batches = dataclasses.replace(batches, sorted_batches=1)  # the first texts
    batch = {name: value for name, value in next(iter(batches)).items() if name != "id"}
    stack = models.stack_of(loaded, batches) if heads else Stack(loaded.model)
    with torch.no_grad():
        return stack.readout(stack.states(batch)[depth], batch, depth=depth)


def test_to_a_depth(command: Command, assets: Path) -> None:
    done = command("truncate", "~bert", "--depth", "2")
    assert done.status == 0
    assert "depth 2 of 3" in done.out
    (folder,) = Path("runs").iterdir()
    assert folder.match("bert-*-depth-2")
    assert f"Model: {folder}" in done.out
    torch.testing.assert_close(answers(str(folder), assets), readout(str(assets / "bert"), 2, assets))
    assert json.loads((folder / "truncate.json").read_text())["certificate"] is None


def test_what_a_cut_costs_and_saves(command: Command, assets: Path) -> None:
    """Beside the models themselves, as they are loaded again."""
    labelled = ("--data", "~reviews.csv", "--depth", "1", "--out", "small")
    done = command("truncate", "~bert", *labelled, "--json")
    assert (done.status, done.err) == (0, "")
    found = json.loads(done.out)
    models_ = [models.load(str(folder)) for folder in (assets / "bert", Path("small"))]
    counts = [sum(p.numel() for p in loaded.model.parameters()) for loaded in models_]
    assert found["parameters"] == counts
    assert found["bytes"] == [4 * count for count in counts]
    for (value, low, high), loaded in zip(found["accuracy"], models_, strict=True):
        inputs = data.batches(data.load(str(assets / "reviews.csv")), loaded, batch_size=5)
        with torch.no_grad():
            right = [loaded.model(**{k: v for k, v in batch.items() if k != "id"}) for batch in inputs]
        correct = np.concatenate(
            [(out.logits.argmax(1) == batch["labels"]).numpy() for out, batch in zip(right, inputs, strict=True)]
        )
        assert value == pytest.approx(correct.mean())
        assert low < value < high or value in (0, 1)
    assert found["time"] > 0
    assert found["timed"].startswith("median of 5 rounds in turn, batches of ")
    people = command("truncate", "~bert", *labelled)
    assert re.search(r"before +3 .*\n *after +1 ", people.out)
    assert "Speed: median of 5 rounds" in people.out


def test_labels_that_do_not_fit_are_no_obstacle_where_none_are_needed(command: Command) -> None:
    Path("odd.csv").write_text("text,label\n" + "".join(f"a good film {row},nobody\n" for row in range(30)))
    certified = ("--data", "odd.csv", "--tolerance", "0.9", "--confidence", "0.5", "--depth", "auto", "--json")
    done = command("truncate", "~bert", *certified, "--out", "small")
    assert (done.status, done.err) == (0, "")
    found = json.loads(done.out)
    assert found["accuracy"] is None
    assert any(note.startswith("no accuracy, labels do not fit: ") for note in found["notes"])
    done = command("truncate", "~bert", *certified, "--against", "labels", "--out", "other")
    assert done.status == 2


def test_its_settings_run_it_again(command: Command) -> None:
    certified = ("--data", "~reviews.csv", "--tolerance", "0.9", "--confidence", "0.5")
    assert command("truncate", "~bert", "--depth", "auto", *certified, "--out", "out").status == 0
    assert command("truncate", "--config", "out/settings.yaml", "--out", "again").status == 0
    for name in ("model.safetensors", "config.json", "settings.yaml"):
        assert Path("again", name).read_bytes() == Path("out", name).read_bytes(), name


def test_to_what_can_be_certified(command: Command, assets: Path) -> None:
    """With random weights answers rarely change; the trace says independently how often."""
    arguments = ("--data", "~reviews.csv", "--tolerance", "0.5", "--confidence", "0.9", "--out", "small", "--json")
    done = command("truncate", "~bert", "--depth", "auto", *arguments)
    assert (done.status, done.err) == (0, "")
    found = json.loads(done.out)
    loaded = models.load(str(assets / "bert"))
    batches = data.batches(data.load(str(assets / "reviews.csv")), loaded, batch_size=7, labels=False)
    expected = ad.trace(loaded.model, batches, measures=(), labels=False).minimal_depth(0.5, 0.9)
    assert found["depth"] == expected.depth < 3, "else this test shows nothing"
    assert found["certificate"]["failures"] == expected.certificate.failures
    assert json.loads(Path("small/truncate.json").read_text())["certificate"] == found["certificate"]
    torch.testing.assert_close(answers("small", assets), readout(str(assets / "bert"), expected.depth, assets))


def test_a_head_goes_with_its_depth(command: Command, assets: Path) -> None:
    assert command("truncate", "~heads", "--depth", "1", "--data", "~reviews.csv", "--out", "small").status == 0
    own = readout(str(assets / "heads"), 1, assets, heads=True)
    torch.testing.assert_close(answers("small", assets), own)
    assert not Path("small/heads.safetensors").exists()
    assert command("truncate", "~heads", "--depth", "1", "--out", "other").status == 0
    torch.testing.assert_close(answers("other", assets), own)


def test_what_else_the_folder_holds_goes_along_or_is_named(command: Command, assets: Path) -> None:
    shutil.copytree(assets / "bert", "rich")
    rich = {"LICENSE": "terms", "modules.json": '[{"path": ""}, {"path": "1_Pooling"}]', "exit.json": "{}"}
    for name, text in {**rich, "1_Pooling/config.json": "{}", "optimizer.pt": "x"}.items():
        Path("rich", name).parent.mkdir(exist_ok=True)
        Path("rich", name).write_text(text)
    Path("rich/README.md").write_text("---\nlicense: mit\n---\nThe whole one.\n")
    done = command("truncate", "rich", "--depth", "2", "--out", "small", "--json")
    assert (done.status, done.err) == (0, "")
    notes = json.loads(done.out)["notes"]
    assert "carried over from 'rich': 1_Pooling, LICENSE, README-uncut.md, modules.json" in notes
    assert "left in 'rich', since they are of the old model or of no known use: exit.json, optimizer.pt" in notes
    there = {path.name for path in Path("small").iterdir()}
    assert there >= {"LICENSE", "modules.json", "1_Pooling", "README-uncut.md", "README.md", "truncate.json"}
    assert not there & {"exit.json", "optimizer.pt"}
    card = Path("small/README.md").read_text()
    assert card.startswith("---\n")
    assert "license: mit" in card
    assert "`rich` cut after block 2 of 3." in card
    assert Path("small/README-uncut.md").read_text() == Path("rich/README.md").read_text()


def test_a_cut_that_could_not_be_loaded_writes_nothing(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """A class that cannot be built with two blocks."""
    made = transformers.BertForSequenceClassification.__init__

    def refusing(self: Any, config: Any, *args: Any) -> None:
        if config.num_hidden_layers == 2:
            raise ValueError("an odd number of blocks is expected")
        made(self, config, *args)

    monkeypatch.setattr(transformers.BertForSequenceClassification, "__init__", refusing)
    done = command("truncate", "~bert", "--depth", "2", "--out", "small")
    assert (done.status, done.out) == (2, "")
    assert "BertForSequenceClassification cut after block 2 of 3 could not be loaded again, its config " in done.err
    assert "(with num_hidden_layers for 2 blocks: an odd number of blocks is expected); cut it after an" in done.err
    assert done.err.count("\n") == 1
    assert not Path("small").exists()


def test_nothing_to_certify(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anydepth.stats.certificates.fails", lambda early, *rest: np.ones(len(early), dtype=bool))
    done = command("truncate", "~bert", "--depth", "auto", "--data", "~reviews.csv", "--out", "small")
    assert done.status == 0
    assert "depth 3: nothing shallower could be certified" in done.out
    assert "Nothing was written: the model stays as it is." in done.out
    assert not Path("small").exists()


@pytest.mark.parametrize("depth", [("2",), ("auto", "--data", "~reviews.csv")])
def test_an_interrupt_says_that_the_command_starts_over(
    command: Command, depth: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("anydepth.jobs.truncate.truncate", stop)
    monkeypatch.setattr("anydepth.tracing.trace.Trace.minimal_depth", stop)  # once the data were traced
    done = command("truncate", "~bert", "--depth", *depth, "--out", "small")
    assert (done.status, done.err) == (130, "anydepth: interrupted; the same command starts over\n")
    assert not Path("small").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("~bert", "--depth", "4"), "depth is 4, expected 1..3 for BertForSequenceClassification"),
        (("~bert", "--depth", "0"), "depth is 0, expected 1..3 for BertForSequenceClassification"),
        (("~bert", "--depth", "half"), "--depth is 'half', expected a whole number, or auto"),
        (
            ("~bert", "--depth", "auto"),
            "to choose a depth takes data: give them (--data), or a number of blocks (--de",
        ),
        (
            ("~bert", "--depth", "auto", "--data", "~reviews.csv", "--limit", "100"),
            "there are 100 samples, and to certify a tolerance of 0.01 with 0.95 confidence takes at least 299, ",
        ),
        (("~bert", "--depth", "auto", "--data", "~reviews.csv", "--tolerance", "1"), "tolerance is 1.0, expected a nu"),
        (
            ("~bert", "--depth", "auto", "--data", "~reviews.csv", "--against", "me"),
            "against is 'me', expected 'mod",
        ),
        (("~gpt2", "--depth", "auto", "--data", "~corpus.txt"), "answers at positions of one sequence are not indepe"),
        (
            ("timm:vit_tiny_patch16_224", "--depth", "2"),
            "'timm:vit_tiny_patch16_224' has no folder that timm reads k b",
        ),
        (("nowhere/at/all", "--depth", "2"), "no folder 'nowhere/at/all'"),
    ],
)
def test_bad_input(command: Command, arguments: tuple[str, ...], message: str) -> None:
    done = command("truncate", *arguments, "--out", "small")
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith(f"anydepth: {message}")
    assert done.err.count("\n") == 1
    assert not Path("small").exists()


def test_what_is_there_is_not_overwritten(command: Command) -> None:
    Path("small").mkdir()
    Path("small/diary.txt").write_text("dear")
    done = command("truncate", "~bert", "--depth", "2", "--out", "small")
    assert done.status == 2
    assert done.err == "anydepth: 'small' holds something already: give another folder with --out\n"
    assert Path("small/diary.txt").read_text() == "dear"
