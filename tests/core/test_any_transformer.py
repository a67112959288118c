"""Axes, masks and blocks that are not where one would look: everything against slow loops over hooks."""

from __future__ import annotations

from typing import Any

import numpy as np
import odd_models
import pytest
import tiny_models
import torch
import transformers
from torch import Tensor, nn

import anydepth as ad
from anydepth.core.model_io import samples_of
from anydepth.core.stack import Stack
from anydepth.errors import DataError, ReadoutMismatch, TruncationError, UnknownArchitecture

# torch says so of its own nn.TransformerEncoder
pytestmark = [
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
    pytest.mark.filterwarnings("ignore:enable_nested_tensor is True"),
]


@pytest.mark.parametrize("name", odd_models.CASES)
@torch.no_grad()
def test_states_and_readouts_are_those_of_a_slow_loop(name: str) -> None:
    model, batch, case = odd_models.build(name)
    plain = odd_models.run(model, batch)
    stack = Stack(model, **case.settings)
    expected = odd_models.slow_states(model, batch, case)
    states, answer = stack.forward(batch)
    assert torch.equal(answer, plain), "the model's own answer, to the last bit"
    assert stack.depth == len(states) - 1 == len(expected) - 1
    for state, other in zip(states, expected, strict=True):
        torch.testing.assert_close(state, other, rtol=0, atol=0)
    for depth in range(1, stack.depth + 1):
        for _ in range(2):  # what was kept of before the blocks is not used up
            early = stack.readout(states[depth], batch)
            torch.testing.assert_close(early, odd_models.slow_readout(model, batch, case, depth), rtol=1e-5, atol=1e-5)
    fresh = Stack(model, **case.settings)
    fresh.verify(batch)
    torch.testing.assert_close(fresh.readout(states[1], batch), stack.readout(states[1], batch))


@pytest.mark.parametrize("name", odd_models.CASES)
@torch.no_grad()
def test_padding_is_what_the_mask_of_these_states_says(name: str) -> None:
    model, batch, case = odd_models.build(name)
    stack = Stack(model, **case.settings)
    states = stack.states(batch)
    expected = torch.ones(states[0].shape[0], states[0].shape[1] if states[0].ndim == 3 else 1, dtype=torch.bool)
    if case.valid is not None:
        expected = case.valid(batch)
    assert torch.equal(stack.valid_positions(batch, states[0]), expected)


@pytest.mark.parametrize("name", odd_models.CASES)
@torch.no_grad()
def test_replay_is_the_forward_block_by_block(name: str) -> None:
    model, batch, case = odd_models.build(name)
    stack = Stack(model, **case.settings)
    states, replay = stack.states(batch), stack.replay(batch)
    state = replay.state
    for depth in range(1, stack.depth + 1):
        state = replay.step(state, depth)
        torch.testing.assert_close(state, states[depth], rtol=1e-5, atol=1e-5)


CLASSIFIERS = ["sequence first", "writes to its embedding", "grid", "channels first", "attributes", "plain list"]
CLASSIFIERS += ["shared", "two classes", "one sequential", "t5 classifier", "albert", "frames", "choices"]


@pytest.mark.parametrize("name", CLASSIFIERS)
@torch.no_grad()
def test_samples_exit_where_their_own_readout_says(name: str) -> None:
    model, batch, case = odd_models.build(name)
    batch = samples_of(batch, torch.tensor([0, 1, 2, 0, 1]))
    last = len(odd_models.slow_states(model, batch, case)) - 1
    tested = tuple(range(1, last))
    readouts = torch.stack([odd_models.slow_readout(model, batch, case, depth) for depth in (*tested, last)])
    confidence = readouts.softmax(2).amax(2)
    values = confidence[:-1].max(0).values.unique()
    threshold = float(values[:2].mean())  # between two of them: one sample stays
    out = ad.EarlyExit(model, ad.Confidence(threshold, depths=tested))(batch)
    exits = [next((at for at in range(last - 1) if confidence[at, row] >= threshold), last - 1) for row in range(5)]
    assert len(set(exits)) > 1, "some exit, and some do not"
    assert out.depth.tolist() == [at + 1 for at in exits]
    torch.testing.assert_close(out.logits, readouts[exits, range(5)], rtol=1e-5, atol=1e-5)


def test_a_trace_of_a_model_with_the_sequence_first_counts_samples() -> None:
    model, _, case = odd_models.build("sequence first")
    data = [
        {"input_ids": torch.randint(99, (8, length)), "labels": torch.randint(5, (8,))} for length in (8, 6, 9)
    ]  # one batch has as many tokens as samples
    trace = ad.trace(model, data, measures=["cka"])
    assert trace.provenance["samples"] == 24
    right, rows = [], [[] for _ in range(5)]
    for batch in data:
        inputs = {"input_ids": batch["input_ids"]}
        right += (odd_models.slow_readout(model, inputs, case, 4).argmax(1) == batch["labels"]).tolist()
        for depth, state in enumerate(odd_models.slow_states(model, inputs, case)):
            rows[depth].append(state.mean(1))
    assert trace.accuracy[-1] == pytest.approx(np.mean(right))
    own = ad.trace_states([torch.cat(each) for each in rows], measures=["cka"])
    if trace.provenance["tokens"] == "mean":
        np.testing.assert_allclose(trace.similarity["cka"], own.similarity["cka"], atol=1e-5)


