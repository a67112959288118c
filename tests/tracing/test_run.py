from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import naive
import numpy as np
import pytest
import tiny_models
import torch
import transformers
from naive import same
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import GPT2Config, GPT2LMHeadModel

import anydepth.core.readouts
from anydepth.core.stack import Stack
from anydepth.data.batching import DataBatch
from anydepth.errors import (
    AnydepthError,
    DataError,
    LabelError,
    MeasureError,
    NonFiniteStates,
    UnknownArchitecture,
    UnsupportedHead,
)
from anydepth.passes.batches import as_batches
from anydepth.tracing.run import trace, trace_states
from anydepth.tracing.trace import Trace

pytestmark = pytest.mark.usefixtures("undrawn")

unchecked = inspect.unwrap(trace)  # without the type checks of the tests, as users run it
COUNT = 22  # batches of 3 and of 7 leave a last one of one
TEXTS = naive.sentences(COUNT)
LABELS = naive.classes(COUNT)


def reference(
    model: nn.Module, anatomy: naive.Anatomy, policy: str, label: Callable[[int], Any] | None = None
) -> tuple[np.ndarray, naive.Answers]:
    """Rows (n, K, D) and answers of TEXTS, each alone. `label` of a text: one class, or one for each position."""
    rows, logits, labels, samples, positions = [], [], [], [], []
    for index, text in enumerate(TEXTS):
        states, answers = naive.alone(model, text, anatomy)
        rows.append(naive.stand_for(states, policy))
        own = label(index) if label else LABELS[index]
        if answers.ndim == 2:
            answers, own = answers[:, None], [own]
        for position, y in enumerate(own):
            if y != -100:
                logits.append(answers[:, position])
                labels.append(int(y))
                samples.append(index)
                positions.append(position)
    return np.concatenate(rows), naive.Answers(np.array(logits), *map(np.array, (labels, samples, positions)))


def check_similarity(found: Trace, rows: np.ndarray, tolerance: float = 1e-5) -> None:
    expected = naive.similarity(rows)
    assert found.similarity.keys() == expected.keys()
    for name, matrix in expected.items():
        np.testing.assert_allclose(found.similarity[name], matrix, atol=tolerance, rtol=0, err_msg=name)
    quantiles = naive.cosine_quantiles(rows)
    np.testing.assert_allclose(found.quantiles["cosine"], quantiles, atol=tolerance, rtol=0)


def check_answers(found: Trace, answers: naive.Answers, tolerance: float = 1e-5) -> None:
    assert found.statistics == ("accuracy", "cross_entropy", "confidence", "entropy", "agreement", "stays_correct")
    assert found.rows is not None
    assert found.rows.prediction.tolist() == answers.prediction.tolist()
    assert found.rows.label.tolist() == answers.label.tolist()
    assert found.rows.sample.tolist() == answers.sample.tolist()
    for name in found.statistics:
        np.testing.assert_allclose(getattr(found, name), getattr(answers, name)(), atol=tolerance, err_msg=name)
    assert found.saturation.tolist() == answers.saturation()
    assert found.saturation_depth.tolist() == answers.saturates()
    table = found.by_class()[["class", "count", "depth", "accuracy", "saturated"]]
    expected = [(found.class_name(label), *rest) for label, *rest in answers.by_class()]
    assert [row[:3] for row in table.itertuples(index=False)] == [row[:3] for row in expected]
    np.testing.assert_allclose(table[["accuracy", "saturated"]], [row[3:] for row in expected])


# --- against one text at a time --------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["first", "last", "mean", "each"])
def test_padded_texts_are_traced_as_each_alone(policy: str) -> None:
    model, _ = tiny_models.build("bert")
    found = trace(model, naive.padded(TEXTS, LABELS, 7), tokens=policy)
    rows, answers = reference(model, naive.BERT, policy)
    if policy == "first":  # [CLS] is missing from these texts: depth 0 varies, and nothing is blank
        assert not np.isnan(found.similarity["cosine"]).any()
    check_similarity(found, rows)
    check_answers(found, answers)
    assert found.provenance["positions"] == len(rows)
    assert found.provenance["answers"] == found.provenance["samples"] == COUNT


def next_tokens(index: int) -> list[int]:
    return [*TEXTS[index][1:].tolist(), -100]


@pytest.mark.parametrize(("name", "anatomy", "left"), [("gpt2", naive.GPT2, False), ("llama", naive.LLAMA, True)])
@pytest.mark.parametrize("given", [False, True])
def test_language_models_answer_with_the_next_token(name: str, anatomy: naive.Anatomy, left: bool, given: bool) -> None:
    model, _ = tiny_models.build(name)
    labels = TEXTS if given else None
    found = trace(model, naive.padded(TEXTS, labels, 7, left=left))
    assert found.provenance["tokens"] == "each"
    rows, answers = reference(model, anatomy, "each", next_tokens)
    check_similarity(found, rows)
    check_answers(found, answers)
    assert found.rows is not None
    if not left:
        assert found.rows.position.tolist() == answers.position.tolist()
    assert found.provenance["positions"] == sum(map(len, TEXTS))
    assert found.provenance["answers"] == sum(map(len, TEXTS)) - COUNT
    np.testing.assert_allclose(np.exp(found.cross_entropy), np.exp(answers.cross_entropy()), rtol=1e-4)


