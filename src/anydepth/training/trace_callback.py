"""Trainer callback that traces the model during training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from anydepth.core.heads import ATTACHED
from anydepth.core.stack import Stack
from anydepth.distributed import rank_and_count
from anydepth.errors import TrainingError
from anydepth.tracing.run import DEFAULT_MEASURES, trace
from anydepth.tracing.trace import Trace
from anydepth.training.checkpoints import randomness_kept

_MAX_CURVES = 8  # more could not be distinguished in one chart


class TraceCallback(TrainerCallback):  # type: ignore[misc]
    """Traces the model during training, and writes one report with all traces at the end.

    Each trace is an ordinary one, in `folder/step-000100`, without the sums that only merging needs. The report,
    `folder/report.html`, shows up to eight of them, evenly spaced and including the last; with those of an earlier run,
    if it was resumed. Tracing does not change the training: mode and random state are restored.

    With several processes each traces its share of the data, and all of them must have access to `folder`. A model that
    FSDP or DeepSpeed shards cannot be traced, since its processes would have to run in step.

    Args:
        data: as for `anydepth.trace`, and measures and tokens likewise. It is read once for each trace, so it must not
            be an iterator.
        folder: for the traces and the report.
        every: number of optimizer steps between traces; None: trace at each evaluation.
        measures: names of measures.
        tokens: token positions.
        blocks: the dotted name of the list of blocks, for a model that has several.

    Raises:
        TrainingError: `every` is less than 1.

    Example:
        >>> TraceCallback([], "traces", every=0)
        Traceback (most recent call last):
        anydepth.errors.TrainingError: every is 0, expected a number of steps from 1 on, or None for each evaluation
    """

    def __init__(
        self,
        data: Iterable[Any],
        folder: str | Path,
        *,
        every: int | None = None,
        measures: Sequence[str] = DEFAULT_MEASURES,
        tokens: str | None = None,
        blocks: str | None = None,
    ) -> None:
        if every is not None and every < 1:
            raise TrainingError(f"every is {every}, expected a number of steps from 1 on, or None for each evaluation")
        self.data, self.folder, self.every = data, Path(folder), every
        self.measures, self.tokens, self.blocks = tuple(measures), tokens, blocks
        self._traced: int | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        """Trace, if this step is a multiple of `every`."""
        if self.every is not None and state.global_step % self.every == 0:
            self._trace(args, state.global_step, model)

    def on_evaluate(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        """Trace, once for each step even if several data sets are evaluated."""
        if self.every is None and state.global_step != self._traced:
            self._trace(args, state.global_step, model)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the report."""
        from anydepth.report.pages.trace import write

        folders = sorted(path.parent for path in self.folder.glob("step-*/trace.json"))
        if not folders or rank_and_count()[0] != 0:
            return
        gaps = max(1, min(_MAX_CURVES, len(folders)) - 1)
        shown = [folders[index] for index in sorted({round(i * (len(folders) - 1) / gaps) for i in range(gaps + 1)})]
        labels = [f"step {int(folder.name.removeprefix('step-'))}" for folder in shown]
        write([Trace.load(folder) for folder in shown], self.folder / "report.html", labels)

    def _trace(self, args: Any, step: int, model: nn.Module) -> None:
        self._traced = step
        stack = Stack(model, blocks=self.blocks, heads=getattr(model, ATTACHED, None))
        name = getattr(getattr(model, "config", None), "_name_or_path", "") or type(model).__name__
        dtype = torch.bfloat16 if args.bf16 else torch.float16
        # accelerate casts only inside the model's own forward, and tracing also calls blocks one by one
        with randomness_kept(), torch.autocast(args.device.type, dtype=dtype, enabled=args.bf16 or args.fp16):
            trace(
                stack,
                self.data,
                measures=self.measures,
                tokens=self.tokens,
                out=self.folder / f"step-{step:06d}",
                sums=False,
                describe={"model": f"{name} at step {step}"},
            )
