from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import tiny_models
import torch
import transformers
from torch import Tensor, nn

from anydepth.core.model_io import first_samples, split_batch
from anydepth.core.patching import evaluating
from anydepth.core.stack import Stack
from anydepth.errors import ReadoutMismatch, UnknownArchitecture

# torch says so of its own nn.TransformerEncoder whenever a batch has padding
pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")


def answer(output: Any) -> Tensor:
    """The model's answer, picked by hand."""
    for name in ("logits", "image_embeds", "text_embeds", "pooler_output"):
        if getattr(output, name, None) is not None:
            return getattr(output, name)
    return output


def run(model: nn.Module, batch: Any) -> Tensor:
    return answer(model(**batch) if isinstance(batch, dict) else model(batch))


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Nothing about the model differs afterwards: weights, modules, hooks, modes, configs, instance attributes."""

    def look() -> Any:
        return {
            name: (
                id(module),
                module.training,
                [(key, id(child)) for key, child in module._modules.items()],
                len(module._forward_hooks) + len(module._forward_pre_hooks),
                "forward" in module.__dict__,
                getattr(getattr(module, "config", None), "use_cache", None),
                getattr(module, "use_nested_tensor", None),
            )
            for name, module in model.named_modules()
        }

    before, weights = look(), copy.deepcopy(model.state_dict())
    try:
        yield
    finally:
        assert look() == before
        assert all(torch.equal(now, weights[name]) for name, now in model.state_dict().items())


@pytest.mark.parametrize("name", tiny_models.CASES)
@torch.no_grad()
def test_the_law(name: str) -> None:
    model, batch = tiny_models.build(name)
    with unchanged(model):
        expected = run(model, batch)
        stack = Stack(model)
        found = stack.verify(batch)
        states = stack.states(batch)
        assert max(found.readout, found.cut, found.replay) <= 1e-5
        assert len(states) == stack.depth + 1
        assert len({state.shape for state in states}) == 1
        torch.testing.assert_close(stack.readout(states[-1], batch), expected, rtol=1e-5, atol=1e-5, equal_nan=True)
        early = stack.readout(states[1], batch)
        assert not torch.allclose(early, expected, equal_nan=True), "a readout that ignores its state"


@pytest.mark.parametrize("name", tiny_models.CASES)
@torch.no_grad()
def test_states_are_what_hooks_see(name: str) -> None:
    model, batch = tiny_models.build(name)
    stack = Stack(model)
    blocks = model.get_submodule(stack.path)
    seen: list[Tensor] = []
    handles = [
        block.register_forward_hook(lambda _, __, out: seen.append(out[0] if isinstance(out, tuple) else out))
        for block in blocks
    ]
    torch.backends.mha.set_fastpath_enabled(False)  # nn.TransformerEncoder would show its hooks nested tensors
    run(model, batch)
    torch.backends.mha.set_fastpath_enabled(True)
    for handle in handles:
        handle.remove()
    keep = batch["attention_mask"].bool() if name == "nn.TransformerEncoder" else ...
    for state, reference in zip(stack.states(batch)[1:], seen, strict=True):
        torch.testing.assert_close(state[keep], reference[keep], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", tiny_models.CASES)
@torch.no_grad()
def test_disturbing_a_block_changes_what_follows_and_nothing_before(name: str) -> None:
    model, batch = tiny_models.build(name)
    stack = Stack(model)
    before = stack.states(batch)
    block, depth = model.get_submodule(stack.path)[1], 2
    for parameter in block.parameters():
        parameter.add_(0.5)
    after = stack.states(batch)
    for at, (old, new) in enumerate(zip(before, after, strict=True)):
        assert torch.equal(old, new) == (at < depth), f"depth {at}"


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "gemma2", "modernbert", "vit", "dinov2"])
@torch.no_grad()
def test_readout_is_the_shallower_model(name: str) -> None:
    """Independent of every trick here: a model built with k blocks from its config, given the first k's weights."""
    model, batch = tiny_models.build(name)
    stack, k = Stack(model), 2
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = k
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:k]
    shallow = type(model)(config).eval()
    wanted = shallow.state_dict().keys()
    shallow.load_state_dict({key: value for key, value in model.state_dict().items() if key in wanted})
    read = stack.readout(stack.states(batch)[k], batch)
    torch.testing.assert_close(read, run(shallow, batch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["bert", "gemma2", "modernbert", "vit", "timm vit", "deberta-v2", "nn.TransformerEncoder"]
)
@torch.no_grad()
def test_replay_is_the_forward_block_by_block(name: str) -> None:
    model, batch = tiny_models.build(name)
    with unchanged(model):
        stack = Stack(model)
        replay = stack.replay(batch)
        state = replay.state
        states = stack.states(batch)
        torch.testing.assert_close(state, states[0])
        for depth in range(1, stack.depth + 1):
            state = replay.step(state, depth)
            torch.testing.assert_close(state, states[depth])
        # a second pass over the same recording gives the same: nothing was appended to a cache
        torch.testing.assert_close(replay.step(states[0], 1), states[1])


def test_replay_runs_no_block_while_it_records() -> None:
    model, batch = tiny_models.build("bert")
    stack = Stack(model)
    stack.verify(batch)
    calls: list[int] = []
    for block in model.bert.encoder.layer:
        block.register_forward_hook(lambda *_: calls.append(1))
    stack.replay(batch)
    assert calls == []


@torch.no_grad()
def test_what_ran_before_the_blocks_is_not_kept_beyond_its_weights() -> None:
    model, batch = tiny_models.build("bert")
    stack = Stack(model)
    stack.states(batch)
    model.get_input_embeddings().weight.mul_(2)  # as a step of training does, or load_state_dict
    torch.testing.assert_close(stack.replay(batch).state, stack.states(batch)[0])


@torch.no_grad()
def test_readouts_do_not_run_the_embedding_again() -> None:
    model, batch = tiny_models.build("vit")
    stack = Stack(model)
    states = stack.states(batch)
    ran: list[int] = []
    model.vit.embeddings.patch_embeddings.register_forward_hook(lambda *_: ran.append(1))
    stack.readout(states[2], batch)
    assert ran == []
    stack.readout(states[2], {"pixel_values": batch["pixel_values"].clone()})
    assert ran == [1], "another batch must not be given what was kept of this one"
    batch["pixel_values"].add_(1.0)
    stack.readout(states[2], batch)
    assert ran == [1, 1], "nor a batch that was written to since"


@torch.no_grad()
def test_final_norm_can_be_skipped() -> None:
    model, batch = tiny_models.build("gpt2")
    stack = Stack(model)
    state = stack.states(batch)[2]
    torch.testing.assert_close(stack.readout(state, batch, final_norm=False), model.lm_head(state))
    torch.testing.assert_close(stack.readout(state, batch), model.lm_head(model.transformer.ln_f(state)))


@pytest.mark.parametrize("name", ["bert", "gpt2", "vit"])
def test_gradients_flow_through_states_and_readouts(name: str) -> None:
    model, batch = tiny_models.build(name)
    stack = Stack(model)
    states = stack.states(batch)
    stack.readout(states[2], batch).sum().backward()
    blocks = model.get_submodule(stack.path)
    reached = [any(p.grad is not None and p.grad.abs().sum() > 0 for p in block.parameters()) for block in blocks]
    assert reached == [True, True, False, False]


@torch.no_grad()
def test_padding_changes_nothing() -> None:
    for name in tiny_models.ENCODERS:
        model, batch = tiny_models.build(name)
        stack = Stack(model)
        padded = stack.states(batch)
        for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
            alone = stack.states({key: value[row : row + 1, :length] for key, value in batch.items()})
            for full, short in zip(padded, alone, strict=True):
                torch.testing.assert_close(full[row, :length], short[0], rtol=1e-5, atol=1e-5)


def test_modes_and_a_failing_forward_are_undone() -> None:
    model, batch = tiny_models.build("bert")
    model.train()
    model.bert.encoder.layer[1].eval()  # mixed modes must come back as they were
    stack = Stack(model)
    with unchanged(model):
        stack.verify(batch)
        stack.states(batch)

    def fail(*_: Any) -> None:
        raise RuntimeError("a block fails")

    handle = model.bert.encoder.layer[2].register_forward_hook(fail)
    for act in (stack.states, Stack(model).verify):
        with unchanged(model), pytest.raises(RuntimeError, match="a block fails"):
            act(batch)
    handle.remove()
    pooler = model.bert.pooler.register_forward_hook(fail)
    state = torch.zeros(3, 12, tiny_models.WIDTH)
    with unchanged(model), pytest.raises(RuntimeError, match="a block fails"):
        stack.readout(state, batch)
    pooler.remove()


def test_evaluating_restores_modes_on_failure() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Dropout())
    model[1].eval()
    with pytest.raises(ZeroDivisionError), evaluating(model):
        _ = 1 / int(model[0].training)
    assert [part.training for part in model] == [True, False]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing:FutureWarning")  # peft's own call
