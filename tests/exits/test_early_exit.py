"""Early exit against the plainest way: all depths of the whole batch read out, and the first that satisfies taken."""

from __future__ import annotations

import math
from typing import Any

import pytest
import tiny_models
import torch
from exit_models import FOUND, build
from torch import Tensor, nn

from anydepth.core.heads import separate_heads
from anydepth.core.model_io import call_model, model_output, sample_count, samples_of
from anydepth.core.stack import Stack
from anydepth.early_exit.classifier import EarlyExit
from anydepth.errors import DataError, PolicyError, UnsupportedHead
from anydepth.exits.exit_output import ExitOutput
from anydepth.exits.policies import AtDepth, Confidence, Convergence, Entropy, Margin, Patience, Policy

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")

ANSWERS_EACH = ("bert tagger", "bert without a head", "clip text", "clip vision", *tiny_models.DECODERS)
CLASSIFIERS = [name for name in tiny_models.CASES if name not in ANSWERS_EACH]
NEVER = Patience(1000)


def readouts(stack: Stack, batch: Any) -> Tensor:
    """(L, B, C), of the whole batch."""
    with torch.no_grad():
        states = stack.states(batch)
        return torch.stack([stack.readout(states[depth], batch, depth=depth) for depth in range(1, stack.depth + 1)])


def naive_scores(policy: Policy, logits: Tensor) -> list[list[float]]:
    """Of each sample at each depth below L, one at a time, by the definitions."""
    found = []
    for sample in range(logits.shape[1]):
        scores, tops = [], []
        for depth in range(logits.shape[0] - 1):
            p = sorted(
                (torch.exp(logits[depth, sample]) / torch.exp(logits[depth, sample]).sum()).tolist(), reverse=True
            )
            tops.append(int(logits[depth, sample].argmax()))
            match policy:
                case Confidence():
                    scores.append(p[0])
                case Margin():
                    scores.append(p[0] - p[1])
                case Entropy():
                    scores.append(sum(one * math.log(one) for one in p) / math.log(len(p)))
                case Patience():
                    run = next((back for back, top in enumerate(tops[::-1]) if top != tops[-1]), len(tops))
                    scores.append(float(run))
        found.append(scores)
    return found


def naive(policy: Policy, logits: Tensor) -> tuple[list[int], Tensor]:
    threshold = -policy.threshold if isinstance(policy, Entropy) else policy.threshold
    depths = [
        next((depth for depth, score in enumerate(scores, 1) if score >= threshold), logits.shape[0])
        for scores in naive_scores(policy, logits)
    ]
    return depths, torch.stack([logits[depth - 1, sample] for sample, depth in enumerate(depths)])


def between(policy: type[Policy], logits: Tensor) -> Policy:
    """A policy of that kind with a threshold that some samples reach early, far from every score."""
    if policy is Patience:
        return Patience(2)
    scores = sorted({score for one in naive_scores(policy(0.5), logits) for score in one})
    middle = len(scores) // 2
    gap = max(range(max(1, middle - 3), min(len(scores), middle + 4)), key=lambda i: scores[i] - scores[i - 1])
    level = (scores[gap] + scores[gap - 1]) / 2
    return policy(-level if policy is Entropy else level)


