"""What DATA means: every source, columns, labels, batches; every way they fail."""

import sys
from pathlib import Path

import checkpoints
import datasets
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import ViTImageProcessor

from anydepth import data
from anydepth.data.columns import guess
from anydepth.data.inputs import word_labels
from anydepth.data.labels import class_indices
from anydepth.data.loading import draw
from anydepth.errors import DataError, LabelError, ModelError
from anydepth.models import loading as models

TEXTS = ["a good film", "the plot was dull", "great", "not good", "a bad bad film"]
GENERIC = ("LABEL_0", "LABEL_1")


def dataset(**columns) -> datasets.Dataset:
    return datasets.Dataset.from_dict(columns)


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> models.LoadedModel:
    return models.load(str(checkpoints.bert(tmp_path_factory.mktemp("bert"), num_labels=2)), device="cpu")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> models.LoadedModel:
    return models.load(str(checkpoints.gpt2(tmp_path_factory.mktemp("gpt2"))), device="cpu")


@pytest.fixture(scope="module")
def tagger(tmp_path_factory) -> models.LoadedModel:
    folder = checkpoints.bert(tmp_path_factory.mktemp("tagger"), "ForTokenClassification", num_labels=3)
    return models.load(str(folder), device="cpu")


@pytest.fixture(scope="module")
def vit(tmp_path_factory) -> models.LoadedModel:
    return models.load(str(checkpoints.vit(tmp_path_factory.mktemp("vit"), num_labels=10)), device="cpu")


def saved(folder: Path, **columns) -> str:
    dataset(**columns).save_to_disk(folder)
    return str(folder)


def csv(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines) + "\n")
    return str(path)


# --- sources --------------------------------------------------------------------------------------------------------


def test_digits_are_split_once_and_for_all():
    train, test = data.load("digits", split="train", seed=1), data.load("digits", seed=2)
    assert (len(train), len(test), test.split) == (1347, 450, "test")
    assert test.label_names == tuple("0123456789")
    assert np.bincount(test.dataset["label"]).min() >= 43
    image = test.dataset[0]["image"]
    assert (image.size, image.mode) == ((8, 8), "L")
    both = {image.tobytes() for part in (train, test) for image in part.dataset["image"]}
    assert len(both) == 1797  # no two digits are alike, so none is in both parts


def test_digits_need_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"'digits' comes with scikit-learn: pip install 'anydepth\[demo\]'"):
        data.load("digits")


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_files(tmp_path, suffix):
    path, rows = tmp_path / f"reviews.{suffix}", dataset(text=TEXTS, label=[1, 0, 1, 0, 0])
    if suffix == "parquet":
        rows.to_parquet(path)
    elif suffix in ("json", "jsonl"):
        rows.to_json(path, lines=suffix == "jsonl")
    else:
        rows.to_csv(path, sep="," if suffix == "csv" else "\t", index=False)
    loaded = data.load(str(path))
    assert list(loaded.dataset["text"]) == TEXTS
    assert loaded.columns == data.Columns(text="text", label="label")
    assert (loaded.split, loaded.notes, loaded.rows.tolist()) == ("file", (), [0, 1, 2, 3, 4])


def test_words_for_nothing_are_text(tmp_path):
    loaded = data.load(csv(tmp_path / "a.csv", "text,label", "NA,0", "null,1", "nan,0"))
    assert list(loaded.dataset["text"]) == ["NA", "null", "nan"]


def test_text_file_one_line_one_sample(tmp_path):
    loaded = data.load(csv(tmp_path / "a.txt", "one", "", "  ", "four"))
    assert list(loaded.dataset["text"]) == ["one", "four"]
    assert loaded.rows.tolist() == [0, 3]
    assert loaded.notes == ("2 blank lines left out",)


def images(folder: Path, *labels: str, count: int = 2) -> Path:
    for position, label in enumerate(labels):
        (folder / label).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (10, 10), (40 * index, 80 * position, 0)).save(folder / label / f"{index}.png")
    return folder