def test_labels_of_padding_do_not_count() -> None:
    """What many collators give a language model: labels that are the token ids, padding and all."""
    model, _ = tiny_models.build("gpt2")
    plain = naive.padded(TEXTS, None, 7)
    sloppy = [batch | {"labels": batch["input_ids"].clone()} for batch in plain]
    same(trace(model, sloppy), trace(model, plain))


def test_raw_readout_leaves_out_the_final_norm_below_the_last_depth() -> None:
    model, _ = tiny_models.build("gpt2")
    found = trace(model, naive.padded(TEXTS, None, 7), readout="raw")
    _, raw = reference(model, naive.GPT2_RAW, "each", next_tokens)
    _, tail = reference(model, naive.GPT2, "each", next_tokens)
    logits = np.concatenate([raw.logits[:, :-1], tail.logits[:, -1:]], axis=1)
    check_answers(found, replace(raw, logits=logits))
    assert any("'raw'" in note for note in found.notes)


def tags(index: int) -> list[int]:
    generator = torch.Generator().manual_seed(index)
    found = torch.randint(0, tiny_models.CLASSES, (len(TEXTS[index]),), generator=generator)
    found[0] = -100  # as for a [CLS], or the second piece of a word
    return found.tolist()


def test_taggers_leave_out_what_has_no_label() -> None:
    model, _ = tiny_models.build("bert tagger")
    labels = [torch.tensor(tags(index)) for index in range(COUNT)]
    found = trace(model, naive.padded(TEXTS, labels, 3))
    rows, answers = reference(model, naive.TAGGER, "each", tags)
    assert found.provenance["tokens"] == "each"
    check_similarity(found, rows)
    check_answers(found, answers)
    assert found.provenance["answers"] == sum(map(len, TEXTS)) - COUNT
    for name in found.statistics:
        low, high = found.interval(name)
        value = getattr(found, name)
        inside = np.isnan(value) | ((low <= value) & (value <= high))
        assert inside.all(), name


@pytest.mark.parametrize("size", [1, 3, 7, COUNT])
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_nothing_depends_on_the_batch_size(name: str, size: int) -> None:
    model, _ = tiny_models.build(name)
    labels = LABELS if name == "bert" else None
    whole = trace(model, naive.padded(TEXTS, labels, 11))
    same(trace(model, naive.padded(TEXTS, labels, size)), whole, tolerance=2e-6)


