"""What can be promised of leaving token by token: sequences are counted, never tokens.

Tokens of a sequence depend on each other: one that comes out differently changes all that follow. So the samples of
the test are whole sequences, written freely by the model under the policy, each held against what the full model
writes from the same prompt. A sequence fails if more than a stated share of its tokens differ.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from torch.nn import functional

from anydepth.core.patching import evaluating
from anydepth.core.provenance import describe_model
from anydepth.core.stack import Stack
from anydepth.errors import CertificateError
from anydepth.exits.policies import Policy, as_plain
from anydepth.generation.dynamic import DynamicExit, dynamic_exit
from anydepth.stats.certificates import Certificate, certified, check_level, least_samples, passes, repeats, too_few
from anydepth.storage.disk import atomic_write

_BATCH = 16

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class ThresholdResult:
    """What a threshold on the path showed.

    Attributes:
        threshold: of the policy.
        failures: sequences that failed.
        depth: mean over tokens of the depth where they were read.
        differing: share of tokens that differ, over all sequences.
    """

    threshold: int | float
    failures: int
    depth: float
    differing: float


@dataclass(frozen=True)
class SequenceGuarantee:
    """What is promised of sequences that are generated with a policy.

    Attributes:
        certificate: of the threshold that was taken; None if none could be certified.
        share: of a sequence's tokens that may differ before it counts as failed; 0 for none at all.
        new_tokens: that were generated from each prompt.
        steps: of the path, as far as it was tested.
        passed: how many of them could be certified; the next failed, if there is one.
        notes: what a reader should know: whether prompts repeat.
    """

    certificate: Certificate | None
    share: float
    new_tokens: int
    steps: tuple[ThresholdResult, ...]
    passed: int
    notes: tuple[str, ...] = ()

    @property
    def taken(self) -> ThresholdResult | None:
        """The step whose threshold was taken."""
        return self.steps[self.passed - 1] if self.passed else None

    def __str__(self) -> str:
        one, taken = self.certificate, self.taken
        if one is None or taken is None:
            return "nothing could be certified: generate with all blocks"
        what = f"more than {self.share:.3g} of" if self.share else "any of"
        return (
            f"certified at {100 * one.confidence:.3g} % confidence: P({what} the first {self.new_tokens} tokens ≠ full "
            f"model's) ≤ {100 * one.tolerance:.3g} % ({one.failures:,} of {one.samples:,} calibration prompts differ, "
            f"exact binomial p = {one.p_value:.2g}; assumes new prompts drawn like these), at a mean depth of "
            f"{taken.depth:.2f}"
        )

    def as_plain(self) -> dict[str, Any]:
        """As values that JSON holds."""
        return asdict(self)


def calibrate(
    model: Any,
    prompts: Sequence[Int64[Tensor, " _"]],
    policy: Policy,
    *,
    tolerance: float = 0.05,
    confidence: float = 0.95,
    new_tokens: int = 64,
    share: float = 0.0,
    thresholds: Sequence[int | float] | None = None,
    padding: int = 0,
    blocks: str | None = None,
    keep: Path | None = None,
    progress: Progress | None = None,
) -> tuple[Policy | None, SequenceGuarantee]:
    """Find how loose a policy may be when a model generates greedily, with a guarantee over sequences.

    Args:
        model: a causal language model, where it is to run.
        prompts: independent, not trained on, drawn like those to come; token ids without padding. One that repeats
            counts once, and the share of all, with their copies, must keep to the tolerance as well.
        policy: of the kind and with the depths wanted; its threshold is what is looked for.
        tolerance: the probability of a sequence that fails which must not be exceeded, in (0, 1).
        confidence: of that promise over the draw of the prompts, in (0, 1).
        new_tokens: generated from each prompt; fewer where a sequence ends.
        share: of a sequence's tokens that may differ from the full model's; 0 for none at all.
        thresholds: the path, from strict to loose; tested until one fails. None for its `threshold_path`.
        padding: a token to fill shorter prompts with; it is never attended to.
        blocks: see `anydepth.Stack`.
        keep: a folder for the sequences of each threshold: the same call goes on from there after an interrupt.
        progress: called with sequences done, sequences in all, and what is being done.

    Returns:
        The policy with the loosest threshold that holds, None if none does; and what was found.

    Raises:
        CertificateError: a level outside (0, 1), a share that is none, or too few prompts to promise anything.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from anydepth import Confidence
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=3, n_embd=16, n_head=2, vocab_size=40, bos_token_id=1)).eval()
        >>> prompts = torch.randint(40, (30, 4)).unbind()
        >>> policy = Confidence(0.5, depths=(2,))
        >>> found, promise = calibrate(model, prompts, policy, tolerance=0.1, new_tokens=3, thresholds=[1.0])
        >>> found.threshold, promise.certificate.failures
        (1.0, 0)
    """
    for name, level in (("tolerance", tolerance), ("confidence", confidence)):
        check_level(name, level)
    if not 0 <= share < 1:
        raise CertificateError(f"share is {share}, expected at least 0 and below 1")
    needed, given = least_samples(tolerance, confidence), len(prompts)
    prompts, times = _distinct(prompts)
    if len(prompts) < min(needed, given):
        raise CertificateError(too_few(len(prompts), given, needed, tolerance, confidence, "prompts"))
    if len(prompts) < needed:
        raise CertificateError(
            f"there are {len(prompts):,} prompts, and to promise {tolerance:.3g} with {confidence:.3g} confidence "
            f"takes at least {needed:,}, even without a failure: get more, or raise the tolerance"
        )
    thresholds = policy.threshold_path() if thresholds is None else thresholds
    kept = None if keep is None else keep / _key(Stack(model, blocks=blocks), prompts, policy, (new_tokens, padding))
    plain = _Author(model, prompts, new_tokens, padding, kept, progress)
    with evaluating(model), torch.inference_mode():
        texts, _ = plain.write("the full model")
        steps: list[ThresholdResult] = []

        def failures() -> Iterator[int]:
            for threshold in thresholds:
                mode = dynamic_exit(replace(policy, threshold=threshold, log_odds=None), blocks=blocks)
                step, failed = _held(threshold, *plain.write(f"threshold {threshold:g}", mode), texts, share)
                steps.append(step)
                # prompts that come up often may be those that fail
                if not passes(int(times @ failed), given, tolerance=tolerance, confidence=confidence):
                    return
                yield step.failures

        passed = certified(failures(), len(prompts), against="model", tolerance=tolerance, confidence=confidence)
    notes = repeats(given - len(prompts), given, "prompts")
    promise = SequenceGuarantee(passed[-1] if passed else None, share, new_tokens, tuple(steps), len(passed), notes)
    taken = promise.taken
    return (None if taken is None else replace(policy, threshold=taken.threshold, log_odds=None)), promise


def _distinct(prompts: Sequence[Tensor]) -> tuple[list[Tensor], Int64[np.ndarray, " n"]]:
    """Each prompt once, and how often it is there."""
    counts: dict[tuple[int, ...], int] = {}
    first: list[Tensor] = []
    for prompt in prompts:
        content = tuple(prompt.tolist())
        if content not in counts:
            first.append(prompt)
        counts[content] = counts.get(content, 0) + 1
    return first, np.array(list(counts.values()), dtype=np.int64)


def _key(stack: Stack, prompts: Sequence[Tensor], policy: Policy, settings: tuple[int, int]) -> str:
    """Stands for all that what is written depends on, but for the threshold."""
    kind = {**as_plain(policy), "threshold": None}
    told = [describe_model(stack)["fingerprint"], [prompt.tolist() for prompt in prompts], kind, settings]
    return hashlib.blake2b(json.dumps(told).encode(), digest_size=16).hexdigest()


def _save(file: Path, texts: list[Tensor], depths: list[Tensor]) -> None:
    each = torch.cat(depths).numpy() if depths else np.empty(0, np.int64)
    lengths = np.array([len(text) for text in texts])
    with atomic_write(file) as beside, beside.open("wb") as opened:
        np.savez(opened, lengths=lengths, texts=torch.cat(texts).numpy(), depths=each)


def _read(file: Path) -> tuple[list[Tensor], list[Tensor]]:
    with np.load(file, allow_pickle=False) as kept:
        lengths = kept["lengths"].tolist()
        texts, depths = torch.from_numpy(kept["texts"]), torch.from_numpy(kept["depths"])
    return list(torch.split(texts, lengths)), list(torch.split(depths, lengths)) if len(depths) else []


class _Author:
    """A model that writes on from prompts, in batches."""

    def __init__(
        self,
        model: Any,
        prompts: Sequence[Tensor],
        new_tokens: int,
        padding: int,
        kept: Path | None,
        progress: Progress | None,
    ) -> None:
        self._model, self._prompts, self._new_tokens, self._padding = model, prompts, new_tokens, padding
        self._kept, self._progress = kept, progress
        ends = model.generation_config.eos_token_id
        self._ends = torch.tensor([] if ends is None else ends).flatten()

    def write(self, told: str, mode: DynamicExit | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """What is written after each prompt, and the depth of each of these tokens (empty without a mode)."""
        file = None if self._kept is None else self._kept / f"{told}.npz"
        if file is not None and file.is_file():
            return _read(file)
        found = self._write(told, mode)
        if file is not None:
            _save(file, *found)
        return found

    def _write(self, told: str, mode: DynamicExit | None) -> tuple[list[Tensor], list[Tensor]]:
        texts: list[Tensor] = []
        depths: list[Tensor] = []
        for start in range(0, len(self._prompts), _BATCH):
            batch = self._prompts[start : start + _BATCH]
            longest = max(len(prompt) for prompt in batch)
            rows = [functional.pad(prompt, (longest - len(prompt), 0), value=self._padding) for prompt in batch]
            masks = [functional.pad(torch.ones_like(prompt), (longest - len(prompt), 0)) for prompt in batch]
            device = self._model.device
            output = self._model.generate(
                torch.stack(rows).to(device),
                attention_mask=torch.stack(masks).to(device),
                max_new_tokens=self._new_tokens,
                do_sample=False,
                pad_token_id=self._padding,
                custom_generate=mode,
            )
            new = [row[: self._length(row)] for row in output[:, longest:].cpu()]
            texts += new
            if mode is not None:
                each = torch.tensor(mode.spent.depths).view(-1, len(batch)).T
                depths += [row[: len(text)] for row, text in zip(each, new, strict=True)]
            if self._progress is not None:
                self._progress(len(texts), len(self._prompts), told)
        return texts, depths

    def _length(self, row: Int64[Tensor, " t"]) -> int:
        """Tokens up to the first that ends a sequence, with it."""
        ended = torch.isin(row, self._ends).nonzero()
        return int(ended[0]) + 1 if len(ended) else len(row)


def _held(
    threshold: int | float, early: list[Tensor], depths: list[Tensor], texts: list[Tensor], share: float
) -> tuple[ThresholdResult, Bool[np.ndarray, " n"]]:
    """What a threshold shows, beside what the full model wrote; and which sequences fail."""
    shares = [differing(one, other) for one, other in zip(early, texts, strict=True)]
    lengths = [max(len(one), len(other)) for one, other in zip(early, texts, strict=True)]
    failed = np.array(shares) > share
    differ = sum(one * length for one, length in zip(shares, lengths, strict=True)) / sum(lengths)
    return ThresholdResult(threshold, int(failed.sum()), float(torch.cat(depths).float().mean()), differ), failed


def differing(early: Int64[Tensor, " n"], full: Int64[Tensor, " m"]) -> float:
    """The share of tokens that differ, place by place; places that only one has do.

    Example:
        >>> differing(torch.tensor([1, 2, 3]), torch.tensor([1, 9, 3, 4]))
        0.5
    """
    both = min(len(early), len(full))
    return 1 - int((early[:both] == full[:both]).sum()) / max(len(early), len(full))