def test_image_folder(tmp_path):
    loaded = data.load(str(images(tmp_path, "train/cat", "train/dog", "test/cat", "test/dog")))
    assert loaded.columns == data.Columns(image="image", label="label")
    assert (loaded.split, loaded.label_names, len(loaded)) == ("test", ("cat", "dog"), 4)
    assert list(loaded.dataset["label"]) == [0, 0, 1, 1]


def test_image_folder_without_splits_or_classes(tmp_path):
    assert data.load(str(images(tmp_path / "a", "cat", "dog"))).label_names == ("cat", "dog")
    assert data.load(str(images(tmp_path / "b", "flat"))).columns.label is None


def test_saved_data_sets(tmp_path):
    assert data.load(saved(tmp_path / "a", text=TEXTS)).split == "saved"
    parts = datasets.DatasetDict(train=dataset(text=TEXTS), validation=dataset(text=TEXTS[:2]))
    parts.save_to_disk(tmp_path / "b")
    loaded = data.load(str(tmp_path / "b"))
    assert (loaded.split, len(loaded), loaded.other_splits) == ("validation", 2, ("train",))
    assert loaded.notes == ("split validation, of train, validation",)


def test_folder_of_files(tmp_path):
    csv(tmp_path / "train.csv", "text", "a")
    csv(tmp_path / "test.csv", "text", "b", "c")
    loaded = data.load(str(tmp_path))
    assert (loaded.split, list(loaded.dataset["text"])) == ("test", ["b", "c"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,label\n", "'.*a.csv' is empty: expected at least one row"),
        ("a.csv", "", "'.*a.csv' is empty: expected at least one row"),
        (
            "a.csv",
            'text,label\n"open,1\n',
            "'.*a.csv' cannot be read as columns separated by commas: EOF inside string",
        ),
        ("a.jsonl", '{"text": "a"}\n{"text":\n', "'.*a.jsonl' is no JSON that can be read, in line 2: Expecting value"),
        (
            "a.parquet",
            "PAR1 and nothing else",
            "the data set '.*a.parquet' cannot be loaded: .*Parquet magic bytes not found",
        ),
        ("a.txt", "\n\n", "'.*a.txt' is empty: expected at least one row"),
        (
            "a.doc",
            "text",
            r"is no kind of file that can be read here: expected .csv, .tsv, .json, .jsonl, .ndjson, .txt, .parquet",
        ),
    ],
)
def test_broken_files(tmp_path, name, content, message, capfd):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        data.load(str(tmp_path / name))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("source", ["nowhere.csv", "./nowhere", "/no/where", "a/b/c", "some/file.parquet"])
def test_nothing_there(source):
    with pytest.raises(DataError, match=f"no file or folder '{source}'"):
        data.load(source)


def test_no_name():
    with pytest.raises(DataError, match="no data named: expected a file, a folder, a hub id or 'digits'"):
        data.load("")


def test_empty_folder(tmp_path):
    with pytest.raises(DataError, match="doesn't contain any data files"):
        data.load(str(tmp_path))


@pytest.mark.parametrize("source", ["nyu-mll/glue:sst2", "imdb"])
def test_hub_out_of_reach(source):
    with pytest.raises(
        DataError,
        match=f"'{source}' is no local path, and the hub that may have this data set cannot be reached "
        r"\(HF_HUB_OFFLINE is set\): give a local folder or file, or go online",
    ):
        data.load(source)


# --- split, limit, ids ----------------------------------------------------------------------------------------------


def test_splits_that_are_not_there(tmp_path):
    parts = datasets.DatasetDict(train=dataset(text=TEXTS), extra=dataset(text=TEXTS))
    parts.save_to_disk(tmp_path)
    with pytest.raises(DataError, match="has no test or validation split but train, extra: choose one"):
        data.load(str(tmp_path))
    with pytest.raises(DataError, match="has no split 'test', it has train, extra: choose one"):
        data.load(str(tmp_path), split="test")
    loaded = data.load(str(tmp_path), split="extra")
    assert (loaded.split, loaded.notes) == ("extra", ())