def test_nothing_depends_on_the_pieces_a_batch_is_taken_in(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = tiny_models.build("gpt2")
    batches = naive.padded(TEXTS, None, 7)
    whole = trace(model, batches)
    monkeypatch.setattr(anydepth.core.readouts, "PIECE", 5 * tiny_models.VOCABULARY)
    same(trace(model, batches), whole, tolerance=2e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@torch.no_grad()
def test_low_precision_models_are_measured_in_float32(dtype: torch.dtype) -> None:
    model, _ = tiny_models.build("bert")
    model = model.to(dtype)
    batches = naive.padded(TEXTS, LABELS, 7)
    stack = Stack(model)
    found = trace(stack, batches, tokens="mean")
    rows, logits = [], []
    for batch in batches:
        states = stack.states(batch)
        weights = batch["attention_mask"][..., None].double()
        means = [(state.double() * weights).sum(1) / weights.sum(1) for state in states]
        rows.append(torch.stack(means, 1))
        logits.append(torch.stack([stack.readout(state, batch).double() for state in states], 1))
    check_similarity(found, torch.cat(rows).numpy(), tolerance=1e-6)
    answers = naive.Answers(torch.cat(logits).numpy(), np.array(LABELS), np.arange(COUNT), np.zeros(COUNT))
    check_answers(found, answers, tolerance=1e-6)
    assert found.provenance["dtype"] == str(dtype).removeprefix("torch.")


# --- what data may look like -----------------------------------------------------------------------------------------

X = torch.randn(COUNT, 8, generator=torch.Generator().manual_seed(2))
Y = torch.tensor(LABELS)


class Named(tiny_models.Nobodys):
    """The same network with a mapping for a batch."""

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return super().forward(scale * x)


def nobodys() -> nn.Module:
    torch.manual_seed(0)
    return Named().eval()


def pairs() -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, COUNT, 4):
        yield X[start : start + 4], Y[start : start + 4]


def table() -> datasets.Dataset:
    return datasets.Dataset.from_dict({"x": X.tolist(), "label": LABELS})


DATA: dict[str, Callable[[], Any]] = {
    "pairs": lambda: list(pairs()),
    "a generator": pairs,
    "lists of two": lambda: [list(pair) for pair in pairs()],
    "dicts": lambda: [{"x": x, "labels": y} for x, y in pairs()],
    "dicts with label": lambda: [{"x": x, "label": y} for x, y in pairs()],
    "dicts and labels": lambda: [({"x": x}, y) for x, y in pairs()],
    "labels that are lists": lambda: [{"x": x, "labels": y.tolist()} for x, y in pairs()],
    "labels that are numpy": lambda: [(x, y.numpy()) for x, y in pairs()],
    "labels of int32": lambda: [(x, y.int()) for x, y in pairs()],
    "what is not a tensor": lambda: [{"x": x, "labels": y, "scale": 1.0} for x, y in pairs()],
    "BatchEncoding": lambda: [transformers.BatchEncoding({"x": x, "labels": y}) for x, y in pairs()],
    "DataLoader of pairs": lambda: DataLoader(TensorDataset(X, Y), batch_size=5),
    "DataLoader of dicts": lambda: DataLoader([{"x": x, "labels": y} for x, y in zip(X, Y, strict=True)], batch_size=5),
    "datasets.Dataset": table,
    "datasets.Dataset, formatted": lambda: table().with_format("numpy"),
    "datasets.Dataset, columns chosen": lambda: (
        table().add_column("text", ["words"] * COUNT).with_format("torch", columns=["x", "label"])
    ),
    "datasets.Dataset, transformed": lambda: table().with_transform(
        lambda rows: {"x": [torch.tensor(x) for x in rows["x"]], "labels": rows["label"]}
    ),
    "datasets.IterableDataset": lambda: table().to_iterable_dataset(),
}


@pytest.mark.parametrize("form", DATA)
def test_what_data_may_look_like(form: str) -> None:
    model = nobodys()
    expected = trace(model, [(X, Y)])
    found = trace(model, DATA[form]())
    same(found, expected, tolerance=2e-6)
    assert found.ids == tuple(range(COUNT))


def test_tensors_without_labels() -> None:
    model = nobodys()
    found = trace(model, list(X.split(5)))
    assert found.statistics == ()
    np.testing.assert_allclose(found.similarity["cka"], trace(model, [(X, Y)]).similarity["cka"], atol=1e-6)


IDS = {
    "strings": [f"sample {index}" for index in range(COUNT)],
    "unicode": [f'"é\n\u2028{index}' for index in range(COUNT)],
    "numbers": list(range(100, 100 + COUNT)),
}


@pytest.mark.parametrize("kind", IDS)
def test_ids_name_the_samples(kind: str) -> None:
    ids = IDS[kind]
    batches = [{"x": x, "labels": y, "id": ids[4 * at : 4 * at + 4]} for at, (x, y) in enumerate(pairs())]
    found = trace(nobodys(), batches)
    assert found.ids == tuple(ids)
    answers = found.to_frame("answers")
    assert answers["id"].tolist() == [one for one in ids for _ in range(found.depth + 1)]
    assert answers["label"].tolist() == [one for one in LABELS for _ in range(found.depth + 1)]


@pytest.mark.parametrize("as_array", [torch.tensor, np.array])
def test_ids_may_be_arrays(as_array: Callable[[Any], Any]) -> None:
    batches = [{"x": x, "labels": y, "id": as_array(range(at, at + len(x)))} for at, (x, y) in enumerate(pairs())]
    found = trace(nobodys(), batches[:1])
    assert found.ids == (0, 1, 2, 3)
    assert all(type(one) is int for one in found.ids)


def test_a_dataset_may_name_its_samples() -> None:
    named = table().add_column("id", IDS["strings"])
    assert trace(nobodys(), named).ids == tuple(IDS["strings"])


# --- what is left out ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_without_labels_what_needs_them_is_missing(name: str) -> None:
    model, _ = tiny_models.build(name)
    batches = naive.padded(TEXTS, LABELS if name == "bert" else None, 7)
    found, full = trace(model, batches, labels=False), trace(model, batches)
    assert found.statistics == ("confidence", "entropy", "agreement")
    assert any(note.startswith("traced without labels") for note in found.notes)
    with pytest.raises(MeasureError, match=r"no 'accuracy' \(no labels\); it has: confidence, entropy, agreement"):
        _ = found.accuracy
    if name == "bert":
        np.testing.assert_array_equal(found.confidence, full.confidence)
        assert found.saturation.tolist() == full.saturation.tolist()
    np.testing.assert_array_equal(found.similarity["cka"], full.similarity["cka"])


def test_labels_are_not_needed_if_none_are_promised() -> None:
    model, _ = tiny_models.build("bert")
    found = trace(model, naive.padded(TEXTS, None, 7), labels=False)
    np.testing.assert_array_equal(found.confidence, trace(model, naive.padded(TEXTS, LABELS, 7)).confidence)


def test_a_tagger_without_labels_answers_at_each_position() -> None:
    model, _ = tiny_models.build("bert tagger")
    found = trace(model, naive.padded(TEXTS, None, 7), labels=False)
    assert found.provenance["answers"] == sum(map(len, TEXTS))


@pytest.mark.parametrize("name", ["bert without a head", "clip text"])
def test_models_without_a_classifier_are_traced_for_similarity(name: str) -> None:
    model, batch = tiny_models.build(name)
    found = trace(model, [batch, tiny_models.text() if name.startswith("bert") else batch])
    assert found.statistics == ()
    assert found.provenance["readout"] is None
    assert any("has no classifier: accuracy, confidence and saturation are missing" in note for note in found.notes)
    assert np.isfinite(found.similarity["cka"][1:, 1:]).all()
    with pytest.raises(MeasureError, match="no 'accuracy' .its model has no classifier"):
        _ = found.accuracy
    with pytest.raises(MeasureError, match="no 'agreement'"):
        _ = found.saturation


def test_without_readout_only_similarity() -> None:
    model, _ = tiny_models.build("bert")
    batches = naive.padded(TEXTS, LABELS, 7)
    found = trace(model, batches, readout=None, tokens="first")
    assert (found.statistics, found.rows) == ((), None)
    np.testing.assert_array_equal(found.similarity["cka"], trace(model, batches).similarity["cka"])


@pytest.mark.parametrize(("readout", "each"), [(None, 1), ("tail", tiny_models.BLOCKS + 1)])
def test_the_head_runs_as_often_as_it_must(readout: Any, each: int) -> None:
    """Once in the forward that gives the states, and once for each depth that is read out."""
    model, _ = tiny_models.build("bert")
    batches = naive.padded(TEXTS, LABELS, 7)

    def runs(data: list[Any]) -> int:
        ran: list[int] = []
        handle = model.classifier.register_forward_hook(lambda *_: ran.append(1))
        trace(model, data, readout=readout)
        handle.remove()
        return len(ran)

    # the law and what is decided by the first batch cost the same in both
    assert runs(batches) - runs(batches[:1]) == each * (len(batches) - 1)


def test_without_measures_only_the_readout() -> None:
    model, _ = tiny_models.build("bert")
    batches = naive.padded(TEXTS, LABELS, 7)
    found = trace(model, batches, measures=[])
    assert dict(found.similarity) == {}
    np.testing.assert_array_equal(found.accuracy, trace(model, batches).accuracy)


def test_only_the_measures_asked_for_in_the_order_asked() -> None:
    model, _ = tiny_models.build("bert")
    batches = naive.padded(TEXTS, LABELS, 7)
    full = trace(model, batches)
    found = trace(model, batches, measures=("cka_biased", "cosine"))
    assert list(found.similarity) == ["cka_biased", "cosine"]
    for name in found.similarity:
        np.testing.assert_allclose(found.similarity[name], full.similarity[name], atol=1e-12)


def test_depth_0_of_a_class_token_is_blank_and_said_so() -> None:
    model, _ = tiny_models.build("vit")
    generator = torch.Generator().manual_seed(0)
    batches = [
        {"pixel_values": torch.rand(4, 3, 8, 8, generator=generator), "labels": torch.arange(4)} for _ in range(3)
    ]
    found = trace(model, batches)
    assert found.provenance["tokens"] == "first"
    for matrix in found.similarity.values():
        assert np.isnan(matrix[0]).all()
        assert np.isnan(matrix[:, 0]).all()
        assert np.isfinite(matrix[1:, 1:]).all()
    blank = [note for note in found.notes if "depth 0" in note]
    assert len(blank) == 1
    assert blank[0].startswith("similarity at depth 0 is blank by construction")
    assert np.isfinite(found.accuracy).all()


class Touchy(tiny_models.Block):
    """A block that a test can make deaf to its input, or spoil some of its answers."""

    deaf = False
    value: float | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(torch.ones_like(x) if self.deaf else x)
        return x if self.value is None else x.masked_fill(x[:, :1] > 100, self.value)


class TouchyModel(tiny_models.Nobodys):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.ModuleList(Touchy(16) for _ in range(5))
        with torch.no_grad():
            self.first.weight[0, 0] = 100.0  # a large first entry of the sample stays one of the state


def test_a_constant_depth_is_blank_and_named() -> None:
    model = TouchyModel().eval()
    model.trunk[2].deaf = True
    found = trace(model, [(X, Y)])
    for matrix in found.similarity.values():
        assert np.isnan(matrix[3:]).all()
        assert np.isnan(matrix[:, 3:]).all()
        assert np.isfinite(matrix[:3, :3]).all()
    for depth in (3, 4, 5):
        assert f"depth {depth} is the same for every row: no similarity is defined there" in found.notes
    assert set(found.agreement[3:].tolist()) <= {0.0, 1.0}


# --- the model afterwards --------------------------------------------------------------------------------------------


def look(model: nn.Module) -> Any:
    """All there is to see of a model from outside."""
    return {
        name: (
            id(module),
            module.training,
            [(key, id(child)) for key, child in module._modules.items()],
            len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks),
            "forward" in module.__dict__,
            getattr(getattr(module, "config", None), "use_cache", None),
            [(parameter.requires_grad, parameter.grad is None) for parameter in module.parameters(recurse=False)],
        )
        for name, module in model.named_modules()
    }


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("after", [0, 2, 6, None])
def test_the_model_is_left_as_it_was(after: int | None, error: type[BaseException]) -> None:
    model, _ = tiny_models.build("bert")
    model.train()
    model.bert.encoder.layer[1].eval()
    model.classifier.weight.requires_grad_(False)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    calls = []

    def fail(*_: Any) -> None:
        calls.append(1)
        if after is not None and len(calls) > after:
            raise error("stop")

    handle = model.bert.encoder.layer[2].register_forward_hook(fail)
    before = look(model)
    batches = naive.padded(TEXTS, LABELS, 7)
    if after is None:
        trace(model, batches)
    else:
        # inside the check of the blocks a failure is a refusal that names it
        with pytest.raises((error, UnknownArchitecture), match="stop"):
            trace(model, batches)
    assert look(model) == before
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.is_grad_enabled()
    handle.remove()