@pytest.mark.parametrize(("stack", "depths"), [("decoder", 4), ("encoder", 4)])
def test_a_trace_of_either_stack_of_an_encoder_decoder(stack: str, depths: int) -> None:
    """Answers are the decoder's, states those of the stack."""
    model, batch, _ = odd_models.build("bart")
    case = odd_models.CASES["bart" if stack == "decoder" else "bart encoder"]
    labels = batch["decoder_input_ids"].roll(-1, 1).masked_fill(batch["decoder_attention_mask"] == 0, -100)
    trace = ad.trace(Stack(model, stack=stack), [{**batch, "labels": labels}], measures=["cka"], tokens="each")
    assert trace.depth == depths
    counted = labels != -100
    assert len(trace.rows.sample) == int(counted.sum())
    for depth in range(1, depths + 1):
        read = odd_models.slow_readout(model, batch, case, depth)
        hits = (read.argmax(-1) == labels)[counted].float().mean()
        assert trace.accuracy[depth] == pytest.approx(float(hits))
        nats = nn.functional.cross_entropy(read[counted], labels[counted])
        assert trace.cross_entropy[depth] == pytest.approx(float(nats), rel=1e-5)
    valid = case.valid(batch)
    states = [state[valid] for state in odd_models.slow_states(model, batch, case)]
    np.testing.assert_allclose(
        trace.similarity["cka"], ad.trace_states(states, measures=["cka"]).similarity["cka"], atol=1e-5
    )


