"""`Stack`: hidden states of a transformer at every depth, and the model's own readout (logit lens) of each.

To read out a hidden state, `Stack` runs the model's own forward with each block replaced by a stub that returns that
state. Final norm, pooler, soft-cap, logit scale, two-token heads, pooling at the rightmost token: all are applied by
the model itself, and nothing here re-implements `head(norm(h))`. Stubs also record hidden states, cut the model, and
record each block's arguments.

The state `h[0]` is the input of the first block, `h[l]` the raw output of block l = 1..L, before the final norm.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from anydepth.core.blocks import STACKS, BlockList, block_lists, list_at, named, stated_list
from anydepth.core.heads import Heads
from anydepth.core.layout import StateLayout, learn_layout
from anydepth.core.masks import Masks
from anydepth.core.model_io import (
    ANSWERS,
    Batch,
    call_model,
    call_with,
    distance,
    first_samples,
    input_state,
    model_output,
    output_state,
    sample_count,
    samples_of,
)
from anydepth.core.patching import disabled, eager, evaluating, forward_as, interfering_flags, replaced
from anydepth.core.prefix_cache import Answers, Prefix
from anydepth.core.recording import BlockOutput, ModelTraits, RecordedForward
from anydepth.core.segments import Segments
from anydepth.core.watching import PlainForward, watch
from anydepth.dependencies import require
from anydepth.errors import AnydepthError, ReadoutMismatch, UnknownArchitecture, UnsupportedHead, choose, one_line

# `Stack.verify` compares the same operations on the same numbers. These tolerances, relative to the largest entry, are
# for kernels that round differently from one call to the next.
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}


def tolerance_of(values: Tensor) -> float:
    """Largest difference, relative to the largest entry, at which two computations of these values count as equal."""
    return _TOLERANCE.get(values.dtype, 1e-5)


@dataclass(frozen=True, kw_only=True)
class Verification:
    """Result of `Stack.verify` on one batch: largest differences, relative to the largest entry."""

    readout: float
    """`readout(h[L])` against the model's own output."""
    cut: float
    """`readout(h[k])` against the model cut after block k (`depth`)."""
    replay: float
    """Block-by-block replay of one sample against the states of both."""
    plain: float
    """The answer with stubs in place against that of the untouched model."""
    prefix: float
    """h[0] from the kept outputs of what runs before block 1, twice, against h[0]."""
    depth: int
    tolerance: float


@dataclass(frozen=True, kw_only=True)
class BlockCall:
    """A block, and the arguments that the model's own forward passes to it."""

    block: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    in_place: bool
    """Whether the block may overwrite the state it is given."""
    layout: StateLayout

    def __call__(self, state: Tensor) -> Tensor:
        """The block's output for a hidden state."""
        own = self.layout.own(state.clone() if self.in_place else state, like=input_state(self.args, self.kwargs))
        return self.layout.standard(output_state(call_with(self.block, own, self.args, self.kwargs)))


@dataclass
class Replay:
    """The recorded inputs of all blocks: each can be run by itself on the model's own arguments."""

    state: Tensor
    """h[0]."""
    calls: list[BlockCall]

    @classmethod
    def of(cls, state: Tensor, calls: list[BlockCall], traits: ModelTraits) -> Replay:
        """A replay of calls that were recorded before the model's layout was known."""
        return cls(traits.layout.standard(state), [replace(call, layout=traits.layout) for call in calls])

    def step(self, state: Tensor, depth: int) -> Tensor:
        """Run block `depth` (1..L) on h[depth - 1]; returns h[depth]."""
        return self.calls[depth - 1](state)


