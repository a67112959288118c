"""Models whose blocks run in several stages: states, readouts, exits and cuts against slow loops over hooks."""

from __future__ import annotations

from pathlib import Path

import odd_models
import pytest
import staged_models
import torch
import transformers
from staged_models import Staged
from torch import Tensor, nn

import anydepth as ad
from anydepth.core.heads import separate_heads
from anydepth.core.stack import Stack
from anydepth.errors import ObjectiveError, PolicyError, TruncationError, UnknownArchitecture, UnsupportedHead


@pytest.mark.parametrize("name", staged_models.CASES)
@torch.no_grad()
def test_states_and_readouts_are_those_of_a_slow_loop(name: str) -> None:
    model, batch, case = staged_models.build(name)
    plain = odd_models.run(model, batch)
    expected = odd_models.slow_states(model, batch, case)
    stack = Stack(model, **case.settings)
    states, answer = stack.forward(batch)
    assert torch.equal(answer, plain), "the model's own answer, to the last bit"
    assert tuple(stack.stages.values()) == case.firsts
    assert stack.depth == len(states) - 1 == len(expected) - 1
    assert list(stack.blocks) == list(case.blocks(model))
    for state, other in zip(states, expected, strict=True):
        assert torch.equal(state, other)
    assert stack.first_readout == case.firsts[-1]
    for depth in range(case.firsts[-1], stack.depth + 1):
        for _ in range(2):
            early = stack.readout(states[depth], batch, depth=depth)
            torch.testing.assert_close(early, odd_models.slow_readout(model, batch, case, depth), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["swin", "bart"])
@torch.no_grad()
def test_a_state_of_an_earlier_stage_cannot_be_read_out(name: str) -> None:
    model, batch, case = staged_models.build(name)
    stack = Stack(model, **case.settings)
    states = stack.states(batch)
    first = case.firsts[-1]
    with pytest.raises(UnsupportedHead, match=rf"has a readout from depth {first} on, .* the state is of depth 1"):
        stack.readout(states[1], batch, depth=1)
    with pytest.raises(UnsupportedHead, match="the state is of an unknown depth: give depth"):
        stack.readout(states[-1], batch)
    with pytest.raises(UnsupportedHead, match="a head for each depth needs one at every depth"):
        Stack(model, **case.settings, heads=separate_heads(nn.Linear(2, 2), stack.depth)).verify(batch)


@pytest.mark.parametrize("name", ["swin", "hiera", "timm hiera", "timm convnext"])
@torch.no_grad()
def test_the_blocks_of_the_last_stage_replay_and_cut(name: str) -> None:
    model, batch, case = staged_models.build(name)
    stack = Stack(model)
    states, replay = stack.states(batch), stack.replay(batch)
    state = replay.state
    for depth in range(case.entry + 1, stack.depth + 1):
        state = replay.step(state, depth)
        torch.testing.assert_close(state, states[depth], rtol=1e-5, atol=1e-5)
        with stack.cut(depth, batch):
            answer = odd_models.run(model, batch)
        torch.testing.assert_close(answer, odd_models.slow_readout(model, batch, case, depth), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["swin", "hiera", "segformer", "timm swin", "timm hiera", "timm convnext"])
@torch.no_grad()
def test_samples_exit_in_the_last_stage_where_their_own_readout_says(name: str) -> None:
    model, batch, case = staged_models.build(name)
    stack = Stack(model)
    stack.verify(batch)
    tested = tuple(range(case.entry + 1, stack.depth))
    readouts = {depth: odd_models.slow_readout(model, batch, case, depth) for depth in (*tested, stack.depth)}
    sure = {depth: readouts[depth].softmax(1).amax(1) for depth in tested}
    threshold = float(torch.stack(list(sure.values())).amax(0).sort().values[1:3].mean())
    exits = ad.EarlyExit(stack, ad.Confidence(threshold))
    out = exits(batch)
    assert exits.tested == tested
    expected = [next((d for d in tested if sure[d][row] >= threshold), stack.depth) for row in range(5)]
    assert len(set(expected)) > 1
    assert out.depth.tolist() == expected
    torch.testing.assert_close(
        out.logits, torch.stack([readouts[depth][row] for row, depth in enumerate(expected)]), rtol=1e-5, atol=1e-5
    )
    assert out.blocks.tolist() == [sum(depth >= block for depth in expected) for block in range(1, stack.depth + 1)]
    with pytest.raises(PolicyError, match=rf"tests depth 1, .* may exit from depth {case.entry + 1} on"):
        ad.EarlyExit(stack, ad.Confidence(0.9, depths=(1,)))(batch)


