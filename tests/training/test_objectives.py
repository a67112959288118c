"""The losses against a loop over readouts written out, in float64, for every architecture we promise."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from typing import Any

import pytest
import tiny_models
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional

from anydepth.core.heads import Heads, separate_heads
from anydepth.core.stack import Stack
from anydepth.errors import LabelError, NonFiniteLoss, ObjectiveError, UnsupportedHead
from anydepth.training import losses as tally
from anydepth.training.depth_weights import sampling, weights_of
from anydepth.training.evaluation import by_sample
from anydepth.training.objectives import DEFAULT, OBJECTIVES, AlignedLoss, objective_named

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")

# A choice among classes, and able to run in float64: Mixtral's experts are not.
TRAINABLE = [
    name for name in tiny_models.CASES if name not in ("mixtral", "clip text", "clip vision", "bert without a head")
]
FEW = ["bert", "vit", "gpt2", "gemma2", "cohere", "bert tagger", "timm vit", "nobody's"]


def exact(name: str) -> tuple[Stack, Any]:
    """A model in float64 with a labelled batch, padded on the right as for training."""
    model, batch = tiny_models.build(name)
    model = model.double()
    if isinstance(batch, dict) and "input_ids" in batch:
        batch = tiny_models.text()
        if name == "gemma2":  # gives NaN itself where a window of 4 sees nothing but padding
            batch["attention_mask"].fill_(1)
    batch = {name: _double(one) for name, one in batch.items()} if isinstance(batch, dict) else _double(batch)
    stack = Stack(model)
    with torch.no_grad():
        answer = stack.forward(batch)[1]
    labels = torch.randint(answer.shape[-1], answer.shape[:-1], generator=torch.Generator().manual_seed(7))
    if answer.ndim == 3:
        labels[batch["attention_mask"] == 0] = -100
    return stack, {**batch, "labels": labels} if isinstance(batch, dict) else (batch, labels)


def _double(one: Tensor) -> Tensor:
    return one.double() if one.is_floating_point() else one


def taken(stack: Stack, batch: Any) -> tuple[Any, Tensor, bool]:
    inputs = {k: v for k, v in batch.items() if k != "labels"} if isinstance(batch, dict) else batch[0]
    labels = batch["labels"] if isinstance(batch, dict) else batch[1]
    return inputs, labels, type(stack.model).__name__.endswith(("CausalLM", "LMHeadModel"))


def rows(logits: Tensor, labels: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """The answers that have a label, and the label of each."""
    if causal:
        logits, labels = logits[:, :-1], labels[:, 1:]
    logits, labels = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
    return logits[labels != -100], labels[labels != -100]


def naive(
    stack: Stack,
    batch: Any,
    weights: Mapping[int, float],
    *,
    smoothing: float = 0.0,
    distillation: float = 0.0,
    items: int | None = None,
) -> Tensor:
    """A loop over `Stack.readout`."""
    inputs, labels, causal = taken(stack, batch)
    states = stack.states(inputs)
    teacher, _ = rows(stack.readout(states[-1], inputs).detach(), labels, causal)
    total = torch.zeros((), dtype=torch.float64)
    for depth, weight in weights.items():
        logits, truth = rows(stack.readout(states[depth], inputs, depth=depth), labels, causal)
        loss = functional.cross_entropy(logits, truth, label_smoothing=smoothing, reduction="sum")
        if distillation and depth < stack.depth:
            log_ratio = teacher.log_softmax(1) - logits.log_softmax(1)
            loss = (1 - distillation) * loss + distillation * (teacher.softmax(1) * log_ratio).sum()
        total = total + weight * loss / (items or len(truth))
    return total


def gradients(stack: Stack, loss: Tensor) -> dict[str, Tensor]:
    named = dict(stack.model.named_parameters())
    if stack.heads is not None:
        named |= {f"heads.{name}": parameter for name, parameter in stack.heads.named_parameters()}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: one for name, one in zip(named, found, strict=True) if one is not None}


def same_gradients(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    for name in one.keys() | other.keys():
        zero = torch.zeros_like(one.get(name, other.get(name)))  # type: ignore[arg-type]
        left, right = one.get(name, zero), other.get(name, zero)
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("vocabulary", [1, 10**9], ids=["large", "small"])
@pytest.mark.parametrize("name", TRAINABLE)
def test_the_aligned_loss_is_a_loop_over_readouts(name: str, vocabulary: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "_VOCABULARY", vocabulary)
    stack, batch = exact(name)
    found = AlignedLoss()(stack, batch)
    depth = stack.depth
    expected = naive(stack, batch, {one: 2 * one / (depth * (depth + 1)) for one in range(1, depth + 1)})
    torch.testing.assert_close(found.loss, expected, rtol=1e-10, atol=0)
    same_gradients(gradients(stack, found.loss), gradients(stack, expected))
    assert found.by_depth.shape == found.accuracy.shape == (depth,)
    for one in range(1, depth + 1):
        alone = naive(stack, batch, {one: 1.0})
        assert float(found.by_depth[one - 1]) == pytest.approx(float(alone.detach()), rel=1e-5)


SETTINGS = {
    "uniform": {"weights": "uniform"},
    "additive": {"weights": "additive"},
    "given": {"weights": [0.3, 2, 0], "exits": [3, 1, 4]},
    "function": {"weights": lambda one, depth: one**2 / depth},
    "mixture": {"schedule": "mixture"},
    "sampled": {"exits": "sampled"},
    "smoothed": {"label_smoothing": 0.2},
    "distilled": {"distillation": 0.4},
    "both": {"distillation": 0.4, "label_smoothing": 0.2},
}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("vocabulary", [1, 10**9], ids=["large", "small"])
@pytest.mark.parametrize("name", FEW)
def test_every_setting(name: str, vocabulary: int, settings: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "_VOCABULARY", vocabulary)
    stack, batch = exact(name)
    loss = AlignedLoss(**SETTINGS[settings])
    for step, items in ((0, None), (1, 37)):
        found = loss(stack, batch, step=step, items=items)
        expected = naive(
            stack,
            batch,
            loss.plan(step, stack.depth),
            smoothing=float(loss.label_smoothing),
            distillation=float(loss.distillation),
            items=items,
        )
        torch.testing.assert_close(found.loss, expected, rtol=1e-10, atol=0)
        same_gradients(gradients(stack, found.loss), gradients(stack, expected))


@pytest.mark.parametrize("vocabulary", [1, 10**9], ids=["large", "small"])
@pytest.mark.parametrize("name", ["bert", "gpt2", "gemma2", "vit"])
def test_heads_have_their_own_gradients(name: str, vocabulary: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "_VOCABULARY", vocabulary)
    stack, batch = exact(name)
    heads = separate_heads(stack.classifier(taken(stack, batch)[0]), stack.depth)
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    stack = Stack(stack.model, heads=heads)
    found, expected = AlignedLoss()(stack, batch), naive(stack, batch, AlignedLoss().plan(0, stack.depth))
    torch.testing.assert_close(found.loss, expected, rtol=1e-10, atol=0)
    mine = gradients(stack, found.loss)
    same_gradients(mine, gradients(stack, expected))
    assert sum(name.startswith("heads.") for name in mine) == len(list(heads.parameters()))
    shared = gradients(Stack(stack.model), AlignedLoss()(Stack(stack.model), batch).loss)
    assert not torch.allclose(mine["heads.1.weight"], torch.zeros(()).double())
    assert shared.keys() < mine.keys()


class Twice(nn.Linear):
    """A linear map by its class, and more than that."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("vocabulary", [1, 10**9], ids=["large", "small"])