def test_it_runs_in_eval_mode_and_is_repeatable() -> None:
    model, _ = tiny_models.build("bert")
    batches = naive.padded(TEXTS, LABELS, 7)
    expected = trace(model, batches)
    model.train()
    same(trace(model, batches), expected)
    assert model.training


@pytest.mark.filterwarnings("ignore:texts are padded on the left")
@pytest.mark.parametrize("name", ["bert", "vit", "llama classifier", "gpt2", "timm vit"])
def test_it_runs_under_inference_mode(name: str) -> None:
    model, _ = tiny_models.build(name)
    _, batch = tiny_models.build(name)
    labels = torch.tensor([0, 1, 2])
    batch = (batch, labels) if isinstance(batch, Tensor) else batch if name == "gpt2" else batch | {"labels": labels}
    expected = trace(model, [batch])
    with torch.inference_mode():
        same(trace(model, [batch]), expected)
        same(trace(model, [_made_inside(batch)]), expected)
        assert torch.is_inference_mode_enabled()


def _made_inside(batch: Any) -> Any:
    if isinstance(batch, tuple):
        return tuple(part.clone() for part in batch)
    return {name: part.clone() for name, part in batch.items()}


def test_a_text_of_one_token_has_no_next() -> None:
    model, _ = tiny_models.build("gpt2")
    one = {"input_ids": torch.tensor([[5], [6]])}
    refused(LabelError, "no position of the data has a label: .*a text of two tokens", model, [one])
    found = trace(model, [one, {"input_ids": torch.tensor([[5, 7], [6, 8]])}])
    assert found.provenance["answers"] == 2
    assert found.ids == (0, 1, 2, 3)


