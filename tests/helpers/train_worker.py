"""Tiny trainings, in this process or in others: `python train_worker.py '[{"kind": "vit", "out": ...}, ...]'`.

A training leaves `weights.safetensors`, `log.json` and `metrics.json` in `out`, and for each process `looked-0.json`:
which depths it looked at, step by step. Under `torchrun` each process trains its share. A job with `kill_at` is done in
a process of its own, which is killed at that step as the kernel kills when memory runs out.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

VOCABULARY, CLASSES, BLOCKS = 60, 4, 4
KINDS, DEPTHS = ("vit", "bert", "gpt2"), range(1, BLOCKS + 1)
SGD = {"optim": "sgd", "learning_rate": 0.1}
OF_PEFT = "ignore:`is_gradient_checkpointing:FutureWarning"  # its own call
_SIZES = {"hidden_size": 16, "num_hidden_layers": BLOCKS, "num_attention_heads": 2, "intermediate_size": 32}
_USUAL = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "learning_rate": 5e-3, "logging_steps": 1}
_USUAL |= {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "max_steps": 4, "save_strategy": "no"}


def model(kind: str, dropout: float = 0.1) -> nn.Module:
    """A fresh model, always the same."""
    torch.manual_seed(1)
    drop = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout, "num_labels": CLASSES}
    if kind == "vit":
        config = transformers.ViTConfig(image_size=8, patch_size=4, num_channels=1, **_SIZES, **drop)
        return transformers.ViTForImageClassification(config)
    if kind == "bert":
        config = transformers.BertConfig(vocab_size=VOCABULARY, max_position_embeddings=16, **_SIZES, **drop)
        return transformers.BertForSequenceClassification(config)
    drop = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
    shape = {"n_embd": 16, "n_layer": BLOCKS, "n_head": 2, "n_positions": 16, "vocab_size": VOCABULARY}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, **drop, bos_token_id=0, eos_token_id=0))


def data(kind: str, count: int = 32, seed: int = 0) -> list[dict[str, Any]]:
    """Samples; texts are padded, each to another length, so that batches differ in how many labels they hold."""
    made = torch.Generator().manual_seed(seed)
    if kind == "vit":
        images = torch.rand(count, 1, 8, 8, generator=made)
        return [{"pixel_values": image, "labels": index % CLASSES} for index, image in enumerate(images)]
    ids = torch.randint(1, VOCABULARY, (count, 12), generator=made)
    lengths = torch.randint(2, 13, (count, 1), generator=made)
    mask = (torch.arange(12) < lengths).long()
    if kind == "bert":
        labels: Any = [index % CLASSES for index in range(count)]
    else:
        labels = ids.masked_fill(mask == 0, -100)
    texts = zip(ids * mask, mask, labels, strict=True)
    return [{"input_ids": one, "attention_mask": seen, "labels": label} for one, seen, label in texts]


def arguments(out: str | Path, **changes: Any) -> transformers.TrainingArguments:
    return transformers.TrainingArguments(str(out), **_USUAL | changes)


class Do(transformers.TrainerCallback):
    """Does something at the end of some step."""

    def __init__(self, step: int, what: Any) -> None:
        self.step, self.what = step, what

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.what(kwargs["model"])


def trainer(kind: str, out: Path, *, dropout: float = 0.1, own: nn.Module | None = None, **changes: Any) -> Any:
    """An AlignedTrainer, or what `cls` says, on the samples of its kind."""
    from anydepth.training.trainer import AlignedTrainer

    of_trainer = ("objective", "heads", "callbacks", "compute_metrics", "model_init", "train_dataset")
    given = {name: changes.pop(name) for name in of_trainer if name in changes}
    if "train_dataset" not in given:
        given |= {"train_dataset": data(kind), "eval_dataset": data(kind, 7, seed=1)}
    made = None if "model_init" in given else model(kind, dropout) if own is None else own
    return changes.pop("cls", AlignedTrainer)(made, arguments(out, **changes), **given)


def trained(kind: str, out: Path, **changes: Any) -> Any:
    found = trainer(kind, out, **changes)
    found.train()
    return found


@contextmanager
def quick_collections() -> Iterator[None]:
    """Trainer collects garbage before each training: inside, what was there before is not looked through again."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def same(ours: Any, theirs: Any) -> bool:
    a, b = weights(ours), weights(theirs)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def furthest(ours: Any, theirs: Any) -> float:
    a, b = weights(ours), weights(theirs)
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def logged(of: Any, name: str) -> list[float]:
    return [line[name] for line in of.state.log_history if name in line]


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    """All that was trained."""
    found = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    heads = getattr(trainer, "heads", None)
    if heads is not None:
        found |= {f"heads.{name}": value.detach().clone() for name, value in heads.named_parameters()}
    return found


