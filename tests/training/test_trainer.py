"""AlignedTrainer against Trainer, against loops written out, and against itself in another arrangement."""

from __future__ import annotations

import copy
import inspect
import shutil
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from tiny_models import Nobodys, seq2seq
from torch import Tensor, nn
from train_worker import (
    BLOCKS,
    CLASSES,
    KINDS,
    OF_PEFT,
    SGD,
    arguments,
    data,
    furthest,
    logged,
    model,
    quick_collections,
    same,
    trained,
    trainer,
    weights,
)
from transformers import Trainer

from anydepth.core.heads import Heads
from anydepth.core.stack import Stack
from anydepth.errors import LabelError, ObjectiveError, TrainingError
from anydepth.training.losses import inputs_and_labels
from anydepth.training.objectives import OBJECTIVES, AlignedLoss, Loss
from anydepth.training.trainer import AlignedTrainer
from anydepth.training.wrapped_forward import within_forward


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    with quick_collections():
        yield


# --- the loss inside one forward -------------------------------------------------------------------------------------


class Wrapper(nn.Module):
    """Counts its forwards, as DDP prepares for gradients in each of its own."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.calls = module, 0

    def forward(self, **inputs: Any) -> Any:
        self.calls += 1
        return self.module(**inputs)


def test_work_runs_inside_one_forward_of_the_wrapper_and_calls_the_real_one() -> None:
    inner = nn.Linear(2, 2)
    inner.forward = lambda input, _own=inner.forward: 2 * _own(input)  # as accelerate shadows it for mixed precision
    shadow, outer, x = inner.__dict__["forward"], Wrapper(inner), torch.ones(1, 2)
    found = within_forward(outer, inner, lambda inputs: {"twice": inner(**inputs) + inner(**inputs)}, {"input": x})
    assert torch.allclose(found["twice"], 4 * nn.functional.linear(x, inner.weight, inner.bias))
    assert outer.calls == 1
    assert inner.__dict__["forward"] is shadow


def test_a_failing_work_leaves_the_model_as_it_was() -> None:
    inner = nn.Linear(2, 2)
    with pytest.raises(ZeroDivisionError):
        within_forward(Wrapper(inner), inner, lambda inputs: 1 / 0, {"input": torch.ones(1, 2)})
    assert "forward" not in inner.__dict__


# --- the standard objective is Trainer, to the last bit ---------------------------------------------------------------


# newer releases of transformers have another name for it
_NAMES = inspect.signature(transformers.TrainingArguments).parameters
CHECKPOINTING = {"activation_checkpointing" if "activation_checkpointing" in _NAMES else "gradient_checkpointing": True}
ARRANGEMENTS = {
    "plain": {},
    "accumulating": {"gradient_accumulation_steps": 2},
    "bf16": {"bf16": True},
    "checkpointing": CHECKPOINTING,
}


@pytest.mark.parametrize(
    ("kind", "arrangement"),
    [(kind, name) for kind in KINDS for name in ARRANGEMENTS if (kind, name) != ("bert", "accumulating")],
)
def test_standard_is_trainer_bit_for_bit(kind: str, arrangement: str, tmp_path: Path) -> None:
    changes = ARRANGEMENTS[arrangement]
    ours = trained(kind, tmp_path / "ours", objective="standard", **changes)
    theirs = trained(kind, tmp_path / "theirs", cls=Trainer, **changes)
    assert same(ours, theirs)
    assert logged(ours, "loss") == logged(theirs, "loss")
    assert len(logged(ours, "loss")) == 4
    assert logged(ours, "grad_norm") == logged(theirs, "grad_norm")


def test_bert_accumulates_means_in_ours(tmp_path: Path) -> None:
    """BERT's own loss ignores how many samples the step has, and Trainer believes it does not: twice too much."""
    ours = trained("bert", tmp_path, objective="standard", gradient_accumulation_steps=2, max_steps=1, dropout=0.0)
    theirs = trained("bert", tmp_path, cls=Trainer, gradient_accumulation_steps=2, max_steps=1, dropout=0.0)
    assert logged(theirs, "loss")[0] == pytest.approx(2 * logged(ours, "loss")[0], rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_label_smoothing_goes_into_the_objective_once(kind: str, tmp_path: Path) -> None:
    settings = {"label_smoothing_factor": 0.2, "dropout": 0.0} | SGD
    ours = trained(kind, tmp_path, objective="standard", **settings)
    theirs = trained(kind, tmp_path, cls=Trainer, **settings)
    assert ours.objective.label_smoothing == 0.2
    assert ours.label_smoother is None
    assert furthest(ours, theirs) < 1e-6
    assert logged(ours, "loss") == pytest.approx(logged(theirs, "loss"), rel=1e-5)


# --- every objective is the loop that AlignedLoss's users write -------------------------------------------------------


@pytest.mark.parametrize("objective", ["aligned", "alternating", "sampled", "distilled", "cosine", "heads"])
def test_a_training_is_the_loop_written_out(objective: str, tmp_path: Path) -> None:
    settings = {"max_grad_norm": 0.0, "lr_scheduler_type": "constant", "dropout": 0.0} | SGD
    ours = trainer("vit", tmp_path, objective=objective, **settings)
    seen: list[dict[str, Tensor]] = []
    compute = ours.compute_loss
    ours.compute_loss = lambda of, inputs, **given: (seen.append(inputs), compute(of, inputs, **given))[1]
    ours.train()

    stack = Stack(model("vit", 0.0).train())
    if objective == "heads":
        stack.heads = Heads(copy.deepcopy(stack.model.classifier) for _ in range(BLOCKS - 1))
    optimizer = torch.optim.SGD([*stack.model.parameters(), *(stack.heads.parameters() if stack.heads else ())], 0.1)
    losses = []
    for step in range(4):
        found = OBJECTIVES[objective].loss(stack, seen[step], step=step)
        found.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(found.loss.item())
    assert logged(ours, "loss") == pytest.approx(losses, rel=1e-5)
    theirs = namedtuple("Loop", "model heads")(stack.model, stack.heads)
    assert furthest(ours, theirs) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("objective", ["aligned", "sampled"])
def test_accumulated_micro_batches_are_the_big_batch(kind: str, objective: str, tmp_path: Path) -> None:
    settings = {"objective": objective, "dropout": 0.0, "max_steps": 3} | SGD
    big = trained(kind, tmp_path, per_device_train_batch_size=8, **settings)
    small = trained(kind, tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4, **settings)
    assert furthest(small, big) < 1e-5
    assert furthest(small, trainer(kind, tmp_path, dropout=0.0)) > 1e-3
    assert logged(small, "loss") == pytest.approx(logged(big, "loss"), abs=1e-5)


def test_a_language_models_loss_is_per_label_that_it_is_asked_for(tmp_path: Path) -> None:
    """Where Trainer knows a model for a causal one, its count of labels is ours."""
    shape = {"hidden_size": 16, "num_hidden_layers": BLOCKS, "num_attention_heads": 2, "intermediate_size": 32}
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=60, **shape))
    ours = trained("gpt2", tmp_path, own=llama, objective="standard", gradient_accumulation_steps=1)
    assert logged(ours, "loss") == pytest.approx(logged(ours, f"loss_depth_{BLOCKS}"), rel=1e-5)