def same(out: ExitOutput[Tensor], depths: list[int], logits: Tensor) -> None:
    assert out.depth.tolist() == depths
    torch.testing.assert_close(out.logits, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_policy_that_never_fires_is_the_plain_model(name: str) -> None:
    model, batch = build(name)
    with torch.no_grad():
        expected = model_output(call_model(model, batch))[1]
    out = EarlyExit(model, NEVER)(batch)
    torch.testing.assert_close(out.logits, expected, rtol=1e-5, atol=1e-5)
    last = Stack(model).depth
    assert out.depth.tolist() == [last] * 8
    assert out.blocks.tolist() == out.readouts.tolist() == [8] * last


@pytest.mark.parametrize("kind", [Confidence, Margin, Entropy, Patience])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_each_sample_leaves_where_it_would_by_itself(name: str, kind: type[Policy]) -> None:
    model, batch = build(name)
    logits = readouts(Stack(model), batch)
    policy = between(kind, logits)
    depths, expected = naive(policy, logits)
    if kind is not Patience:
        assert len(set(depths)) > 1, "else nobody leaves before another, and this shows nothing"
    exits = EarlyExit(model, policy)
    same(exits(batch), depths, expected)
    # in another order, and in smaller company
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    same(exits(samples_of(batch, order)), [depths[i] for i in order], expected[order])
    for rows in (torch.tensor([5]), torch.tensor([2, 7, 0])):
        same(exits(samples_of(batch, rows)), [depths[i] for i in rows], expected[rows])


@pytest.mark.parametrize("name", ["bert", "modernbert", "vit", "timm vit", "nn.TransformerEncoder", "llama classifier"])
def test_it_really_stops(name: str) -> None:
    """Blocks are counted by hooks, with the samples they are given."""
    model, batch = build(name)
    stack = Stack(model)
    policy = between(Confidence, readouts(stack, batch))
    exits = EarlyExit(model, policy)
    exits(batch)  # what is checked once is checked
    blocks = list(model.get_submodule(stack.path).children())
    seen = [0] * len(blocks)

    def count(index: int) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            seen[index] += len(args[0] if args else kwargs["hidden_states"])

        return hook

    handles = [block.register_forward_pre_hook(count(i), with_kwargs=True) for i, block in enumerate(blocks)]
    out = exits(batch)
    for handle in handles:
        handle.remove()
    assert seen == out.blocks.tolist()
    assert out.blocks.tolist() == [int((out.depth >= depth).sum()) for depth in range(1, len(blocks) + 1)]
    assert sum(seen) < 8 * len(blocks)


@pytest.mark.parametrize("kind", [Confidence, Convergence])
@pytest.mark.parametrize("name", ["bert", "distilbert", "vit", "timm vit", "gpt2 classifier"])
def test_what_is_read_out_and_what_runs_once(name: str, kind: type[Policy], monkeypatch: pytest.MonkeyPatch) -> None:
    """The classifier is given as many samples as are reported; what comes before the blocks runs once for all."""
    model, batch = build(name)
    stack = Stack(model)
    policy = between(Confidence, readouts(stack, batch)) if kind is Confidence else Convergence(-1.0, depths=(1, 3))
    exits = EarlyExit(stack, policy)
    exits(batch)  # what is checked once is checked
    read, embedded = [], []
    stack.classifier(batch).register_forward_hook(lambda module, args, output: read.append(len(output)))
    embedding = next(module for module in model.modules() if isinstance(module, nn.Embedding | nn.Conv2d))
    forward = embedding.forward
    # not a hook: that fires also where the module's answer is kept
    monkeypatch.setattr(embedding, "forward", lambda x: embedded.append(len(x)) or forward(x))
    out = exits(samples_of(batch, torch.arange(8)))  # tensors not seen before
    assert read == [count for count in out.readouts.tolist() if count]
    assert embedded == [8]


def test_one_sample_that_leaves_at_a_depth_costs_one_forward() -> None:
    model, batch = build("vit")
    exits = EarlyExit(model, AtDepth(2))
    exits(batch)
    ran = []
    model.register_forward_hook(lambda *_: ran.append(1))
    out = exits(samples_of(batch, slice(1)))
    assert (len(ran), out.depth.tolist(), out.blocks.tolist()) == (1, [2], [1, 1, 0, 0])


class InPlace(tiny_models.Block):
    def forward(self, x: Tensor) -> Tensor:
        return x.add_(torch.tanh(self.mix(x)))


def test_blocks_that_overwrite_their_input() -> None:
    torch.manual_seed(0)
    model, x = tiny_models.Nobodys(), torch.randn(8, 8)
    model.trunk = nn.ModuleList(InPlace(16) for _ in range(4))
    logits = readouts(Stack(model.eval()), x)
    policy = between(Confidence, logits)
    exits = EarlyExit(model, policy)  # which is to find that out for itself, and in inference mode
    for _ in range(2):
        same(exits(x), *naive(policy, logits))


class Looking(tiny_models.Nobodys):
    """Gives each block the state the first was given; `first` also answers with what cannot be cut down."""

    def __init__(self, extra: Any) -> None:
        super().__init__()
        self.first = Telling(self.first, extra)
        self.trunk = nn.ModuleList(Recalling(block) for block in self.trunk)

    def forward(self, x: Tensor) -> Tensor:
        x = start = self.first(x)[0]
        for block in self.trunk:
            x = block(x, start)
        return self.last(x)


class Telling(nn.Module):
    def __init__(self, inner: nn.Module, extra: Any) -> None:
        super().__init__()
        self.inner, self.extra, self.ran = inner, extra, 0

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        self.ran += 1
        return self.inner(x), self.extra(x)


class Recalling(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, start: Tensor) -> Tensor:
        return self.block(x) + 0.1 * start


@pytest.mark.parametrize(
    ("extra", "is_kept"),
    [
        (lambda x: None, True),
        (lambda x: x[:1].sum() * 0, True),
        (len, False),  # a number for the batch
        (lambda x: torch.zeros(len(x) + 1), False),  # an axis that grows with the batch, and is not its own
        (lambda x: torch.zeros(len(x), len(x)), False),  # nor are two of them
        (lambda x: object(), False),  # nobody knows what is in there
    ],
)
def test_what_cannot_be_cut_down_runs_again(extra: Any, is_kept: bool) -> None:
    torch.manual_seed(0)
    model, x = Looking(extra).eval(), torch.randn(8, 8)
    logits = readouts(Stack(model), x)
    exits = EarlyExit(model, between(Confidence, logits))
    depths, expected = naive(exits.policy, logits)
    exits(x)
    model.first.ran = 0
    same(exits(x.clone()), depths, expected)
    assert (model.first.ran == 1) is is_kept


def test_blocks_after_the_last_departure_do_not_run() -> None:
    model, batch = build("bert")
    out = EarlyExit(model, AtDepth(2))(batch)
    assert (out.blocks.tolist(), out.readouts.tolist()) == ([8, 8, 0, 0], [0, 8, 0, 0])
    assert torch.allclose(out.logits, readouts(Stack(model), batch)[1], atol=1e-5)
    assert EarlyExit(model, AtDepth(4))(batch).depth.tolist() == [4] * 8


def test_only_the_depths_that_are_tested() -> None:
    model, batch = build("vit")
    logits = readouts(Stack(model), batch)
    out = EarlyExit(model, Confidence(0.0, depths=(3,)))(batch)
    same(out, [3] * 8, logits[2])
    assert out.readouts.tolist() == [0, 0, 8, 0]
    assert EarlyExit(model, Confidence(0.0, depths=(4,)))(batch).depth.tolist() == [4] * 8


@pytest.mark.parametrize(("name", "position"), [("bert", 0), ("gpt2 classifier", -1)])
def test_states_that_no_longer_turn(name: str, position: int) -> None:
    model, batch = build(name)
    stack = Stack(model)
    with torch.no_grad():
        states = torch.stack(stack.states(batch)[1:])
    last = batch["attention_mask"].sum(1) - 1 if position else torch.zeros(8).long()
    own = states[:, torch.arange(8), last]
    cosines = nn.functional.cosine_similarity(own[1:-1], own[:-2], dim=2)
    threshold = float(cosines.flatten().sort().values[len(cosines.flatten()) // 2 :][:2].mean())
    depths = [next((depth for depth in (2, 3) if cosines[depth - 2, sample] >= threshold), 4) for sample in range(8)]
    out = EarlyExit(model, Convergence(threshold))(batch)
    assert out.depth.tolist() == depths
    assert len(set(depths)) > 1
    logits = readouts(stack, batch)
    torch.testing.assert_close(out.logits, torch.stack([logits[d - 1, i] for i, d in enumerate(depths)]))
    left = torch.stack([out.blocks[depth - 1] * (out.depth == depth).any() for depth in range(1, 5)])
    assert out.readouts.tolist() == left.tolist(), "nobody is read out where nobody leaves"
    assert int(out.undecided.sum()) == 0


def test_each_depth_by_its_own_head() -> None:
    model, batch = build("bert")
    plain = Stack(model)
    heads = separate_heads(plain.classifier(batch), plain.depth)
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.normal_()
    stack = Stack(model, heads=heads)
    logits = readouts(stack, batch)
    policy = between(Confidence, logits)
    same(EarlyExit(stack, policy)(batch), *naive(policy, logits))


def test_temperatures() -> None:
    model, batch = build("bert")
    logits = readouts(Stack(model), batch)
    cooled = logits / torch.tensor([0.5, 2.0, 1.0, 1.0])[:, None, None]
    policy = between(Confidence, cooled)
    depths, _ = naive(policy, cooled)
    out = EarlyExit(model, Confidence(policy.threshold, temperature={1: 0.5, 2: 2.0}))(batch)
    same(out, depths, torch.stack([logits[depth - 1, i] for i, depth in enumerate(depths)]))


def test_nan_never_leaves() -> None:
    model, batch = build("nobody's")
    with torch.no_grad():
        model.last[1].bias.fill_(float("nan"))
    stack = Stack(model)
    out = EarlyExit(stack, Confidence(0.0))(batch)
    assert out.depth.tolist() == [5] * 8
    assert out.undecided.tolist() == [8, 8, 8, 8, 0]


def test_a_training_model_answers_in_eval_mode_and_stays_in_training() -> None:
    model, batch = build("bert")
    expected = EarlyExit(model, NEVER)(batch).logits
    out = EarlyExit(model.train(), NEVER)({**batch, "labels": torch.zeros(8).long()})
    torch.testing.assert_close(out.logits, expected)
    assert all(module.training for module in model.modules())


def test_masks_that_come_and_go() -> None:
    """Without padding some models are given no mask: another kind of batch, another look at its axes."""
    model, batch = build("bert")
    full = {"input_ids": batch["input_ids"].clamp(min=5), "attention_mask": torch.ones_like(batch["attention_mask"])}
    exits = EarlyExit(model, between(Confidence, readouts(Stack(model), batch)))
    for one in (full, batch, full):
        same(exits(one), *naive(exits.policy, readouts(Stack(model), one)))


class Masked(tiny_models.Nobodys):
    """Gives its blocks one mask for all where all are alike, else one for each sample: of the same number of axes."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.ModuleList(Scaled(block) for block in self.trunk)

    def forward(self, x: Tensor) -> Tensor:
        large = x.abs().amax(1, keepdim=True) > 2
        mask = large.float() if large.any() else torch.zeros(1, 1)
        x = self.first(x)
        for block in self.trunk:
            x = block(x, mask)
        return self.last(x)


class Scaled(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.block(x) * (1 - 0.5 * mask)


def test_one_mask_for_all_and_then_one_for_each() -> None:
    torch.manual_seed(0)
    model, x = Masked().eval(), torch.randn(8, 8).clamp(-1.9, 1.9)
    each = x.clone()
    each[::2, 0] = 3.0
    exits = EarlyExit(model, between(Confidence, readouts(Stack(model), x)))
    for one in (x, each, x):
        same(exits(one), *naive(exits.policy, readouts(Stack(model), one)))


@pytest.mark.filterwarnings("ignore:texts are padded on the left")
@pytest.mark.parametrize("name", ["bert tagger", "gpt2"])
def test_positions_cannot_leave(name: str) -> None:
    model, batch = tiny_models.build(name)
    with pytest.raises(
        UnsupportedHead, match="expected one answer for each sample: positions attend to each other, and cannot"
    ):
        EarlyExit(model, Confidence(0.5))(batch)


class Crowded(tiny_models.Nobodys):
    """Tells its blocks the number of samples, as those do that go by sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.ModuleList(Told(block) for block in self.trunk)

    def forward(self, x: Tensor) -> Tensor:
        count = len(x)
        x = self.first(x)
        for block in self.trunk:
            x = block(x, count)
        return self.last(x)


class Told(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, count: int) -> Tensor:
        return self.block(x.view(count, 16))


def test_blocks_that_are_told_how_many_there_are() -> None:
    torch.manual_seed(0)
    model, x = Crowded().eval(), torch.randn(8, 8)
    logits = readouts(Stack(model), x)
    policy = between(Confidence, logits)
    same(EarlyExit(model, policy)(x), *naive(policy, logits))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Confidence(1.5), "the threshold of Confidence is 1.5, expected 0..1"),
        (lambda: Entropy(-0.1), "the threshold of Entropy is -0.1, expected 0..1"),
        (lambda: Patience(0), "the threshold of Patience is 0, expected 1..inf"),
        (lambda: Margin(float("nan")), "the threshold of Margin is nan, expected 0..1"),
        (lambda: Confidence(0.5, temperature=0), "a temperature is 0, expected a number above 0"),
        (lambda: Confidence(0.5, depths=()), "the tested depths are [], expected some of 1..L"),
        (lambda: Confidence(0.5, depths=(0, 2)), "the tested depths are [0, 2], expected some of 1..L"),
        (
            lambda: EarlyExit(tiny_models.Nobodys(), Confidence(0.5, depths=(6,))),
            "the policy tests depth 6, and the model has 5",
        ),
        (
            lambda: EarlyExit(tiny_models.Nobodys(), AtDepth(6)),
            "the policy exits at depth 6, and the model has 5 blocks",
        ),
        (lambda: AtDepth(0), "the threshold of AtDepth is 0, expected 1..inf"),
    ],
)
def test_what_makes_no_sense(make: Any, message: str) -> None:
    with pytest.raises(PolicyError) as caught:
        make()
    assert str(caught.value).startswith(message)