def test_a_stack_may_be_given_and_serve_again() -> None:
    model, _ = tiny_models.build("bert")
    batches = naive.padded(TEXTS, LABELS, 7)
    stack = Stack(model)
    expected = trace(model, batches)
    same(trace(stack, batches), expected)
    same(trace(stack, batches), expected)


def test_blocks_may_be_named() -> None:
    text = transformers.CLIPTextConfig(**tiny_models._USUAL, **tiny_models._SPECIAL)
    config = transformers.CLIPConfig(text_config=text.to_dict(), vision_config=tiny_models._IMAGE, projection_dim=16)
    model = transformers.CLIPModel(config).eval()
    batch = tiny_models.text() | tiny_models.images()
    with pytest.raises(UnknownArchitecture, match="several stacks .*stack='image'"):
        trace(model, [batch])
    found = trace(
        model, [batch, tiny_models.text() | tiny_models.images()], blocks="text_model.encoder.layers", readout=None
    )
    assert found.depth == tiny_models.BLOCKS
    assert found.provenance["model"]["blocks"] == "text_model.encoder.layers"


# --- what is told of the origin and the progress ---------------------------------------------------------------------


def test_provenance_says_what_was_done() -> None:
    model, _ = tiny_models.build("bert")
    told = {"model": "my-bert", "data": {"name": "reviews.csv", "split": "test"}, "notes": ["texts cut at 9 tokens"]}
    found = trace(model, naive.padded(TEXTS, LABELS, 7), describe=told, seed=3, measures=["cka"])
    about = found.provenance
    assert about["model"]["name"] == "my-bert"
    assert about["model"]["class"] == "BertForSequenceClassification"
    assert about["model"]["depth"] == tiny_models.BLOCKS
    assert about["model"]["blocks"] == "bert.encoder.layer"
    assert about["model"]["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert (about["data"]["name"], about["data"]["split"], about["data"]["samples"]) == ("reviews.csv", "test", COUNT)
    assert (about["samples"], about["measures"], about["readout"], about["seed"]) == (COUNT, ["cka"], "tail", 3)
    assert (about["dtype"], about["device"]) == ("float32", "cpu")
    assert about["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert "texts cut at 9 tokens" in found.notes
    assert any(note.startswith("token policy 'first'") for note in found.notes)


def test_fingerprints_know_model_and_data() -> None:
    model, _ = tiny_models.build("bert")
    batches = naive.padded(TEXTS, LABELS, 7)
    one = trace(model, batches).provenance
    other_batches = trace(model, naive.padded(TEXTS, LABELS, 2)).provenance
    reverse = trace(model, naive.padded(TEXTS[::-1], LABELS[::-1], 7)).provenance
    fewer = trace(model, batches[:-1]).provenance
    assert one["data"]["fingerprint"] == other_batches["data"]["fingerprint"] == reverse["data"]["fingerprint"]
    assert one["data"]["fingerprint"] != fewer["data"]["fingerprint"]
    with torch.no_grad():
        model.classifier.bias[0] += 1e-3
    assert trace(model, batches).provenance["model"]["fingerprint"] != one["model"]["fingerprint"]


def test_progress_counts_batches_and_rows() -> None:
    model, _ = tiny_models.build("bert")
    told: list[tuple[int, int | None, str]] = []
    trace(model, naive.padded(TEXTS, LABELS, 7), progress=lambda *said: told.append(said))
    assert [said[:2] for said in told if said[2].startswith("batches")] == [(done, 4) for done in (1, 2, 3, 4)]
    states = 28 * 4 * (tiny_models.BLOCKS + 1) * 32  # four batches as large as the first
    assert {what for _, _, what in told if what.startswith("batches")} == {
        f"batches, about {states / 1000:.1f} kB of states"
    }
    assert any(what == "covariance" or what.startswith("Gram") for _, _, what in told)
    told.clear()
    trace(model, iter(naive.padded(TEXTS, LABELS, 7)), progress=lambda *said: told.append(said))
    assert [total for _, total, what in told if what == "batches"] == [None] * 4


# --- arrays without a model ------------------------------------------------------------------------------------------


def arrays(count: int = 40) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 6))
    return {"in": x, "mid": x @ rng.normal(size=(6, 6)), "out": rng.normal(size=(count, 6)) + 1000}


