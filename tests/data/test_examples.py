"""What a trainer is given: splits, classes, and examples that equal what a trace reads of the same rows."""

import pickle
from pathlib import Path

import checkpoints
import datasets
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from anydepth import data
from anydepth.core.tokens import IGNORED
from anydepth.data.augment import SHIFT, augmented
from anydepth.data.examples import class_names, examples, load_to_train
from anydepth.data.loading import DataSelection
from anydepth.data.sources import training_splits
from anydepth.errors import DataError, LabelError, ModelError
from anydepth.models import loading as models
from anydepth.models.loaded import LoadedModel

TEXTS = ["a good film", "the plot was dull", "great", "not good", "a bad bad film", "the cast was great but dull"]
END = 3  # what the tokenizers of `checkpoints` end a text with


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> LoadedModel:
    return models.load(str(checkpoints.bert(tmp_path_factory.mktemp("bert"), num_labels=2)), device="cpu")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> LoadedModel:
    return models.load(str(checkpoints.gpt2(tmp_path_factory.mktemp("gpt2"))), device="cpu")


@pytest.fixture(scope="module")
def tagger(tmp_path_factory) -> LoadedModel:
    folder = checkpoints.bert(tmp_path_factory.mktemp("tagger"), "ForTokenClassification", num_labels=3)
    return models.load(str(folder), device="cpu")


@pytest.fixture(scope="module")
def vit(tmp_path_factory) -> LoadedModel:
    return models.load(str(checkpoints.vit(tmp_path_factory.mktemp("vit"), num_labels=10)), device="cpu")


def saved(folder: Path, **columns) -> str:
    datasets.Dataset.from_dict(columns).save_to_disk(folder)
    return str(folder)


def both(source: str, wanted: DataSelection | None = None, **which) -> tuple[data.LoadedData, data.LoadedData]:
    asked = {"split": None, "eval_source": None, "eval_split": None} | which
    return load_to_train(source, wanted or DataSelection(), **asked)


# --- splits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "wanted", "held_out", "found"),
    [
        (("train", "validation", "test"), None, None, ("train", "validation")),
        (("test", "train"), None, None, ("train", "test")),
        (("train", "dev"), None, None, ("train", "dev")),
        (("train",), None, None, ("train", None)),
        (("file",), None, None, ("file", None)),
        (("train", "unsupervised"), None, None, ("train", None)),
        (("a", "b"), "b", None, ("b", None)),
        (("a", "b"), "b", "a", ("b", "a")),
        (("train", "test"), None, "train", ("train", "train")),
        (("train", "test"), "test", None, ("test", None)),
    ],
)
def test_which_splits(names, wanted, held_out, found):
    assert training_splits(names, wanted, held_out, "x") == found


@pytest.mark.parametrize(
    ("names", "wanted", "held_out", "says"),
    [
        (("a", "b"), None, None, "'x' has no train split but a, b: choose one \\(split\\)"),
        (("train",), "dev", None, "'x' has no split 'dev', it has train: choose one \\(split\\)"),
        (("train",), None, "dev", "'x' has no split 'dev', it has train: choose one \\(eval_split\\)"),
    ],
)
def test_splits_that_are_not_there(names, wanted, held_out, says):
    with pytest.raises(DataError, match=says):
        training_splits(names, wanted, held_out, "x")


def test_a_tenth_is_kept_apart_where_there_is_one_split(tmp_path):
    source = saved(tmp_path / "d", text=[f"text {row}" for row in range(50)], label=[row % 2 for row in range(50)])
    train, held_out = both(source)
    assert (len(train), len(held_out)) == (45, 5)
    assert sorted([*train.rows.tolist(), *held_out.rows.tolist()]) == list(range(50))
    assert list(held_out.dataset["text"]) == [f"text {row}" for row in held_out.rows]
    assert held_out.notes == ("evaluated on 5 of the 50 rows, kept apart by a draw with seed 0",)
    assert both(source)[1].rows.tolist() == held_out.rows.tolist()
    assert both(source, DataSelection(seed=1))[1].rows.tolist() != held_out.rows.tolist()
    limited = both(source, DataSelection(limit=20))
    assert [len(part) for part in limited] == [18, 2]


def test_a_limit_holds_for_each_split():
    train, held_out = both("digits", DataSelection(limit=30, seed=3))
    assert (train.split, len(train), held_out.split, len(held_out)) == ("train", 30, "test", 30)
    assert held_out.notes == ("30 of 450 rows, drawn with seed 3",)


def test_what_is_evaluated_has_a_limit_of_its_own():
    train, held_out = both("digits", DataSelection(limit=20, seed=5), eval_limit=30)
    assert (len(train), len(held_out)) == (20, 30)
    other, same = both("digits", DataSelection(limit=20, seed=6), eval_limit=30)
    assert train.rows.tolist() != other.rows.tolist()
    assert held_out.rows.tolist() == same.rows.tolist(), "another seed is evaluated on the same rows"