# --- what Trainer works with ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_activation_checkpointing_changes_nothing(kind: str, tmp_path: Path) -> None:
    plain = trained(kind, tmp_path, objective="aligned")
    again: list[int] = []
    own = model(kind)
    blocks = own.get_submodule(Stack(own).path)
    blocks[0].register_forward_hook(lambda *args: again.append(1))
    checkpointed = trained(kind, tmp_path, objective="aligned", own=own, **CHECKPOINTING)
    assert blocks[0].gradient_checkpointing
    assert furthest(checkpointed, plain) < 1e-6


def test_mixed_precision_casts_inside_and_trains_in_float32(tmp_path: Path) -> None:
    own, dtypes = model("vit", 0.0), set()
    blocks = own.get_submodule(Stack(own).path)
    linear = next(module for module in blocks[0].modules() if isinstance(module, nn.Linear))
    ours = trainer("vit", tmp_path, own=own, objective="aligned", bf16=True, **SGD)
    linear.register_forward_hook(lambda module, args, output: dtypes.add((module.training, output.dtype)))
    ours.train()
    ours.evaluate()
    assert dtypes == {(True, torch.bfloat16), (False, torch.bfloat16)}
    assert {parameter.dtype for parameter in own.parameters()} == {torch.float32}
    exact = trained("vit", tmp_path, dropout=0.0, objective="aligned", **SGD)
    assert 0 < furthest(ours, exact) < 1e-2