@pytest.mark.parametrize("name", ["swin", "hiera"])
def test_an_early_exit_is_loaded_again(name: str, tmp_path: Path) -> None:
    model, batch, _ = staged_models.build(name)
    exits = ad.EarlyExit(model, ad.Confidence(0.3))
    before = exits(batch)
    again = ad.EarlyExit.load(exits.save(tmp_path / "exits"))
    out = again(batch)
    assert again.stack.stages == exits.stack.stages
    assert torch.equal(out.depth, before.depth)
    torch.testing.assert_close(out.logits, before.logits)


@torch.no_grad()
def slow_loss(model: nn.Module, batch: dict[str, Tensor], labels: Tensor, case: Staged, depth: int) -> Tensor:
    logits = odd_models.slow_readout(model, batch, case, depth)
    return nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten())


@pytest.mark.parametrize("name", ["swin", "hiera", "bart"])
def test_training_reaches_every_depth_of_the_last_stage(name: str) -> None:
    model, batch, case = staged_models.build(name)
    labels = torch.arange(5) % 5 if name != "bart" else torch.randint(5, 99, (3, 12))
    depths = range(case.entry + 1, len(odd_models.slow_states(model, batch, case)))
    nats = [float(slow_loss(model, batch, labels, case, depth)) for depth in depths]
    stack, loss = Stack(model, **case.settings), ad.AlignedLoss()
    result = loss(stack, {**batch, "labels": labels})
    assert result.by_depth[: case.entry].isnan().all()
    torch.testing.assert_close(result.by_depth[case.entry :], torch.tensor(nats), rtol=1e-5, atol=1e-5)
    expected = sum(depth * value for depth, value in zip(depths, nats, strict=True)) / sum(depths)
    assert float(result.loss.detach()) == pytest.approx(expected, rel=1e-5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(6):
        optimizer.zero_grad()
        loss(stack, {**batch, "labels": labels}).loss.backward()
        optimizer.step()
    for depth, before in zip(depths, nats, strict=True):
        assert float(slow_loss(model, batch, labels, case, depth)) < before
    with pytest.raises(ObjectiveError, match=rf"exits are \[1\], expected depths among {case.entry + 1}\.\."):
        ad.AlignedLoss(exits=[1])(stack, {**batch, "labels": labels})


@pytest.mark.parametrize("name", ["swin", "hiera", "segformer", "bart", "t5", "timm hiera"])
@torch.no_grad()
def test_a_cut_last_stage_loads_again_by_its_class_alone(name: str, tmp_path: Path) -> None:
    model, batch, case = staged_models.build(name)
    stack = Stack(model, **case.settings)
    stack.verify(batch)
    depth = stack.depth - 1
    cut = ad.truncate(stack, depth, batch=batch)
    if isinstance(cut, transformers.PreTrainedModel):
        cut.save_pretrained(tmp_path)
        cut, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
        assert not any(report.values()), report
    expected = odd_models.slow_readout(model, batch, case, depth)
    torch.testing.assert_close(odd_models.run(cut.eval(), batch), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(TruncationError, match=rf"depth is {case.entry}, expected {case.entry + 1}\.\.{stack.depth}"):
        ad.truncate(stack, case.entry, batch=batch)


@pytest.mark.parametrize("name", ["hiera", "timm hiera", "t5"])
@torch.no_grad()
def test_stages_are_found_again_by_the_names_that_a_result_states(name: str) -> None:
    model, batch, case = staged_models.build(name)
    stack = Stack(model, **case.settings)
    stack.verify(batch)
    again = Stack(model, blocks=stack.path)
    again.verify(batch)
    assert again.stages == stack.stages
    assert again.entry == stack.entry == case.entry


def test_names_and_stacks_that_are_no_stages_are_refused() -> None:
    model, batch, _ = staged_models.build("swin")
    with pytest.raises(UnknownArchitecture, match="SwinForImageClassification has no decoder"):
        Stack(model, stack="both").verify(batch)
    twice = "swin.encoder.layers.1.blocks, swin.encoder.layers.1.blocks"
    with pytest.raises(UnknownArchitecture, match="runs in stages, and the blocks of .* do not run in turn, once each"):
        Stack(model, blocks=twice).verify(batch)


@torch.no_grad()
def test_a_stage_by_itself_is_a_stack_of_one() -> None:
    model, batch, _ = staged_models.build("swin")
    stages, last = Stack(model), Stack(model, blocks="swin.encoder.layers.2.blocks")
    states = stages.states(batch)
    assert [torch.equal(a, b) for a, b in zip(states[4:], last.states(batch)[1:], strict=True)] == [True] * 3
    assert (last.entry, last.first_readout, last.depth) == (0, 0, 3)


@pytest.mark.parametrize("name", ["bart", "t5", "whisper"])
@torch.no_grad()
def test_each_side_has_its_own_positions(name: str) -> None:
    model, batch, case = staged_models.build(name)
    stack = Stack(model, stack="both")
    valid = stack.valid_at_depths(batch, stack.states(batch))
    sides = [odd_models.CASES[f"{name} encoder"], odd_models.CASES[name]]
    lengths = [state.shape[1] for state in odd_models.slow_states(model, batch, case)]
    own = [torch.ones(3, lengths[0], dtype=torch.bool) if side.valid is None else side.valid(batch) for side in sides]
    assert [torch.equal(positions, own[0]) for positions in valid[: case.entry + 1]] == [True] * (case.entry + 1)
    assert all(torch.equal(positions, own[1]) for positions in valid[case.entry + 1 :])
    assert len(valid) == stack.depth + 1


@torch.no_grad()
def test_a_decoder_that_is_given_the_encoders_text_has_its_mask_one_place_later() -> None:
    torch.manual_seed(0)
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    config = transformers.BartConfig(vocab_size=99, d_model=16, **odd_models.SIDES, **special, num_labels=3)
    model = transformers.BartForSequenceClassification(config).eval()
    ids = torch.randint(5, 99, (3, 8))
    ids[:, -1] = 2
    ids[1, 5:], ids[2, 3:] = torch.tensor([2, 0, 0]), torch.tensor([2, 0, 0, 0, 0])
    batch = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    stack = Stack(model, stack="both")
    valid = stack.valid_at_depths(batch, stack.states(batch))
    assert torch.equal(valid[0], ids != 0)
    given = transformers.models.bart.modeling_bart.shift_tokens_right(ids, 0, 2)
    assert torch.equal(valid[-1], given != 0)


class Stages(nn.Module):
    """Stages of convolutions, of which each can be made as one wants it."""

    def __init__(self, *stages: nn.Module) -> None:
        super().__init__()
        self.stages, self.head = nn.ModuleList(stages), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        return self.head(x.mean((2, 3)))


def conv(before: int, after: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, padding=1), nn.Tanh())


@torch.no_grad()
def test_a_grid_as_long_as_it_has_features_is_told_by_the_other_stages() -> None:
    torch.manual_seed(0)
    first = nn.Sequential(conv(8, 8), conv(8, 8))
    model = Stages(first, nn.Sequential(conv(8, 12, 2), conv(12, 12))).eval()
    x = torch.randn(3, 8, 8, 8)
    assert torch.equal(Stack(model).states(x)[1], first[0](x).flatten(2).transpose(1, 2))
    with pytest.raises(UnknownArchitecture, match="nothing tells their features from a row of positions"):
        Stack(Stages(nn.Sequential(conv(12, 12), conv(12, 12))).eval()).verify(torch.randn(3, 12, 12, 12))


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        ([nn.Sequential(conv(8, 8)), nn.Sequential(conv(8, 12, 2))], r"stages\.1 \(1 x Sequential\) changes the shape"),
        ([nn.Sequential(conv(8, 12, 2), conv(12, 8, 2)), nn.Sequential(conv(8, 12, 1))], "no block that keeps it"),
    ],
)
@torch.no_grad()
def test_a_shape_that_a_block_alone_has_is_refused_by_name(stages: list[nn.Module], says: str) -> None:
    with pytest.raises(UnknownArchitecture, match=says) as caught:
        Stack(Stages(*stages).eval()).verify(torch.randn(3, 8, 9, 9))
    assert "\n" not in str(caught.value)