@given(count=st.integers(1, 60), limit=st.integers(1, 60), seed=st.integers(0, 5))
def test_limit_draws_in_order_and_from_within_a_larger_one(count, limit, seed):
    rows = draw(count, limit, seed).tolist()
    assert len(rows) == min(count, limit)
    assert rows == sorted(set(rows))
    assert set(rows) <= set(draw(count, limit + 1, seed).tolist()) <= set(range(count))


def test_limit_picks_the_rows_it_names(tmp_path):
    loaded = data.load(saved(tmp_path / "a", text=[str(n) for n in range(50)]), limit=7, seed=3)
    assert [int(text) for text in loaded.dataset["text"]] == loaded.rows.tolist()
    assert loaded.notes == ("split saved, the only one", "7 of 50 rows, drawn with seed 3")
    assert data.load(saved(tmp_path / "b", text=["a", "b"]), limit=9).rows.tolist() == [0, 1]


def test_limit_below_one():
    with pytest.raises(DataError, match="limit is 0, expected at least 1"):
        data.load("digits", limit=0)


def test_ids_of_a_column(tmp_path, bert):
    folder = saved(tmp_path / "a", text=TEXTS, label=[0] * 5, key=["a", "b", "c", "d", "e"], number=[9, 8, 7, 6, 5])
    batch = next(iter(data.batches(data.load(folder, id="key"), bert, batch_size=5)))
    assert batch["id"] == ["a", "b", "c", "d", "e"]
    batch = next(iter(data.batches(data.load(folder, id="number"), bert, batch_size=5)))
    assert batch["id"].tolist() == [9, 8, 7, 6, 5]
    assert batch["id"].dtype == torch.int64


def test_ids_that_are_none(tmp_path):
    folder = saved(tmp_path / "a", text=TEXTS, key=["a", "b", "a", "d", "e"], size=[0.5] * 5)
    with pytest.raises(DataError, match=r"id 'a' is in row 0 of '.*a' \(saved\) and again in row 2"):
        data.load(folder, id="key")
    with pytest.raises(DataError, match=r"the id in row 0 of '.*a' \(saved\) is 0.5, expected a string or an integer"):
        data.load(folder, id="size")


# --- columns --------------------------------------------------------------------------------------------------------

TEXT, NUMBER, CLASS = datasets.Value("string"), datasets.Value("int64"), datasets.ClassLabel(names=["a", "b"])
WORDS, TAGS = datasets.List(TEXT), datasets.List(CLASS)


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({"sentence": TEXT, "label": CLASS, "idx": NUMBER}, data.Columns(text="sentence", label="label")),
        ({"Review": TEXT, "Sentiment": TEXT}, data.Columns(text="Review", label="Sentiment")),
        (
            {"sentence1": TEXT, "sentence2": TEXT, "label": CLASS},
            data.Columns(text="sentence1", pair="sentence2", label="label"),
        ),
        (
            {"question": TEXT, "sentence": TEXT, "label": CLASS},
            data.Columns(text="question", pair="sentence", label="label"),
        ),
        ({"title": TEXT, "content": TEXT, "label": CLASS}, data.Columns(text="content", label="label")),
        ({"blurb": TEXT, "kind": CLASS}, data.Columns(text="blurb", label="kind")),
        ({"blurb": TEXT, "notes": TEXT, "label": CLASS}, data.Columns(label="label")),
        (
            {"img": datasets.Image(), "fine_label": CLASS, "coarse_label": CLASS},
            data.Columns(image="img", label="fine_label"),
        ),
        ({"scan": datasets.Image(), "y": NUMBER}, data.Columns(image="scan", label="y")),
        ({"tokens": WORDS, "ner_tags": TAGS, "id": TEXT}, data.Columns(text="tokens", label="ner_tags")),
        ({"text": NUMBER}, data.Columns()),
    ],
)
def test_columns_are_guessed(features, expected):
    guessed = guess(features)
    if features.keys() >= {"tokens", "id"}:  # an id is text as well, and not the one that is meant
        guessed = guess({name: feature for name, feature in features.items() if name != "id"})
    assert guessed == expected


