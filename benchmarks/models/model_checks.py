"""What anydepth makes of one model, each of its offers held against the slow reference.

Every step ends in one of: "ok"; "refused", with anydepth's own line; "wrong", a number that is not the reference's;
"crash", another library's exception; "n/a", where the step has no meaning for the model.
"""

from __future__ import annotations

import signal
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import slow_reference as slow
import torch
from sweep_cases import Built
from torch import Tensor, nn

import anydepth as ad
from anydepth.errors import AnydepthError

TOLERANCE = 1e-5
LOOSER = 1e-4  # of what goes through two different orders of products: a truncated model in other kernels, cosines
NEEDED = ("states", "readout", "trace")
STEPS = ("states", "readout", "trace", "align", "exit", "truncate", "generate")


class Wrong(Exception):
    """A number that differs from the reference's."""


class NoMeaning(Exception):
    """The step has no meaning for this model."""


@dataclass
class Step:
    result: str
    detail: str = ""
    error: str = ""


@dataclass
class Finding:
    """All that was seen of one model."""

    name: str
    library: str
    kind: str
    category: str
    blocks: str | None = None
    """The list that had to be named."""
    path: str = ""
    depth: int = 0
    reason: str = ""
    error: str = ""
    reason_true: bool | None = None
    steps: dict[str, Step] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class OutOfTime(BaseException):
    """A check took longer than it may; no `except Exception` of the libraries must stop it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `OutOfTime` once this process has used so many CPU seconds inside."""

    def stop(*_: Any) -> None:
        raise OutOfTime(f"more than {seconds:g} CPU seconds")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def attempt(check: Callable[[], str | None]) -> Step:
    """Run one check."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Step("ok", check() or "")
    except NoMeaning as reason:
        return Step("n/a", str(reason))
    except Wrong as difference:
        return Step("wrong", str(difference))
    except AnydepthError as refusal:
        return Step("refused", str(refusal), type(refusal).__name__)
    except slow.UnseenBlocks:
        raise
    except Exception as crash:
        place = traceback.extract_tb(crash.__traceback__)[-1]
        line = next(iter(str(crash).strip().splitlines()), "")[:300]
        return Step("crash", f"{type(crash).__name__}: {line} ({_short(place.filename)}:{place.lineno})")


def _short(path: str) -> str:
    return "/".join(Path(path).parts[-3:])


class Checks:
    """The checks of one model by one list of blocks (None: as anydepth finds it)."""

    def __init__(self, built: Built, blocks: str | None = None) -> None:
        self.built, self.model, self.batches = built, built.model, built.batches
        self.plain = [slow.answer_of(slow.run(self.model, batch)) for batch in self.batches]
        self.blocks = blocks
        self.stack: Any = None
        self.states: list[list[Tensor]] = []
        """As the model has them."""
        self.standard: list[list[Tensor]] = []
        """With samples in front and positions in one axis."""
        self.readouts: list[list[Tensor]] = []
        """At the depths from `first` on."""
        self.first = 0

    def run(self, *, stop_early: bool = False) -> dict[str, Step]:
        """The checks in order; all that follow need the states.

        Args:
            stop_early: stop at the first of states, readout and trace that is not right, for a list that is only tried.
        """
        steps: dict[str, Step] = {}
        for name in STEPS:
            steps[name] = attempt(getattr(self, f"check_{name}"))
            needed = NEEDED if stop_early else NEEDED[:1]
            if name in needed and steps[name].result != "ok":
                break
        return steps

    # --- states and readouts ---

    def check_states(self) -> str:
        batch = self.batches[0]
        self.stack = ad.Stack(self.model, **({} if self.blocks is None else {"blocks": self.blocks}))
        with torch.no_grad():
            states, answer = self.stack.forward(batch)
        _same(answer, self.plain[0], "the answer of the recording forward")
        members = self._members()
        for number, batch in enumerate(self.batches):
            reference = self._slow_states(members, batch)
            with torch.no_grad():
                states = self.stack.states(batch)
            if len(states) != len(reference):
                raise Wrong(f"{len(states)} states, expected {len(reference)}")
            count = self.built.samples[number]
            grids = [_takes_grids(members[max(0, depth - 1)], at) for depth, at in enumerate(reference)]
            own = [
                slow.standard(at, count, state.shape, grid=grid, choices=slow.choices_of(batch))
                for at, state, grid in zip(reference, states, grids, strict=True)
            ]
            for depth, (state, expected) in enumerate(zip(states, own, strict=True)):
                _same(self._masked(state, batch, number), self._masked(expected, batch, number), f"h[{depth}]")
            self.states.append(reference)
            self.standard.append(own)
        return self._offered()

    def _slow_states(self, members: list[nn.Module], batch: Any) -> list[Tensor]:
        if slow.is_list_of_lists(self.model, self.stack.path):
            return slow.round_states(self.model, self.stack.path, batch)
        return slow.states(self.model, members, batch)

    def _members(self) -> list[nn.Module]:
        return list(self.stack.blocks)

    def _masked(self, state: Tensor, batch: Any, number: int) -> Tensor:
        """Padded positions of `nn.TransformerEncoder` are zeros in its nested tensors, and anything without."""
        if self.built.padding_is_free and state.ndim == 3:
            keep = slow.mask_for(batch, len(state), state.shape[1])
            return state.masked_fill(~keep.unsqueeze(-1), 0.0)
        return state

    def _offered(self) -> str:
        """Hold the states against `output_hidden_states`, where the model offers them."""
        reference = self.states[0]
        offered = [
            tuple_ for tuple_ in slow.hidden_states(self.model, self.batches[0]) if len(tuple_) == len(reference)
        ]
        if not offered:
            return "no output_hidden_states of this depth"
        nearest = min(
            max(slow.distance(a, b) for a, b in zip(tuple_[:-1], reference[:-1], strict=True)) for tuple_ in offered
        )
        return f"output_hidden_states below L differ by {nearest:.1e}"

    def check_readout(self) -> None:
        members = self._members()
        for number, batch in enumerate(self.batches):
            expected = self._slow_readouts(members, batch, self.states[number])
            _same(expected[-1], self.plain[number], "the slow readout of h[L]")
            self.readouts.append(expected)
        batch, last = self.batches[0], self.stack.depth
        with torch.no_grad():
            # the last once more: what was kept of the batch must not have been written to
            for depth in (*range(self.first, last + 1), self.first, last):
                value = self.stack.readout(self.standard[0][depth].clone(), batch, depth=depth)
                _same(value, self._readout(0, depth), f"readout of h[{depth}]")
        again = slow.answer_of(slow.run(self.model, self.batches[0]))
        _same(again, self.plain[0], "the untouched model's answer afterwards")

    def _slow_readouts(self, members: list[nn.Module], batch: Any, states: list[Tensor]) -> list[Tensor]:
        """The readouts from depth `first` on: all, those of the last stage, or those with a head of their own."""
        if self.stack.learn(batch).ends_early:
            self.first = 1
            path = self.stack.path
            return [slow.cut_answer(self.model, path, depth, batch) for depth in range(1, self.stack.depth + 1)]
        self.first = self.stack.first_readout
        if slow.is_list_of_lists(self.model, self.stack.path):
            return [slow.round_readout(self.model, self.stack.path, batch, state) for state in states]
        return [slow.readout(self.model, members, batch, state) for state in states[self.first :]]

    def _readout(self, number: int, depth: int) -> Tensor:
        return self.readouts[number][depth - self.first]

    # --- trace ---

    def check_trace(self) -> str:
        labels = [self._labels(number) for number in range(len(self.batches))]
        data = [self._labelled(number, labels[number]) for number in range(len(self.batches))]
        labelled = labels[0] is not None or self._causal()
        try:
            result = ad.trace(self.stack, data, measures=("cosine_raw",), labels=labelled)
        except AnydepthError:
            if labels[0] is not None:  # what it refuses with labels must not be wrong without
                unlabelled = ad.trace(self.stack, self.batches, measures=("cosine_raw",), labels=False)
                self._check_rows(unlabelled, [None] * len(labels))
                self._check_cosines(unlabelled)
            raise
        self._check_rows(result, labels)
        return self._check_cosines(result)

    def _causal(self) -> bool:
        return (
            self.built.kind in ("causal LM", "vision-language", "audio-language")
            and self.plain[0].ndim == 3
            and (not getattr(getattr(self.model, "config", None), "is_encoder_decoder", False))
        )

    def _labels(self, number: int) -> Tensor | None:
        """Random labels: a class for each sample or position, -100 where there is padding. None for language models."""
        answer = self.plain[number]
        if self._causal() or not self.built.classifies or answer.ndim not in (2, 3) or answer.shape[-1] < 2:
            return None
        generator = torch.Generator().manual_seed(number)
        labels = torch.randint(0, answer.shape[-1], tuple(answer.shape[:-1]), generator=generator)
        if answer.ndim == 3:
            labels[~slow.mask_for(self.batches[number], len(answer), answer.shape[1])] = -100
        return labels

    def _labelled(self, number: int, labels: Tensor | None) -> Any:
        batch = self.batches[number]
        if labels is None:
            return batch
        return {**batch, "labels": labels} if isinstance(batch, Mapping) else (batch, labels)

    def _check_rows(self, result: Any, labels: Sequence[Tensor | None]) -> None:
        if result.rows is None:
            return
        parts, first = [], 0
        for number, batch in enumerate(self.batches):
            samples = self.built.samples[number]
            part = slow.answered(self.readouts[number], batch, labels[number], samples, causal=self._causal())
            parts.append(part)
            if result.provenance["samples"] < first + samples:
                raise Wrong(f"{result.provenance['samples']} samples, expected {sum(self.built.samples)}")
            first += samples
        expected = np.concatenate([part.logits for part in parts])  # (n, K - first, C)
        if len(result.rows) != len(expected):
            raise Wrong(f"{len(result.rows)} answers, expected {len(expected)}")
        offsets = np.cumsum([0, *self.built.samples[:-1]])
        sample = np.concatenate([part.sample + offset for part, offset in zip(parts, offsets, strict=True)])
        for name, column in (
            ("sample", sample),
            ("position", np.concatenate([part.position for part in parts])),
            ("label", np.concatenate([part.label for part in parts])),
        ):
            if not np.array_equal(getattr(result.rows, name), column):
                raise Wrong(f"the {name} of {(getattr(result.rows, name) != column).sum()} answers is another")
        ordered = np.sort(expected, axis=-1)
        sure = ordered[..., -1] - ordered[..., -2] > 1e-4 * np.abs(expected).max()
        other = (result.rows.prediction[:, self.first :] != expected.argmax(-1)) & sure
        if other.any():
            raise Wrong(f"the top class of {other.any(1).sum()} of {len(other)} answers is another at some depth")

    def _is_given_the_text_later(self, batch: Any) -> bool:
        decodes = getattr(getattr(self.model, "config", None), "is_encoder_decoder", False)
        return decodes and "decoder" in self.stack.path and not any(name.startswith("decoder_") for name in batch)

    def _check_cosines(self, result: Any) -> str:
        policy = result.provenance["tokens"]
        depths = []
        for depth in range(self.stack.depth + 1):
            rows = [
                slow.rows_of(
                    self.standard[number][depth],
                    batch,
                    self.built.samples[number],
                    policy,
                    self.stack.path,
                    shifted=self._is_given_the_text_later(batch),
                    in_turn=self.states[number][depth].ndim == 4 and self.stack.learn(batch).layout.samples == 1,
                )
                for number, batch in enumerate(self.batches)
            ]
            if any(part is None for part in rows):
                shape = tuple(self.standard[0][depth].shape)
                raise Wrong(f"h[{depth}] is {shape}, no axis of samples: its rows cannot be those of samples")
            depths.append(np.concatenate(rows))
        if result.provenance["positions"] != len(depths[0]):
            raise Wrong(f"{result.provenance['positions']} rows of states ({policy}), expected {len(depths[0])}")
        reference = slow.mean_cosines(depths)
        value = result.similarity["cosine_raw"]
        constant = np.array([len(np.unique(rows, axis=0)) == 1 for rows in depths])
        blank = np.isnan(reference) | constant[:, None] | constant
        if np.isnan(value[~blank]).any() or not np.isnan(value[np.isnan(reference)]).all():
            raise Wrong("cosine_raw is blank at other pairs of depths than those of differing widths")
        difference = np.nanmax(np.abs(value - reference), initial=0.0)
        if not difference <= LOOSER:
            raise Wrong(f"cosine_raw is off by {difference:.2g}")
        return f"tokens: {policy}, {'no ' if result.rows is None else ''}answers"

    # --- align, exit, truncate, generate ---

    def check_align(self) -> None:
        labels = self._labels(0)
        if labels is None and not self._causal():
            raise NoMeaning("no classifier")
        loss = ad.AlignedLoss()(self.stack, self._labelled(0, labels), step=0)
        samples = self.built.samples[0]
        part = slow.answered(self.readouts[0], self.batches[0], labels, samples, causal=self._causal())
        logits = torch.from_numpy(part.logits[:, max(1, self.stack.entry + 1) - self.first :])
        expected = [
            float(torch.nn.functional.cross_entropy(logits[:, depth], torch.from_numpy(part.label)))
            for depth in range(logits.shape[1])
        ]
        losses = loss.by_depth.detach().double()[-len(expected) :]
        _same(losses, torch.tensor(expected).double(), "the loss of the depths", LOOSER)

    def check_exit(self) -> None:
        answer = self.plain[0]
        if answer.ndim != 2 or not self.built.classifies:
            raise NoMeaning("not one answer for each sample")
        tested = [self._readout(0, depth) for depth in range(self.stack.entry + 1, self.stack.depth)]
        if not tested:
            raise NoMeaning("one block")
        sure = torch.stack([at.double().softmax(-1).amax(-1) for at in tested])
        exits = ad.EarlyExit(self.stack, ad.Confidence(min(0.999, float(sure.max(0).values.median()))))
        for _ in range(2):
            out = exits(self.batches[0])
            expected = torch.stack([self._readout(0, int(depth))[row] for row, depth in enumerate(out.depth)])
            _same(out.logits.double(), expected.double(), f"logits at the exits {out.depth.tolist()}", LOOSER)

    def check_truncate(self) -> str:
        depth, batch = (self.stack.entry + 1 + self.stack.depth) // 2, self.batches[0]
        if depth == self.stack.depth:
            raise NoMeaning("one block")
        expected = self._readout(0, depth)
        cut = ad.truncate(self.stack, depth, batch=batch).eval()
        _same(slow.answer_of(slow.run(cut, batch)), expected, f"the model cut after block {depth}", LOOSER)
        if not hasattr(cut, "save_pretrained"):
            return "not of transformers: no folder"
        with tempfile.TemporaryDirectory() as folder:
            cut.save_pretrained(folder)
            by_class: Any = type(self.model)  # a SentenceTransformer is loaded by the class itself
            loaded = getattr(by_class, "from_pretrained", by_class)(folder).eval()
        _same(slow.answer_of(slow.run(loaded, batch)), expected, f"the one cut after block {depth} and loaded", LOOSER)
        return "loaded by its class"

    def check_generate(self) -> None:
        from anydepth.generation import at_depth, self_speculative

        if not self._causal() or not getattr(self.model, "can_generate", lambda: False)():
            raise NoMeaning("no language model")
        names = ("input_ids", "attention_mask")
        prompt = {name: self.batches[0][name] for name in names if name in self.batches[0]}
        if len(self.batches[0]) > len(prompt):
            prompt = self.batches[0]
        options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
        try:
            plain = self.model.generate(**prompt, **options)
        except Exception as problem:
            raise NoMeaning(f"its own generate fails: {next(iter(str(problem).splitlines()), '')[:150]}") from problem
        half = max(1, self.stack.depth // 2)
        blocks = {} if self.blocks is None else {"blocks": self.blocks}
        same = self.model.generate(**prompt, **options, custom_generate=at_depth(self.stack.depth, **blocks))
        if not torch.equal(same, plain):
            raise Wrong("generate at depth L writes another text than generate")
        if half < self.stack.depth:
            one = {name: value[:1] if isinstance(value, Tensor) else value for name, value in prompt.items()}
            alone = self.model.generate(**one, **options) if set(prompt) <= set(names) else None
            if alone is not None:
                drafted = self.model.generate(**one, **options, custom_generate=self_speculative(half, **blocks))
                if not torch.equal(drafted, alone):
                    raise Wrong("self-speculation writes another text than generate")


def _takes_grids(block: nn.Module, state: Tensor) -> bool:
    """Whether a block has a convolution over as many features as the axis after the samples has."""
    convolutions = (module for module in block.modules() if isinstance(module, nn.Conv2d))
    return state.ndim == 4 and any(state.shape[1] in (each.in_channels, each.out_channels) for each in convolutions)


def _same(value: Tensor, expected: Tensor, what: str, tolerance: float = TOLERANCE) -> None:
    error = slow.distance(value, expected)
    if not error <= tolerance:
        raise Wrong(f"{what} is off by {error:.2g}")