def test_heads_may_be_any_module(vocabulary: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A norm before the map, a map that is more than its weights, a plain one: each as it reads itself."""
    monkeypatch.setattr(tally, "_VOCABULARY", vocabulary)
    stack, batch = exact("gpt2")
    width, classes = tiny_models.WIDTH, tiny_models.VOCABULARY
    own = [nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes)), Twice(width, classes)]
    stack = Stack(stack.model, heads=Heads([*own, nn.Linear(width, classes)]).double())
    for settings in ({}, {"label_smoothing": 0.2, "distillation": 0.4}):
        found = AlignedLoss(**settings)(stack, batch)
        smoothing, distillation = settings.get("label_smoothing", 0.0), settings.get("distillation", 0.0)
        plan = AlignedLoss().plan(0, stack.depth)
        expected = naive(stack, batch, plan, smoothing=smoothing, distillation=distillation)
        torch.testing.assert_close(found.loss, expected, rtol=1e-10, atol=0)
        same_gradients(gradients(stack, found.loss), gradients(stack, expected))
        assert found.accuracy.isfinite().all()


@pytest.mark.parametrize("vocabulary", [1, 10**9], ids=["large", "small"])
@pytest.mark.parametrize("head", [nn.Linear, Twice])
def test_heads_for_other_classes(head: type[nn.Linear], vocabulary: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "_VOCABULARY", vocabulary)
    stack, batch = exact("gpt2")
    stack = Stack(stack.model, heads=Heads(head(tiny_models.WIDTH, 7) for _ in range(3)).double())
    message = (
        f"the head of depth 1 has 7 classes, expected the model's {tiny_models.VOCABULARY}: give each depth a head for"
    )
    with pytest.raises(UnsupportedHead, match=message):
        AlignedLoss()(stack, batch)


def test_an_encoder_decoder_learns_as_by_its_own_loss_at_every_depth() -> None:
    """The model with fewer blocks in its decoder, asked for its own loss."""
    model, batch = tiny_models.seq2seq()
    stack = Stack(model, blocks="model.decoder.layers")
    found = AlignedLoss()(stack, batch)
    expected = torch.zeros((), dtype=torch.float64)
    for depth in (1, 2, 3):
        shallow = copy.deepcopy(model)
        shallow.model.decoder.layers = shallow.model.decoder.layers[:depth]
        expected = expected + depth / 6 * shallow(**batch).loss.detach()
        _, nats, count = by_sample(stack, batch)[:, depth - 1].double().sum(0).tolist()
        assert nats / count == pytest.approx(shallow(**batch).loss.item(), rel=1e-6)
        assert count == 16
    torch.testing.assert_close(found.loss.detach(), expected, rtol=1e-10, atol=0)
    assert torch.equal(AlignedLoss("final")(stack, batch).loss, model(**batch).loss)


@pytest.mark.parametrize("name", ["bert", "gpt2", "nobody's"])
def test_the_gradient_of_a_sampled_exit_is_unbiased(name: str) -> None:
    """Every draw there is, each times its probability, adds up to the gradient of all exits."""
    stack, batch = exact(name)
    depth, loss = stack.depth, AlignedLoss(exits="sampled")
    weights = weights_of("linear", range(1, depth + 1), depth)
    shares = sampling(weights, depth)
    first_step = {
        chosen: next(step for step in itertools.count() if chosen in loss.plan(step, depth)) for chosen in shares
    }
    total: dict[str, Tensor] = {}
    for chosen, step in first_step.items():
        found = loss(stack, batch, step=step)
        assert found.by_depth.isfinite().nonzero()[:, 0].add(1).tolist() == [chosen, depth]
        for key, gradient in gradients(stack, found.loss).items():
            total[key] = total.get(key, torch.zeros_like(gradient)) + shares[chosen] * gradient
    same_gradients(total, gradients(stack, AlignedLoss()(stack, batch).loss))


@pytest.mark.parametrize("name", ["bert", "vit", "gpt2", "bert tagger", "llama", "electra", "gpt2 classifier"])
def test_all_weight_on_the_last_depth_is_the_models_own_loss_to_the_bit(name: str) -> None:
    model, batch = tiny_models.build(name)
    stack, labels = Stack(model), exact(name)[1]["labels"]
    batch = {**(tiny_models.text() if "input_ids" in batch else batch), "labels": labels}
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False  # as Trainer has it: keys that go through a cache round otherwise
    for training in (False, True):
        model.train(training)
        torch.manual_seed(1)
        own = model(**batch).loss
        torch.manual_seed(1)
        found = AlignedLoss("final")(stack, batch)
        assert torch.equal(found.loss, own)
        mine, expected = gradients(stack, found.loss), gradients(stack, own)
        assert mine.keys() == expected.keys()
        assert all(torch.equal(mine[key], expected[key]) for key in mine)
        assert found.by_depth[:-1].isnan().all()
        assert found.accuracy.isfinite().tolist() == [False] * (stack.depth - 1) + [True]


def test_what_alternates() -> None:
    loss = AlignedLoss(schedule="alternating")
    assert [loss.plan(step, 3) for step in (0, 2, 10)] == [{3: 1.0}] * 3
    assert loss.plan(1, 3) == loss.plan(7, 3) == {1: 1 / 6, 2: 2 / 6, 3: 3 / 6}
    assert AlignedLoss(schedule="mixture").plan(0, 3) == loss.expected(3) == {1: 1 / 12, 2: 2 / 12, 3: 3 / 12 + 0.5}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_mean_plan_is_what_is_expected(name: str) -> None:
    """By enumeration of what can be drawn; alternation by its two steps."""
    loss, depth = OBJECTIVES[name].loss, 4
    if loss.exits == "sampled":
        weights = weights_of(loss.weights, range(1, depth + 1), depth)
        total = {depth: weights[depth]}
        for chosen, share in sampling(weights, depth).items():
            step = next(step for step in itertools.count() if chosen in loss.plan(step, depth))
            total[chosen] = share * loss.plan(step, depth)[chosen]
    else:
        plans = [loss.plan(step, depth) for step in (0, 1)]
        total = {one: sum(plan.get(one, 0.0) for plan in plans) / 2 for one in range(1, depth + 1)}
    if loss.cosine:  # the plan weighs distances; cross-entropy is depth L's alone
        total = {depth: 1.0}
    expected = loss.expected(depth)
    assert all(total.get(one, 0.0) == pytest.approx(expected.get(one, 0.0)) for one in range(1, depth + 1))


@pytest.mark.parametrize(("name", "position"), [("bert", 0), ("vit", 0), ("gpt2 classifier", -1)])
def test_the_cosine_regulariser(name: str, position: int) -> None:
    stack, batch = exact(name)
    inputs, _, _ = taken(stack, batch)
    found = AlignedLoss(cosine=0.7)(stack, batch)
    states, depth = stack.states(inputs), stack.depth
    mask = inputs["attention_mask"] if "attention_mask" in inputs else torch.ones(states[0].shape[:2])
    last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
    where = last if position else torch.zeros_like(last)
    own = [state[torch.arange(len(where)), where] for state in states]
    expected = naive(stack, batch, {depth: 1.0})
    for one in range(1, depth):
        apart = 1 - (functional.normalize(own[one]) * functional.normalize(own[depth])).sum(1)
        expected = expected + 0.7 * 2 * one / (depth * (depth + 1)) * apart.mean()
    torch.testing.assert_close(found.loss, expected, rtol=1e-10, atol=0)
    same_gradients(gradients(stack, found.loss), gradients(stack, expected))
    assert found.by_depth.isfinite().sum() == 1, "it looks at no shallow readout"


@pytest.mark.parametrize("name", ["bert", "gpt2", "bert tagger", "nobody's"])
def test_by_sample(name: str) -> None:
    stack, batch = exact(name)
    inputs, labels, causal = taken(stack, batch)
    found = by_sample(stack, batch)
    with torch.no_grad():
        states = stack.states(inputs)
        for depth in range(1, stack.depth + 1):
            logits = stack.readout(states[depth], inputs)
            for sample in range(len(labels)):
                own, truth = rows(logits[sample][None], labels[sample][None], causal)
                right, nats, count = found[sample, depth - 1].tolist()
                assert count == len(truth)
                assert right == (own.argmax(1) == truth).sum()
                assert nats == pytest.approx(float(functional.cross_entropy(own, truth, reduction="sum")), rel=1e-5)


def test_a_language_model_is_asked_its_own_tokens() -> None:
    stack, batch = exact("gpt2")
    bare = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    labels = bare["input_ids"].masked_fill(bare["attention_mask"] == 0, -100)
    assert torch.equal(AlignedLoss()(stack, bare).loss, AlignedLoss()(stack, {**bare, "labels": labels}).loss)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
def test_gradient_checkpointing_changes_nothing() -> None:
    stack, batch = exact("gpt2")
    plain = gradients(stack, AlignedLoss()(stack, batch).loss)
    stack.model.train()
    for module in stack.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    stack.model.gradient_checkpointing_enable({"use_reentrant": False})
    same_gradients(plain, gradients(stack, AlignedLoss()(stack, batch).loss))


def test_the_model_is_left_as_it_was() -> None:
    stack, batch = exact("bert")
    before = {name: dict(module.__dict__["_modules"]) for name, module in stack.model.named_modules()}
    weights = copy.deepcopy(stack.model.state_dict())
    AlignedLoss(distillation=0.5)(stack, batch).loss.backward()
    assert {name: dict(module.__dict__["_modules"]) for name, module in stack.model.named_modules()} == before
    assert all("forward" not in module.__dict__ for module in stack.model.modules())
    assert all(torch.equal(weights[name], now) for name, now in stack.model.state_dict().items())


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "sometimes"}, "unknown schedule 'sometimes', expected one of every, alternating, mixture"),
        ({"exits": "some"}, "exits are 'some', expected 'all', 'sampled', or the depths to train"),
        ({"distillation": 1.5}, "distillation is 1.5, expected a number from 0 to 1"),
        ({"label_smoothing": float("nan")}, "label_smoothing is nan, expected a number from 0 to 1"),
        ({"cosine": -1}, "cosine is -1, expected a number from 0 on"),
        ({"cosine": float("inf")}, "cosine is inf, expected a number from 0 on"),
        (
            {"cosine": 1.0, "distillation": 0.5},
            "cosine is 1.0 and distillation 0.5, expected one of them: with cosine the shallow depths have no readout "
            "that could imitate depth L",
        ),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ObjectiveError) as caught:
        AlignedLoss(**settings)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": [1, 2]}, "there are 2 weights for 4 exits, expected one for each"),
        ({"exits": [2, 9]}, "exits are [2, 9], expected depths among 1..4, each once"),
    ],
)
def test_settings_that_do_not_fit_the_model(settings: dict[str, Any], message: str) -> None:
    stack, batch = exact("bert")
    with pytest.raises(ObjectiveError) as caught:
        AlignedLoss(**settings)(stack, batch)
    assert str(caught.value) == message


def test_labels() -> None:
    stack, batch = exact("bert")

    def message(labels: Tensor | None) -> str:
        given = {**batch, "labels": labels} if labels is not None else {k: batch[k] for k in batch if k != "labels"}
        with pytest.raises(LabelError) as caught:
            AlignedLoss()(stack, given)
        return str(caught.value)

    assert message(None) == "the batch has no 'labels', expected one class for each answer of the model"
    assert message(torch.tensor([0, 5, 1])) == "label 5 is out of range, expected 0..4 for 5 classes"
    assert message(torch.tensor([0, -1, 1])) == "label -1 is out of range, expected 0..4 for 5 classes"
    assert message(torch.rand(3)) == "labels are float32 of shape (3,), expected whole numbers: (3,)"
    assert message(torch.zeros(4).long()) == "labels are int64 of shape (4,), expected whole numbers: (3,)"


def test_models_that_choose_no_class() -> None:
    model, batch = tiny_models.build("bert without a head")
    with pytest.raises(UnsupportedHead, match="expected a classifier or a language model"):
        AlignedLoss()(Stack(model), {**batch, "labels": torch.zeros(3).long()})
    config = copy.deepcopy(tiny_models.build("bert")[0].config)
    config.problem_type = "regression"
    model = transformers.BertForSequenceClassification(config)
    message = "BertForSequenceClassification has a regression head, expected one class for each answer; train it with"
    with pytest.raises(UnsupportedHead, match=message):
        AlignedLoss()(Stack(model), {**batch, "labels": torch.rand(3)})


def test_a_frozen_classifier() -> None:
    stack, batch = exact("bert")
    stack.model.classifier.requires_grad_(False)
    with pytest.raises(ObjectiveError, match="the classifier of BertForSequenceClassification is frozen, but is to"):
        AlignedLoss()(stack, batch)
    assert AlignedLoss("final")(stack, batch).loss.requires_grad
    stack.model.requires_grad_(False)
    with pytest.raises(ObjectiveError, match="the loss of BertForSequenceClassification has no gradient: every param"):
        AlignedLoss("final")(stack, batch)
    with torch.no_grad():
        assert not AlignedLoss()(stack, batch).loss.requires_grad


class Detached(tiny_models.Nobodys):
    """A tail that lets no gradient through."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.trunk:
            x = block(x)
        with torch.no_grad():
            return self.last(x)


def test_a_readout_without_gradient() -> None:
    batch = (torch.randn(3, 8), torch.tensor([0, 1, 2]))
    with pytest.raises(ObjectiveError, match="the readout at depth 1 has no gradient, though its state has: what fol"):
        AlignedLoss()(Stack(Detached()), batch)


@pytest.mark.parametrize("vocabulary", [1, 10**9], ids=["large", "small"])
@pytest.mark.parametrize("depth", [2, 4])
def test_a_loss_that_is_nan_names_depth_and_step(depth: int, vocabulary: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "_VOCABULARY", vocabulary)
    stack, batch = exact("gpt2")
    stack.verify({name: batch[name] for name in ("input_ids", "attention_mask")})
    with torch.no_grad():
        stack.model.transformer.h[depth - 1].mlp.c_proj.bias[0] = float("nan")
    with pytest.raises(
        NonFiniteLoss, match=f"the loss at depth {depth} is nan at optimizer step 17; expected a finite"
    ):
        AlignedLoss()(stack, batch, step=17)


def test_names() -> None:
    assert objective_named(DEFAULT) is OBJECTIVES[DEFAULT]
    assert all(name == objective.name and objective.purpose.endswith(".") for name, objective in OBJECTIVES.items())
    with pytest.raises(ObjectiveError, match="unknown objective 'sampeld', .*: did you mean sampled?"):
        objective_named("sampeld")
    with pytest.raises(ObjectiveError, match=r"unknown objective 'zzz', expected one of standard, .*heads$"):
        objective_named("zzz")