def test_columns_are_given():
    features = {"a": TEXT, "b": TEXT, "c": NUMBER, "d": TEXT, "e": TEXT}
    assert guess(features, text="a", label="c", id="d") == data.Columns(text="a", label="c", id="d")
    assert guess(features, text="a, b", image="e") == data.Columns(text="a", pair="b", image="e")
    assert guess({"a,b": TEXT}, text="a,b") == data.Columns(text="a,b")


@pytest.mark.parametrize("flag", ["text", "label", "image", "id"])
def test_column_that_is_not_there(flag):
    with pytest.raises(
        DataError,
        match=rf"no column 'x' to take as {flag}; columns: a \(string\), b \(class label\): name one of these",
    ):
        guess({"a": TEXT, "b": CLASS}, **{flag: "x"})


def test_long_lists_of_columns_are_cut():
    with pytest.raises(DataError, match=r"c11 \(int64\) and 88 more: name one"):
        guess({f"c{n}": NUMBER for n in range(100)}, text="x")


def test_text_that_is_none(tmp_path):
    folder = saved(tmp_path / "a", text=TEXTS, stars=[4, 1, 5, 1, 1])
    with pytest.raises(DataError, match=r"column 'stars' is int64, not text \(row 0 holds 4\): name another \(text\)"):
        data.load(folder, text="stars")


def test_text_that_is_missing(tmp_path, bert):
    loaded = data.load(csv(tmp_path / "a.csv", "text,label", "good,0", "bad,1", ",1"))
    with pytest.raises(DataError, match=r"column 'text' has no text in row 2 of '.*a.csv' \(file\): fill it or leave"):
        data.batches(loaded, bert, batch_size=2)


@pytest.mark.parametrize("kind", ["text", "image"])
def test_model_finds_no_column(tmp_path, bert, vit, kind):
    loaded = data.load(saved(tmp_path / "a", n=[1, 2]))
    with pytest.raises(
        DataError,
        match=rf"the model takes {kind}s, and '.*a' has no column known to hold them; columns: n \(int64\): "
        rf"name the column \({kind}\)",
    ):
        data.batches(loaded, bert if kind == "text" else vit, batch_size=2)


# --- labels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "classes", "names", "numbered", "expected"),
    [
        ([1, 0], GENERIC, (), False, [1, 0]),
        ([True, False], GENERIC, (), False, [1, 0]),
        ([1.0, 0.0], GENERIC, (), False, [1, 0]),
        (["Yes", "no"], ("no", "yes"), ("Yes", "no"), False, [1, 0]),
        (["10", "2"], tuple(f"LABEL_{i}" for i in range(11)), ("10", "2"), False, [10, 2]),
        (["good", "bad"], GENERIC, ("bad", "good"), False, [1, 0]),
        ([0, 1], ("entailment", "neutral"), ("neutral", "entailment"), True, [1, 0]),
        ([0, 1], GENERIC, ("zebra", "ape"), True, [0, 1]),
        ([0, 1, 2], tuple(f"LABEL_{i}" for i in range(3)), ("2", "0", "1"), True, [2, 0, 1]),
        ([0, 1], tuple(f"LABEL_{i}" for i in range(30)), ("10", "20"), True, [0, 1]),
    ],
)
def test_labels_become_classes(values, classes, names, numbered, expected):
    indices, _ = class_indices(values, classes, names=names, numbered=numbered)
    assert indices.tolist() == expected


