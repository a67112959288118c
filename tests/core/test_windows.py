"""Long texts in windows, and texts joined: each token counted once, and perplexity as the whole logits give it."""

import copy
import functools
import itertools
from pathlib import Path

import checkpoints
import datasets
import numpy as np
import pytest
import tiny_models
import tiny_tokenizer
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers
from torch import nn

from anydepth import data
from anydepth.core.tokens import IGNORED, next_token_labels
from anydepth.core.windows import name, spans, texts_of
from anydepth.errors import DataError
from anydepth.models import loading as models
from anydepth.models.loaded import LoadedModel
from anydepth.results.pairing import pair_samples
from anydepth.stats.intervals import share_interval, t_interval
from anydepth.theory.observation import observe
from anydepth.tracing.run import trace
from anydepth.tracing.trace import Trace

LENGTHS = (9, 30, 2, 1, 17, 40, 5)
TEXTS = [tiny_tokenizer.text(length, seed=place) for place, length in enumerate(LENGTHS)]
SIZE = 12
BLOCKS = {"gpt2": "transformer.h", "llama": "model.layers"}


def rows(texts: list[str], **columns: list) -> data.LoadedData:
    made = datasets.Dataset.from_dict({"text": texts, **columns})
    known = data.Columns(text="text", id="id" if "id" in columns else None)
    return data.LoadedData(dataset=made, columns=known, name="memory", split="file", rows=np.arange(len(texts)))


def language_model(kind: str, *, framed: bool = False) -> LoadedModel:
    model, _ = tiny_models.build(kind)
    return LoadedModel(
        model=model,
        processor=tiny_tokenizer.tokenizer(framed=framed),
        kind="text",
        task="causal-lm",
        name=kind,
        max_length=SIZE,
    )


@pytest.fixture(scope="module")
def gpt2() -> LoadedModel:
    return language_model("gpt2")


# --- spans and names -------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(0, 70), st.integers(2, 20), st.data())
def test_spans_tell_each_token_but_the_first_once(length, size, drawn):
    stride = drawn.draw(st.integers(1, size - 1))
    told, ends = [], [0]
    for start, end, first in spans(length, size, stride).tolist():
        assert 0 <= start < end <= min(start + size, length)
        assert start == 0 or end - start > size - stride  # no window that tells nothing
        for token in range(first, end):
            assert token - start >= min(token, size - stride)
            told.append(token)
        ends.append(end)
    assert told == list(range(1, length))
    assert ends[-1] == length


@settings(deadline=None)
@given(st.lists(st.tuples(st.text("a[0:]1", max_size=6), st.integers(0, 120)), unique=True, max_size=12))
def test_windows_have_names_that_lead_back_to_their_text(windows):
    names = [name(text, start) for text, start in windows]
    assert len(set(names)) == len(names)
    numbers = texts_of(names)
    for (one, a), (other, b) in itertools.combinations(zip(windows, numbers, strict=True), 2):
        assert (one[0] == other[0]) == (a == b)


def test_samples_that_are_no_windows_are_texts_of_their_own():
    assert texts_of([3, "3", "a[1:2]", "a[:]", "b[0:] ", "a\nb[2:]", "a\nb[0:]"]).tolist() == [0, 1, 2, 3, 4, 5, 5]
    assert texts_of([]).tolist() == []


# --- batches ---------------------------------------------------------------------------------------------------------


def told(found: data.Batches) -> list[tuple[str, int]]:
    """The text, and the place in it, of each token that a window is asked about, as a trace asks it."""
    seen = []
    for batch in found:
        labels = next_token_labels(batch, batch.get("labels"), batch["attention_mask"].bool())
        for row, id in enumerate(batch["id"]):
            text, _, start = id.removesuffix(":]").rpartition("[")
            for position in (labels[row] != IGNORED).nonzero()[:, 0].tolist():
                assert labels[row, position] == batch["input_ids"][row, position + 1]
                seen.append((text, int(start) + position + 1))
    return seen


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    stride=st.integers(1, SIZE - 1),
    batch_size=st.integers(1, 9),
)
def test_each_position_counts_once(gpt2, lengths, stride, batch_size):
    if max(lengths) == 1:
        lengths = [*lengths, 2]
    texts = [tiny_tokenizer.text(length, seed=place) for place, length in enumerate(lengths)]
    found = data.batches(rows(texts), gpt2, batch_size=batch_size, stride=stride)
    expected = [(str(text), token) for text, length in enumerate(lengths) for token in range(1, length)]
    assert sorted(told(found)) == sorted(expected)
    assert all(batch["input_ids"].shape[1] <= SIZE for batch in found)
    assert len(found) == len(list(found)) == -(-len(found.windows) // batch_size)


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    stride=st.none() | st.integers(1, SIZE - 1),
    batch_size=st.integers(1, 9),
)
def test_each_position_of_joined_texts_counts_once(gpt2, lengths, stride, batch_size):
    texts = [tiny_tokenizer.text(length, seed=place) for place, length in enumerate(lengths)]
    found = data.batches(rows(texts), gpt2, batch_size=batch_size, stride=stride, pack=True)
    starts = np.cumsum([0, *(length + 1 for length in lengths)])  # each with its end token
    places = [starts[int(text)] + token for text, token in told(found)]
    assert sorted(places) == list(range(1, starts[-1]))
    sizes = [int(mask.sum()) for batch in found for mask in batch["attention_mask"]]
    assert sum(size != SIZE for size in sizes) <= 1
    ids = [id for batch in found for id in batch["id"]]
    assert len(set(ids)) == len(ids)