def test_arrays_are_measured_without_a_model() -> None:
    given = arrays()
    found = trace_states(given)
    assert found.names == ("in", "mid", "out")
    assert found.statistics == ()
    check_similarity(found, np.stack(list(given.values()), axis=1).astype(float), tolerance=1e-6)
    assert found.provenance["samples"] == 40
    assert found.to_frame()["depth"].tolist() == ["in", "mid", "out"]


def test_arrays_may_be_tensors_maps_and_of_differing_width(tmp_path: Any) -> None:
    given = arrays()
    mapped = np.lib.format.open_memmap(tmp_path / "mid.npy", mode="w+", dtype=np.float64, shape=given["mid"].shape)
    mapped[:] = given["mid"]
    same(trace_states({"in": torch.tensor(given["in"]), "mid": mapped, "out": given["out"]}), trace_states(given))
    wide = {**given, "mid": given["mid"][:, :4]}
    found = trace_states(wide)
    assert np.isnan(found.similarity["cosine"][0, 1])
    assert np.isfinite(found.similarity["cka"]).all()
    assert any("different widths" in note for note in found.notes)


def test_rows_of_one_sample_widen_the_interval() -> None:
    given = {name: np.repeat(array, 5, axis=0) for name, array in arrays(60).items()}
    groups = np.repeat(np.arange(60), 5)
    apart, together = trace_states(given), trace_states(given, groups=groups)

    def width(found: Trace) -> float:
        low, high = found.similarity_intervals["cosine"][:, 0, 1]
        return float(high - low)

    assert width(together) > 1.8 * width(apart)


def test_depths_alike_up_to_scale_are_so_beyond_doubt() -> None:
    x = arrays(50)["in"]
    found = trace_states({"a": x, "b": 3 * x}, measures=["cka"])
    assert found.similarity["cka"][0, 1] == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose(found.similarity_intervals["cka"], 1.0, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "settings", "says"),
    [
        ({}, {}, "no states were given"),
        ({"a": np.zeros(5)}, {}, r"'a' have shape \(5,\): expected \(n, D\)"),
        ({"a": np.zeros((5, 2)), "b": np.zeros((4, 2))}, {}, "same rows, but they number {'a': 5, 'b': 4}"),
        ({"a": np.zeros((0, 2))}, {}, "no rows to measure"),
        ({"a": np.ones((5, 2))}, {"groups": np.arange(3)}, r"groups have shape \(3,\)"),
        ({"a": np.ones((5, 2))}, {"measures": ["ckaa"]}, "unknown measure 'ckaa', expected one of cosine"),
    ],
)
def test_arrays_that_cannot_be_measured(given: Any, settings: Any, says: str) -> None:
    with pytest.raises(AnydepthError, match=says) as caught:
        trace_states(given, **settings)
    assert "\n" not in str(caught.value)


# --- what is refused -------------------------------------------------------------------------------------------------


def refused(error: type[AnydepthError], says: str, model: nn.Module, data: Any, **settings: Any) -> None:
    before = look(model)
    with pytest.raises(error, match=says) as caught:
        unchecked(model, data, **settings)
    assert "\n" not in str(caught.value)
    assert look(model) == before


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"measures": ["cka", "ckaa"]}, MeasureError, "unknown measure 'ckaa', expected one of cosine, .*cka_biased"),
        ({"measures": "cka"}, MeasureError, r"measures is the text 'cka', expected a list: measures=\['cka'\]"),
        ({"tokens": "cls"}, DataError, "unknown token policy 'cls', expected one of first, last, each, mean"),
        ({"readout": "head"}, DataError, "unknown readout 'head', expected one of tail, raw, or None"),
        ({"keep_states": True}, DataError, "keep_states needs a folder to keep them in: give out='DIR'"),
    ],
)
def test_settings_that_mean_nothing(settings: Any, error: type[AnydepthError], says: str) -> None:
    refused(error, says, nobodys(), [(X, Y)], **settings)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([], "the data set is empty: expected at least one batch"),
        (iter(()), "the data set is empty"),
        (table().select([]), "the data set is empty"),
        ([(X[:0], Y[:0])], "a batch holds no sample, expected at least one"),
        (["text"], "a batch is str, expected a dict of tensors, a pair"),
        ({"x": X, "labels": Y}, r"data is a dict, expected an iterable of batches; of one batch, give \[data\]"),
        (X, r"data is a Tensor, expected an iterable of batches; of one batch, give \[data\]"),
        (datasets.DatasetDict({"test": table()}), "data is a DatasetDict, expected an iterable of batches"),
        ([(X, Y, Y)], "a batch is tuple, expected a dict of tensors, a pair"),
        ([{"x": "text"}], r"a batch holds no tensor: \['x'\]"),
        ([{"x": X, "labels": Y, "id": [1, 2]}], "a batch of 22 samples has 2 ids, expected one for each"),
        ([{"x": X, "labels": Y, "id": [0.5] * COUNT}], "the id 0.5 is a float, expected a string or an integer"),
        (table().add_column("text", ["words"] * COUNT), "column 'text' does not stack into a tensor"),
    ],
)
def test_data_that_are_none(data: Any, says: str) -> None:
    refused(DataError, says, nobodys(), data)