@pytest.mark.parametrize(
    ("names", "classes", "numbered", "note"),
    [
        (("b", "a"), ("a", "b"), True, "labels are matched to the classifier's classes by name, not by number"),
        (("a", "b"), ("a", "b"), True, None),
        (
            ("a", "b"),
            ("A", "B"),
            True,
            "labels match the classifier's classes but for case or spaces: 'a' is 'A', 'b' is 'B'",
        ),
        (
            ("a", "b"),
            GENERIC,
            True,
            "the classifier has no names for its classes, labels go by number: a = LABEL_0, b = LABEL_1",
        ),
        (("0", "1"), GENERIC, True, None),
        (("a", "b"), GENERIC, False, "label names are numbered in sorted order: a = 0, b = 1"),
    ],
)
def test_matching_by_guess_is_noted(names, classes, numbered, note):
    assert class_indices([0, 1] if numbered else list(names), classes, names=names, numbered=numbered)[1] == note


@pytest.mark.parametrize(
    ("values", "names", "message"),
    [
        ([0, None], (), r"the label in row 1 is missing \(None\)"),
        ([0, -1], (), r"the label in row 1 is missing \(-1\)"),
        ([0.0, float("nan")], (), r"the label in row 1 is missing \(nan\)"),
        (
            [0, 2],
            (),
            r"the label in row 1 is 2, outside the classifier's 2 classes \(0 to 1\): choose another column",
        ),
        ([0, -7], (), "the label in row 1 is -7, outside the classifier's 2 classes"),
        ([0, 0.5], (), "the label in row 1 is 0.5, expected a class: an integer or a name"),
        ([0, [1, 0]], (), r"the label in row 1 is \[1, 0\], expected a class"),
        (["a", ""], ("", "a"), r"the label in row 1 is missing \(''\)"),
        (
            ["a"],
            ("a", "b", "c"),
            r"the data's classes \(a, b, c\) are not the classifier's \(LABEL_0, LABEL_1\): use the",
        ),
    ],
)
def test_labels_that_are_none(values, names, message):
    with pytest.raises(LabelError, match=message):
        class_indices(values, GENERIC, names=names)


def test_names_of_other_classes():
    with pytest.raises(LabelError, match=r"the data's classes \(bad, good\) are not the classifier's \(NEG, POS\)"):
        class_indices(["bad", "good"], ("NEG", "POS"), names=("bad", "good"))


def test_label_names_come_from_the_whole_split(tmp_path):
    folder = saved(tmp_path / "a", text=TEXTS, label=["c", "b", "a", "b", "b"])
    assert data.load(folder, limit=1).label_names == ("a", "b", "c")


def test_missing_labels_name_row_and_other_splits(tmp_path, bert):
    parts = {"train": dataset(text=TEXTS, label=[0] * 5), "test": dataset(text=TEXTS, label=[-1] * 5)}
    datasets.DatasetDict(parts).save_to_disk(tmp_path)
    with pytest.raises(
        LabelError,
        match=r"label in row 0 of '.*' \(test\) is missing \(-1\): another split may have them \(split, of train\)",
    ):
        data.batches(data.load(str(tmp_path)), bert, batch_size=2)
    assert "labels" not in next(iter(data.batches(data.load(str(tmp_path)), bert, batch_size=2, labels=False)))


def test_labels_of_a_sample_name_the_row_of_the_file(tmp_path, bert):
    folder = saved(tmp_path / "a", text=[f"{n}" for n in range(40)], label=[5] * 40)
    loaded = data.load(folder, limit=3)
    with pytest.raises(LabelError, match=rf"the label in row {loaded.rows[0]} of '.*a' \(saved\) is 5, outside"):
        data.batches(loaded, bert, batch_size=2)


def test_data_without_labels(tmp_path, bert):
    ready = data.batches(data.load(saved(tmp_path / "a", text=TEXTS)), bert, batch_size=5)
    assert "labels" not in next(iter(ready))
    assert "no labels known; columns: text (string): name their column (label)" in ready.notes


@pytest.mark.parametrize(
    "settings", [{"num_labels": 1}, {"num_labels": 3, "problem_type": "multi_label_classification"}]
)
def test_heads_that_choose_no_class_get_no_labels(tmp_path, settings):
    model = models.load(str(checkpoints.bert(tmp_path / "m", **settings)), device="cpu")
    ready = data.batches(data.load(saved(tmp_path / "a", text=TEXTS, label=[0.5] * 5)), model, batch_size=5)
    assert "labels" not in next(iter(ready))
    assert "labels are left out: the head is no choice of one class among several" in ready.notes