def test_samples_of_keeps_what_is_not_per_sample() -> None:
    batch = {"input_ids": torch.arange(12).reshape(3, 4), "scale": torch.tensor(2.0), "name": "x"}
    found = samples_of(batch, torch.tensor([2, 0]))
    assert found["input_ids"].tolist() == [[8, 9, 10, 11], [0, 1, 2, 3]]
    assert (found["scale"], found["name"], sample_count(found)) == (torch.tensor(2.0), "x", 2)


# --- as users of torch and transformers expect -----------------------------------------------------------------------


@pytest.fixture
def exits() -> tuple[EarlyExit, dict[str, Tensor]]:
    model, batch = build("bert")
    return EarlyExit(model, Confidence(0.3)), batch


def test_a_batch_is_given_as_one_or_by_names(exits: tuple[EarlyExit, dict[str, Tensor]]) -> None:
    early, batch = exits
    expected = early(batch)
    for out in (early(**batch), early(**batch, labels=torch.zeros(8, dtype=torch.long))):
        assert torch.equal(out.logits, expected.logits)
    with pytest.raises(DataError, match=r"nothing came, expected a batch \(exits\(batch\)\), or its tensors by name"):
        early()
    with pytest.raises(DataError, match="a batch and attention_mask came, expected a batch"):
        early(batch, attention_mask=batch["attention_mask"])


