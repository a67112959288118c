from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch
import transformers
from exit_models import FOUND
from run_cli import Command, in_folder

import anydepth as ad
from anydepth.errors import ExportError
from anydepth.jobs.settings import POLICIES
from anydepth.onnx.router import Router

pytestmark = pytest.mark.usefixtures("operators_listed_once")


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT classifier, the same with a calibrated policy, a ViT, a GPT-2; read only."""
    root = tmp_path_factory.mktemp("assets")
    checkpoints.bert(root / "bert", num_hidden_layers=3)
    checkpoints.vit(root / "vit")
    checkpoints.gpt2(root / "gpt2")
    model = transformers.BertForSequenceClassification.from_pretrained(root / "bert").eval()
    exits = ad.EarlyExit(model, ad.Confidence(0.52, depths=(2,)), calibration=FOUND)
    exits.save(root / "calibrated", processor=checkpoints.tokenizer())
    return root


@pytest.fixture
def command(assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Command:
    """The command line in this process, in an empty folder; `~name` stands for an asset."""
    return in_folder(assets, tmp_path / "here", monkeypatch, capsys)


def texts() -> dict[str, np.ndarray]:
    rows = [" ".join(np.random.default_rng(row).choice(checkpoints.WORDS, size=2 + row)) for row in range(8)]
    return dict(checkpoints.tokenizer()(rows, padding=True, return_tensors="np"))


def in_torch(folder: Path) -> dict[str, torch.Tensor]:
    """What the tokenizer gives that BERT takes."""
    return {name: torch.from_numpy(values) for name, values in texts().items()}


def test_a_calibrated_model(command: Command, assets: Path) -> None:
    done = command("export", "~calibrated", "--exits", "2", "--out", "out")
    assert (done.status, done.err) == (0, "")
    assert "1–2" in done.out
    assert "blocks-3-3.onnx" in done.out
    assert "onnxruntime answers as torch does" in done.out
    assert 'anydepth.onnx.Router("out")' in done.out
    assert "not calibrated" not in done.out
    router, exits = Router("out"), ad.EarlyExit.load(assets / "calibrated")
    out, expected = router(texts()), exits(in_torch(assets))
    np.testing.assert_array_equal(out.depth, expected.depth)
    np.testing.assert_allclose(out.logits, expected.logits, atol=1e-5)
    assert router.guarantee == FOUND.guarantee in json.loads(Path("out/export.json").read_text())["about"].values()
    assert FOUND.guarantee[:40] in done.out
    result = exits.export("python", name=router.manifest["model"]["name"])
    assert result.notes == (FOUND.guarantee,)
    same = Router("python")
    for entry in ("about", "policy", "level", "segments", "inputs", "model"):
        assert same.manifest[entry] == router.manifest[entry], entry
    np.testing.assert_allclose(same(texts()).logits, out.logits, atol=1e-6)


def test_an_export_in_python_takes_a_batch(assets: Path, tmp_path: Path) -> None:
    exits = ad.EarlyExit.load(assets / "calibrated")
    with pytest.raises(ExportError, match=r"no batch came yet to trace the graphs with: give one \(batch\)"):
        exits.export(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with torch.no_grad():
        exits.stack.model.bert.pooler.dense.bias.add_(1)
    exits(in_torch(assets))
    result = exits.export(tmp_path / "out")
    assert result.notes == ("nothing is guaranteed: the model was changed after it was calibrated: calibrate it again",)
    assert Router(tmp_path / "out").guarantee is None
    with pytest.warns(DeprecationWarning, match="Router.promise is called Router.guarantee"):
        assert Router(tmp_path / "out").promise is None


def test_a_plain_model(command: Command) -> None:
    done = command("export", "~vit", "--exits", "1", "--json")
    assert (done.status, done.err) == (0, "")
    found = json.loads(done.out)
    assert (found["exits"], found["last"]) == ([1, 2], 2)
    assert Path(found["out"]).match("runs/vit-*-onnx")
    assert found["notes"][-1] == (
        "Confidence(threshold=0.9, depths=(1,), temperature=1.0) is not calibrated: it has no guarantee, see "
        "anydepth exit"
    )
    router = Router(found["out"])
    assert router.level == pytest.approx(np.log(9))
    assert router.inputs["pixel_values"]["shape"] == ["batch", 1, 8, 8]
    assert len(router.classes) == router(np.zeros((3, 1, 8, 8), np.float32)).logits.shape[1] == 2


def test_one_depth_for_all(command: Command, assets: Path) -> None:
    """Of a calibrated model too, whose policy then has no say."""
    done = command("export", "~calibrated", "--depth", "1", "--out", "out")
    assert done.status == 0
    assert "AtDepth(threshold=1" in done.out
    model = transformers.BertForSequenceClassification.from_pretrained(assets / "bert").eval()
    model.bert.encoder.layer = model.bert.encoder.layer[:1]
    with torch.no_grad():
        np.testing.assert_allclose(Router("out")(texts()).logits, model(**in_torch(assets)).logits, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("~bert",),
            "is not calibrated: name its exits (--exits), or one for all (--depth); or calibrate it firs",
        ),
        (("~bert", "--exits", "two"), "the tested depths are 'two', expected whole numbers with commas: 2,4,6"),
        (("~bert", "--exits", "2,7"), "the policy tests depth 7, and the model has 3 blocks"),
        (("~bert", "--exits", "0"), "the tested depths are [0], expected some of 1..L"),
        (("~bert", "--depth", "4"), "the policy exits at depth 4, and the model has 3 blocks"),
        (("~bert", "--depth", "0"), "the threshold of AtDepth is 0, expected 1..inf"),
        (
            ("~bert", "--depth", "2", "--exits", "1"),
            "--depth 2 is one exit for all: leave out the others (--exits, --policy, --thr",
        ),
        (("~bert", "--exits", "1", "--policy", "hope"), f"unknown policy 'hope', expected one of {POLICIES}, depth"),
        (
            ("~bert", "--exits", "1", "--policy", "margin"),
            "the threshold of margin is missing: give it (--threshold)",
        ),
        (("~bert", "--exits", "1", "--threshold", "7"), "the threshold of Confidence is 7.0, expected 0..1"),
        (
            ("~calibrated", "--exits", "1"),
            "was calibrated for exits at 2: give no others (--exits), or calibrate it for them",
        ),
        (
            ("~calibrated", "--threshold", "1"),
            "has a calibrated policy: give no other (--policy, --threshold), or export ",
        ),
        (("~gpt2", "--depth", "1"), "GPT2LMHeadModel answers with (3, "),
        (("nowhere/at/all", "--depth", "2"), "no folder 'nowhere/at/all'"),
    ],
)
def test_bad_input(command: Command, arguments: tuple[str, ...], message: str) -> None:
    done = command("export", *arguments, "--out", "out")
    assert (done.status, done.out) == (2, "")
    assert message in done.err
    assert done.err.startswith("anydepth: ")
    assert done.err.count("\n") == 1
    assert not Path("out").exists()


def test_an_interrupt_says_that_the_command_starts_over(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("anydepth.onnx.exporter.export", stop)
    done = command("export", "~bert", "--depth", "1", "--out", "out")
    assert (done.status, done.err) == (130, "anydepth: interrupted; the same command starts over\n")
    assert not Path("out").exists()


def test_what_is_there_is_not_overwritten(command: Command) -> None:
    Path("out").mkdir()
    Path("out/diary.txt").write_text("dear")
    done = command("export", "~bert", "--depth", "1", "--out", "out")
    assert (done.status, done.err) == (2, "anydepth: 'out' holds something already: give another folder with --out\n")
    assert Path("out/diary.txt").read_text() == "dear"


def test_a_tampered_promise(command: Command, assets: Path) -> None:
    copied = Path("copied")
    copied.mkdir()
    for path in (assets / "calibrated").iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    changed = (copied / "exit.json").read_text().replace("0.52", "0.12")
    (copied / "exit.json").write_text(changed)
    done = command("export", "copied", "--out", "out")
    assert (done.status, Path("out").exists()) == (2, False)
    assert "exit.json was changed after it was written" in done.err