def test_other_data_to_evaluate_on(tmp_path):
    source = saved(tmp_path / "d", text=TEXTS, label=[0, 1] * 3)
    (tmp_path / "more.csv").write_text("text,label\ngreat,1\ndull,0\n")
    train, held_out = both(source, eval_source=str(tmp_path / "more.csv"))
    assert len(train) == len(TEXTS)
    assert (held_out.split, list(held_out.dataset["text"])) == ("file", ["great", "dull"])
    with pytest.raises(DataError, match=r"more.csv' has no split 'dev', it has file"):
        both(source, eval_source=str(tmp_path / "more.csv"), eval_split="dev")


def test_one_row_is_too_few(tmp_path):
    with pytest.raises(DataError, match="has one row, and none to evaluate on: give data for that \\(eval_source\\)"):
        both(saved(tmp_path / "d", text=["x"], label=[0]))


# --- classes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([0, 2, 2, 1], ("0", "1", "2")),
        ([0, 4, 4, 4], ("0", "1", "2", "3", "4")),
        ([0.0, 1.0, 1.0, 0.0], ("0", "1")),
        ([True, False, True, False], ("False", "True")),
        (["pos", "neg", "pos", "pos"], ("neg", "pos")),
        ([[0, 3], [1], [0], [2, 2]], ("0", "1", "2", "3")),
    ],
)
def test_classes_of_the_data(tmp_path, labels, names):
    loaded = data.load(saved(tmp_path / "d", text=TEXTS[:4], label=labels))
    assert class_names(loaded) == names


def test_classes_of_both_parts_count(tmp_path):
    train = data.load(saved(tmp_path / "a", text=TEXTS[:2], label=["b", "a"]))
    held_out = data.load(saved(tmp_path / "b", text=TEXTS[:2], label=["c", "a"]))
    assert class_names(train, held_out) == ("a", "b", "c")
    numbers = [data.load(saved(tmp_path / str(top), text=TEXTS[:2], label=[0, top])) for top in (1, 3)]
    assert class_names(*numbers) == ("0", "1", "2", "3")


def test_a_class_label_names_its_own(tmp_path):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    datasets.Dataset.from_dict({"text": ["x"], "label": [0]}, features=features).save_to_disk(tmp_path / "d")
    assert class_names(data.load(str(tmp_path / "d"))) == ("no", "yes")


def test_labels_that_are_no_classes(tmp_path):
    with pytest.raises(LabelError, match=r"no labels known; columns: text \(string\): name their column \(label\)"):
        class_names(data.load(saved(tmp_path / "none", text=TEXTS)))
    with pytest.raises(LabelError, match=r"column 'label' holds one class \(same\), expected at least two"):
        class_names(data.load(saved(tmp_path / "one", text=TEXTS[:2], label=["same", "same"])))


# --- texts -----------------------------------------------------------------------------------------------------------


def test_texts_are_what_a_trace_reads(bert, tmp_path):
    loaded = data.load(saved(tmp_path / "d", text=TEXTS, label=[0, 1, 1, 0, 0, 1]))
    found = examples(loaded, bert, max_length=6)
    (expected,) = data.batches(loaded, bert, batch_size=100, max_length=6)
    batch = found.collate([found.dataset[index] for index in range(len(found))])
    assert set(batch) == set(expected) - {"id"}
    for name, values in batch.items():
        assert torch.equal(values, expected[name]), name
        assert values.dtype == torch.int64
    assert found.notes == ("text: column 'text'", "texts are cut at 6 tokens", "labels: column 'label'")


def test_a_batch_is_padded_to_its_own_longest(bert, tmp_path):
    found = examples(data.load(saved(tmp_path / "d", text=TEXTS, label=[0, 1] * 3)), bert)
    assert found.dataset[2]["input_ids"].shape == (3,), "[CLS] great [SEP]"
    batch = found.collate([found.dataset[2], found.dataset[3]])
    assert batch["input_ids"].shape == (2, 4)
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch["input_ids"][0, 3] == bert.processor.pad_token_id
    assert batch["labels"].tolist() == [0, 1]


def test_the_tokenizer_works_once(bert, tmp_path, monkeypatch):
    found = examples(data.load(saved(tmp_path / "d", text=TEXTS, label=[0, 1] * 3)), bert)
    monkeypatch.setattr(type(bert.processor), "__call__", lambda *_, **__: pytest.fail("tokenised again"))
    for _ in range(2):
        loader = DataLoader(found.dataset, batch_size=4, shuffle=True, collate_fn=found.collate)
        assert sum(len(batch["labels"]) for batch in loader) == len(TEXTS)