def test_an_output_is_read_as_those_of_transformers(exits: tuple[EarlyExit, dict[str, Tensor]]) -> None:
    early, batch = exits
    out = early(batch)
    names = ["logits", "depth", "blocks", "readouts", "undecided"]
    assert list(out) == list(out.keys()) == names
    assert out["depth"] is out.depth is out[1]
    assert out[0] is out.logits
    assert all(map(torch.equal, out[:2], (out.logits, out.depth)))
    assert list(map(id, out.to_tuple())) == list(map(id, out.values())) == [id(value) for _, value in out.items()]
    assert dict(**out).keys() == set(names)
    _, *rest = out.to_tuple()
    assert len(rest) == len(out) - 1 == 4
    with pytest.raises(KeyError, match="loss"):
        out["loss"]


def test_a_model_is_moved_and_set_to_evaluation(exits: tuple[EarlyExit, dict[str, Tensor]]) -> None:
    early, batch = exits
    model = early.stack.model
    assert (early.device, early.config) == (torch.device("cpu"), model.config)
    model.train()
    assert early.eval() is early
    assert not any(module.training for module in model.modules())
    assert early.train(False) is early
    with pytest.raises(PolicyError, match=r"evaluation mode: train the model itself \(stack.model\)"):
        early.train()
    before = early(batch)
    assert early.to(torch.float64) is early
    assert early(batch).logits.dtype == torch.float64
    assert torch.allclose(early(batch).logits.float(), before.logits, atol=1e-5)
    assert torch.equal(early.to("cpu", torch.float32)(batch).logits, before.logits)
    assert early.to(device="cpu", dtype=torch.float64)(batch).logits.dtype == torch.float64
    with pytest.raises(AttributeError, match="config"):
        EarlyExit(build("nn.TransformerEncoder")[0], Confidence(0.5)).config  # noqa: B018


def test_weights_that_change_between_two_calls_on_one_batch_count(exits: tuple[EarlyExit, dict[str, Tensor]]) -> None:
    early, batch = exits
    before = early(batch).logits
    with torch.no_grad():
        early.stack.model.bert.embeddings.word_embeddings.weight.neg_()
    after = early(batch).logits
    assert not torch.allclose(after, before)
    assert torch.equal(after, early({name: values.clone() for name, values in batch.items()}).logits)


def test_another_dtype_is_another_model_than_was_calibrated() -> None:
    model, _ = build("bert")
    early = EarlyExit(model, Confidence(0.75), calibration=FOUND)
    assert early.to("cpu").calibration == FOUND
    calibration = early.to(torch.float64).calibration
    assert calibration is not None
    assert calibration.certificate is None
    assert "the model was changed after it was calibrated" in calibration.guarantee


def test_heads_move_with_their_model() -> None:
    model, batch = build("bert")
    stack = Stack(model)
    stack.verify(batch)
    early = EarlyExit(Stack(model, heads=separate_heads(stack.classifier(batch), stack.depth)), Confidence(0.3))
    assert early.to(torch.float64)(batch).logits.dtype == torch.float64