def test_data_that_cannot_be_iterated() -> None:
    with pytest.raises(DataError, match="data is int, expected an iterable of batches"):
        inspect.unwrap(as_batches)(5)


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (None, "have no 'labels', expected one class per sample; add them, or trace without .labels=False."),
        (Y[:3], r"a batch of 22 samples has labels of shape \(3,\), expected one each"),
        (Y.float(), r"labels are float32 of shape \(22,\) in batch 0, expected whole numbers: \(22,\)"),
        (Y[:, None], r"labels are int64 of shape \(22, 1\) in batch 0"),
        (torch.where(Y == 0, 5, Y), r"label 5 in batch 0 is out of range, expected 0..4 for 5 classes"),
        (torch.where(Y == 0, -1, Y), "label -1 in batch 0 is out of range"),
        (torch.where(Y == 0, -100, Y), "label -100 in batch 0 is out of range"),
        (["good"] * COUNT, "labels are .*good.*expected"),
    ],
)
def test_labels_that_do_not_fit(labels: Any, says: str) -> None:
    model, _ = tiny_models.build("bert")
    batch = naive.padded(TEXTS, None, COUNT)[0]
    refused(LabelError, says, model, [batch | ({} if labels is None else {"labels": labels})])


def test_the_batch_with_the_bad_label_is_named() -> None:
    model, _ = tiny_models.build("bert")
    batches = naive.padded(TEXTS, LABELS, 7)
    batches[2]["labels"][3] = tiny_models.CLASSES
    refused(LabelError, "label 5 in batch 2 is out of range", model, batches)
    batches[2].pop("labels")
    refused(LabelError, "batch 2 has no 'labels', as those before it have", model, batches)


@pytest.mark.filterwarnings("ignore:texts are padded on the left")
@pytest.mark.parametrize("name", ["bert tagger", "gpt2"])
@pytest.mark.parametrize("shape", [(3,), (3, 7), (3, 12, 2)])
def test_labels_of_positions_have_the_shape_of_the_tokens(name: str, shape: tuple[int, ...]) -> None:
    model, batch = tiny_models.build(name)
    labels = torch.zeros(shape, dtype=torch.long)
    refused(LabelError, r"labels are .*, expected .*\(3, 12\)", model, [batch | {"labels": labels}])


def test_one_label_a_text_is_not_spread_over_its_tokens() -> None:
    """Three texts of three tokens: (3,) would broadcast against (3, 3)."""
    model, _ = tiny_models.build("bert tagger")
    ids = torch.arange(5, 14).reshape(3, 3)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([0, 1, 2])}
    refused(LabelError, r"labels are .*\(3,\)", model, [batch])


def test_no_label_at_all_is_refused() -> None:
    model, batch = tiny_models.build("bert tagger")
    labels = torch.full_like(batch["input_ids"], -100)
    refused(LabelError, "no position .*label", model, [batch | {"labels": labels}])


@pytest.mark.parametrize(("kind", "says"), [("regression", "a regression head"), ("multi", "a multi-label head")])
@pytest.mark.parametrize("stated", [True, False])
def test_heads_that_choose_no_class(kind: str, says: str, stated: bool) -> None:
    count = 1 if kind == "regression" and not stated else 5
    problem = {"regression": "regression", "multi": "multi_label_classification"}[kind] if stated else None
    config = transformers.BertConfig(
        **tiny_models._USUAL, **tiny_models._SPECIAL, num_labels=count, problem_type=problem
    )
    model = transformers.BertForSequenceClassification(config).eval()
    labels = torch.rand(3) if kind == "regression" else torch.ones(3, 5)
    batches = [tiny_models.text() | {"labels": labels}, tiny_models.text() | {"labels": labels}]
    refused(UnsupportedHead, f"{says}, .*one class for each answer.*readout=None, --readout none", model, batches)
    assert np.isfinite(trace(model, batches, readout=None).similarity["cosine"]).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("batch", [0, 2])
@pytest.mark.parametrize("measures", [["cka"], []])
def test_states_that_are_not_finite(value: float, batch: int, measures: list[str]) -> None:
    x = X.clone().clamp(-0.5, 0.5)
    x[batch * 5 + 1, 0] = 4.0
    batches = list(zip(x.split(5), Y.split(5), strict=True))
    model = TouchyModel().eval()
    model.trunk[1].value = value
    says = f"own answer is NaN in batch {batch}, and the state not finite from depth 2 on; .*this one is float32."
    refused(NonFiniteStates, says, model, batches, measures=measures)