def test_what_is_evaluated_is_sorted_by_length(bert, tmp_path):
    ready = examples(data.load(saved(tmp_path / "a", text=TEXTS, label=[0, 1] * 3)), bert)
    ordered = ready.sorted_by_length()
    assert [len(example["input_ids"]) for example in ordered] == [3, 4, 5, 6, 6, 8]
    rows = sorted(example["input_ids"].tolist() for example in ordered)
    assert rows == sorted(example["input_ids"].tolist() for example in ready.dataset)


def test_pairs_of_texts(bert, tmp_path):
    loaded = data.load(saved(tmp_path / "d", premise=TEXTS, hypothesis=TEXTS[::-1], label=[0, 1] * 3))
    found = examples(loaded, bert)
    assert found.dataset[0]["input_ids"].tolist() == bert.processor(TEXTS[0], TEXTS[-1])["input_ids"]


def test_words_with_a_label_each(tagger, tmp_path):
    words = [text.split() for text in TEXTS]
    tags = [[index % 3 for index in range(len(of_text))] for of_text in words]
    tags[1][0] = IGNORED
    loaded = data.load(saved(tmp_path / "d", tokens=words, ner_tags=tags))
    found = examples(loaded, tagger)
    (expected,) = data.batches(loaded, tagger, batch_size=100)
    batch = found.collate([found.dataset[index] for index in range(len(found))])
    assert torch.equal(batch["labels"], expected["labels"])
    assert torch.equal(batch["input_ids"], expected["input_ids"])


def test_data_without_labels_teach_nothing(bert, tmp_path):
    loaded = data.load(saved(tmp_path / "d", text=TEXTS))
    with pytest.raises(LabelError, match="learns from labels, and there are none: no labels known; columns: text"):
        examples(loaded, bert)


def test_a_label_that_is_missing(bert, tmp_path):
    loaded = data.load(saved(tmp_path / "d", text=TEXTS[:3], label=[0, None, 1]))
    with pytest.raises(LabelError, match=r"the label in row 1 of .* is missing"):
        examples(loaded, bert)


# --- language models -------------------------------------------------------------------------------------------------


def stream(model: LoadedModel, texts: list[str]) -> list[int]:
    """All texts one after the other, as a person would join them."""
    return [token for text in texts for token in [*model.processor(text)["input_ids"], END]]


@pytest.mark.parametrize("length", [2, 4, 7, 64])
def test_texts_are_packed_and_nothing_is_lost(gpt2, tmp_path, length):
    loaded = data.load(saved(tmp_path / "d", text=TEXTS))
    found = examples(loaded, gpt2, max_length=length)
    blocks = [found.dataset[index]["input_ids"].tolist() for index in range(len(found))]
    joined = stream(gpt2, TEXTS)
    assert [token for block in blocks for token in block] == joined
    assert {len(block) for block in blocks[:-1]} <= {length}
    assert 2 <= len(blocks[-1]) <= length
    assert len(blocks) == -(-len(joined) // length)
    count = "1 block" if length == 64 else f"{len(blocks)} blocks"
    note = f"6 texts, each ended by [SEP], packed into {count} of {length} tokens"
    assert found.notes == ("text: column 'text'", note)
    batch = found.collate([found.dataset[index] for index in range(len(found))])
    padded = batch["attention_mask"] == 0
    assert torch.equal(batch["labels"][~padded], batch["input_ids"][~padded])
    assert (batch["labels"][padded] == IGNORED).all()
    assert padded.sum() == len(blocks) * len(blocks[0]) - len(joined)


@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=8), block=st.integers(2, 9))
def test_only_a_lone_last_token_is_left_out(gpt2, lengths, block):
    texts = ["good " * length for length in lengths]
    found = examples(_loaded(texts), gpt2, max_length=block)
    blocks = [found.dataset[index]["input_ids"].tolist() for index in range(len(found))]
    joined = stream(gpt2, texts)
    lone = len(joined) % block == 1
    assert [token for part in blocks for token in part] == joined[: len(joined) - lone]


def _loaded(texts: list[str]) -> data.LoadedData:
    rows = datasets.Dataset.from_dict({"text": texts})
    return data.LoadedData(
        dataset=rows, columns=data.Columns(text="text"), name="memory", split="file", rows=np.arange(len(texts))
    )


def test_a_text_that_brings_its_end_is_not_ended_twice(gpt2):
    found = examples(_loaded(["good [SEP]", "bad"]), gpt2, max_length=64)
    assert found.dataset[0]["input_ids"].tolist() == [8, END, 9, END]


def test_without_an_end_token_texts_follow_each_other(gpt2, monkeypatch):
    monkeypatch.setattr(gpt2.processor, "_special_tokens_map", gpt2.processor._special_tokens_map | {"eos_token": None})
    found = examples(_loaded(["good", "bad"]), gpt2, max_length=64)
    assert found.dataset[0]["input_ids"].tolist() == [8, 9]
    assert found.notes[-1] == "2 texts, packed into 1 block of 64 tokens"


