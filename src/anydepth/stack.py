"""The mechanism everything here goes through: a transformer as blocks plus the model's own everything else.

To read out a state, `Stack` runs the model's own forward with each block replaced by a stub that answers with that
state. Final norm, pooler, soft-cap, logit scale, two-token heads, pooling at the rightmost token: all are applied by
the model itself, so nothing here re-implements `head(norm(h))`, and nothing can get it wrong. The same replacement
records states (a stub that runs the block and keeps its answer), cuts the model (stubs that pass their input on) and
records each block's arguments (stubs that pass on and run nothing).

Words: the state `h[0]` is what enters the first block, `h[l]` the raw output of block l = 1..L, before the final norm.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from anydepth.blocks import find_blocks
from anydepth.calling import Batch, answer_of, call_model, call_with, distance, first_samples, hidden_of, state_of
from anydepth.errors import ReadoutMismatch, UnknownArchitecture
from anydepth.surgery import evaluating, forward_as, quiet, replaced, switches

# The law compares the same operations on the same numbers, so it holds almost to the last bit; these leave room for
# kernels that round differently from one call to the next. Relative to the largest entry.
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}


@dataclass(frozen=True)
class Verification:
    """How far the law was from exact on one batch: largest differences, relative to the largest entry."""

    readout: float
    """`readout(h[L])` against the model's own output."""
    cut: float
    """`readout(h[k])` against the model cut after block k."""
    replay: float
    """Block-by-block replay against the recorded states."""
    depth: int
    """The k of the cut."""
    tolerance: float


@dataclass
class Replay:
    """A forward held open before its first block: each block can be run by itself on the model's own arguments."""

    state: Tensor
    """h[0]."""
    _calls: list[Callable[[Tensor], Tensor]]

    def step(self, state: Tensor, depth: int) -> Tensor:
        """Run block `depth` (1..L) on h[depth - 1]; returns h[depth]."""
        return self._calls[depth - 1](state)


