"""A CLIP from the command line: images read out as texts of their classes, and each tower by itself."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch
import transformers
import yaml
from PIL import Image
from run_cli import Command, in_folder, write_csv

from anydepth.tracing.trace import Trace

pytestmark = pytest.mark.usefixtures("undrawn", "timed_briefly", "charts_unchecked")
CLASSES = ("cast", "film", "plot")
EACH = 20
ZERO = ("~clip", "--data", "~pictures", "--labels-as-texts")


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of three image blocks and two text blocks, images of three classes, and texts; read only."""
    root = tmp_path_factory.mktemp("assets")
    torch.manual_seed(0)
    tower = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    ends = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0, "vocab_size": len(checkpoints.VOCABULARY)}
    words = {**tower, **ends, "num_hidden_layers": 2, "max_position_embeddings": 12}
    images = {**tower, "num_hidden_layers": 3, "image_size": 8, "patch_size": 4}
    model = transformers.CLIPModel(transformers.CLIPConfig(text_config=words, vision_config=images))
    for parameter in model.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    size = {"height": 8, "width": 8}
    for part in (model, checkpoints.tokenizer(), transformers.CLIPImageProcessor(size=size, crop_size=size)):
        part.save_pretrained(root / "clip")
    checkpoints.bert(root / "bert")
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (root / "pictures" / name).mkdir(parents=True)
        for index in range(EACH):
            pixels = rng.integers(0, 255, size=(8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "pictures" / name / f"{index}.png")
    write_csv(root / "reviews.csv", [(f"the {word} was good", word) for word in CLASSES * 4])
    return root


@pytest.fixture
def command(assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Command:
    return in_folder(assets, tmp_path / "here", monkeypatch, capsys)


def expected(assets: Path, template: str) -> np.ndarray:
    """What transformers says of each image, in the order of its name: the likeliest class."""
    model = transformers.CLIPModel.from_pretrained(assets / "clip").eval()
    processor = transformers.CLIPImageProcessor.from_pretrained(assets / "clip")
    texts = [template.replace("{}", name) for name in CLASSES]
    tokens = checkpoints.tokenizer()(texts, padding=True, return_tensors="pt")
    files = [assets / "pictures" / name / f"{index}.png" for name in CLASSES for index in range(EACH)]
    pixels = processor([Image.open(file) for file in files], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return (
            model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], pixel_values=pixels)
            .logits_per_image.argmax(1)
            .numpy()
        )


@pytest.mark.parametrize("template", [(), ("the {} was good",)])
def test_accuracy_by_depth_is_that_of_the_texts(template: tuple[str, ...], command: Command, assets: Path) -> None:
    done = command("trace", *ZERO, *template, "--out", "out")
    assert (done.status, done.err) == (0, "")
    text = template[0] if template else "a photo of a {}."
    assert f"zero-shot: classes are texts, '{text}' with cast, film, plot" in " ".join(done.out.split())
    answers = expected(assets, text)
    labels = np.repeat(np.arange(3), EACH)
    trace = Trace.load("out")
    assert trace.depth == 3
    assert trace.accuracy[-1] == pytest.approx((answers == labels).mean())
    order = np.argsort(trace.ids)
    by_class = [trace.rows.prediction[order, -1][trace.rows.label[order] == label] for label in range(3)]
    for label, own in enumerate(by_class):
        counts = np.bincount(answers[labels == label], minlength=3)
        assert np.bincount(own, minlength=3).tolist() == counts.tolist()
    assert yaml.safe_load(Path("out/settings.yaml").read_text())["labels_as_texts"] == text


def test_predictions_are_by_the_texts_of_the_calibration(command: Command, assets: Path) -> None:
    done = command("exit", *ZERO, "the {}", "--tolerance", "0.3", "--depths", "1,2", "--out", "exits")
    assert done.status == 0, done.err
    assert json.loads(Path("exits/exit.json").read_text())["model"]["config"]["zero_shot"] == {
        "template": "the {}",
        "labels": list(CLASSES),
    }
    done = command("predict", "exits", "--data", "~pictures", "--out", "predicted")
    assert done.status == 0, done.err
    with Path("predicted/predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    full = [CLASSES[index] for index in expected(assets, "the {}")]
    assert len(rows) == 3 * EACH
    assert {row["prediction"] for row in rows} <= set(CLASSES)
    late = [row for row in rows if row["depth"] == "3"]
    assert all(row["prediction"] == full[int(row["id"])] for row in late)
    same = np.mean([row["prediction"] == answer for row, answer in zip(rows, full, strict=True)])
    assert same >= 0.7, "as certified"


def test_each_tower_is_traced_by_itself(command: Command) -> None:
    for data, kind, depth in (("~pictures", "image", 3), ("~reviews.csv", "text", 2)):
        for named in ((), ("--blocks", kind)):
            out = "-".join((kind, *named[1:], "out"))
            done = command("trace", "~clip", "--data", data, *named, "--out", out)
            assert (done.status, done.err) == (0, "")
            assert f"the {kind} tower of CLIPModel, by itself" in " ".join(done.out.split())
            assert Trace.load(out).depth == depth


def test_the_image_tower_is_cut_and_the_other_stays(command: Command) -> None:
    done = command("truncate", "~clip", "--blocks", "image", "--depth", "2", "--out", "cut")
    assert (done.status, done.err) == (0, "")
    config = transformers.CLIPModel.from_pretrained("cut").config
    assert (config.vision_config.num_hidden_layers, config.text_config.num_hidden_layers) == (2, 2)
    done = command("trace", "cut", "--data", "~pictures", "--labels-as-texts", "--limit", "20", "--out", "traced")
    assert done.status == 0, done.err
    assert Trace.load("traced").depth == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("trace", "~bert", "--data", "~pictures", "--labels-as-texts"), "its forward has no pixel_values"),
        (("trace", *ZERO, "a photo"), "template of texts is 'a photo', expected {} where the name of a class goes"),
        (("trace", *ZERO, "--blocks", "text"), "blocks is 'text', and --labels-as-texts reads images out"),
        (("trace", "~clip", "--data", "~reviews.csv", "--labels-as-texts"), "the model takes images, and"),
        (("trace", "~clip", "--data", "digits", "--labels-as-texts"), "become the same tokens"),
        (("exit", "~clip", "--data", "~pictures"), "no logits: it has no classifier"),
        (("truncate", "~clip", "--depth", "auto", "--data", "~pictures"), "compares images with texts, and data hold"),
    ],
)
def test_what_has_no_meaning_is_refused_in_a_line(
    arguments: tuple[str, ...], says: str, command: Command, tmp_path: Path
) -> None:
    done = command(*arguments, "--out", "out")
    assert (done.status, done.out) == (2, "")
    assert says in done.err
    assert done.err.count("\n") == 1
