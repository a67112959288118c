"""The scripts in examples/, run whole on tiny models and made-up data that a good run must learn."""

import csv
import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]


def load(name: str):
    specification = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


finetune_text, train_head = load("finetune_text"), load("train_head")


# ------------------------------------------------------------------------------------------------- finetune_text


@pytest.fixture(scope="module")
def text_model(tmp_path_factory):
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", *"abcdefgh"]
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizerFast(vocab={word: i for i, word in enumerate(words)})
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sentences(tmp_path_factory):
    """Sentences of random letters with `good` or `bad` among them."""
    folder = tmp_path_factory.mktemp("sentences")
    generator = np.random.default_rng(0)
    for split, count in (("train", 160), ("validation", 20), ("test", 40)):
        with (folder / f"{split}.csv").open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["text", "label"])
            for _ in range(count):
                label = int(generator.integers(2))
                letters = list(generator.choice(list("abcdefgh"), generator.integers(1, 8)))
                letters.insert(int(generator.integers(len(letters) + 1)), ["bad", "good"][label])
                writer.writerow([" ".join(letters), label])
    return folder


def test_finetune_text_learns_and_writes_an_ordinary_folder(text_model, sentences, tmp_path, capsys):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    out = tmp_path / "made" / "model"
    arguments = ["--model", text_model, "--data", sentences, "--out", out, "--epochs", 12, "--learning-rate", 0.01]
    assert finetune_text.main([str(argument) for argument in arguments]) == 0
    assert [entry.name for entry in out.parent.iterdir()] == ["model"]

    record = json.loads((out / "training.json").read_text())
    assert record["sentences"] == {"train": 160, "validation": 20, "test": 40}
    assert record["test_accuracy"] > 0.9
    assert len(record["validation_accuracy_by_epoch"]) == 12
    assert f"test accuracy {record['test_accuracy']:.4f} on 40 sentences" in capsys.readouterr().out

    model, loading = AutoModelForSequenceClassification.from_pretrained(out, output_loading_info=True)
    assert not any(loading.values())
    assert model.config.id2label == {0: "negative", 1: "positive"}
    tokenizer = AutoTokenizer.from_pretrained(out)
    test = finetune_text.read(sentences / "test.csv", tokenizer, 64)
    assert finetune_text.accuracy(model, test, tokenizer) == record["test_accuracy"]


def test_shuffled_batches_hold_every_sentence_once(text_model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(text_model)
    sentences = [([7 + i % 8] * (1 + i % 13), i) for i in range(101)]
    for seed in (None, 0, 1):
        batches = list(finetune_text.batches(sentences, 8, tokenizer, seed))
        assert sorted(int(label) for batch in batches for label in batch["labels"]) == list(range(101))
        for batch in batches:
            lengths = batch["attention_mask"].sum(1)
            assert lengths.tolist() == [1 + int(label) % 13 for label in batch["labels"]]
            assert batch["input_ids"].shape[1] == lengths.max()


# ---------------------------------------------------------------------------------------------------- train_head


@pytest.fixture(scope="module")
def image_model(tmp_path_factory):
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    folder = tmp_path_factory.mktemp("dinov2")
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=42, patch_size=14)
    Dinov2Model(config).save_pretrained(folder)
    BitImageProcessor(size={"shortest_edge": 48}, crop_size={"height": 42, "width": 42}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Dark and bright noise, as parquet files with an image and a class label."""
    from datasets import ClassLabel, Dataset, Features, Image
    from PIL import Image as Picture

    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    features = Features(image=Image(), label=ClassLabel(names=["dark", "bright"]))
    for split, count in (("train", 80), ("test", 30)):
        labels = generator.integers(2, size=count)
        pixels = (generator.integers(0, 90, (count, 28, 28)) + 160 * labels[:, None, None]).astype(np.uint8)
        columns = {"image": [Picture.fromarray(image) for image in pixels], "label": labels.tolist()}
        Dataset.from_dict(columns, features=features).to_parquet(folder / f"{split}.parquet")
    return folder


def test_train_head_learns_and_writes_an_ordinary_folder(image_model, pictures, tmp_path, capsys):
    from datasets import Dataset
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    out = tmp_path / "made" / "model"
    arguments = ["--model", image_model, "--data", pictures, "--out", out, "--pixels", 28, "--limit", 60]
    arguments += ["--validation", 20, "--test", 25, "--epochs", 30]
    assert train_head.main([str(argument) for argument in arguments]) == 0
    assert [entry.name for entry in out.parent.iterdir()] == ["model"]
    record = json.loads((out / "training.json").read_text())
    assert record["images"] == {"train": 60, "validation": 20, "test": 25}
    assert record["test_accuracy"] > 0.9
    assert f"test accuracy {record['test_accuracy']:.4f} on 25 images" in capsys.readouterr().out

    model, loading = AutoModelForImageClassification.from_pretrained(out, output_loading_info=True)
    assert not any(loading.values())
    assert model.config.id2label == {0: "dark", 1: "bright"}
    processor = AutoImageProcessor.from_pretrained(out)
    test = Dataset.from_parquet(str(pictures / "test.parquet")).select(range(25))
    pixels = processor(test["image"][:], return_tensors="pt")
    assert pixels["pixel_values"].shape == (25, 3, 28, 28)
    with torch.inference_mode():
        right = model(**pixels).logits.argmax(-1) == torch.tensor(test["label"][:])
    assert float(right.double().mean()) == record["test_accuracy"]


def test_the_head_gets_what_the_classifier_would(image_model, pictures):
    from datasets import Dataset
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(image_model, num_labels=3).eval()
    processor = AutoImageProcessor.from_pretrained(image_model)
    images = Dataset.from_parquet(str(pictures / "test.parquet")).select(range(7))
    rows, labels = train_head.features(model, processor, images, "test", batch_size=3)
    assert labels.tolist() == images["label"][:]
    with torch.inference_mode():
        expected = model(**processor(images["image"][:], return_tensors="pt")).logits
        torch.testing.assert_close(model.classifier(rows), expected)


def test_fit_undoes_the_scale_of_the_features():
    """Features of very unlike scale and place: the folded weights work on them as they are."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (300,), generator=generator)
    centres = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])[labels]
    rows = centres + 0.1 * torch.randn(300, 2, generator=generator)
    rows = rows * torch.tensor([1000.0, 0.001]) + torch.tensor([500.0, 3.0])
    head = torch.nn.Linear(2, 3)
    history = train_head.fit(head, (rows[:200], labels[:200]), (rows[200:], labels[200:]), epochs=100, seed=0)
    assert train_head.accuracy(head, (rows[200:], labels[200:])) == max(history) > 0.95


# ---------------------------------------------------------------------------------------------------------- both


@pytest.mark.parametrize("script", [finetune_text, train_head])
def test_bad_paths_stop_a_script_before_it_starts(script, tmp_path, capsys):
    for arguments, message in (
        (["--out", tmp_path], r"exists: remove it or choose another --out"),
        (
            ["--out", tmp_path / "new", "--model", tmp_path / "no"],
            r"/no is not there: run 'python -m anydepth.assets.registry",
        ),
    ):
        with pytest.raises(SystemExit) as stopped:
            script.main([str(argument) for argument in arguments])
        assert stopped.value.code == 2
        assert re.search(message, capsys.readouterr().err)