@torch.no_grad()
def test_a_choice_is_made_and_trained_at_every_depth() -> None:
    model, batch, _ = odd_models.build("choices")
    labels, mask = torch.tensor([0, 1, 1]), batch["attention_mask"].bool()
    with torch.no_grad():
        hidden = model(**batch, output_hidden_states=True).hidden_states
        logits = [model.classifier(model.bert.pooler(state)).view(3, 2) for state in hidden]
    trace = ad.trace(model, [{**batch, "labels": labels}], measures=["cosine_raw"])
    assert trace.accuracy.tolist() == [float((at.argmax(1) == labels).float().mean()) for at in logits]
    rows = [state.view(3, 2, -1, state.shape[-1]) for state in hidden]
    means = [torch.stack([row[keep].mean(0) for row, keep in zip(at, mask, strict=True)]) for at in rows]
    assert trace.provenance["tokens"] == "mean", "of all texts of a question"
    expected = ad.trace_states(means, measures=["cosine_raw"]).similarity["cosine_raw"]
    np.testing.assert_allclose(trace.similarity["cosine_raw"], expected, atol=1e-5)
    loss = ad.AlignedLoss()(Stack(model), {**batch, "labels": labels}, step=0)
    losses = torch.stack([nn.functional.cross_entropy(at, labels) for at in logits[1:]])
    torch.testing.assert_close(loss.by_depth.detach(), losses, rtol=1e-5, atol=1e-6)
    cut = ad.truncate(model, 2, batch=batch)
    torch.testing.assert_close(cut(**batch).logits, logits[2], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_the_number_of_choices_may_differ_between_batches_but_not_appear_later() -> None:
    model, batch, _ = odd_models.build("choices")
    more = {name: torch.cat([value, value[:, :1]], dim=1) for name, value in batch.items()}
    stack = Stack(model)
    stack.verify(batch)
    states = stack.states(more)
    assert torch.equal(stack.valid_positions(more, states[0]), more["attention_mask"].flatten(1).bool())
    torch.testing.assert_close(stack.readout(states[-1], more), model(**more).logits)
    one = Stack(model)
    one.verify({name: value[:, :1] for name, value in batch.items()})
    with pytest.raises(UnknownArchitecture, match="have 6 rows for 3 samples, and had one for each"):
        one.states(batch)


def test_labels_become_what_a_decoder_is_given() -> None:
    model, batch, _ = odd_models.build("t5")
    labels = batch["decoder_input_ids"].masked_fill(batch["decoder_attention_mask"] == 0, -100)
    only = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    trace = ad.trace(model, [{**only, "labels": labels}], measures=["cka"])
    logits = model(**only, labels=labels).logits
    counted = labels != -100
    assert trace.accuracy[-1] == pytest.approx(float((logits.argmax(-1) == labels)[counted].float().mean()))


def test_a_decoder_without_a_mask_ends_where_padding_follows() -> None:
    model, batch, _ = odd_models.build("bart")
    given = {name: value for name, value in batch.items() if name != "decoder_attention_mask"}
    with torch.no_grad():
        stack = Stack(model)
        valid = stack.valid_positions(given, stack.states(given)[0])
    assert torch.equal(valid, batch["decoder_attention_mask"].bool())


def test_a_shared_block_cannot_be_cut_or_given_heads() -> None:
    model, batch, _ = odd_models.build("albert")
    with pytest.raises(TruncationError, match="a depth is a call"):
        ad.truncate(model, 2, batch=batch)


class Interleaved(odd_models.Frames):
    """The first frames of all videos, then the second ones."""

    rows = "by frame"


class Framewise(odd_models.Frames):
    """An answer for each frame, not for each video."""

    def answer(self, logits: Tensor) -> Tensor:
        return logits.flatten(0, 1)


class Attending(tiny_models.Nobodys):
    """Samples see each other."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.trunk:
            x = block(x)
        return self.last(x)


class Mean(tiny_models.Block):
    def forward(self, x: Tensor) -> Tensor:
        return x + x.mean(0, keepdim=True)


def attending() -> nn.Module:
    model = Attending()
    model.trunk = nn.ModuleList(Mean(16) for _ in range(3))
    return model


class Random(tiny_models.Nobodys):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + torch.randn_like(x))


class OutOfTurn(nn.Module):
    """Lists of parts, the first of which are all called before the second ones."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)]) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for part in (0, 1):
            for layer in self.layers:
                x = x + layer[part](x)
        return x


@pytest.mark.parametrize(
    ("model", "batch", "error", "says"),
    [
        (Interleaved, lambda: torch.randn(4, 6, 8), UnknownArchitecture, "6 rows for each .* one after the other"),
        (Framewise, lambda: torch.randn(4, 6, 8), UnknownArchitecture, "12 rows for 2 samples, expected one answer"),
        (attending, lambda: torch.randn(4, 8), ReadoutMismatch, "replay law .*samples of a batch affect each other"),
        (Random, lambda: torch.randn(4, 8), ReadoutMismatch, "plain law .*from one call to the next"),
        (
            OutOfTurn,
            lambda: torch.randn(4, 8),
            UnknownArchitecture,
            "its members are lists, whose parts",
        ),
    ],
)
def test_what_is_refused_says_what_was_seen(model: Any, batch: Any, error: type[Exception], says: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(error, match=says) as caught:
        Stack(model().eval()).verify(batch())
    assert "\n" not in str(caught.value)


def test_a_cache_that_changes_the_answer_is_named() -> None:
    """FSMT looks at all places at once while its cache is on: its own answer then is another."""
    config = transformers.FSMTConfig(
        langs=["en", "de"],
        src_vocab_size=99,
        tgt_vocab_size=99,
        d_model=32,
        max_position_embeddings=40,
        **odd_models.SIDES,
    )
    torch.manual_seed(0)
    model = transformers.FSMTForConditionalGeneration(config).eval()
    batch = tiny_models.text() | odd_models.decoded()
    with torch.no_grad():
        on, off = model(**batch).logits, model(**batch, use_cache=False).logits
        if torch.allclose(on, off, atol=1e-5):
            pytest.fail("FSMT answers alike with and without its cache: this test no longer shows anything")
        with pytest.raises(ReadoutMismatch, match="plain law .*without its caches"):
            Stack(model).verify(batch)
        model.config.use_cache = False
        answer = Stack(model).forward(batch)[1]
    assert torch.equal(answer, off)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing:FutureWarning")  # peft's own call
def test_prompt_tuning_is_refused_for_what_it_is() -> None:
    peft = pytest.importorskip("peft")
    model, batch = tiny_models.build("bert")
    prompted = peft.get_peft_model(model, peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)).eval()
    stack = Stack(prompted)
    with torch.no_grad():
        states = stack.states(batch)
        with pytest.raises(DataError, match="3 virtual tokens before the 12 of the batch"):
            stack.valid_positions(batch, states[0])


@pytest.mark.parametrize("what", ["model", "wrapper", "inner"])
@torch.no_grad()
def test_compiled_models_run_as_written(what: str) -> None:
    model, batch, case = odd_models.build("grid")
    expected = odd_models.slow_states(model, batch, case)
    if what == "model":
        model.compile(backend="eager")
    elif what == "inner":
        model.head.compile(backend="eager")
    compiled = torch.compile(model, backend="eager") if what == "wrapper" else model
    stack = Stack(compiled)
    for state, other in zip(stack.states(batch), expected, strict=True):
        torch.testing.assert_close(state, other)
    torch.testing.assert_close(
        stack.readout(expected[2], batch), odd_models.slow_readout(odd_models.build("grid")[0], batch, case, 2)
    )