def test_joined_texts_are_what_is_learnt_from(gpt2):
    found = data.batches(rows(["w05 w06", "w07 [EOS]"]), gpt2, batch_size=8, pack=True, max_length=4)
    (batch,) = found
    assert batch["input_ids"].tolist() == [[5, 6, 2, 7], [7, 2, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["id"] == ["0[0:]", "1[0:]"]
    assert found.notes == (
        "text: column 'text'",
        "2 texts, each ended by [EOS], are joined, and read in windows of 4 that advance by 3: 2 windows in all",
        "a token counts in the first window that holds it, behind at least one other or all that there are",
        "a window is called as the text it starts in, and the token it starts at: '1[0:]'",
    )


def test_without_an_end_token_texts_follow_each_other(gpt2, monkeypatch):
    monkeypatch.setattr(gpt2.processor, "_special_tokens_map", gpt2.processor._special_tokens_map | {"eos_token": None})
    found = data.batches(rows(["w05", "w06"]), gpt2, batch_size=8, pack=True)
    assert next(iter(found))["input_ids"].tolist() == [[5, 6]]
    assert found.notes[1].startswith("2 texts are joined, and read in windows of 12 that advance by 11: 1 windows")


def test_labels_come_only_where_a_window_repeats_tokens(gpt2):
    (overlapping,) = data.batches(rows(TEXTS), gpt2, batch_size=99, stride=5)
    assert overlapping["labels"].shape == overlapping["input_ids"].shape
    assert (overlapping["labels"][overlapping["attention_mask"] == 0] == IGNORED).all()
    second = overlapping["id"].index("1[5:]")
    assert (overlapping["labels"][second] == IGNORED).tolist() == [True] * 7 + [False] * 5
    for ready in (
        data.batches(rows(TEXTS), gpt2, batch_size=99, stride=SIZE - 1),
        data.batches(rows(TEXTS), gpt2, batch_size=99, pack=True),
        data.batches(rows(["w05 w06 w07"]), gpt2, batch_size=99, stride=5),
    ):
        (batch,) = ready
        assert sorted(batch) == ["attention_mask", "id", "input_ids"]


def test_what_was_done_is_noted(gpt2):
    found = data.batches(rows(TEXTS, id=[*"abcdefg"]), gpt2, batch_size=2, stride=5)
    assert found.notes[1:] == (
        "3 of 7 texts are longer than 12 tokens, and read in windows of 12 that advance by 5: 18 windows in all",
        "a token counts in the first window that holds it, behind at least 7 others or all that there are",
        "a window is called as the text it starts in, and the token it starts at: 'g[0:]'",
        "similarities take windows as they are: the 7 positions in which two overlap count in both",
    )
    assert found.windows.ids[:6] == ("a[0:]", "b[0:]", "b[5:]", "b[10:]", "b[15:]", "b[20:]")


def test_special_tokens_stand_at_the_ends_of_the_text_alone():
    framed = language_model("llama", framed=True)
    (batch,) = data.batches(rows([TEXTS[1]]), framed, batch_size=99, stride=11)
    ids = [row[mask.bool()].tolist() for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    assert [token for window in ids for token in window if token in (3, 4)] == [3, 4]
    assert (ids[0][0], ids[-1][-1]) == (3, 4)


def test_a_text_that_becomes_no_tokens_has_no_window(gpt2):
    emptied = copy.deepcopy(gpt2.processor)
    emptied._tokenizer.normalizer = normalizers.Replace("x", "")
    model = LoadedModel(model=gpt2.model, processor=emptied, kind="text", task="causal-lm", name="m", max_length=SIZE)
    for pack in (False, True):
        found = data.batches(rows(["x", "w05 w06", "xx", "w07 w08"]), model, batch_size=9, stride=1, pack=pack)
        assert all("[0:]" in one or pack for one in found.windows.ids)
        assert {one.partition("[")[0] for one in found.windows.ids} <= {"0", "1", "2", "3"}
    assert data.batches(rows(["x", "w05 w06"]), model, batch_size=9, stride=1).windows.ids == ("1[0:]",)


# --- what a trace makes of them --------------------------------------------------------------------------------------

WAYS = {
    "cut": {},
    "windows": {"stride": 5},
    "windows that hardly overlap": {"stride": SIZE - 1},
    "packed": {"pack": True},
    "packed windows": {"pack": True, "stride": 4},
}


def contexts(model: LoadedModel, way: dict) -> list[tuple[list[int], int]]:
    """All that each token is told by, and the token: one after the other, by the words of the documentation."""
    texts = [model.processor(text, verbose=False)["input_ids"] for text in TEXTS]
    if way.get("pack"):
        end = model.processor.eos_token_id
        texts = [[token for text in texts for token in [*text, *([] if text[-1] == end else [end])]]]
    if not way:
        texts = [model.processor(text, truncation=True, max_length=SIZE)["input_ids"] for text in TEXTS]
    stride, found = way.get("stride", SIZE - 1), []
    for text in texts:
        for place in range(1, len(text)):
            start = 0
            while start + SIZE <= place:
                start += stride
            found.append((text[start:place], text[place]))
    return found


@functools.cache
def cut_after(kind: str, depth: int) -> nn.Module:
    """The model with its first blocks alone."""
    model = language_model(kind).model
    *path, last = BLOCKS[kind].split(".")
    home = model.get_submodule(".".join(path))
    setattr(home, last, getattr(home, last)[:depth])
    return model


@functools.cache
def log_probabilities(kind: str, depth: int, before: tuple[int, ...]) -> torch.Tensor:
    """Of the token after a context, from the model cut after a block."""
    with torch.no_grad():
        return cut_after(kind, depth)(torch.tensor([before])).logits[0, -1].log_softmax(0)


def perplexities(kind: str, asked: list[tuple[list[int], int]]) -> list[float]:
    """By depth, from the model itself cut after each block, one context at a time, without batches or padding."""
    nats = [
        torch.stack([-log_probabilities(kind, depth, tuple(before))[token] for before, token in asked])
        for depth in range(tiny_models.BLOCKS + 1)
    ]
    return [one.mean().exp().item() for one in nats]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_perplexity_by_depth_is_that_of_all_logits(kind, way):
    model = language_model(kind, framed=kind == "llama")
    asked = contexts(model, WAYS[way])
    expected = perplexities(kind, asked)
    for batch_size in (1, 3, 64):
        ready = data.batches(rows(TEXTS), model, batch_size=batch_size, **WAYS[way])
        found = trace(models.stack_of(model, ready), ready, measures=[])
        assert len(found.rows) == len(asked)
        np.testing.assert_allclose(np.exp(found.cross_entropy), expected, rtol=1e-5)


def test_the_theory_asks_the_same(gpt2, tmp_path):
    ready = data.batches(rows(TEXTS), gpt2, batch_size=3, stride=5)
    stack = models.stack_of(gpt2, ready)
    assert observe(stack, ready, tmp_path).labels.tolist() == trace(stack, ready, measures=[]).rows.label.tolist()


def test_a_saved_trace_knows_its_windows(gpt2, tmp_path):
    ready = data.batches(rows(TEXTS), gpt2, batch_size=3, stride=5)
    trace(models.stack_of(gpt2, ready), ready, measures=[]).save(tmp_path / "t", report=False)
    found = Trace.load(tmp_path / "t")
    assert found.ids == ready.windows.ids
    assert texts_of(found.ids).tolist() == [0] + 5 * [1] + [2] + [3] + 2 * [4] + 7 * [5] + [6]


@pytest.mark.filterwarnings("ignore:texts are padded on the left")
@pytest.mark.parametrize("left", [False, True])
def test_a_position_is_counted_without_padding(gpt2, left):
    (batch,) = data.batches(rows(TEXTS), gpt2, batch_size=99)
    lengths = batch["attention_mask"].sum(1)
    if left:
        shifts = SIZE - lengths
        for name in ("input_ids", "attention_mask"):
            moved = [row.roll(int(shift)) for row, shift in zip(batch[name], shifts, strict=True)]
            batch[name] = torch.stack(moved)
    found = trace(gpt2.model, [batch], measures=[]).rows
    assert found.position.tolist() == [place for length in lengths.tolist() for place in range(length - 1)]


def test_intervals_take_windows_of_one_text_for_one(gpt2):
    ready = data.batches(rows(TEXTS), gpt2, batch_size=3, stride=5)
    stack = models.stack_of(gpt2, ready)
    found = trace(stack, ready, measures=["cka", "cosine_raw"])
    text = texts_of(found.ids)[found.rows.sample]
    assert len(set(found.rows.sample.tolist())) > len(set(text.tolist())) == 6  # one text has nothing to tell
    np.testing.assert_array_equal(found.interval("cross_entropy"), t_interval(found.per_answer("cross_entropy"), text))
    texts = np.unique(text)
    for statistic in ("accuracy", "agreement"):
        rows_of = [found.per_answer(statistic)[text == one] for one in texts]
        successes = np.stack([rows.sum(0) for rows in rows_of])
        counts = np.stack([np.full(rows.shape[1], float(len(rows))) for rows in rows_of])
        np.testing.assert_allclose(found.interval(statistic), share_interval(successes, counts), rtol=1e-12)

    def apart():
        """The same windows under names of their own."""
        for batch in ready:
            yield batch | {"id": [f"{id}!" for id in batch["id"]]}

    other = trace(stack, list(apart()), measures=["cka", "cosine_raw"])
    np.testing.assert_allclose(found.similarity["cka"], other.similarity["cka"], rtol=1e-14)
    low, high = found.similarity_intervals["cosine_raw"]
    low_apart, high_apart = other.similarity_intervals["cosine_raw"]
    assert not np.allclose(high - low, high_apart - low_apart)


def test_comparisons_take_windows_of_one_text_for_one(gpt2):
    ready = data.batches(rows(TEXTS), gpt2, batch_size=3, stride=5)
    found = trace(models.stack_of(gpt2, ready), ready, measures=[])
    assert pair_samples(found, found).sample.tolist() == texts_of(found.ids)[found.rows.sample].tolist()


def test_merged_traces_take_windows_of_one_text_for_one(gpt2, tmp_path):
    ready = list(data.batches(rows(TEXTS), gpt2, batch_size=3, stride=5))
    settings = {"measures": ["cosine_raw"], "keep_states": True}
    parts = [
        trace(gpt2.model, part, out=tmp_path / name, **settings) for name, part in (("a", ready[:3]), ("b", ready[3:]))
    ]
    whole = trace(gpt2.model, ready, out=tmp_path / "c", **settings)
    for one, other in zip(
        parts[0].merge(parts[1]).similarity_intervals["cosine_raw"],
        whole.similarity_intervals["cosine_raw"],
        strict=True,
    ):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_a_trace_says_that_its_answers_are_next_tokens(gpt2):
    ready = data.batches(rows(TEXTS), gpt2, batch_size=3, stride=5)
    assert trace(models.stack_of(gpt2, ready), ready, measures=[]).provenance["next_token"] is True
    tagger, batch = tiny_models.build("bert tagger")
    labels = {"labels": batch["input_ids"] % tiny_models.CLASSES}
    assert trace(tagger, [batch | labels], measures=[]).provenance["next_token"] is False


# --- what cannot be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [-1, 0, SIZE, SIZE + 1])
@pytest.mark.parametrize("pack", [False, True])
def test_a_stride_out_of_range(gpt2, stride, pack):
    message = f"stride is {stride} tokens, expected 1 to 11: windows of 12 tokens must overlap, for a token is pred"
    with pytest.raises(DataError, match=message) as caught:
        data.batches(rows(TEXTS), gpt2, batch_size=2, stride=stride, pack=pack)
    assert "\n" not in str(caught.value)


def test_the_length_of_a_window(gpt2):
    assert data.batches(rows(TEXTS), gpt2, batch_size=2, stride=3, max_length=4).max_length == 4
    with pytest.raises(DataError, match="max length is 13 tokens, expected at least 2 and at most 12"):
        data.batches(rows(TEXTS), gpt2, batch_size=2, stride=3, max_length=13)


@pytest.mark.parametrize("way", [{"stride": 3}, {"pack": True}])
def test_windows_are_for_language_models(tmp_path: Path, way):
    labelled = {"num_labels": 2}
    for model in (
        models.load(str(checkpoints.bert(tmp_path / "encoder", **labelled)), device="cpu"),
        models.load(str(checkpoints.gpt2(tmp_path / "decoder", "ForSequenceClassification", **labelled)), device="cpu"),
        models.load(str(checkpoints.vit(tmp_path / "image", **labelled)), device="cpu"),
    ):
        with pytest.raises(
            DataError, match=r"answers for a sample as a whole: windows .* are for causal language"
        ) as no:
            data.batches(rows(["good", "bad"], label=[0, 1]), model, batch_size=2, **way)
        assert "\n" not in str(no.value)


@pytest.mark.parametrize("way", [{"stride": 3}, {"pack": True}])
def test_windows_need_their_labels(gpt2, way):
    with pytest.raises(DataError, match=r"overlap, and labels say which of them counts a token: expected labels=True"):
        data.batches(rows(TEXTS), gpt2, batch_size=2, labels=False, **way)


def test_nothing_to_tell(gpt2):
    with pytest.raises(DataError, match="'memory' holds 2 tokens and none that follows another: expected longer texts"):
        data.batches(rows(["w05", "w06"]), gpt2, batch_size=2, stride=3)
