"""Trainer callbacks: progress by depth, and stopping with a checkpoint on Ctrl-C."""

from __future__ import annotations

import _thread
import math
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback

from anydepth.distributed import largest, rank_and_count
from anydepth.progress import Progress
from anydepth.signals import Stopped, handling


def three_depths(depth: int, first: int = 1) -> tuple[int, ...]:
    """A shallow depth, a middle one, and the last; `first` is the first that is trained.

    Example:
        >>> three_depths(12), three_depths(3), three_depths(2)
        ((1, 6, 12), (1, 2, 3), (1, 2))
    """
    return tuple(sorted({first, (depth + first) // 2, depth}))


class ProgressCallback(TrainerCallback):  # type: ignore[misc]
    """Reports steps done, and the latest accuracy, or perplexity of a language model, at `three_depths`."""

    def __init__(self, progress: Progress, depth: int, *, language_model: bool, first: int = 1) -> None:
        self._progress, self._depths = progress, three_depths(depth, first)
        self._name = "perplexity" if language_model else "accuracy"
        self._latest: dict[int, float] = {}
        self._evaluated = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Report an optimizer step."""
        self._progress(state.global_step, state.max_steps, self._description("training", self._latest))

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **_: Any) -> None:
        """Take the logged values; a depth that was not computed keeps its last one."""
        logs = logs or {}
        for depth in self._depths:
            nats, accuracy = logs.get(f"loss_depth_{depth}"), logs.get(f"accuracy_depth_{depth}")
            if nats is not None and accuracy is not None:
                self._latest[depth] = accuracy if self._name == "accuracy" else _perplexity(nats)
        if "loss" in logs:
            self._progress(state.global_step, state.max_steps, self._description("training", self._latest))

    def on_prediction_step(self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **_: Any) -> None:
        """Report an evaluated batch."""
        self._evaluated += 1
        self._progress(self._evaluated, len(eval_dataloader), "evaluating")

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Mapping[str, float], **_: Any) -> None:
        """Report the values of an evaluation."""
        values = {depth: metrics[f"eval_{self._name}_depth_{depth}"] for depth in self._depths}
        self._progress(self._evaluated, self._evaluated, self._description("evaluating", values))
        self._evaluated = 0

    def _description(self, what: str, values: Mapping[int, float]) -> str:
        if not values:
            return what
        digits = 1 if self._name == "perplexity" else 3
        texts = (f"{depth}: {values[depth]:.{digits}f}" for depth in self._depths if depth in values)
        return f"{what}, {self._name} at depth " + ", ".join(texts)


def _perplexity(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf


_STOPPING = "stopping after this step, with a checkpoint; once more to stop at once"


class InterruptCallback(TrainerCallback):  # type: ignore[misc]
    """Stops a training on Ctrl-C, SIGTERM or SIGHUP, after the current step and with a checkpoint.

    A second signal stops it at once. It is enough that one of several processes gets the signal: after each step they
    agree on whether to continue, by a tensor on `device`. `say` is given a line for the user.
    """

    def __init__(self, say: Callable[[str], None], device: torch.device | str = "cpu") -> None:
        self._received: int | None = None
        self._say, self._device = say, device

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """Context manager: handle these signals; one that was received is raised again at the end."""

        def receive(number: int) -> None:
            if self._received is not None:
                raise Stopped(number) if number != signal.SIGINT else KeyboardInterrupt
            self._received = number
            if rank_and_count()[0] == 0:
                # The stream may be in the middle of a line, which a handler cannot write to. No `threading.Thread`: its
                # start takes a lock that the interrupted code may hold.
                _thread.start_new_thread(self._say, (_STOPPING,))

        with handling(receive):
            yield
            number = self._agreed()
        if number:
            signal.raise_signal(number)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save and stop, if there was a signal."""
        if self._agreed():
            control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Skip evaluation and checkpoint, if there was a signal."""
        if self._agreed():
            control.should_evaluate = control.should_save = False

    def _agreed(self) -> int:
        """The signal that any process received, or 0; all of them must call this at the same time.

        Another process's signal is not recorded here: a launcher sends the same to all, one by one, and this process's
        own must not count as the second.
        """
        return largest(self._received or 0, self._device)