def train(job: dict[str, Any]) -> None:
    """Do a job."""
    from safetensors.torch import save_file

    from anydepth.training.trace_callback import TraceCallback

    out, kind = Path(job["out"]), job["kind"]
    callbacks: list[Any] = []
    if "kill_at" in job:
        callbacks.append(Do(job["kill_at"], lambda model: os.kill(os.getpid(), signal.SIGKILL)))
    if "trace_to" in job:
        loader: Any = torch.utils.data.DataLoader(data(kind, 14, seed=2), batch_size=4)  # type: ignore[arg-type]
        callbacks.append(TraceCallback(loader, job["trace_to"], every=4))
    found = trainer(
        kind,
        out,
        dropout=job.get("dropout", 0.1),
        objective=job["objective"],
        callbacks=callbacks,
        **job.get("arguments", {}),
    )
    looked: list[list[bool]] = []
    note = found._add_to_log
    found._add_to_log = lambda losses, right: (looked.append((~right.isnan()).tolist()), note(losses, right))
    found.train(resume_from_checkpoint=job.get("resume", False))
    metrics = found.evaluate(data(kind, job["evaluated"], seed=1)) if "evaluated" in job else {}
    (out / f"looked-{found.args.process_index}.json").write_text(json.dumps(looked))
    if found.is_world_process_zero():
        save_file(weights(found), out / "weights.safetensors")
        (out / "log.json").write_text(json.dumps(found.state.log_history))
        (out / "metrics.json").write_text(json.dumps(metrics))


def stopped(job: dict[str, Any]) -> None:
    """A training whose last process alone is asked to stop, at a step of the job's; leaves the signal each stops by."""
    from anydepth.distributed import rank_and_count
    from anydepth.signals import Stopped, stopping
    from anydepth.training.callbacks import InterruptCallback

    (rank, count), out = rank_and_count(), Path(job["out"])
    ask = Do(job["stop_at"], lambda model: signal.raise_signal(signal.SIGTERM) if rank == count - 1 else None)
    interrupt = InterruptCallback(print)
    ours = trainer(job["kind"], out, callbacks=[ask, interrupt], max_steps=9)
    try:
        with stopping(), interrupt.awaited():
            ours.train()
    except Stopped as stop:
        (out / f"stopped-{rank}.json").write_text(json.dumps([ours.state.global_step, stop.number]))


def sharded(job: dict[str, Any]) -> None:
    """The gradients of an aligned loss inside the forward of FSDP, each process with samples of its own."""
    import torch.distributed as dist
    from safetensors.torch import save_file
    from torch.distributed import fsdp

    from anydepth.core.stack import Stack
    from anydepth.training.objectives import AlignedLoss
    from anydepth.training.wrapped_forward import within_forward

    inner = model(job["kind"], 0.0).train()
    blocks = inner.get_submodule(Stack(inner).path)
    if job["fsdp"] == 1:
        wrapping = fsdp.wrap.ModuleWrapPolicy({type(blocks[0])})
        outer: nn.Module = fsdp.FullyShardedDataParallel(
            inner, auto_wrap_policy=wrapping, use_orig_params=True, device_id=torch.device("cpu")
        )
    else:
        for module in (*blocks, inner):
            fsdp.fully_shard(module, mesh=dist.init_device_mesh("cpu", (dist.get_world_size(),)))
        outer = inner
    stack, batch = Stack(inner), transformers.default_data_collator(data(job["kind"], 4, seed=dist.get_rank()))
    within_forward(outer, inner, lambda given: {"loss": AlignedLoss()(stack, given).loss}, batch)["loss"].backward()
    if job["fsdp"] == 1:
        with fsdp.FullyShardedDataParallel.summon_full_params(outer, with_grads=True):
            found = {name: value.grad.clone() for name, value in inner.named_parameters()}
    else:
        found = {name: value.grad.full_tensor() for name, value in inner.named_parameters()}
    if dist.get_rank() == 0:
        save_file({name.replace("_fsdp_wrapped_module.", ""): found[name] for name in found}, job["out"])


def main(jobs: list[dict[str, Any]]) -> None:
    import anydepth.training.trainer  # noqa: F401  # once, before the processes part
    from anydepth.distributed import leave

    for job in jobs:
        if "fsdp" in job:
            sharded(job)
        elif "stop_at" in job:
            stopped(job)
        elif "kill_at" not in job:
            train(job)
        elif not (child := os.fork()):
            train(job)
            os._exit(0)
        else:
            assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    leave()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