def test_lora_works_in_place() -> None:
    peft = pytest.importorskip("peft")
    model, batch = tiny_models.build("bert")
    config = peft.LoraConfig(target_modules=["query", "value"], task_type="SEQ_CLS", r=2, init_lora_weights=False)
    adapted = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        stack = Stack(adapted)
        states = stack.states(batch)
        torch.testing.assert_close(stack.readout(states[-1], batch), adapted(**batch).logits)


def test_a_block_that_overwrites_its_input() -> None:
    class InPlace(tiny_models.Block):
        def forward(self, x: Tensor) -> Tensor:
            return x.add_(torch.tanh(self.mix(x)))

    model = tiny_models.Nobodys()
    model.trunk = nn.ModuleList(InPlace(16) for _ in range(3))
    with torch.no_grad():
        stack = Stack(model.eval())
        x = torch.randn(3, 8)
        states = stack.states(x)
        assert not torch.equal(states[0], states[1])
        torch.testing.assert_close(states[0], model.first(x))


@torch.no_grad()
def test_a_clip_needs_to_be_told_which_tower() -> None:
    text = transformers.CLIPTextConfig(**tiny_models._USUAL, **tiny_models._SPECIAL)
    config = transformers.CLIPConfig(text_config=text.to_dict(), vision_config=tiny_models._IMAGE, projection_dim=16)
    model = transformers.CLIPModel(config).eval()
    batch = tiny_models.text() | tiny_models.images()
    with pytest.raises(UnknownArchitecture, match=r"several stacks .*: text_model.*vision_model.*stack='image'"):
        Stack(model).verify(batch)
    with pytest.raises(UnknownArchitecture, match=r"several lists of modules: text_model.*first batch"):
        _ = Stack(model).depth
    for stack, path in (
        (Stack(model, blocks="vision_model.encoder.layers"), "vision_model.encoder.layers"),
        (Stack(model, stack="image"), "vision_model.encoder.layers"),
        (Stack(model, blocks="text"), "text_model.encoder.layers"),
    ):
        states = stack.states(batch)
        assert stack.path == path
        torch.testing.assert_close(stack.readout(states[-1], batch), model(**batch).logits_per_image)