def test_lists_of_labels_for_one_class(tmp_path, bert):
    loaded = data.load(saved(tmp_path / "a", text=TEXTS, labels=[[0, 1]] * 5))
    with pytest.raises(
        LabelError, match="column 'labels' is list of int64, and the model takes one class a row: choose"
    ):
        data.batches(loaded, bert, batch_size=2)


# --- batches of text ------------------------------------------------------------------------------------------------


def test_text_batches(tmp_path, bert):
    loaded = data.load(saved(tmp_path / "a", text=TEXTS, label=[1, 0, 1, 0, 0]))
    ready = data.batches(loaded, bert, batch_size=2)
    assert ready.notes == ("text: column 'text'", "texts are cut at 32 tokens", "labels: column 'label'")
    first, second, third = ready
    assert len(ready) == 3
    assert first["input_ids"].shape == (2, 6)  # padded to the longest of the batch, which is of the mean length
    assert first["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 0], [1] * 6]
    assert [batch["labels"].tolist() for batch in (first, second, third)] == [[1, 0], [0], [1, 0]]
    assert [batch["id"].tolist() for batch in (first, second, third)] == [[0, 1], [4], [2, 3]]
    assert [batch.numbers.tolist() for batch in (first, second, third)] == [[0, 1], [4], [2, 3]]
    again = next(iter(ready))
    assert torch.equal(again["input_ids"], first["input_ids"])
    inputs = {name: tensor for name, tensor in first.items() if name not in ("labels", "id")}
    assert bert.model(**inputs).logits.shape == (2, 2)


def test_pairs(tmp_path, bert):
    loaded = data.load(saved(tmp_path / "a", premise=["a film"], hypothesis=["good"], label=[0]))
    ready = data.batches(loaded, bert, batch_size=1)
    words = ["[CLS]", "a", "film", "[SEP]", "good", "[SEP]"]
    assert next(iter(ready))["input_ids"][0].tolist() == [checkpoints.VOCABULARY[word] for word in words]
    assert ready.notes[0] == "text: column 'premise' with 'hypothesis'"


def test_long_texts_are_cut(tmp_path, bert):
    loaded = data.load(saved(tmp_path / "a", text=["good " * 100], label=[0]))
    assert next(iter(data.batches(loaded, bert, batch_size=1)))["input_ids"].shape == (1, 32)
    assert next(iter(data.batches(loaded, bert, batch_size=1, max_length=9)))["input_ids"].shape == (1, 9)
    with pytest.raises(DataError, match="max length is 33 tokens, expected at least 2 and at most 32"):
        data.batches(loaded, bert, batch_size=1, max_length=33)


def test_language_model_text(tmp_path, gpt2):
    path = csv(tmp_path / "a.jsonl", '{"text": "a good film"}', '{"text": " "}', '{"text": "dull"}', '{"text": ""}')
    ready = data.batches(data.load(path), gpt2, batch_size=4)
    (batch,) = ready
    assert sorted(batch) == ["attention_mask", "id", "input_ids"]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]  # padded on the right
    assert batch["id"].tolist() == [0, 2]
    assert "2 blank texts left out" in ready.notes


def test_language_model_without_text(tmp_path, gpt2):
    path = csv(tmp_path / "a.jsonl", '{"text": " "}')
    with pytest.raises(DataError, match="holds nothing but blank texts in column 'text'"):
        data.batches(data.load(path), gpt2, batch_size=4)


def test_language_model_length_has_a_bound(tmp_path):
    model = models.load(str(checkpoints.gpt2(tmp_path / "m")), device="cpu")
    object.__setattr__(model, "max_length", 131_072)
    ready = data.batches(data.load(saved(tmp_path / "a", text=TEXTS)), model, batch_size=4)
    assert ready.max_length == 1024


