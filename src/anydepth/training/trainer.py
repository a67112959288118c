"""`transformers.Trainer` with a loss at every depth: same arguments, a plain model as the result.

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
from anydepth.core.model_io import device_of, predicts_next_token, to_device
from anydepth.core.stack import Stack
from anydepth.dependencies import require
from anydepth.distributed import wait_for_all
from anydepth.errors import ObjectiveError, TrainingError
from anydepth.storage.disk import write_errors
from anydepth.training import checkpoints
from anydepth.training.batch_labels import RequireObjective, label_of, labelled
from anydepth.training.evaluation import by_sample
from anydepth.training.losses import inputs_and_labels
from anydepth.training.objectives import DEFAULT, AlignedLoss, NamedObjective, Objective, objective_named
from anydepth.training.wrapped_forward import within_forward


class AlignedTrainer(Trainer):  # type: ignore[misc]
    """`transformers.Trainer` with an objective that trains every depth; the result is a plain model.

    It takes Trainer's arguments and keeps its features: resuming, gradient accumulation, activation checkpointing,
    mixed precision, PEFT, logging. With `objective="standard"` the weights equal Trainer's. `args.torch_compile`
    compiles each block in place, not the model around them. Several GPUs need `torchrun` or `accelerate launch`, one
    process each. The loss runs inside FSDP's forward, which is tested on the CPU; what Trainer does around it, and
    DeepSpeed, is provided for, but untested.

    Logged in training, beside Trainer's own: `loss_depth_1` .. `loss_depth_L` (cross-entropy in nats) and
    `accuracy_depth_1` .. `accuracy_depth_L`, means since the last log over the batches in which the objective computed
    that depth. An evaluation reports `eval_loss` (cross-entropy, each depth at its expected weight), `eval_accuracy`
    and `eval_accuracy_depth_1` .. `_L`; for a language model `eval_accuracy`, `eval_perplexity` and
    `eval_perplexity_depth_1` .. `_L`: means over samples, or tokens, however they fall into batches. (`loss` is divided
    by the labels that Trainer counts: for GPT-2 those are too many by the first of each text, which nothing predicts.)

    Args:
        *args: as Trainer takes them.
        objective: a name of `anydepth.training.OBJECTIVES`, one of its values, an `AlignedLoss`, or a callable of your
            own (see `anydepth.training.Objective`). `args.label_smoothing_factor` sets the `label_smoothing`
            of an `AlignedLoss`.
        blocks: the dotted name of the list of blocks, for a model that has several (an encoder-decoder).
        heads: one classifier for each depth below L, to be trained with the model. The objective "heads" makes its
            own, as copies of the model's. Saved beside the model as `heads.safetensors`.
        **kwargs: as Trainer takes them.

    The labels are in the entry that `args.label_names` names, else in "labels". A subclass may override `compute_loss`
    to add to what `super().compute_loss` returns; one that does not call it would not train the objective, and is
    refused before the first step changes a weight.

    Raises:
        TrainingError: arguments that exclude each other, several labels, a loss beside the objective, no checkpoint to
            resume from, too small a disk.
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
        objective: Objective | NamedObjective | str = DEFAULT,
        blocks: str | None = None,
        heads: Heads | None = None,
        **kwargs: Any,
    ) -> None:
        require("transformers")
        chosen = objective_named(objective) if isinstance(objective, str) else objective
        super().__init__(*args, **kwargs)
        self._check_arguments(heads)
        self.objective: Objective = self._smoothed(chosen.loss if isinstance(chosen, NamedObjective) else chosen)
        self.label_smoother = None
        self.heads = None if heads is None else heads.to(device_of(self.model))
        self._makes_heads = isinstance(chosen, NamedObjective) and chosen.separate_heads and heads is None
        self._blocks = blocks
        self._stack: Stack | None = None
        self._log_sums: Tensor | None = None
        self._evaluation_sums: Tensor | None = None
        self.model_accepts_loss_kwargs = True  # Trainer then counts the labels of the whole optimizer step
        self.label_names = self.label_names or ["labels"]  # for a model that takes none
        name, named = type(self._inner(self.model)).__name__, self.args.label_names is not None
        self._label = label_of(self.label_names, name, given=named)
        self._guard = RequireObjective(type(self).__name__)
        self.add_callback(self._guard)
        # accelerate would compile the model as a whole, and the stubs in it
        self.accelerator.state.dynamo_plugin.backend = DynamoBackend.NO

    def _check_arguments(self, heads: Heads | None) -> None:
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

    def _smoothed(self, objective: Any) -> Any:
        """The objective, with the label smoothing of the arguments."""
        if isinstance(objective, type) or not isinstance(objective, Objective):
            raise ObjectiveError(
                f"objective is {objective!r}, expected a name of OBJECTIVES, an AlignedLoss, or a callable with a "
                "method expected(depth)"
            )
        smoothing = self.args.label_smoothing_factor
        if not smoothing:
            return objective
        if isinstance(objective, AlignedLoss):
            return dataclasses.replace(objective, label_smoothing=smoothing)
        raise TrainingError(
            f"label_smoothing_factor is {smoothing}, and {type(objective).__name__} is an objective of your own, which "
            "Trainer cannot smooth: smooth the labels in the objective, and leave label_smoothing_factor out"
        )

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
        self._require_one_loss()
        self._guard.called = True

        def work(stack: Stack, inputs: dict[str, Any]) -> dict[str, Tensor]:
            result = self.objective(stack, inputs, step=self.state.global_step, items=num_items_in_batch)
            return {"loss": result.loss, "by_depth": result.by_depth.detach(), "accuracy": result.accuracy.detach()}

        outputs = self._in_forward(model, work, self._labelled(inputs))
        if model.training:
            self._add_to_log(outputs["by_depth"], outputs["accuracy"])
        loss = outputs["loss"]
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # the labels were counted over all processes, and gradients are averaged over them: as Trainer does it
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())
        return (loss, outputs) if return_outputs else loss

    def _in_forward(self, model: nn.Module, work: Callable[[Stack, dict[str, Any]], Any], inputs: Any) -> Any:
        """Call `work` with the stack and the inputs, inside the forward of the model that accelerate wrapped."""
        inner = self._inner(model)

        def on_stack(inputs: dict[str, Any]) -> Any:
            with self.accelerator.autocast():  # opened once around all readouts, which then share the cast weights
                return work(self._stack_of(inner, inputs), inputs)

        return within_forward(model, inner, on_stack, inputs)

    def _inner(self, model: nn.Module) -> nn.Module:
        return self.accelerator.unwrap_model(model, keep_torch_compile=False)  # type: ignore[no-any-return]

    def _stack_of(self, inner: nn.Module, batch: Mapping[str, Any]) -> Stack:
        if self._stack is None or self._stack.model is not inner:
            self._stack = Stack(inner, blocks=self._blocks, heads=self.heads)
            self._stack.verify(inputs_and_labels(inner, batch)[0])
            if self.args.torch_compile:
                for block in self._stack.block_list.modules:
                    if block._compiled_call_impl is None:
                        block.compile(backend=self.args.torch_compile_backend, mode=self.args.torch_compile_mode)
        return self._stack

    # --- logs -------------------------------------------------------------------------------------------------------

    def _add_to_log(self, by_depth: Float[Tensor, " l"], accuracy: Float[Tensor, " l"]) -> None:
        """Add to the sums of the next log; they stay on the device."""
        computed = ~accuracy.isnan()
        sums = torch.stack([by_depth.nan_to_num(), accuracy.nan_to_num(), computed.to(by_depth.dtype)])
        self._log_sums = sums if self._log_sums is None else self._log_sums + sums

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log to whatever `report_to` names; losses and accuracies by depth are added to a log of training."""
        if "loss" in logs and self._log_sums is not None:
            nats, right, counts = self.accelerator.reduce(self._log_sums, "sum").tolist()
            self._log_sums = None
            for name, sums in (("loss", nats), ("accuracy", right)):
                by_depth = enumerate(zip(sums, counts, strict=True), start=1)
                logs |= {f"{name}_depth_{depth}": total / count for depth, (total, count) in by_depth if count}
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
        """Trainer's, with the metrics of every depth."""
        self._evaluation_sums = None
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        by_depth = {f"{metric_key_prefix}_{name}": value for name, value in self._metrics().items()}
        output.metrics.pop(f"{metric_key_prefix}_loss", None)  # a mean of batch means
        output.metrics.update({**by_depth, **output.metrics})  # names of the user's compute_metrics take precedence
        return output

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Any, Any, Any]:
        """Sum loss and accuracy of each depth; logits are computed only if predictions are needed."""
        inputs = self._labelled(self._prepare_inputs(inputs))
        labels = inputs.get("labels")
        loss = None
        if labels is not None or predicts_next_token(self._inner(model)):
            with torch.no_grad():
                rows = self._in_forward(model, by_sample, inputs)
            loss = self._expected_loss(rows.sum(0)).to(rows.dtype)
            sums = self.accelerator.gather_for_metrics(rows).cpu().double().sum(0)
            self._evaluation_sums = sums if self._evaluation_sums is None else self._evaluation_sums + sums
        if prediction_loss_only:
            return loss, None, None
        unlabelled, _ = inputs_and_labels(self._inner(model), inputs)
        _, logits, _ = super().prediction_step(model, dict(unlabelled), False, ignore_keys)
        return loss, logits, labels

    def _expected_loss(self, sums: Float[Tensor, "l 3"]) -> Float[Tensor, ""]:
        """The cross-entropies at their expected weights: without distillation, label smoothing or regulariser."""
        entry = self._stack.entry if self._stack else 0
        weights = self.objective.expected(len(sums), *([entry + 1] if entry else []))
        nats = sums[:, 1] / sums[:, 2]
        return torch.stack([weight * nats[depth - 1] for depth, weight in weights.items() if weight]).sum()

    def _metrics(self) -> dict[str, float]:
        sums = self._evaluation_sums
        if sums is None:
            return {}
        right, nats, count = sums.unbind(1)
        name, values = "accuracy", right / count
        metrics = {"loss": self._expected_loss(sums).item(), "accuracy": values[-1].item()}
        if predicts_next_token(self._inner(self.model)):
            name, values = "perplexity", (nats / count).exp()
            metrics[name] = values[-1].item()
        entry = self._stack.entry if self._stack else 0
        trained = enumerate(values.tolist()[entry:], start=entry + 1)
        return metrics | {f"{name}_depth_{depth}": value for depth, value in trained}

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
            with checkpoints.randomness_kept():
                batch = next(iter(self.get_train_dataloader()))
            stack = Stack(inner, blocks=self._blocks)
            self.heads = separate_heads(stack.classifier(to_device(batch, device_of(inner))), stack.depth)
            self._stack = None
        if self.heads is not None:
            inner.add_module(ATTACHED, self.heads)

    def _shards(self) -> bool:
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    # --- training and checkpoints ---------------------------------------------------------------------------------

    def train(
        self,
        resume_from_checkpoint: str | Path | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """Train; `resume_from_checkpoint=True` resumes from the newest complete checkpoint.

        Raises:
            TrainingError: there is none, or the disk has no room for another.
        """
        checkpoint = self._checkpoint(resume_from_checkpoint)
        if self.model_init is None:
            self._attach_heads(self.model)
        self._require_disk_space()
        try:
            return super().train(checkpoint, trial, ignore_keys_for_eval)
        finally:
            if not self._shards():  # the model is plain again, and the trainer keeps the heads
                self._inner(self.model)._modules.pop(ATTACHED, None)

    def _checkpoint(self, resume: str | Path | bool | None) -> str | None:
        if not resume:
            return None
        folder = checkpoints.last_checkpoint(self.args.output_dir, thorough=True) if resume is True else Path(resume)
        problem = None if folder is None else checkpoints.damage(folder, thorough=True)
        if folder is None or problem is not None:
            raise TrainingError(
                f"{folder or self.args.output_dir} has no checkpoint that was written to its end"
                f"{f' ({problem})' if problem else ''}, expected a checkpoint-N with its "
                f"{checkpoints.STATE_FILE}; train without resuming, or look in another folder"
            )
        return str(folder)

    def _require_disk_space(self) -> None:
        if self.args.should_save and self.args.save_strategy != SaveStrategy.NO:
            checkpoints.require_room(self.args.output_dir, self.model)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._require_disk_space()
        output_dir, limit = Path(self._get_output_dir(trial)), self.args.save_total_limit
        folder = output_dir / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            # With the seal of an older run in this folder, half of the new checkpoint would pass for a whole one.
            checkpoints.unseal_checkpoint(folder)
        try:
            self.args.save_total_limit = None  # Trainer would remove older ones before this one is complete
            with write_errors(folder):
                super()._save_checkpoint(model, trial)
                if self.args.should_save:
                    checkpoints.seal_checkpoint(folder)
        except BaseException:
            if self.args.should_save:
                checkpoints.remove_checkpoint(folder)
            raise
        finally:
            self.args.save_total_limit = limit
        if self.args.should_save:
            checkpoints.rotate(output_dir, folder, limit, self.state.best_model_checkpoint)

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
        with checkpoints.without(self._inner(self.model), ATTACHED):
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
        """Load a plain model, and the heads saved beside it."""
        if self._shards():  # a sharded checkpoint holds the heads as part of the model
            load()
            return
        inner = self._inner(self.model)
        with checkpoints.without(inner, ATTACHED):
            if isinstance(inner, PreTrainedModel) and not inner._hf_peft_config_loaded:
                checkpoints.read_weights(inner, folder)
            else:
                load()
        if self.heads is not None and len(self.heads):
            self.heads.restore(folder)