class Stack:
    """A model seen as L blocks, the states between them, and the model's own readout of any state.

    Args:
        model: any transformer: from transformers, timm, PEFT, `nn.TransformerEncoder`, or your own.
        blocks: the dotted name of the list of blocks, for a model that has several.

    Raises:
        UnknownArchitecture: no list of blocks is found, several are, or they do not run once each in order.
        ReadoutMismatch: on the first batch, if reading out h[L] is not what the model answers.

    The law is checked on the first batch seen (a few samples of it, in eval mode). Whatever is changed on the model
    is put back before a method returns, also when the model's forward fails.

    Example:
        >>> import torch
        >>> from transformers import ViTConfig, ViTForImageClassification
        >>> config = ViTConfig(image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
        ...                    intermediate_size=32, num_channels=1, num_labels=5)
        >>> stack = Stack(ViTForImageClassification(config).eval())
        >>> batch = {"pixel_values": torch.rand(2, 1, 8, 8)}
        >>> with torch.no_grad():
        ...     states = stack.states(batch)
        ...     early = stack.readout(states[1], batch)
        >>> len(states), tuple(states[1].shape), tuple(early.shape)
        (4, (2, 5, 16), (2, 5))
    """

    def __init__(self, model: nn.Module, *, blocks: str | None = None) -> None:
        # a compiled wrapper has the blocks of the model it wraps, but would run them without the stubs
        self.model = model = getattr(model, "_orig_mod", model)
        self.path, self._list = find_blocks(model, blocks)
        self._learnt: _Learnt | None = None
        self._prefix = _Prefix()
        self._switches = switches(model)

    @property
    def depth(self) -> int:
        """L, the number of blocks."""
        return len(self._list)

    def answers_with_logits(self, *, labelled: bool) -> bool:
        """Whether the model's answer are the logits of a classifier; known after the first batch.

        Args:
            labelled: whether the data carry labels. A model that answers with a bare tensor does not say what it is:
                it counts as logits if there are labels to hold it against, or if the model states its classes (timm).
        """
        if self._learnt is None:
            return False
        if self._learnt.answer:
            return self._learnt.answer in ("logits", "logits_per_image")
        return labelled or bool(getattr(self.model, "num_classes", 0))

    @property
    def has_final_norm(self) -> bool:
        """Whether a norm reads the last block's output as it is, so that a readout can leave it out."""
        return self._learnt is not None and bool(self._learnt.final_norms)

    def states(self, batch: Batch) -> list[Tensor]:
        """The states h[0..L] of one forward.

        Args:
            batch: what the model takes.

        Returns:
            L + 1 tensors of one shape, mostly (B, T, D). Gradients flow through them if gradients are on.

        Raises:
            UnknownArchitecture: blocks were skipped, repeated or out of order, or widths differ between depths.
        """
        self._ensure_verified(batch)
        return self._watch(batch, self._prefix).states

    def readout(self, state: Tensor, batch: Batch, *, final_norm: bool = True) -> Tensor:
        """The model's own answer if `state` were the output of its last block.

        Args:
            state: any h[l] of this batch, in the shape `states` gives.
            batch: the batch that `state` belongs to; heads look at its mask and token ids.
            final_norm: False skips the final norm. Only to reproduce results of code that forgot it.

        Returns:
            Logits where the model has a classifier, else its embeddings or pooled output.
        """
        learnt = self._ensure_verified(batch)
        with ExitStack() as undo:
            undo.enter_context(self._prefix.replayed(batch))
            if not final_norm:
                for norm in learnt.final_norms:
                    undo.enter_context(forward_as(norm, lambda state, *args, **kwargs: state))
            return self._run(batch, [lambda *args, _as=shape, **kwargs: _as(state) for shape in learnt.shapes])[1]

    def replay(self, batch: Batch) -> Replay:
        """Record the arguments of every block in one forward that runs no block.

        Returns:
            h[0] and, by `step`, each block on the arguments (masks, rotary tables) the model gives it.
        """
        learnt = self._ensure_verified(batch)
        return self._record(batch, learnt)

    def verify(self, batch: Batch) -> Verification:
        """Check the law on a few samples of `batch`, in eval mode and without gradients.

        `readout(h[L])` must be the model's own answer; for a middle k, `readout(h[k])` that of the model with its
        blocks cut after k; and each block, replayed on the state before it, must give the state after it.

        Raises:
            ReadoutMismatch: with the size of the error.
        """
        few = first_samples(batch, 2)
        with evaluating(self.model), torch.no_grad():
            watched = self._watch(few, _Prefix(), learn=True)
            self._learnt = learnt = watched.learnt()
            if learnt.in_place:
                watched = self._watch(few, _Prefix())
            try:
                return self._check_law(few, watched, learnt)
            except BaseException:
                self._learnt = None
                raise

    def _ensure_verified(self, batch: Batch) -> _Learnt:
        if self._learnt is None:
            self.verify(batch)
        assert self._learnt is not None
        return self._learnt

    def _check_law(self, batch: Batch, watched: _Watched, learnt: _Learnt) -> Verification:
        states, answer, k = watched.states, watched.answer, max(1, self.depth // 2)
        cut_calls = [
            block if depth <= k else (lambda *args, _as=shape, **kwargs: _as(hidden_of(args, kwargs)))
            for depth, (block, shape) in enumerate(zip(self._list, learnt.shapes, strict=True), start=1)
        ]
        replay = self._record(batch, learnt)
        apart = [distance(replay.state, states[0])]
        for depth in range(1, self.depth + 1):
            apart.append(distance(replay.step(states[depth - 1], depth), states[depth]))
        tolerance = _TOLERANCE.get(states[0].dtype, 1e-5)
        found = Verification(
            readout=distance(self.readout(states[-1], batch), answer),
            cut=distance(self.readout(states[k], batch), self._run(batch, cut_calls)[1]),
            replay=max(apart),
            depth=k,
            tolerance=tolerance,
        )
        for name in ("readout", "cut", "replay"):
            # `not <=` so that a NaN, too, is a broken law
            if not (error := getattr(found, name)) <= tolerance:
                raise ReadoutMismatch(
                    f"{type(self.model).__name__}: the {name} law is broken at {self.path!r}: largest relative "
                    f"difference {error:.2g}, expected at most {tolerance:.0e}; this model passes something between "
                    "or around its blocks that a state does not hold"
                )
        return found

    def _run(self, batch: Batch, calls: list[Any]) -> tuple[str, Tensor]:
        """The model's forward with call l in place of block l; the name and value of its answer."""
        with quiet(self._switches), replaced(self._list, calls):
            return answer_of(call_model(self.model, batch))

    def _watch(self, batch: Batch, prefix: _Prefix, *, learn: bool = False) -> _Watched:
        """One forward in which every block runs and leaves its input and output behind."""
        watched = _Watched(self)
        with ExitStack() as undo:
            if learn:
                undo.enter_context(watched.calls_outside())
            undo.enter_context(prefix.recorded(batch, self._learnt.before if self._learnt else []))
            name, answer = self._run(batch, watched.calls(clone=bool(self._learnt and self._learnt.in_place)))
        return watched.finish(name, answer)

    def _record(self, batch: Batch, learnt: _Learnt) -> Replay:
        start: list[Tensor] = []
        steps: list[Callable[[Tensor], Tensor]] = []

        def recorder(block: nn.Module, shape: _Shape) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                start.append(hidden_of(args, kwargs))
                own = Tensor.clone if learnt.in_place else (lambda state: state)
                steps.append(lambda state: state_of(call_with(block, own(state), args, kwargs)))
                return shape(start[-1])

            return call

        pairs = zip(self._list, learnt.shapes, strict=True)
        with self._prefix.replayed(batch):
            self._run(batch, [recorder(block, shape) for block, shape in pairs])
        return Replay(start[0], steps)


# --- what one watched forward shows ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shape:
    """How a block hands on its state: bare, or first in a tuple beside what `rest` holds."""

    rest: tuple[Any, ...] | None

    @classmethod
    def of(cls, output: Any) -> _Shape:
        if not isinstance(output, tuple | list):
            return cls(None)
        # Tensors beside the state (attention weights) belong to one batch only. Where a later block needs them after
        # all (T5's position bias), the law breaks, and says so.
        return cls(tuple(None if isinstance(value, Tensor) else value for value in output[1:]))

    def __call__(self, state: Tensor) -> Any:
        return state if self.rest is None else (state, *self.rest)


@dataclass(frozen=True)
class _Learnt:
    """What the first batch taught about the model."""

    shapes: list[_Shape]
    before: list[nn.Module]
    """Modules that run once and finish before the first block starts: their answers can be kept for readouts."""
    final_norms: list[nn.Module]
    """Norms that the last block's output enters."""
    in_place: bool
    """Whether some block overwrites its input, so that states must be copied."""
    answer: str
    """The name of the answer in the model's output; empty for a bare tensor."""


@dataclass
class _Watched:
    """The record of a forward in which all blocks ran."""

    stack: Stack
    states: list[Tensor] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    order: list[int] = field(default_factory=list)
    versions: list[int | None] = field(default_factory=list)
    outside: list[tuple[nn.Module, str, Any]] = field(default_factory=list)
    answer: Tensor = field(default_factory=lambda: torch.empty(0))
    answer_name: str = ""

    def calls(self, *, clone: bool) -> list[Any]:
        return [self._watching(index, block, clone) for index, block in enumerate(self.stack._list)]

    def _watching(self, index: int, block: nn.Module, clone: bool) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if not self.order:
                self._keep(hidden_of(args, kwargs), clone)
            output = block(*args, **kwargs)
            self.order.append(index + 1)
            self.outputs.append(output)
            self._keep(state_of(output), clone)
            return output

        return call

    def _keep(self, state: Tensor, clone: bool) -> None:
        self.states.append(state.clone() if clone else state)
        self.versions.append(None if state.is_inference() else self.states[-1]._version)

    @contextmanager
    def calls_outside(self) -> Iterator[None]:
        """Notes when modules outside the blocks start and finish."""
        within = {id(inner) for block in self.stack._list for inner in block.modules()}
        handles = []
        for module in self.stack.model.modules():
            if id(module) in within or module is self.stack._list:
                continue
            handles += [
                module.register_forward_pre_hook(self._note_start, with_kwargs=True),
                module.register_forward_hook(self._note_end),
            ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _note_start(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        first = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        self.outside.append((module, "start", (len(self.order), bool(self.states), first)))

    def _note_end(self, module: nn.Module, args: Any, output: Any) -> None:
        self.outside.append((module, "end", (len(self.order), bool(self.states), None)))

    def finish(self, name: str, answer: Tensor) -> _Watched:
        self.answer_name, self.answer = name, answer
        depth, model = self.stack.depth, type(self.stack.model).__name__
        if self.order != list(range(1, depth + 1)):
            seen = f"{len(self.order)} of {depth} blocks" if len(self.order) < depth else f"the order {self.order}"
            why = (
                "a model compiled before it came here may skip them: pass the uncompiled model"
                if len(self.order) < depth
                else "blocks that several depths share are not supported"
            )
            raise UnknownArchitecture(f"{model}: {seen} of {self.stack.path!r} ran, expected each once in order; {why}")
        shapes = {tuple(state.shape) for state in self.states}
        if len(shapes) > 1:
            raise UnknownArchitecture(
                f"{model}: states differ in shape between depths ({', '.join(map(str, sorted(shapes)))}); "
                "models in stages of differing width (as Swin) are not supported"
            )
        return self

    def learnt(self) -> _Learnt:
        overwritten = [
            version is not None and state._version != version
            for state, version in zip(self.states, self.versions, strict=True)
        ]
        return _Learnt(
            shapes=[_Shape.of(output) for output in self.outputs],
            before=self._before(),
            final_norms=self._final_norms(),
            in_place=any(overwritten),
            answer=self.answer_name,
        )

    def _before(self) -> list[nn.Module]:
        started = [module for module, event, (_, begun, _) in self.outside if event == "start"]
        ended = [module for module, event, (_, begun, _) in self.outside if event == "end" and not begun]
        once = [module for module in ended if started.count(module) == 1]
        inner = {id(part) for module in once for part in module.modules() if part is not module}
        return [module for module in once if id(module) not in inner]

    def _final_norms(self) -> list[nn.Module]:
        last = self.states[-1].untyped_storage().data_ptr()
        return [
            module
            for module, event, (ran, _, given) in self.outside
            if event == "start"
            and ran == self.stack.depth
            and re.search("norm", type(module).__name__, re.IGNORECASE)
            and given is not None
            and given.untyped_storage().data_ptr() == last
        ]


class _Prefix:
    """What ran before the first block on the batch last seen, kept so that readouts need not run it again."""

    def __init__(self) -> None:
        self._key: tuple[Any, ...] | None = None
        self._kept: list[tuple[nn.Module, Any]] = []

    @contextmanager
    def recorded(self, batch: Batch, modules: list[nn.Module]) -> Iterator[None]:
        self._key, self._kept = None, []
        kept: list[tuple[nn.Module, Any]] = []

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            kept.append((module, _detached(output)))

        handles = [module.register_forward_hook(keep) for module in modules]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        self._key, self._kept = _identity(batch), kept

    @contextmanager
    def replayed(self, batch: Batch) -> Iterator[None]:
        with ExitStack() as undo:
            if self._key is not None and _same(self._key, _identity(batch)):
                for module, output in self._kept:
                    undo.enter_context(forward_as(module, lambda *args, _output=output, **kwargs: _output))
            yield


def _identity(batch: Batch) -> tuple[Any, ...]:
    """Which tensors these are, and how often each was written to; None stands for what cannot be told."""
    tensors = [batch] if isinstance(batch, Tensor) else [v for v in batch.values() if isinstance(v, Tensor)]
    return tuple((weakref.ref(t), None if t.is_inference() else t._version) for t in tensors)


def _same(kept: tuple[Any, ...], now: tuple[Any, ...]) -> bool:
    return len(kept) == len(now) and all(
        then() is not None and then() is this() and was == version
        for (then, was), (this, version) in zip(kept, now, strict=True)
    )


def _detached(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.detach()
    if type(output) in (tuple, list):
        return type(output)(_detached(value) for value in output)
    return output