def test_cast_weights_are_shared_by_all_readouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast keeps them until its outermost region is left: opened in each readout, it would cast L times."""
    ours = trainer("vit", tmp_path, objective="aligned", bf16=True, dropout=0.0, max_steps=1)
    left: list[int] = []
    clear = torch.clear_autocast_cache
    monkeypatch.setattr(torch, "clear_autocast_cache", lambda: (left.append(1), clear()))
    ours.train()
    assert len(left) == 1


def lora(kind: str, **settings: Any) -> nn.Module:
    targets = {"bert": ["query", "value"], "gpt2": ["c_attn"]}[kind]
    config = peft.LoraConfig(r=2, target_modules=targets, fan_in_fan_out=kind == "gpt2", **settings)
    return peft.get_peft_model(model(kind), config)


@pytest.mark.filterwarnings(OF_PEFT)
def test_lora_trains_its_adapters_and_the_classifier_alone(tmp_path: Path) -> None:
    adapted = lora("bert", modules_to_save=["classifier"])
    before = {name: value.detach().clone() for name, value in adapted.named_parameters()}
    ours = trained("bert", tmp_path, own=adapted, objective="aligned", save_strategy="steps", save_steps=2)
    after = dict(adapted.named_parameters())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "lora_" in name or "classifier.modules_to_save" in name}
    shutil.rmtree(tmp_path / "checkpoint-4")
    again = trainer("bert", tmp_path, own=lora("bert", modules_to_save=["classifier"]), objective="aligned")
    again.train(resume_from_checkpoint=True)
    assert same(again, ours)
    assert "eval_accuracy_depth_1" in ours.evaluate()
    ours.save_model(str(tmp_path / "saved"))
    assert {path.name for path in (tmp_path / "saved").iterdir()} >= {"adapter_model.safetensors"}


@pytest.mark.filterwarnings(OF_PEFT)
def test_lora_leaves_a_language_models_vocabulary_frozen(tmp_path: Path) -> None:
    adapted = lora("gpt2")
    before = {name: value.detach().clone() for name, value in adapted.named_parameters()}
    trained("gpt2", tmp_path, own=adapted, objective="aligned")
    changed = {name for name, value in adapted.named_parameters() if not torch.equal(before[name], value)}
    assert changed == {name for name in before if "lora_" in name}


@pytest.mark.filterwarnings(OF_PEFT)
def test_heads_are_trained_beside_adapters(tmp_path: Path) -> None:
    settings = {"objective": "heads", "save_strategy": "steps", "save_steps": 2}
    ours = trained("bert", tmp_path, own=lora("bert", modules_to_save=["classifier"]), **settings)
    assert not any("heads" in name for name in load_file(tmp_path / "checkpoint-4" / "adapter_model.safetensors"))
    shutil.rmtree(tmp_path / "checkpoint-4")
    again = trainer("bert", tmp_path, own=lora("bert", modules_to_save=["classifier"]), **settings)
    again.train(resume_from_checkpoint=True)
    assert same(again, ours)
    assert len({name for name in weights(ours) if name.startswith("heads.")}) == 2 * (BLOCKS - 1)


@pytest.mark.filterwarnings(OF_PEFT)
def test_a_frozen_classifier_is_refused_where_shallow_depths_need_it(tmp_path: Path) -> None:
    with pytest.raises(ObjectiveError, match="classifier of .* is frozen.*modules_to_save"):
        trained("bert", tmp_path, own=lora("bert"), objective="aligned")
    trained("bert", tmp_path, own=lora("bert"), objective="standard")


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # asked for by the compiler itself
def test_blocks_are_compiled_in_place_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "no")  # TrainingArguments leaves it set to its own
    plain = trained("vit", tmp_path, objective="aligned", dropout=0.0, **SGD)
    compiled: list[Any] = []
    compile = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **how: (compiled.append((self, how)), compile(self, **how)))
    own = model("vit", 0.0)
    ours = trainer("vit", tmp_path, own=own, objective="aligned", torch_compile_backend="aot_eager", **SGD)
    ours.train()
    assert ours.model_wrapped is own
    assert furthest(ours, plain) < 1e-5
    ours.evaluate()
    ours.train()
    assert [block for block, _ in compiled] == list(own.get_submodule(Stack(own).path))
    assert {how["backend"] for _, how in compiled} == {"aot_eager"}


def test_a_module_of_no_library_trains(tmp_path: Path) -> None:
    """A tensor in, a tensor out; heads are found and resumed without a config."""
    samples = [{"x": torch.randn(8), "labels": index % 5} for index in range(16)]
    settings = {"train_dataset": samples, "objective": "heads", "save_strategy": "steps", "save_steps": 2}
    ours = trained("none", tmp_path, own=Nobodys(), **settings)
    assert len(ours.heads) == 4
    assert logged(ours, "loss_depth_5")
    shutil.rmtree(tmp_path / "checkpoint-4")
    again = trainer("none", tmp_path, own=Nobodys(), **settings)
    again.train(resume_from_checkpoint=True)
    assert same(again, ours)


def test_columns_that_the_model_does_not_take_are_removed(tmp_path: Path) -> None:
    rows = [{**{name: np.asarray(value).tolist() for name, value in row.items()}, "note": "x"} for row in data("bert")]
    plain = trained("bert", tmp_path)
    ours = trained("bert", tmp_path, train_dataset=datasets.Dataset.from_list(rows))
    assert same(ours, plain)


def test_a_model_may_be_made_in_training(tmp_path: Path) -> None:
    ours = trained("vit", tmp_path, model_init=lambda: model("vit"), objective="standard")
    assert same(ours, trained("vit", tmp_path, model_init=lambda: model("vit"), cls=Trainer))
    ours = trained("vit", tmp_path, model_init=lambda: model("vit"), objective="heads")
    once = weights(ours)
    ours.train()
    assert {name for name in once if name.startswith("heads.")}
    assert all(torch.equal(once[name], value) for name, value in weights(ours).items())


# --- labels under other names, and losses of the user's own -----------------------------------------------------------


def renamed(kind: str, count: int = 32, seed: int = 0) -> list[dict[str, Any]]:
    """The same samples, whose labels are called target."""
    return [{("target" if name == "labels" else name): row[name] for name in row} for row in data(kind, count, seed)]


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_labels_are_what_label_names_names(kind: str, tmp_path: Path) -> None:
    settings = {"objective": "aligned", "gradient_accumulation_steps": 2}
    ours = trained(kind, tmp_path, train_dataset=renamed(kind), label_names=["target"], **settings)
    plain = trained(kind, tmp_path, **settings)
    assert same(ours, plain)
    assert logged(ours, "loss") == logged(plain, "loss")
    theirs, own = plain.evaluate(data(kind, 7, 1)), ours.evaluate(renamed(kind, 7, 1))
    assert {name: theirs[name] for name in theirs if "depth" in name or "loss" in name}.items() <= own.items()
    predicted, expected = ours.predict(renamed(kind, 7, 1)), plain.predict(data(kind, 7, 1))
    assert np.array_equal(predicted.label_ids, expected.label_ids)
    assert np.array_equal(predicted.predictions, expected.predictions)


def test_labels_under_several_names_are_refused(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BertConfig(vocab_size=60, **sizes)
    message = (
        "BertForQuestionAnswering has the labels start_positions, end_positions, expected one class for each answer"
    )
    with pytest.raises(TrainingError, match=message):
        AlignedTrainer(transformers.BertForQuestionAnswering(config), arguments(tmp_path))
    rows = [{**row, "next_sentence_label": 1} for row in data("bert")]
    with pytest.raises(
        TrainingError, match="a batch has next_sentence_label beside labels, and an objective learns fro"
    ):
        trained("bert", tmp_path, own=transformers.BertForPreTraining(config), train_dataset=rows)


def test_an_encoder_decoder_trains_by_its_decoder(tmp_path: Path) -> None:
    made, batch = seq2seq()
    rows = [{name: batch[name][index] for name in batch} for index in range(3)]
    ours = AlignedTrainer(
        copy.deepcopy(made).float(),
        arguments(tmp_path, max_steps=1),
        blocks="model.decoder.layers",
        train_dataset=rows,
        eval_dataset=rows,
    )
    metrics = ours.evaluate()
    with torch.no_grad():
        expected = OBJECTIVES["aligned"].loss(Stack(made, blocks="model.decoder.layers"), batch)
    assert metrics["eval_loss"] == pytest.approx(expected.loss.item(), rel=1e-5)
    assert metrics["eval_accuracy_depth_1"] == pytest.approx(expected.accuracy[0].item())
    assert ours.predict(rows).predictions[0].shape == (3, 6, 50)
    before = weights(ours)
    ours.train()
    assert any(not torch.equal(before[name], value) for name, value in weights(ours).items() if "encoder" in name)


class Added(AlignedTrainer):
    """The objective, and as much again."""

    def compute_loss(self, *args: Any, **given: Any) -> Any:
        return 2 * super().compute_loss(*args, **given)


class Weighted(AlignedTrainer):
    """A loss of its own, as class weights are put into Trainer."""

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **given: Any) -> Any:
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = nn.functional.cross_entropy(outputs.logits, labels, weight=torch.arange(1.0, CLASSES + 1))
        return (loss, outputs) if return_outputs else loss


def test_a_loss_may_be_added_to_the_objective(tmp_path: Path) -> None:
    settings = {"objective": "aligned", "dropout": 0.0, "optim": "sgd", "max_grad_norm": 0.0}
    ours = trained("vit", tmp_path, cls=Added, learning_rate=0.05, **settings)
    assert furthest(ours, trained("vit", tmp_path, learning_rate=0.1, **settings)) < 1e-6


def test_a_loss_in_the_place_of_the_objective_is_refused_before_it_trains(tmp_path: Path) -> None:
    ours = trainer("vit", tmp_path, cls=Weighted, objective="aligned")
    before = weights(ours)
    with pytest.raises(TrainingError, match="the loss of Weighted does not come from the objective, which nothing wou"):
        ours.train()
    assert all(torch.equal(before[name], value) for name, value in weights(ours).items())
    ours = trainer("vit", tmp_path, objective="aligned")
    ours.compute_loss_func = lambda *args, **given: None
    with pytest.raises(TrainingError, match="two losses: leave one out"):
        ours.train()


def test_heads_of_any_kind_are_trained_saved_and_resumed(tmp_path: Path) -> None:
    def heads() -> Heads:
        torch.manual_seed(3)
        return Heads(
            [nn.Sequential(nn.LayerNorm(16), nn.Linear(16, CLASSES)), nn.Linear(16, CLASSES), nn.Linear(16, 4)]
        )

    settings = {"objective": "aligned", "save_strategy": "steps", "save_steps": 2}
    ours = trained("vit", tmp_path, heads=heads(), **settings)
    shutil.rmtree(tmp_path / "checkpoint-4")
    again = trainer("vit", tmp_path, heads=heads(), **settings)
    again.train(resume_from_checkpoint=True)
    assert same(again, ours)


class HingeLoss:
    """A hinge loss at the depths from 2 on, with a margin in the place of a logarithm."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def expected(self, depth: int) -> dict[int, float]:
        return {each: 1 / (depth - 1) for each in range(2, depth + 1)}

    def __call__(self, stack: Stack, batch: Any, *, step: int, items: int | Tensor | None) -> Loss:
        self.steps.append(step)
        inputs, labels = inputs_and_labels(stack.model, batch)
        states, _ = stack.forward(inputs)
        by_depth = torch.full((stack.depth,), torch.nan)
        accuracy = by_depth.clone()
        total = torch.zeros(())
        for depth, weight in self.expected(stack.depth).items():
            logits = stack.readout(states[depth], inputs, depth=depth)
            total = total + weight * nn.functional.multi_margin_loss(logits, labels, reduction="sum")
            by_depth[depth - 1] = nn.functional.cross_entropy(logits, labels).detach()
            accuracy[depth - 1] = (logits.argmax(1) == labels).float().mean()
        return Loss(total / (len(labels) if items is None else items), by_depth, accuracy)