def test_tokenizer_of_another_model(tmp_path, bert):
    model = models.load(str(checkpoints.bert(tmp_path / "m", num_labels=2)), device="cpu")
    model.model.resize_token_embeddings(7)
    loaded = data.load(saved(tmp_path / "a", text=TEXTS, label=[0] * 5))
    with pytest.raises(
        ModelError, match=r"the tokenizer gives token \d+ and the model knows 7: '.*' has a tokenizer that"
    ):
        next(iter(data.batches(loaded, model, batch_size=2)))


def test_batch_size_below_one(bert):
    with pytest.raises(DataError, match="batch size is 0, expected at least 1"):
        data.batches(data.load("digits"), bert, batch_size=0)


def test_tagged_words(tmp_path, tagger):
    words, tags = [["a", "good", "film"], ["dull"]], [[0, 2, 1], [-100]]
    loaded = data.load(saved(tmp_path / "a", tokens=words, ner_tags=tags))
    (batch,) = data.batches(loaded, tagger, batch_size=2)
    assert batch["labels"].tolist() == [[-100, 0, 2, 1, -100], [-100] * 5]
    assert batch["labels"].shape == batch["input_ids"].shape


def test_tags_by_name(tmp_path):
    folder = checkpoints.bert(
        tmp_path / "m", "ForTokenClassification", id2label={0: "O", 1: "B"}, label2id={"O": 0, "B": 1}
    )
    loaded = data.load(saved(tmp_path / "a", words=[["a", "film"]], tags=[["O", "B"]]))
    assert loaded.label_names == ("B", "O")
    (batch,) = data.batches(loaded, models.load(str(folder), device="cpu"), batch_size=1)
    assert batch["labels"].tolist() == [[-100, 0, 1, -100]]


def test_tags_that_do_not_fit(tmp_path, tagger):
    for columns, message in [
        (
            {"tokens": [["a", "film"]], "tags": [[0]]},
            r"row 0 of '.*' \(saved\) has 2 words and 1 labels, expected as many",
        ),
        (
            {"tokens": [["a"], ["film"]], "tags": [[0], [9]]},
            r"the label in row 1 of .* is 9, outside the classifier's 3",
        ),
        ({"text": ["a film"], "tags": [[0]]}, "column 'tags' labels words, and the text is not split into words"),
        ({"tokens": [["a", "film"]], "label": [1]}, "column 'label' is int64, and the model takes one class a word"),
    ]:
        folder = saved(tmp_path / f"{len(list(tmp_path.iterdir()))}", **columns)
        with pytest.raises(LabelError, match=message):
            data.batches(data.load(folder), tagger, batch_size=1)


def test_word_in_pieces_is_labelled_once():
    assert word_labels([[None, 0, 0, 0, 1, None, None]], [[2, 3]]).tolist() == [[-100, 2, -100, -100, 3, -100, -100]]


# --- batches of images ----------------------------------------------------------------------------------------------


def test_image_batches(vit):
    ready = data.batches(data.load("digits", limit=5), vit, batch_size=2)
    assert ready.notes == ("images: column 'image'", "labels: column 'label'")
    assert (len(ready), ready.max_length) == (3, None)
    batches = list(ready)
    assert [tuple(batch["pixel_values"].shape) for batch in batches] == [(2, 1, 8, 8), (2, 1, 8, 8), (1, 1, 8, 8)]
    rows = torch.cat([batch["id"] for batch in batches])
    everything = data.load("digits")
    for row, pixels, label in zip(
        rows, torch.cat([b["pixel_values"] for b in batches]), torch.cat([b["labels"] for b in batches]), strict=True
    ):
        sample = everything.dataset[int(row)]
        assert label == sample["label"]
        assert np.allclose(pixels[0], np.asarray(sample["image"]) / 127.5 - 1, atol=1e-6)
    assert vit.model(batches[0]["pixel_values"]).logits.shape == (2, 10)


