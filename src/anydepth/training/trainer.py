"""Training at every depth with `transformers.Trainer`: same arguments, another loss, a plain model as the result.

`AlignedTrainer` changes what a step computes and what an evaluation reports. Data, optimizer, schedule, gradient
accumulation, activation checkpointing, mixed precision, PEFT, several processes, logging and resuming are Trainer's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DynamoBackend
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import SaveStrategy

from anydepth.core.heads import ATTACHED, HEADS_FILE, Heads, separate_heads
from anydepth.core.model_io import device_of, to_device
from anydepth.core.patching import forward_as
from anydepth.core.stack import Stack
from anydepth.core.targets import predicts_next_token
from anydepth.dependencies import require
from anydepth.distributed import wait_for_all
from anydepth.errors import TrainingError
from anydepth.storage.disk import write_errors
from anydepth.training.batch_labels import RequireObjective, label_of, labelled
from anydepth.training.checkpoints import (
    STATE_FILE,
    damage,
    last_checkpoint,
    randomness_kept,
    read_weights,
    remove_checkpoint,
    require_room,
    rotate,
    seal_checkpoint,
    unseal_checkpoint,
    without,
)
from anydepth.training.evaluation import by_sample
from anydepth.training.losses import inputs_and_labels
from anydepth.training.objectives import DEFAULT, AlignedLoss, Objective, objective_named
from anydepth.training.trace_callback import TraceCallback

__all__ = ["AlignedTrainer", "TraceCallback", "last_checkpoint", "within_forward"]


def within_forward(outer: nn.Module, inner: nn.Module, work: Callable[[dict[str, Any]], Any], inputs: Any) -> Any:
    """Do some work where a wrapper runs the forward of the model it wraps.

    DDP and FSDP prepare for gradients when *their* forward is called, once for each backward. So the whole loss, with
    all its readouts, has to run inside one call of theirs.

    Args:
        outer: the model as it is called in training: DDP, FSDP, DeepSpeed, or the model itself.
        inner: the model itself.
        work: takes the inputs as they reach the model; calls the model as often as it likes.
        inputs: keyword arguments of the forward.

    Returns:
        What `work` returns. For the wrapper's sake tensors with gradient must lie in it bare, or in a dict.

    Example:
        >>> model = nn.Linear(2, 3)
        >>> within_forward(model, model, lambda inputs: model(**inputs).sum(), {"input": torch.ones(4, 2)}).shape
        torch.Size([])
    """
    own = inner.forward  # accelerate's wrapper for mixed precision, where it put one on the instance

    def forward(**inputs: Any) -> Any:
        with forward_as(inner, own):
            return work(inputs)

    with forward_as(inner, forward):
        return outer(**inputs)


class AlignedTrainer(Trainer):  # type: ignore[misc]
    """`transformers.Trainer` with an objective that trains every depth; what comes out is a plain model.

    Takes what Trainer takes, and does what it does: resume, accumulate, checkpoint activations, cast, adapt (PEFT),
    log. With `objective="standard"` it ends at the very weights that Trainer ends at. `args.torch_compile` compiles
    each block in place, not the model around them. Several GPUs need `torchrun` or `accelerate launch`, one process
    each. The loss runs inside FSDP's forward, which is tested on the CPU; what Trainer does around it, and DeepSpeed,
    is provided for, but untested.

    Logged in training, beside Trainer's own: `loss_depth_1` .. `loss_depth_L` (cross-entropy in nats) and
    `accuracy_depth_1` .. `accuracy_depth_L`, means since the last log over the batches that looked at that depth. An
    evaluation reports `eval_loss` (the objective's, each depth at its mean weight), `eval_accuracy` and
    `eval_accuracy_depth_1` .. `_L`; for a language model `eval_accuracy`, `eval_perplexity` and
    `eval_perplexity_depth_1` .. `_L`: means over samples, or tokens, however they fall into batches. (`loss` is divided
    by the labels that Trainer counts: for GPT-2 those are too many by the first of each text, which nothing predicts.)

    Args:
        *args: as Trainer takes them.
        objective: a name of `anydepth.training.objectives.OBJECTIVES`, an `Objective`, or an `AlignedLoss` of your own.
            `args.label_smoothing_factor` goes into its loss.
        blocks: the dotted name of the list of blocks, for a model that has several (an encoder-decoder).
        heads: one classifier for each depth below L, to be trained with the model. The objective "heads" makes its
            own, as copies of the model's. Saved beside the model as `heads.safetensors`.
        **kwargs: as Trainer takes them.

    The labels are what `args.label_names` names, else "labels". A subclass may override `compute_loss` to add to what
    `super().compute_loss` returns; one that does not call it would not train the objective, and is refused before the
    first step changes a weight.

    Raises:
        TrainingError: what cannot go together, several labels, a loss beside the objective, a checkpoint to resume from
            that is not there, too small a disk.
        ObjectiveError: an unknown objective; while training, one that the model cannot learn from.
        LabelError: while training, labels that are missing or out of range.
        DependencyError: the installed transformers trains differently.
        NonFiniteLoss: while training, before anything is overwritten by it.

    Example:
        >>> import tempfile
        >>> from transformers import TrainingArguments, ViTConfig, ViTForImageClassification
        >>> config = ViTConfig(image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
        ...                    intermediate_size=32, num_channels=1, num_labels=5)
        >>> data = [{"pixel_values": torch.rand(1, 8, 8), "labels": index % 5} for index in range(8)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     args = TrainingArguments(folder, max_steps=2, use_cpu=True, report_to="none", disable_tqdm=True)
        ...     trainer = AlignedTrainer(ViTForImageClassification(config), args, train_dataset=data, eval_dataset=data)
        ...     steps = trainer.train().global_step  # doctest: +ELLIPSIS
        ...     sorted(name for name in trainer.evaluate() if "accuracy" in name)
        {'train_runtime': ...
        ['eval_accuracy', 'eval_accuracy_depth_1', 'eval_accuracy_depth_2', 'eval_accuracy_depth_3']
    """

    label_names: list[str]

    def __init__(
        self,
        *args: Any,
        objective: AlignedLoss | Objective | str = DEFAULT,
        blocks: str | None = None,
        heads: Heads | None = None,
        **kwargs: Any,
    ) -> None:
        require("transformers")
        chosen = objective_named(objective) if isinstance(objective, str) else objective
        super().__init__(*args, **kwargs)
        self._refuse(heads)
        loss = chosen.loss if isinstance(chosen, Objective) else chosen
        if self.args.label_smoothing_factor:
            loss = dataclasses.replace(loss, label_smoothing=self.args.label_smoothing_factor)
        self.objective, self.label_smoother = loss, None
        self.heads = None if heads is None else heads.to(device_of(self.model))
        self._makes_heads = isinstance(chosen, Objective) and chosen.separate_heads and heads is None
        self._blocks = blocks
        self._stack: Stack | None = None
        self._seen: Tensor | None = None
        self._sums: Tensor | None = None
        self.model_accepts_loss_kwargs = True  # Trainer then counts the labels of the whole optimizer step
        self.label_names = self.label_names or ["labels"]  # of a model that takes none: it is the objective that does
        named = self.args.label_names is not None
        self._label = label_of(self.label_names, type(self._inner(self.model)).__name__, given=named)
        self._guard = RequireObjective(type(self).__name__)
        self.add_callback(self._guard)
        # accelerate would compile the model as a whole, and the stubs in it
        self.accelerator.state.dynamo_plugin.backend = DynamoBackend.NO

    def _refuse(self, heads: Heads | None) -> None:
        if self.args.n_gpu > 1:
            raise TrainingError(
                f"one process has {self.args.n_gpu} GPUs, expected one process for each: start it with "
                f"torchrun --nproc-per-node {self.args.n_gpu}, or let it see one (CUDA_VISIBLE_DEVICES=0)"
            )
        self._require_one_loss()
        if heads is not None and self.model_init is not None:
            raise TrainingError("heads belong to one model, and model_init makes others: give the model itself")

    def _require_one_loss(self) -> None:
        if self.compute_loss_func is not None:
            raise TrainingError("compute_loss_func and an objective are two losses: leave one out")

    # --- labels -----------------------------------------------------------------------------------------------------

    def _labelled(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return labelled(inputs, self.label_names, self._label)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """Trainer's, which counts what is called labels; nothing where all steps are done.

        A training that is resumed from its last checkpoint would take one step more.
        """
        if 0 < self.state.max_steps <= self.state.global_step:
            self.control.should_training_stop = True
            return [], None
        return super().get_batch_samples(map(self._labelled, epoch_iterator), num_batches, device)

    # --- loss -------------------------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The objective's loss of a batch; with `return_outputs` also the dict of `loss`, `by_depth`, `accuracy`."""
        inner = self._inner(model)
        self._require_one_loss()
        self._guard.asked = True
        inputs = self._labelled(inputs)

        def work(inputs: dict[str, Any]) -> dict[str, Tensor]:
            with self.accelerator.autocast():  # opened once around all readouts, which then share the cast weights
                stack = self._stack_of(inner, inputs)
                found = self.objective(stack, inputs, step=self.state.global_step, items=num_items_in_batch)
            return {"loss": found.loss, "by_depth": found.by_depth, "accuracy": found.accuracy}

        outputs = within_forward(model, inner, work, inputs)
        if model.training:
            self._note(outputs["by_depth"], outputs["accuracy"])
        loss = outputs["loss"]
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # the labels were counted over all processes, and gradients are averaged over them: as Trainer does it
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())
        return (loss, outputs) if return_outputs else loss

    def _inner(self, model: nn.Module) -> nn.Module:
        return self.accelerator.unwrap_model(model, keep_torch_compile=False)  # type: ignore[no-any-return]

    def _stack_of(self, inner: nn.Module, batch: Mapping[str, Any]) -> Stack:
        if self._stack is None or self._stack.model is not inner:
            self._stack = Stack(inner, blocks=self._blocks, heads=self.heads)
            self._stack.verify(inputs_and_labels(inner, batch)[0])
            if self.args.torch_compile:
                for block in inner.get_submodule(self._stack.path).children():
                    if block._compiled_call_impl is None:
                        block.compile(backend=self.args.torch_compile_backend, mode=self.args.torch_compile_mode)
        return self._stack

    # --- logs -------------------------------------------------------------------------------------------------------

    def _note(self, by_depth: Float[Tensor, " l"], accuracy: Float[Tensor, " l"]) -> None:
        """Add to what the next log shows; stays on the device."""
        looked = ~accuracy.isnan()
        seen = torch.stack([by_depth.nan_to_num(), accuracy.nan_to_num(), looked.to(by_depth.dtype)])
        self._seen = seen if self._seen is None else self._seen + seen

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log to whatever `report_to` names; what training logs is joined by its losses by depth."""
        if "loss" in logs and self._seen is not None:
            nats, right, times = self.accelerator.reduce(self._seen, "sum").tolist()
            self._seen = None
            for name, sums in (("loss", nats), ("accuracy", right)):
                of = enumerate(zip(sums, times, strict=True), start=1)
                logs |= {f"{name}_depth_{depth}": total / count for depth, (total, count) in of if count}
        super().log(logs, start_time)

    # --- evaluation -------------------------------------------------------------------------------------------------

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """Trainer's, with what every depth is worth among the metrics."""
        self._sums = None
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        ours = {f"{metric_key_prefix}_{name}": value for name, value in self._metrics().items()}
        output.metrics.pop(f"{metric_key_prefix}_loss", None)  # a mean of means; ours takes its place
        output.metrics.update({**ours, **output.metrics})  # the user's compute_metrics has the last word on its names
        return output

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Any, Any, Any]:
        """Count what each depth gets right; logits are computed only for those who ask for predictions."""
        inputs = self._labelled(self._prepare_inputs(inputs))
        labels = inputs.get("labels")
        loss = None
        if labels is not None or predicts_next_token(self._inner(model)):
            rows = self._by_sample(model, inputs)
            loss = self._expected_loss(rows.sum(0)).to(rows.dtype)
            sums = self.accelerator.gather_for_metrics(rows).cpu().double().sum(0)
            self._sums = sums if self._sums is None else self._sums + sums
        if prediction_loss_only:
            return loss, None, None
        unlabelled, _ = inputs_and_labels(self._inner(model), inputs)
        _, logits, _ = super().prediction_step(model, dict(unlabelled), False, ignore_keys)
        return loss, logits, labels

    def _by_sample(self, model: nn.Module, inputs: dict[str, Any]) -> Float[Tensor, "b l 3"]:
        inner = self._inner(model)

        def work(inputs: dict[str, Any]) -> Tensor:
            with self.accelerator.autocast():
                return by_sample(self._stack_of(inner, inputs), inputs)

        with torch.no_grad():
            return within_forward(model, inner, work, inputs)  # type: ignore[no-any-return]

    def _expected_loss(self, sums: Float[Tensor, "l 3"]) -> Float[Tensor, ""]:
        """The objective's mean over steps, of cross-entropies: without what imitates, smooths or regularises."""
        depth = len(sums)
        weights = {depth: 1.0} if self.objective.cosine else self.objective.expected(depth)
        nats = sums[:, 1] / sums[:, 2]
        return torch.stack([weight * nats[one - 1] for one, weight in weights.items() if weight]).sum()

    def _metrics(self) -> dict[str, float]:
        if self._sums is None:
            return {}
        right, nats, count = self._sums.unbind(1)
        found = {"loss": self._expected_loss(self._sums).item(), "accuracy": (right / count)[-1].item()}
        name, values = "accuracy", right / count
        if predicts_next_token(self._inner(self.model)):
            name, values = "perplexity", (nats / count).exp()
            found[name] = values[-1].item()
        return found | {f"{name}_depth_{depth}": value for depth, value in enumerate(values.tolist(), start=1)}

    # --- heads ------------------------------------------------------------------------------------------------------

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """A new model, and with the objective "heads" new heads for it."""
        model: nn.Module = super().call_model_init(trial)
        if getattr(self, "is_in_train", False):  # the first call comes before there is anything else
            self.heads = None
            self._attach_heads(model)
        return model

    def _attach_heads(self, model: nn.Module) -> None:
        """Make the heads part of the model, so that optimizer, wrappers and precision see them."""
        inner = self._inner(model)
        if self.heads is None and self._makes_heads:
            with randomness_kept():
                batch = next(iter(self.get_train_dataloader()))
            stack = Stack(inner, blocks=self._blocks)
            self.heads = separate_heads(stack.classifier(to_device(batch, device_of(inner))), stack.depth)
            self._stack = None
        if self.heads is not None:
            inner.add_module(ATTACHED, self.heads)

    def _shards(self) -> bool:
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    # --- from start to end, and again -------------------------------------------------------------------------------

    def train(
        self,
        resume_from_checkpoint: str | Path | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """Train; `resume_from_checkpoint=True` goes on from the newest checkpoint that was written to its end.

        Raises:
            TrainingError: there is none, or the disk has no room for another.
        """
        checkpoint = self._checkpoint(resume_from_checkpoint)
        if self.model_init is None:
            self._attach_heads(self.model)
        self._require_space()
        try:
            return super().train(checkpoint, trial, ignore_keys_for_eval)
        finally:
            if not self._shards():  # the model is plain again; the trainer keeps the heads
                self._inner(self.model)._modules.pop(ATTACHED, None)

    def _checkpoint(self, wanted: str | Path | bool | None) -> str | None:
        if not wanted:
            return None
        found = last_checkpoint(self.args.output_dir, thorough=True) if wanted is True else Path(wanted)
        why = None if found is None else damage(found, thorough=True)
        if found is None or why is not None:
            raise TrainingError(
                f"{found or self.args.output_dir} has no checkpoint that was written to its end"
                f"{f' ({why})' if why else ''}, expected a checkpoint-N with its {STATE_FILE}; train without resuming, "
                "or look in another folder"
            )
        return str(found)

    def _require_space(self) -> None:
        if self.args.should_save and self.args.save_strategy != SaveStrategy.NO:
            require_room(self.args.output_dir, self.model)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._require_space()
        place, limit = Path(self._get_output_dir(trial)), self.args.save_total_limit
        folder = place / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            # of an older run in the same folder: with it, half of the new checkpoint would pass for a whole one
            unseal_checkpoint(folder)
        try:
            self.args.save_total_limit = None  # Trainer would remove older ones before this one is known to be whole
            with write_errors(folder):
                super()._save_checkpoint(model, trial)
                if self.args.should_save:
                    seal_checkpoint(folder)
        except BaseException:
            if self.args.should_save:
                remove_checkpoint(folder)
            raise
        finally:
            self.args.save_total_limit = limit
        if self.args.should_save:
            rotate(place, folder, limit, self.state.best_model_checkpoint)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        wait_for_all()  # every process has written its part before the first one writes the state file

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if self.heads is None:
            super()._save(output_dir, state_dict)
            return
        prefix = f"{ATTACHED}."
        if state_dict is not None:  # a sharded model's, put together
            heads = {name: state_dict[name] for name in state_dict if name.startswith(prefix)}
            state_dict = {name: state_dict[name] for name in state_dict if name not in heads}
        with without(self._inner(self.model), ATTACHED):
            super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            if state_dict is None:
                self.heads.save(folder)
            else:
                save_file({name.removeprefix(prefix): heads[name].contiguous() for name in heads}, folder / HEADS_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load = super()._load_from_checkpoint
        self._load_plain(resume_from_checkpoint, lambda: load(resume_from_checkpoint, model))

    def _load_best_model(self) -> None:
        self._load_plain(self.state.best_model_checkpoint, super()._load_best_model)

    def _load_plain(self, folder: str, load: Callable[[], None]) -> None:
        """Load a plain model, and the heads beside it."""
        if self._shards():  # a sharded checkpoint holds the heads as part of the model
            load()
            return
        inner = self._inner(self.model)
        with without(inner, ATTACHED):
            if isinstance(inner, PreTrainedModel) and not inner._hf_peft_config_loaded:
                read_weights(inner, folder)
            else:
                load()
        if self.heads is not None and len(self.heads):
            self.heads.restore(folder)