def test_readouts_that_are_not_finite() -> None:
    model = nobodys()
    model.last.register_forward_hook(lambda _, args, logits: logits * float("nan"))
    refused(NonFiniteStates, r"the model's own answer is NaN in batch \d; expected finite numbers", model, pairs())


def test_what_stands_at_padding_may_be_anything() -> None:
    """Models may leave NaN where all is masked out; no measure looks there."""
    model, _ = tiny_models.build("bert")
    batches = naive.padded(TEXTS, LABELS, 7)
    expected = trace(model, batches, tokens="mean")

    def spoil(module: Any, args: Any, output: Tensor) -> Tensor:
        mask = batches[at[0]]["attention_mask"][: len(output)]
        return output.masked_fill(mask[..., None] == 0, float("nan"))

    at = [0]

    def numbered() -> Iterator[Any]:
        for at[0], batch in enumerate(batches):
            yield batch

    handle = model.bert.encoder.layer[-1].register_forward_hook(spoil)
    same(trace(model, numbered(), tokens="mean"), expected, tolerance=2e-6)
    handle.remove()


def language_batches(sizes: list[int]) -> list[dict[str, Tensor]]:
    """The same ten texts of three lengths, padded on the right, in batches of these sizes."""
    draw = torch.Generator().manual_seed(0)
    lengths = [12, 5, 9] * 4
    texts = [torch.randint(5, 60, (lengths[index],), generator=draw) for index in range(10)]
    found, start = [], 0
    for size in sizes:
        own = texts[start : start + size]
        longest = max(map(len, own))
        pad = [longest - len(text) for text in own]
        ids = [torch.nn.functional.pad(text, (0, count)) for text, count in zip(own, pad, strict=True)]
        mask = [
            torch.nn.functional.pad(torch.ones_like(text), (0, count)) for text, count in zip(own, pad, strict=True)
        ]
        found.append({"input_ids": torch.stack(ids), "attention_mask": torch.stack(mask)})
        start += size
    return found


def test_some_positions_stand_for_all_in_similarities(tmp_path: Path) -> None:
    """They are rows of the whole trace, as many as asked, whatever the batches; answers are counted everywhere."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=60, n_embd=16, n_layer=2, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config).eval()
    whole = trace(model, language_batches([10]), measures=["cka"], out=tmp_path / "whole", keep_states=True)
    some = trace(model, language_batches([10]), measures=["cka"], positions=6, out=tmp_path / "some", keep_states=True)
    split = trace(
        model, language_batches([3, 1, 6]), positions=6, measures=["cka"], out=tmp_path / "split", keep_states=True
    )
    assert some.states is not None
    assert split.states is not None
    assert whole.states is not None
    assert some.states.groups is not None
    assert np.bincount(some.states.groups).tolist() == [min(6, count) for count in [12, 5, 9, 12, 5, 9, 12, 5, 9, 12]]
    rows, every = (np.concatenate([part.numpy() for part in one.states.chunks(99)]) for one in (some, whole))
    apart = np.concatenate([part.numpy() for part in split.states.chunks(99)])
    np.testing.assert_allclose(rows, apart, atol=1e-5)
    for row, sample in zip(rows, some.states.groups, strict=True):
        own = every[whole.states.groups == sample]
        assert np.abs(own - row).max(1).min() < 1e-6
    assert some.rows is not None
    assert whole.rows is not None
    assert len(some.rows.sample) == len(whole.rows.sample)
    assert any("at most 6 positions of each sample" in note for note in some.notes)
    assert not any("positions of each sample" in note for note in whole.notes)


def test_no_positions_are_none() -> None:
    with pytest.raises(DataError, match="positions is 0, expected at least 1"):
        trace(GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=1)), [], positions=0)


@pytest.mark.parametrize("numbers", [[[9, 7], [8, 12]], [[1, 0], [1, 0]], [[3, 2], None]])
def test_places_of_samples_may_be_of_a_part_of_the_data_or_come_twice(numbers):
    model, _ = tiny_models.build("vit")
    torch.manual_seed(0)
    batches = [{"pixel_values": torch.rand(2, 3, 8, 8), "labels": torch.tensor([1, 0])} for _ in numbers]
    placed = [
        batch if known is None else DataBatch(batch, np.array(known))
        for batch, known in zip(batches, numbers, strict=True)
    ]
    found = trace(model, placed, measures=["cka"])
    assert found.rows.sample.tolist() == [0, 1, 2, 3]
    order = {(9, 8): [1, 2, 0, 3], (1, 1): [1, 0, 3, 2], (3, None): [1, 0, 2, 3]}
    key = tuple(None if known is None else known[0] for known in numbers)
    pixels, labels = (torch.cat([batch[name] for batch in batches])[order[key]] for name in ("pixel_values", "labels"))
    expected = trace(model, [{"pixel_values": pixels, "labels": labels}], measures=["cka"])
    np.testing.assert_array_equal(found.rows.label, expected.rows.label)
    np.testing.assert_allclose(found.rows.cross_entropy, expected.rows.cross_entropy, rtol=1e-5)
    np.testing.assert_allclose(found.similarity["cka"], expected.similarity["cka"], rtol=1e-5)