class Stack:
    """A model as L blocks, with the hidden state at every depth and the model's own readout of any state.

    Args:
        model: any transformer: from transformers, timm, PEFT, `nn.TransformerEncoder`, or your own.
        blocks: the dotted name of the list of blocks, if the one that is found is not the one that is meant; or `stack`.
        stack: "encoder", "decoder", "image", "text" or "audio", of a model that has several; by default the last before
            the answer, which is the decoder of an encoder-decoder, and the language model of one that sees images.
        heads: one classifier for each depth below L, for a model that was trained with them.

    Raises:
        UnknownArchitecture: there is no list of blocks; on the first batch, if none runs with states of one shape.
        ReadoutMismatch: on the first batch, if the readout of h[L] is not the model's own answer; see `verify`.

    All changes to the model are undone before a method returns, also when the model's forward fails.

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

    def __init__(
        self, model: nn.Module, *, blocks: str | None = None, stack: str | None = None, heads: Heads | None = None
    ) -> None:
        require("torch")
        if hasattr(model, "peft_config"):
            require("peft")
        # a compiled wrapper would run the blocks without the stubs
        self.model = model = getattr(model, "_orig_mod", model)
        if blocks in STACKS and blocks not in dict(model.named_modules()):
            blocks, stack = None, blocks
        if stack is not None:
            choose(stack, STACKS, "stack", UnknownArchitecture)
        self._stack = stack
        self._lists = block_lists(model) if blocks is None else [list_at(model, blocks)]
        self._stated = self._lists[0] if blocks is not None else stated_list(model, self._lists, stack)
        self._named = blocks is not None
        self.heads = heads
        self._traits: ModelTraits | None = None
        self._prefix = Prefix()
        self._flags = interfering_flags(model)
        pad = getattr(getattr(model, "config", None), "pad_token_id", None)
        self.masks = Masks(self._first_state, virtual=hasattr(model, "peft_config"), pad=pad)
        if heads is not None and self._blocks is not None:
            self._require_heads(heads)

    def _require_heads(self, heads: Heads) -> None:
        if len(heads) != self.depth - 1:
            raise UnsupportedHead(
                f"{len(heads)} heads for {type(self.model).__name__} of {self.depth} blocks, expected "
                f"{self.depth - 1}: one for each depth below the last"
            )

    @property
    def _blocks(self) -> BlockList | None:
        return self._stated if self._traits is None else self._traits.blocks

    @property
    def block_list(self) -> BlockList:
        """The modules that are the blocks, and what holds them.

        Raises:
            UnknownArchitecture: before the first batch, of a model with several lists: a forward shows which.
        """
        if (blocks := self._blocks) is None:
            raise UnknownArchitecture(
                f"{type(self.model).__name__} has several lists of modules: {named(self._lists[:6])}; its first batch "
                "shows which are the blocks: run verify(batch) first, or name them (blocks=, stack=)"
            )
        return blocks

    @property
    def path(self) -> str:
        """The dotted name of the list of blocks."""
        return self.block_list.path

    @property
    def blocks(self) -> tuple[nn.Module, ...]:
        """The block of each depth 1..L; several may be one module, if the model calls it several times."""
        modules = self.block_list.modules
        return modules if self._traits is None else tuple(modules[place] for place in self._traits.order)

    @property
    def shares_blocks(self) -> bool:
        """Whether a module is the block of several depths (ALBERT); known after the first batch."""
        return len(set(map(id, self.blocks))) < len(self.blocks)

    @property
    def depth(self) -> int:
        """L, the number of blocks, or of their calls where depths share them."""
        return len(self.blocks)

    def few(self, batch: Batch, count: int = 2) -> Batch:
        """The first samples of a batch; the whole batch where the model does not run on a part of it."""
        return first_samples(batch, count) if self.is_cuttable(batch) else batch

    def is_cuttable(self, batch: Batch) -> bool:
        """Whether the model runs on some samples of a batch: all that belongs to them has them in front."""
        return self._ensure_verified(batch).cuttable

    @property
    def answers_at_states(self) -> bool:
        """Whether answers for every position are for the positions of the states: no other stack comes after."""
        return self._traits is None or self._traits.is_last

    def valid_positions(self, batch: Batch, state: Float[Tensor, "b *t d"]) -> Bool[Tensor, "b t"]:
        """The positions of a hidden state that are not padding: by the mask that is about them, or all.

        Raises:
            DataError: a mask has another length than the states, or these have virtual tokens (prompt tuning).
        """
        self._ensure_verified(batch)
        return self.masks.of_states(batch, state)

    def valid_answers(self, batch: Batch, answer: Float[Tensor, "b t c"]) -> Bool[Tensor, "b t"]:
        """The positions of answers that are not padding."""
        masks = self.masks.of_states if self.answers_at_states else self.masks.of_answers
        return masks(batch, answer)

    def answers_with_logits(self, *, labelled: bool) -> bool:
        """Whether the model's answers are the logits of a classifier; known after the first batch.

        Args:
            labelled: whether the data carry labels. It decides for a model that answers with a bare tensor and does not
                state how many classes it has (as timm's do, where 0 is no classifier).
        """
        if (traits := self._traits) is None:
            return False
        if traits.answer:
            return traits.answer in ("logits", "logits_per_image")
        classes = getattr(self.model, "num_classes", None)
        return labelled if classes is None else bool(classes)

    @property
    def unnamed_answers(self) -> str:
        """The name of the first of several answers with unknown names; empty where there are none."""
        name = self._traits.answer if self._traits is not None else ""
        return "" if name in ANSWERS else name

    @property
    def has_final_norm(self) -> bool:
        """Whether the last block's output enters a norm, which a readout can leave out."""
        return self._traits is not None and bool(self._traits.final_norms)

    def classifier(self, batch: Batch) -> nn.Module:
        """The classifier: the last module with parameters of its own that runs after the blocks.

        Raises:
            UnsupportedHead: nothing with parameters runs after the blocks.
        """
        classifier = self._ensure_verified(batch).classifier
        if classifier is None:
            raise UnsupportedHead(f"{type(self.model).__name__} has nothing to train after its blocks: no classifier")
        return classifier

    @property
    def classifier_path(self) -> str | None:
        """The dotted name of the classifier; None before the first batch, and where there is none."""
        classifier = self._traits.classifier if self._traits else None
        return next((name for name, module in self.model.named_modules() if module is classifier), None)

    def states(self, batch: Batch) -> list[Tensor]:
        """The hidden states h[0..L] of one forward.

        Returns:
            L + 1 tensors of one shape, mostly (B, T, D). Gradients flow through them if gradients are on.

        Raises:
            UnknownArchitecture: blocks were skipped, repeated or out of order, or widths differ between depths.
        """
        return self.forward(batch)[0]

    def forward(self, batch: Batch) -> tuple[list[Tensor], Tensor]:
        """The hidden states h[0..L] of one forward, and its answer: to the last bit that of a plain forward."""
        self._ensure_verified(batch)
        record = self._record_forward(batch, self._prefix)
        return record.states, record.answer

    def readout(self, state: Tensor, batch: Batch, *, depth: int | None = None, final_norm: bool = True) -> Tensor:
        """The model's own head applied to the hidden state at a depth: the logit lens, with final norm and pooler.

        Args:
            state: any h[l] of this batch, in the shape of `states`.
            batch: the batch that `state` belongs to; heads look at its mask and token ids.
            depth: the state's depth, for a model with a head for each: that head is used instead of the classifier.
            final_norm: False skips the final norm. Only to reproduce results of code that forgot it.

        Returns:
            Logits where the model has a classifier, else its embeddings or pooled output.
        """
        traits = self._ensure_verified(batch)
        with ExitStack() as undo:
            undo.enter_context(self._prefix.replayed(batch))
            if not final_norm:
                for norm in traits.final_norms:
                    undo.enter_context(forward_as(norm, lambda state, *args, **kwargs: state))
            if self.heads is not None and depth is not None and depth < self.depth:
                undo.enter_context(forward_as(self.classifier(batch), self.heads[depth]))
            return self._run(batch, [partial(_answer, shape, state) for shape in traits.shapes])[1]

    def features(self, state: Tensor, batch: Batch) -> Tensor | None:
        """The classifier's input (B, T, D) for a hidden state, if the readout is `linear(features, weight, bias)`.

        None where it is not: the head is no linear map for each position, or more follows it (a soft-cap, a scale).
        """
        return self.classifier_input(state, batch) if self._ensure_verified(batch).classifier_is_all else None

    def classifier_input(self, state: Tensor, batch: Batch) -> Tensor:
        """The classifier's input in the readout of a hidden state; `UnsupportedHead` without a classifier."""
        with forward_as(self.classifier(batch), lambda features: features):
            return self.readout(state, batch)

    def is_linear_head(self, state: Tensor, answer: Tensor, batch: Batch) -> bool:
        """Whether the readout of a hidden state (`answer`) is a linear map of the classifier's input."""
        linear = self._ensure_verified(batch).classifier
        if not isinstance(linear, nn.Linear):
            return False
        try:
            error = distance(functional.linear(self.classifier_input(state, batch), linear.weight, linear.bias), answer)
        except RuntimeError:  # shapes do not fit: the answer is made of more than the classifier's output
            return False
        return error <= tolerance_of(answer)

    def replay(self, batch: Batch) -> Replay:
        """Record the arguments (masks, rotary tables) of every block in one forward that runs no block."""
        traits = self._ensure_verified(batch)
        return Replay.of(*self._recorded_calls(batch), traits)

    def cached_prefix(self, batch: Batch) -> AbstractContextManager[Answers]:
        """Context manager: cache the outputs of the modules that run before block 1, for this batch."""
        return self._prefix.kept(batch, self._ensure_verified(batch).before)

    @contextmanager
    def cut(self, depth: int, batch: Batch) -> Iterator[None]:
        """Context manager: the model ends after block `depth` (1..L); later blocks do not run.

        `batch` is for `verify`, if it is the first.
        """
        traits = self._ensure_verified(batch)
        with replaced(traits.blocks, traits.order, self._cut_calls(depth, traits.shapes)):
            yield

    def _cut_calls(self, depth: int, shapes: list[BlockOutput]) -> list[Any]:
        return [
            block if number <= depth else (lambda *args, _as=shape, **kwargs: _as(input_state(args, kwargs)))
            for number, (block, shape) in enumerate(zip(self.blocks, shapes, strict=True), start=1)
        ]

    @contextmanager
    def segments(self, batch: Batch, forward: Callable[[Any], Any] | None = None) -> Iterator[Segments]:
        """Context manager: run the forward in segments.

        Stubs stay in place of the blocks inside: to place them takes a good part of the readout of a single sample.

        Args:
            batch: for `verify`, if it is the first.
            forward: calls the model in a segment; by default it returns the model's answer to a batch.
        """
        traits = self._ensure_verified(batch)
        segments = Segments(traits.shapes, forward or (lambda batch: model_output(call_model(self.model, batch))[1]))
        with ExitStack() as undo:
            undo.enter_context(disabled(self._flags))
            undo.enter_context(self._eager())
            undo.enter_context(segments.in_place_of(traits.blocks, traits.order))
            if self.heads is not None:
                undo.enter_context(self._headed(self.heads, self.classifier(batch), segments))
            yield segments

    def _headed(self, heads: Heads, classifier: nn.Module, segments: Segments) -> AbstractContextManager[None]:
        """Context manager: the classifier in each segment is the head of the depth where it ends."""
        classify = classifier.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            return (heads[segments.depth] if segments.depth < self.depth else classify)(*args, **kwargs)

        return forward_as(classifier, forward)

    def verify(self, batch: Batch) -> Verification:
        """Check readout, cut and replay on two samples of `batch`, in eval mode; done by itself on the first batch.

        The untouched model's answer must be that with stubs in place, and `readout(h[L])`; for a middle k,
        `readout(h[k])` that of the model cut after block k; each block, replayed on the hidden state of one of the
        samples, must give the one after it; and what is kept of before the first block must give h[0] again.

        Raises:
            ReadoutMismatch: one of them does not hold; with the size of the error.
            UnknownArchitecture: no list of blocks fits, or no axis of their states is that of the samples.
        """
        return self._verified(batch)[1]

    def _verified(self, batch: Batch) -> tuple[ModelTraits, Verification]:
        # Another Stack on the same model: no other thread may use these traits before they are verified.
        trial = copy.copy(self)
        trial._prefix, trial._traits = Prefix(), None
        try:
            # tensors of inference mode have no version that counts writes
            with evaluating(self.model), torch.inference_mode(False), torch.no_grad():
                few, plain, cuttable = trial._watched(batch)
                with _refusing(self.model):
                    traits, verification = trial._learn(few, plain, cuttable=cuttable)
        except BaseException:
            self._traits = None
            raise
        self._traits = traits
        if self.heads is not None:
            self._require_heads(self.heads)
        return traits, verification

    def _ensure_verified(self, batch: Batch) -> ModelTraits:
        return self._traits or self._verified(batch)[0]

    def _watched(self, batch: Batch) -> tuple[Batch, PlainForward, bool]:
        """Two samples of a batch, the untouched model's forward on them, and whether it runs on so few."""
        few = first_samples(batch, 2)
        with eager(self.model.modules()):
            try:
                return few, watch(self.model, few, self._lists), True
            except Exception:
                if sample_count(batch) <= 2:
                    raise
            return batch, watch(self.model, batch, self._lists), False  # what belongs to samples is not in front

    def _learn(self, few: Batch, plain: PlainForward, *, cuttable: bool) -> tuple[ModelTraits, Verification]:
        """The traits of a model, and their verification, from its own forward on a few samples."""
        blocks = self._blocks_in(plain)
        self._traits = traits = ModelTraits.of(plain, blocks, is_last=self._is_last(plain, blocks))
        answer, plain.calls = plain.answer, []  # their tensors are not needed any more
        count = sample_count(few)
        one = samples_of(few, torch.tensor([1] if count > 1 else [0, 0]))
        state, calls = self._recorded_calls(few)
        try:
            other, other_calls = self._recorded_calls(one) if cuttable else (None, calls)
        except Exception:  # of the model: it takes no part of a batch
            cuttable, other, other_calls = False, None, calls
        other_count = 0 if other is None else sample_count(one)
        name = type(self.model).__name__
        layout = learn_layout(name, blocks.modules, state, other, (count, other_count))
        self._traits = traits = replace(traits.laid_out(layout), cuttable=cuttable)
        record = self._record_forward(few, self._prefix)
        rows = torch.arange(count) if other is None else torch.tensor([count - 1]).expand(other_count)
        replay = Replay.of(state if other is None else other, other_calls, traits)
        verification = self._compare(few, record, answer, replay, rows)
        is_all = record.answer.ndim == 3 and self.is_linear_head(record.states[-1], record.answer, few)
        self._traits = traits = replace(traits, classifier_is_all=is_all)
        return traits, verification

    def _blocks_in(self, plain: PlainForward) -> BlockList:
        """The blocks, by what was seen: those named, those that the config states, or the last before the answer."""
        if (stated := self._stated) is not None:
            objection = plain.objection(stated)
            if not objection:
                return stated
            if self._named:
                raise UnknownArchitecture(f"{type(self.model).__name__}: {stated}: {objection}")
        return plain.blocks(self._lists, self._stack)

    def _is_last(self, plain: PlainForward, blocks: BlockList) -> bool:
        """Whether no other list of blocks starts after this one has ended."""
        end = plain.calls_of(blocks)[-1].end
        others = [other for other in block_lists(self.model) if other.rank <= 1 and other.path != blocks.path]
        return not any((calls := plain.calls_of(other)) and calls[0].start > end for other in others)

    def _compare(
        self, batch: Batch, record: RecordedForward, plain: Tensor, replay: Replay, rows: Tensor
    ) -> Verification:
        states, answer, k = record.states, record.answer, max(1, self.depth // 2)
        rows = rows.to(states[0].device)
        steps = [replay.state]
        steps += [replay.step(state[rows], depth) for depth, state in enumerate(states[:-1], start=1)]
        tolerance = tolerance_of(states[0])
        verification = Verification(
            plain=distance(answer, plain),
            prefix=max(distance(self._first_state(batch, kept=True), states[0]) for _ in range(2)),
            readout=distance(self.readout(states[-1], batch), answer),
            cut=distance(self.readout(states[k], batch), self._run(batch, self._cut_calls(k, self._ensured.shapes))[1]),
            replay=max(distance(step, state[rows]) for step, state in zip(steps, states, strict=True)),
            depth=k,
            tolerance=tolerance,
        )
        for name, reason in _LAWS.items():
            # `not <=` so that NaN is a mismatch, too
            if not (error := getattr(verification, name)) <= tolerance:
                raise ReadoutMismatch(
                    f"{type(self.model).__name__}: the {name} law is broken at {self.path!r}: largest relative "
                    f"difference {error:.2g}, expected at most {tolerance:.0e}; {reason}"
                )
        return verification

    @property
    def _ensured(self) -> ModelTraits:
        assert self._traits is not None
        return self._traits

    def _eager(self) -> AbstractContextManager[None]:
        """Context manager: what is compiled around the blocks runs as written. Blocks that are compiled stay so."""
        return eager((self.model, *self._ensured.compiled))

    def _run(self, batch: Batch, calls: list[Any]) -> tuple[str, Tensor]:
        """The model's forward with call l in place of block l; the name and value of its answer."""
        traits = self._ensured
        with self._eager(), disabled(self._flags), replaced(traits.blocks, traits.order, calls):
            return model_output(call_model(self.model, batch))

    def _record_forward(self, batch: Batch, prefix: Prefix) -> RecordedForward:
        """Record one forward."""
        traits = self._ensured
        record = RecordedForward(model=self.model, traits=traits)
        with prefix.recorded(batch, traits.before):
            answer = self._run(batch, record.calls(self.blocks))[1]
        return record.finish(answer)

    def _recorded_calls(self, batch: Batch) -> tuple[Tensor, list[BlockCall]]:
        """The input of the first block, in the model's own axes, and how the forward calls every block.

        No block runs, except where later ones are given what earlier ones answer beside the state.
        """
        traits = self._ensured
        start: list[Tensor] = []
        calls: list[BlockCall] = []

        def recorder(block: nn.Module, shape: BlockOutput) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                start.append(input_state(args, kwargs))
                calls.append(
                    BlockCall(block=block, args=args, kwargs=kwargs, in_place=traits.in_place, layout=shape.layout)
                )
                if traits.carries:
                    return block(*args, **kwargs)
                return shape(start[-1])

            return call

        with self._prefix.kept(batch, traits.before):
            pairs = zip(self.blocks, traits.shapes, strict=True)
            self._run(batch, [recorder(block, shape) for block, shape in pairs])
        return start[0], calls

    def _first_state(self, batch: Batch, *, kept: bool = False) -> Tensor:
        """h[0] of a batch, computed anew, or with what was `kept` of the modules before; no block runs."""
        traits = self._ensured
        state: list[Tensor] = []

        def first(*args: Any, **kwargs: Any) -> Any:
            state.append(traits.layout.standard(input_state(args, kwargs)))
            raise _Seen

        with evaluating(self.model), torch.inference_mode(False), torch.no_grad(), ExitStack() as inside:
            inside.enter_context(suppress(_Seen))
            inside.enter_context(self._prefix.replayed(batch) if kept else nullcontext())
            self._run(batch, [first] * self.depth)
        return state[0]


class _Seen(BaseException):
    """Ends a forward at its first block; no error, so that no model takes it for one."""


def _answer(shape: BlockOutput, state: Tensor, *args: Any, **kwargs: Any) -> Any:
    """What a stub answers with a given hidden state."""
    return shape.of_state(state, args, kwargs)


@contextmanager
def _refusing(model: nn.Module) -> Iterator[None]:
    """Context manager: what a model raises when it runs with stubs is a refusal with that reason."""
    try:
        yield
    except (AnydepthError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise UnknownArchitecture(
            f"{type(model).__name__} runs by itself, but not with stubs in the place of its blocks "
            f"({type(error).__name__}: {one_line(error)}): it needs more of a block than its state"
        ) from error


_BETWEEN = "this model passes something between or around its blocks that a state does not hold"
_LAWS = {
    "plain": "it answers otherwise without its caches (use_cache=False), or from one call to the next",
    "prefix": "what runs before the blocks is changed afterwards, or is not the same each time",
    "readout": _BETWEEN,
    "cut": _BETWEEN,
    "replay": f"{_BETWEEN}, or samples of a batch affect each other",
}