def test_an_objective_of_ones_own(tmp_path: Path) -> None:
    """It trains as in a loop written out; logs and `eval_loss` show the depths that it names."""
    settings = {"max_grad_norm": 0.0, "lr_scheduler_type": "constant", "dropout": 0.0} | SGD
    own = HingeLoss()
    ours = trainer("vit", tmp_path, objective=own, **settings)
    seen: list[dict[str, Tensor]] = []
    compute = ours.compute_loss
    ours.compute_loss = lambda of, inputs, **given: (seen.append(inputs), compute(of, inputs, **given))[1]
    ours.train()
    assert own.steps == [0, 1, 2, 3]
    stack = Stack(model("vit", 0.0).train())
    optimizer = torch.optim.SGD(stack.model.parameters(), 0.1)
    losses = []
    for batch in seen:
        result = own(stack, batch, step=0, items=None)
        result.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(result.loss.item())
    assert logged(ours, "loss") == pytest.approx(losses, rel=1e-5)
    assert furthest(ours, namedtuple("Loop", "model heads")(stack.model, None)) < 1e-6
    assert not logged(ours, "loss_depth_1")
    assert len(logged(ours, "loss_depth_2")) == 4
    metrics = ours.evaluate()
    plain = trainer("vit", tmp_path, own=ours.model, objective=AlignedLoss("uniform", exits=[2, 3, 4])).evaluate()
    assert BLOCKS == 4
    assert metrics["eval_loss"] == pytest.approx(plain["eval_loss"], rel=1e-6)


