"""`Stack`: hidden states of a transformer at every depth, and the model's own readout (logit lens) of each.

To read out a hidden state, `Stack` runs the model's own forward with each block replaced by a stub that returns that
state. Final norm, pooler, soft-cap, logit scale, two-token heads, pooling at the rightmost token: all are applied by
the model itself, and nothing here re-implements `head(norm(h))`. Stubs also record hidden states, cut the model, and
record each block's arguments.

The state `h[0]` is the input of the first block, `h[l]` the raw output of block l = 1..L, before the final norm.

Blocks may run in several stages, whose states differ in shape (Swin), or belong to different texts (an encoder and a
decoder). The model's head accepts the states of the last stage alone: readouts, cuts and exits exist there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn

from anydepth.core.blocks import BOTH, STACKS, BlockList, block_lists, list_at, named, stated_list
from anydepth.core.forwards import Forwards, forwards_of
from anydepth.core.heads import Heads
from anydepth.core.learning import Selection, is_linear_head, learn
from anydepth.core.masks import Masks
from anydepth.core.model_io import ANSWERS, FEW_POSITIONS, Batch, first_positions, first_samples
from anydepth.core.patching import forward_as
from anydepth.core.prefix_cache import Answers
from anydepth.core.recording import ModelTraits
from anydepth.core.replay import Replay
from anydepth.core.segments import Segments
from anydepth.core.verification import Verification
from anydepth.dependencies import require
from anydepth.errors import UnknownArchitecture, UnsupportedHead, choose


class Stack:
    """A model as L blocks, with the hidden state at every depth and the model's own readout of any state.

    Args:
        model: any transformer: from transformers, timm, PEFT, `nn.TransformerEncoder`, or your own.
        blocks: the dotted name of the list of blocks, if not the one that is found is meant; of several stages, those
            of all, separated by ", "; or as `stack`.
        stack: "encoder", "decoder", "image", "text" or "audio", of a model that has several; by default the last before
            the answer, which is the decoder of an encoder-decoder, and the language model of one that sees images.
            "both": the encoder's depths, then the decoder's.
        heads: one classifier for each depth below L, for a model that was trained with them.

    Raises:
        UnknownArchitecture: there is no list of blocks; on the first batch, if none runs with states of one shape, or
            of one in each stage.
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
        if blocks in (*STACKS, BOTH) and blocks not in dict(model.named_modules()):
            blocks, stack = None, blocks
        if stack is not None:
            choose(stack, (*STACKS, BOTH), "stack", UnknownArchitecture)
        lists = block_lists(model) if blocks is None else [list_at(model, path) for path in blocks.split(", ")]
        stated = stated_list(model, lists, stack) if blocks is None else lists[0] if len(lists) == 1 else None
        self._selection = Selection(lists=lists, stated=stated, is_named=blocks is not None, stack=stack)
        self._forwards: Forwards | None = None
        self.heads = heads
        self._masks: dict[str, Masks] = {}
        if heads is not None and self.is_known:
            self._require_heads(heads)

    def _require_heads(self, heads: Heads) -> None:
        self.require_one_stage("a head for each depth")
        if len(heads) != self.depth - 1:
            raise UnsupportedHead(
                f"{len(heads)} heads for {type(self.model).__name__} of {self.depth} blocks, expected "
                f"{self.depth - 1}: one for each depth below the last"
            )
        if self._traits is not None and self._traits.ends_early:
            raise UnsupportedHead(
                f"heads for {type(self.model).__name__}, which reads each depth out by what is of that depth alone: "
                "leave them out"
            )

    def __repr__(self) -> str:
        blocks = self.block_list if self.is_known else "blocks are learnt from the first batch"
        return f"Stack({type(self.model).__name__}: {blocks})"

    @property
    def _traits(self) -> ModelTraits | None:
        return None if self._forwards is None else self._forwards.traits

    @property
    def _blocks(self) -> BlockList | None:
        return self._selection.stated if self._traits is None else self._traits.blocks

    @property
    def block_list(self) -> BlockList:
        """The modules that are the blocks, of the last stage if there are several, and what holds them.

        Raises:
            UnknownArchitecture: before the first batch, of a model with several lists: a forward shows which.
        """
        if (blocks := self._blocks) is None:
            lists = named(self._selection.lists[:6])
            raise UnknownArchitecture(
                f"{type(self.model).__name__} has several lists of modules: {lists}; the first batch shows which are "
                "the blocks: run verify(batch) first, or name them (blocks=, stack=)"
            )
        return blocks

    @property
    def is_known(self) -> bool:
        """Whether the blocks are known; else the first batch shows which they are."""
        return self._blocks is not None

    @property
    def path(self) -> str:
        """The dotted name of the list of blocks; of several stages, those of all."""
        return ", ".join(self.stages) if self.entry else self.block_list.path

    @property
    def stages(self) -> dict[str, int]:
        """The first depth of each stage, by its dotted name: one stage, but for models that run in several."""
        stages = () if self._forwards is None else self._forwards.stages
        return {each.traits.stage.name: each.traits.first for each in stages} or {self.block_list.path: 0}

    @property
    def entry(self) -> int:
        """The depth before the last stage's blocks, 0 of one stage: exits, cuts and training are at depths after it."""
        return 0 if self._traits is None else self._traits.entry

    @property
    def first_readout(self) -> int:
        """The first depth whose state the model's head accepts: that of the last stage, 0 where there is only one."""
        return 0 if self._traits is None else self._traits.first

    @property
    def blocks(self) -> tuple[nn.Module, ...]:
        """The block of each depth 1..L; several may be one module, if the model calls it several times."""
        if self._forwards is None:
            return self.block_list.modules
        modules: list[nn.Module] = []
        for each in self._forwards.stages:
            opening = each.traits.stage.opening
            modules += [*([] if opening is None else [opening]), *each.modules]
        return tuple(modules)

    @property
    def shares_blocks(self) -> bool:
        """Whether a module is the block of several depths (ALBERT); known after the first batch."""
        return len(set(map(id, self.blocks))) < len(self.blocks)

    @property
    def depth(self) -> int:
        """L, the number of blocks, or of their calls where depths share them."""
        return len(self.blocks)

    def few(self, batch: Batch, count: int = 2) -> Batch:
        """The first samples of a batch, and of a causal language model the first positions; all where it needs all."""
        traits = self.learn(batch)
        few = first_samples(batch, count) if traits.cuttable else batch
        return first_positions(few, FEW_POSITIONS) if traits.shortens else few

    @property
    def answers_at_states(self) -> bool:
        """Whether answers for every position are for the positions of the states: no other stack comes after."""
        return self._traits is None or self._traits.is_last

    def valid_positions(self, batch: Batch, state: Float[Tensor, "b *t d"]) -> Bool[Tensor, "b t"]:
        """The positions of a hidden state that are not padding: by the mask that is about them, or all.

        Args:
            batch: that it belongs to.
            state: any h[l]; where there are several stages, of the last.

        Raises:
            DataError: a mask has another length than the states, or these have virtual tokens (prompt tuning).
        """
        return self._masks_of(self._on(batch)).of_states(batch, state)

    def valid_at_depths(self, batch: Batch, states: Sequence[Tensor]) -> list[Bool[Tensor, "b _"]]:
        """`valid_positions` of all hidden states h[0..L], those of each stage by the mask that is about it."""
        valid: list[Tensor] = []
        for stage in self._on(batch).stages:
            positions = self._masks_of(stage).of_states(batch, states[stage.traits.first])
            valid += [positions] * (stage.traits.last + 1 - len(valid))
        return valid

    def valid_answers(self, batch: Batch, answer: Float[Tensor, "b t c"]) -> Bool[Tensor, "b t"]:
        """The positions of answers that are not padding."""
        masks = self._masks_of(self._on(batch))
        return (masks.of_states if self.answers_at_states else masks.of_answers)(batch, answer)

    def _masks_of(self, stage: Forwards) -> Masks:
        """What is known of the masks of a stage's states."""
        return self._masks.setdefault(stage.traits.stage.name, stage.masks())

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

    def require_one_stage(self, what: str) -> None:
        """Raise `UnsupportedHead` of a model in several stages, for `what` needs a readout of every depth."""
        if self.entry:
            raise UnsupportedHead(
                f"{type(self.model).__name__} runs in stages and has a readout from depth {self.first_readout} on: "
                f"{what} needs one at every depth; name one of its stages (blocks=)"
            )

    def classifier(self, batch: Batch) -> nn.Module:
        """The classifier: the last module with parameters of its own that runs after the blocks.

        Raises:
            UnsupportedHead: nothing with parameters runs after the blocks.
        """
        classifier = self.learn(batch).classifier
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
            L + 1 tensors, mostly (B, T, D), of one shape in each stage. Gradients flow through them if they are on.

        Raises:
            UnknownArchitecture: blocks were skipped, repeated or out of order, or widths differ within a stage.
        """
        return self.forward(batch)[0]

    def forward(self, batch: Batch, *, labels: Any = None) -> tuple[list[Tensor], Tensor]:
        """The hidden states h[0..L] of one forward, and its answer: to the last bit that of a plain forward.

        Args:
            batch: by `Batch`.
            labels: for a model that makes inputs of them while it trains, as some detectors do.
        """
        return self._on(batch).record(batch, labels)

    def readout(self, state: Tensor, batch: Batch, *, depth: int | None = None, final_norm: bool = True) -> Tensor:
        """The model's own head applied to the hidden state at a depth: the logit lens, with final norm and pooler.

        Args:
            state: any h[l] of this batch, in the shape of `states`.
            batch: the batch that `state` belongs to; heads look at its mask and token ids.
            depth: the state's depth. Needed where there are several stages, as only the states of the last can be read
                out; where each depth has a head, that head is used instead of the classifier. At depth 0, for which
                none was trained, it is the classifier, or the model's own head of depth 1.
            final_norm: False skips the final norm. Only to reproduce results of code that forgot it.

        Returns:
            Logits where the model has a classifier, else its embeddings or pooled output.

        Raises:
            UnsupportedHead: the depth is of an earlier stage than the last.
        """
        forwards = self._on(batch)
        self._require_readout(forwards, depth)
        local = None if depth is None else depth - forwards.traits.entry
        with self._head_of(depth, batch):
            return forwards.readout(state, batch, depth=local, final_norm=final_norm)

    def readout_output(self, states: Sequence[Tensor], batch: Batch, *, depth: int, labels: Any = None) -> Any:
        """All that the model would answer if block `depth` were its last: a detector's boxes beside the logits.

        Args:
            states: the hidden states h[0..L] of this batch, or those up to `depth`: boxes that each block refines are
                made of the states before, too.
            batch: that they belong to.
            depth: 0..L; see `readout`.
            labels: as the model's forward takes them: its output then holds its own loss.

        Returns:
            The output of the model's own forward; its logits are those of `readout`.

        Raises:
            UnsupportedHead: the depth is of an earlier stage than the last.
        """
        forwards, entry = self._on(batch), self.entry
        self._require_readout(forwards, depth)
        local = states[entry + min(depth - entry, 1) : depth + 1]
        with self._head_of(depth, batch):
            return forwards.readout_output(local, batch, forwards.end(depth - entry), labels)

    def _require_readout(self, forwards: Forwards, depth: int | None) -> None:
        if forwards.traits.entry and (depth is None or depth < self.first_readout):
            raise UnsupportedHead(
                f"{type(self.model).__name__} has a readout from depth {self.first_readout} on, where its last stage "
                f"begins ({forwards.traits.stage.name}): the state is of "
                + ("an unknown depth: give depth" if depth is None else f"depth {depth}")
            )

    def _head_of(self, depth: int | None, batch: Batch) -> AbstractContextManager[None]:
        """Context manager: the classifier is the one of `heads` for a depth, if there is one."""
        if self.heads is None or not depth or depth >= self.depth:
            return nullcontext()
        return forward_as(self.classifier(batch), self.heads[depth])

    def features(self, state: Tensor, batch: Batch) -> Tensor | None:
        """The classifier's input (B, T, D) for a hidden state, if the readout is `linear(features, weight, bias)`.

        None where it is not: the head is no linear map for each position, or more follows it (a soft-cap, a scale).
        """
        return self.classifier_input(state, batch) if self.learn(batch).classifier_is_all else None

    def classifier_input(self, state: Tensor, batch: Batch, final_norm: bool = True) -> Tensor:
        """The classifier's input in the readout of a hidden state; `UnsupportedHead` without a classifier."""
        with forward_as(self.classifier(batch), lambda features: features):
            return self.readout(state, batch, depth=self.depth, final_norm=final_norm)

    def is_linear_head(self, state: Tensor, answer: Tensor, batch: Batch) -> bool:
        """Whether the readout of a hidden state (`answer`) is a linear map of the classifier's input."""
        return is_linear_head(self._on(batch), state, answer, batch)

    def replay(self, batch: Batch) -> Replay:
        """Record the arguments (masks, rotary tables) of the last stage's blocks in a forward that runs none."""
        return self._on(batch).replay(batch)

    def recorded_prefix(self, batch: Batch) -> AbstractContextManager[Answers]:
        """Context manager: record the outputs of the modules that run before block 1, in a forward on this batch."""
        forwards = self._on(batch)
        return forwards.prefix.recorded(batch, forwards.traits.before)

    @contextmanager
    def cut(self, depth: int, batch: Batch) -> Iterator[None]:
        """Context manager: the model ends after block `depth` (1..L, of the last stage); later blocks do not run.

        `batch` is for `verify`, if it is the first.
        """
        forwards = self._on(batch)
        with forwards.placed(forwards.cut_calls(depth - forwards.traits.entry)):
            yield

    @contextmanager
    def segments(self, batch: Batch, forward: Callable[[Any], Any] | None = None) -> Iterator[Segments]:
        """Context manager: run the forward in segments.

        Stubs stay in place of the blocks inside: to place them takes a good part of the readout of a single sample.

        Args:
            batch: for `verify`, if it is the first.
            forward: calls the model in a segment; by default it returns the model's answer to a batch.
        """
        forwards = self._on(batch)
        if forwards.traits.ends_early:
            raise UnsupportedHead(
                f"{type(self.model).__name__} reads each depth out by what is of that depth alone, expected one head "
                "for all depths: no sample can exit early; truncate it instead"
            )
        with ExitStack() as undo:
            segments = forwards.segments(forward, undo)
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
        """Check readout, cut and replay on a few samples of `batch`, in eval mode; done by itself on the first batch.

        These are two; of a causal language model, whose positions stand for themselves, their first 16 positions.

        The untouched model's answer must be that with stubs in place, and `readout(h[L])`; for a middle k,
        `readout(h[k])` that of the model cut after block k; each block, replayed on the hidden state of one of the
        samples, must give the one after it; and what is kept of before the first block must give h[0] again.

        Raises:
            ReadoutMismatch: one of them does not hold; with the size of the error.
            UnknownArchitecture: no list of blocks fits, or no axis of their states is that of the samples.
        """
        try:
            stages, verification = learn(self.model, self._selection, batch)
        except BaseException:
            self._forwards = None
            raise
        self._forwards, self._masks = forwards_of(self.model, stages), {}
        if self.heads is not None:
            self._require_heads(self.heads)
        return verification

    def learn(self, batch: Batch) -> ModelTraits:
        """The traits of the model, of its last stage: seen, and verified, on the first batch; known from then on."""
        return self._on(batch).traits

    def _on(self, batch: Batch) -> Forwards:
        """The model's forwards, verified on this batch if it is the first."""
        if (forwards := self._forwards) is not None:
            return forwards
        self.verify(batch)
        assert self._forwards is not None
        return self._forwards