def test_blank_texts_and_words_and_lengths(gpt2, tmp_path):
    found = examples(_loaded(["good", "", " ", "bad"]), gpt2)
    assert found.notes[1] == "2 blank texts left out"
    words = data.load(saved(tmp_path / "w", tokens=[["good", "bad"], ["dull"]]))
    assert examples(words, gpt2).dataset[0]["input_ids"].tolist() == [8, 9, END, 11, END]
    with pytest.raises(DataError, match="max length is 65 tokens, expected at least 2 and at most 64"):
        examples(_loaded(TEXTS), gpt2, max_length=65)


def test_a_tokenizer_of_another_model(gpt2):
    small = models.LoadedModel(
        model=torch.nn.Module(), processor=gpt2.processor, kind="text", task="causal-lm", name="m", max_length=8
    )
    small.model.get_input_embeddings = lambda: torch.nn.Embedding(5, 2)
    with pytest.raises(ModelError, match="the tokenizer gives token 11 and the model knows 5"):
        examples(_loaded(["dull"]), small)


# --- images ----------------------------------------------------------------------------------------------------------


def test_images_are_what_a_trace_reads(vit):
    loaded = data.load("digits", limit=20)
    found = examples(loaded, vit)
    (expected,) = data.batches(loaded, vit, batch_size=100)
    (batch,) = DataLoader(found.dataset, batch_size=100, collate_fn=found.collate)
    assert set(batch) == {"pixel_values", "labels"}
    for name, values in batch.items():
        assert torch.equal(values, expected[name]), name
    assert torch.equal(found.dataset[7]["pixel_values"], expected["pixel_values"][7])


def test_images_are_decoded_when_they_are_asked_for(vit, tmp_path):
    for index in range(3):
        (tmp_path / str(index)).mkdir()
        Image.new("L", (8, 8), 80 * index).save(tmp_path / str(index) / "a.png")
    (tmp_path / "1" / "a.png").write_bytes(b"no image")
    found = examples(data.load(str(tmp_path)), vit)
    assert found.dataset[2]["labels"] == 2
    with pytest.raises(DataError, match=r"a.png' in row 1 of .* cannot be read"):
        found.dataset[1]


def test_workers_are_sent_the_transform_and_not_the_model(vit):
    found = examples(data.load("digits", limit=5), vit)
    assert not any(isinstance(value, torch.nn.Module) for value in vars(found.dataset).values())
    copy = pickle.loads(pickle.dumps(found.dataset))
    assert torch.equal(copy[3]["pixel_values"], found.dataset[3]["pixel_values"])


# --- random views ----------------------------------------------------------------------------------------------------


def test_views_differ_and_a_seed_repeats_them(vit):
    rows = data.load("digits", split="train", limit=4)
    plain, made = examples(rows, vit), examples(rows, vit, augment=True)

    def views() -> torch.Tensor:
        return torch.stack([made.dataset[index]["pixel_values"] for index in range(4)])

    torch.manual_seed(0)
    first, second = views(), views()
    torch.manual_seed(0)
    assert torch.equal(views(), first)
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], plain.dataset[0]["pixel_values"])
    assert made.dataset[0]["labels"] == plain.dataset[0]["labels"]


def test_a_view_is_turned_and_shifted_no_further_than_is_said():
    image = Image.new("L", (64, 64))
    image.paste(255, (28, 28, 36, 36))  # a square in the middle
    far = []
    for seed in range(200):
        torch.manual_seed(seed)
        view = np.asarray(augmented(image), float)
        assert view.shape == (64, 64)
        middle = (view.sum(0) @ np.arange(64) / view.sum(), view.sum(1) @ np.arange(64) / view.sum())
        far.append(max(abs(one - 31.5) for one in middle))
        assert view.sum() == pytest.approx(255 * 64, rel=0.1), "nothing is lost from the middle"
    assert 5 < max(far) <= SHIFT * 64 + 1.0


def test_half_of_the_views_are_mirrored():
    left = Image.new("L", (64, 64))
    left.paste(255, (0, 16, 32, 48))
    bright = 0
    for seed in range(400):
        torch.manual_seed(seed)
        view = np.asarray(augmented(left), float)
        bright += view[:, :32].sum() > view[:, 32:].sum()
    assert 150 < bright < 250


def test_texts_have_no_views(bert, tmp_path):
    rows, _ = both(saved(tmp_path / "rows", text=TEXTS, label=[0, 1] * 3))
    with pytest.raises(DataError, match="reads text, and only images have random views: leave augment out"):
        examples(rows, bert, augment=True)