def test_an_objective_of_ones_own_smooths_its_labels_itself(tmp_path: Path) -> None:
    message = "label_smoothing_factor is 0.1, and HingeLoss is an objective of your own, which Trainer cannot smooth"
    with pytest.raises(TrainingError, match=message):
        trainer("vit", tmp_path, objective=HingeLoss(), label_smoothing_factor=0.1)


@pytest.mark.parametrize("objective", [HingeLoss, AlignedLoss])
def test_a_class_is_no_objective(objective: Any, tmp_path: Path) -> None:
    with pytest.raises(ObjectiveError, match="objective is .*, expected a name of OBJECTIVES, an AlignedLoss, or a ca"):
        trainer("vit", tmp_path, objective=objective)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_what_cannot_go_together_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrainingError, match="two losses: leave one out"):
        AlignedTrainer(model("vit"), arguments(tmp_path), compute_loss_func=lambda *args, **kwargs: None)
    with pytest.raises(TrainingError, match="model_init makes others"):
        trainer("vit", tmp_path, model_init=lambda: model("vit"), heads=Heads([]))
    with pytest.raises(ObjectiveError, match="did you mean aligned"):
        trainer("vit", tmp_path, objective="alined")
    monkeypatch.setattr(transformers.TrainingArguments, "n_gpu", 2)
    with pytest.raises(TrainingError, match="one process has 2 GPUs.*torchrun --nproc-per-node 2"):
        trainer("vit", tmp_path)


def test_labels_that_are_no_classes_are_refused(tmp_path: Path) -> None:
    samples = [{**sample, "labels": CLASSES} for sample in data("vit")]
    with pytest.raises(LabelError, match=f"label {CLASSES} is out of range"):
        trained("vit", tmp_path, train_dataset=samples)
    samples = [{"pixel_values": sample["pixel_values"]} for sample in data("vit")]
    with pytest.raises(LabelError, match="no 'labels'"):
        trained("vit", tmp_path, train_dataset=samples)