def test_pixels_have_the_models_dtype(tmp_path):
    model = models.load(str(checkpoints.vit(tmp_path)), device="cpu", dtype="bfloat16")
    batch = next(iter(data.batches(data.load("digits", limit=2), model, batch_size=2, labels=False)))
    assert batch["pixel_values"].dtype == torch.bfloat16


def test_timm_batches():
    model = models.load("timm:vit_tiny_patch16_224", pretrained=False, device="cpu")
    batch = next(iter(data.batches(data.load("digits", limit=2), model, batch_size=2)))
    assert sorted(batch) == ["id", "labels", "x"]
    assert batch["x"].shape == (2, 3, 224, 224)


def test_broken_image_is_named(tmp_path, vit):
    folder = images(tmp_path, "cat", "dog")
    (folder / "dog" / "1.png").write_bytes(b"not a picture")
    ready = data.batches(data.load(str(folder)), vit, batch_size=4)
    with pytest.raises(
        DataError, match=r"dog/1.png' in row 3 of '.*' \(train\) cannot be read: cannot identify image file"
    ):
        list(ready)


def test_truncated_image_is_named(tmp_path, vit):
    folder = images(tmp_path, "cat")
    file = folder / "cat" / "0.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(file)
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(DataError, match=r"cat/0.png' in row 0 .* cannot be read: "):
        list(data.batches(data.load(str(folder)), vit, batch_size=4))


def test_paths_in_a_table(tmp_path, vit):
    images(tmp_path / "pictures", "cat")
    path = csv(tmp_path / "a.csv", "file,label", "pictures/cat/0.png,3", "pictures/cat/9.png,4")
    ready = data.batches(data.load(path, image="file"), vit, batch_size=1)
    assert next(iter(ready))["labels"].tolist() == [3]
    with pytest.raises(
        DataError, match=r"'pictures/cat/9.png' in row 1 of '.*a.csv' \(file\) cannot be read: .*No such file"
    ):
        list(ready)


def test_arrays_of_pixels(tmp_path, vit):
    grey = np.arange(64).reshape(8, 8)
    colour = np.stack([grey] * 3)
    for name, value in [
        ("grey", grey),
        ("planes", colour),
        ("pixels", colour.transpose(1, 2, 0)),
        ("one", grey[..., None]),
    ]:
        folder = saved(tmp_path / name, image=[value.tolist()], label=[0])
        batch = next(iter(data.batches(data.load(folder, image="image"), vit, batch_size=1)))
        assert np.allclose(batch["pixel_values"][0, 0], grey / 127.5 - 1, atol=1e-6), name


def test_arrays_that_are_no_pixels(tmp_path, vit):
    loaded = data.load(saved(tmp_path / "a", image=[[[0, 256]]], label=[0]))
    with pytest.raises(
        DataError, match="the image in row 0 .* its pixels go from 0 to 256, expected integers from 0 to 255"
    ):
        list(data.batches(loaded, vit, batch_size=1))


def test_missing_image(tmp_path, vit):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict({"image": [None], "label": [0]}, features=features).save_to_disk(tmp_path)
    with pytest.raises(DataError, match=r"the image in row 0 of .* cannot be read: it is missing"):
        list(data.batches(data.load(str(tmp_path)), vit, batch_size=1))


def test_saved_processor_reads_grey_digits_for_a_colour_model(tmp_path):
    checkpoints.vit(tmp_path, channels=3, num_labels=10)
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path)
    model = models.load(str(tmp_path), device="cpu")
    batch = next(iter(data.batches(data.load("digits", limit=3), model, batch_size=3)))
    assert batch["pixel_values"].shape == (3, 3, 8, 8)
    assert torch.equal(batch["pixel_values"][:, 0], batch["pixel_values"][:, 2])


def test_models_that_take_tensors(bert):
    bare = models.LoadedModel(model=bert.model, processor=None, kind="tensor", task="features", name="mine")
    with pytest.raises(DataError, match="'mine' takes tensors: give batches of your own"):
        data.batches(data.load("digits"), bare, batch_size=1)