class Aggregating(tiny_models.Nobodys):
    """Averages the outputs of all blocks, so that no single state holds the answer."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        total = torch.zeros_like(x)
        for block in self.trunk:
            x = block(x)
            total = total + x
        return self.last(total)


class Skipping(tiny_models.Nobodys):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.trunk[0](self.first(x)))


@pytest.mark.parametrize(
    ("model", "batch", "error", "says"),
    [
        (lambda: nn.Linear(3, 3), lambda: torch.randn(3, 3), UnknownArchitecture, "Linear has no list of blocks"),
        (Aggregating, lambda: torch.randn(3, 8), ReadoutMismatch, r"Aggregating: the readout law is broken.*\d"),
        (Skipping, lambda: torch.randn(3, 8), UnknownArchitecture, r"trunk \(5 x Block\): 1 of 5 ran"),
    ],
)
@torch.no_grad()
def test_what_cannot_be_seen_is_refused_in_one_line(model: Any, batch: Any, error: type[Exception], says: str) -> None:
    built = model().eval()
    with unchanged(built), pytest.raises(error, match=says) as caught:
        Stack(built).verify(batch())
    assert "\n" not in str(caught.value)


def test_paths_that_lead_nowhere() -> None:
    model = tiny_models.Nobodys()
    with pytest.raises(UnknownArchitecture, match=r"no module 'trunks'; the lists it has: trunk \(5 x Block\)"):
        Stack(model, blocks="trunks")
    with pytest.raises(UnknownArchitecture, match="'first' is a Linear, expected a non-empty ModuleList"):
        Stack(model, blocks="first")


def test_first_samples_leaves_alone_what_is_not_per_sample() -> None:
    batch = {"x": torch.zeros(5, 2), "scale": torch.zeros(3), "flag": True}
    few = first_samples(batch, 2)
    assert few["x"].shape == (2, 2)
    assert few["scale"].shape == (3,)
    assert few["flag"] is True


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "vit"])
def test_verification_costs_three_forwards_of_two_samples(name: str) -> None:
    """The untouched one, the recorded one, half of one to the middle, and all blocks again on a single sample."""
    model, batch = tiny_models.build(name)
    stack, samples = Stack(model), 0

    def count(block: nn.Module, args: Any, kwargs: Any) -> None:
        nonlocal samples
        samples += len(args[0] if args else kwargs["hidden_states"])

    handles = [block.register_forward_pre_hook(count, with_kwargs=True) for block in stack.blocks]
    stack.verify(batch)
    for handle in handles:
        handle.remove()
    assert samples <= 3 * 2 * stack.depth


class Beside(nn.Module):
    """A tower that runs beside what answers."""

    def __init__(self, *, zero: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3))
        self.head = nn.Linear(4, 2)
        self.zero = zero
        if zero:
            nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        state = x
        for block in self.blocks:
            state = block(state)
        return self.head((state if self.zero else x).mean(1))


def test_an_answer_that_does_not_depend_on_the_blocks_is_refused() -> None:
    message = "Beside: the answer does not depend on the states of 'blocks'; name one with blocks="
    with pytest.raises(UnknownArchitecture, match=re.escape(message)):
        Stack(Beside(), blocks="blocks").verify(torch.rand(3, 5, 4))
    # weights that are zero still read the states
    Stack(Beside(zero=True), blocks="blocks").verify(torch.rand(3, 5, 4))


@pytest.mark.parametrize("writes", [True, False])
def test_labels_are_a_text_only_for_a_model_that_writes(writes: bool) -> None:
    """T5Gemma-2's tagger can make decoder inputs of labels, too, and does not."""
    model = nn.Identity()
    model.prepare_decoder_input_ids_from_labels = lambda labels: labels + 1
    model.can_generate = lambda: writes
    labels = torch.tensor([[1, 2]])
    parts = split_batch({"input_ids": torch.tensor([[5, 6]]), "labels": labels}, model)
    assert torch.equal(parts.labels, labels)
    assert ("decoder_input_ids" in parts.inputs) == writes
