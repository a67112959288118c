"""How much of the time that early exit could save it does save: BERT-base, 128 tokens, a mean depth of 6 of 12.

    python benchmarks/exit_speed.py [--batches 1 8 32] [--rounds N]

Who leaves where is dealt out beforehand, symmetrically round 6, by policies that compute what an ordinary one computes
and then follow the list. All ways answer the same inputs in turn, in one process on one thread, in an order drawn anew
for each input: a way is slower after one that leaves more behind in the caches. CPU seconds, and the medians over
rounds of the full model's time over each way's in the same round.
At batch 1 a round is eight inputs, one for each entry of the list. Every call gets tensors it has not seen, so that
nothing is kept from the one before.

The ideal speed-up is L / mean depth: what blocks cost and nothing else. It pays for no readout; what is left of it for
one who does is shown by a loop written by hand, for BERT without padding and nothing else.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from machine import processor
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

import anydepth as ad
from anydepth.early_exit.classifier import EarlyExit
from anydepth.exits.policies import AtDepth, Confidence, Convergence

RESULTS = Path(__file__).parent / "results"
TOKENS, BLOCKS, MEAN = 128, 12, 6
FEW, HALF, ALL = (3, 6, 9), (2, 4, 6, 8, 10), tuple(range(1, BLOCKS))
"""The depths that are tested: one in three, one in two, every one."""
DEALT = {FEW: (6, 3, 9, 6, 6, 9, 3, 6), HALF: (4, 8, 2, 6, 10, 6, 4, 8), ALL: (5, 9, 1, 6, 11, 6, 3, 7)}
"""Where eight samples leave: a mean of 6 each."""
WITHIN = 0.95
"""The share of the ideal that must be kept."""
CALLS = {1: 8, 8: 2, 32: 1}
"""Inputs of a round at each batch size."""
ROUNDS = {1: 6, 8: 6, 32: 5}
WAYS = {
    "full": "the full model",
    "few": "anydepth, confidence at 3, 6, 9",
    "few, convergence": "anydepth, convergence at 3, 6, 9",
    "few, hand": "confidence at 3, 6, 9, by hand for BERT alone",
    "few, slowest": "the same, waiting for the slowest of the batch",
    "few, exception": "hooks, and an exception when the slowest is done",
    "half": "anydepth, confidence at every second depth",
    "all": "anydepth, confidence at every depth",
    "all, hand": "confidence at every depth, by hand for BERT alone",
    "six": "all leave at 6: anydepth, confidence at 3, 6, 9",
    "six, depth": "all leave at 6: anydepth, `AtDepth(6)`",
    "six, exception": "all leave at 6: hooks and an exception",
    "six, cut": "all leave at 6: the model cut after 6 blocks",
}
SAME = {
    "few": "few, hand",
    "few, convergence": "few, hand",
    "few, slowest": "few, hand",
    "few, exception": "few, hand",
    "all": "all, hand",
    "six": "six, cut",
    "six, depth": "six, cut",
    "six, exception": "six, cut",
}
"""Which ways must agree, to rounding."""
HELD = ("few", "few, convergence", "six")
"""What is held against the ideal."""

Input = dict[str, Tensor]


# ------------------------------------------------------------------------------------ policies that follow a list


@dataclass(frozen=True)
class Dealt(Confidence):
    """Confidence, computed and then overruled: each sample carries the depth dealt to it, and leaves there."""

    leaving: Tensor = field(default_factory=lambda: torch.empty(0, 1))
    """(B, 1)."""

    def scores(self, depth: int, seen: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor]:
        super().scores(depth, seen, None)
        dealt = self.leaving if memory is None else memory
        return (dealt[:, 0] <= depth).float(), dealt


@dataclass(frozen=True)
class DealtConvergence(Convergence):
    """The same for convergence: the cosine is computed and overruled."""

    leaving: Tensor = field(default_factory=lambda: torch.empty(0, 1))

    def scores(self, depth: int, seen: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor]:
        dealt, states = (self.leaving, None) if memory is None else (memory[:, :1], memory[:, 1:])
        super().scores(depth, seen, states)
        return (dealt[:, 0] <= depth).float(), torch.cat([dealt, seen], dim=1)


# ------------------------------------------------------------------------------------------------- the other ways


def head(model: Any, state: Tensor) -> Tensor:
    answer: Tensor = model.classifier(model.bert.pooler(state))
    return answer


def by_hand(model: Any, batch: Input, leaving: Tensor, tested: Sequence[int], *, wait: bool = False) -> Tensor:
    """BERT's own blocks in a loop written for BERT without padding; `wait` keeps the batch together to the last."""
    state, rows, answers = model.bert.embeddings(batch["input_ids"]), torch.arange(len(leaving)), None
    for depth, block in enumerate(model.bert.encoder.layer, start=1):
        state = block(state, None)
        if depth not in tested and depth < BLOCKS:
            continue
        logits = head(model, state)
        logits.softmax(1).amax(1)
        answers = logits.new_empty(len(leaving), logits.shape[1]) if answers is None else answers
        done = leaving[rows] <= depth
        fresh = leaving[rows] == depth  # those that wait for others were answered when they were done
        answers[rows[fresh]] = logits[fresh]
        if done.all():
            break
        if not wait and done.any():
            rows, state = rows[~done], state[~done]
    assert answers is not None
    return answers


class _Done(Exception):
    """All samples have their answer."""


def by_exception(model: Any, batch: Input, leaving: Tensor, tested: Sequence[int]) -> Tensor:
    """Hooks on the tested blocks that read out, and an exception out of the forward when the slowest is done."""
    answers: list[Tensor] = []

    def hook(depth: int) -> Callable[..., None]:
        def test(block: nn.Module, args: Any, output: Any) -> None:
            logits = head(model, output[0] if isinstance(output, tuple) else output)
            logits.softmax(1).amax(1)
            if not answers:
                answers.append(torch.empty_like(logits))
            here = leaving == depth
            answers[0][here] = logits[here]
            if (leaving <= depth).all():
                raise _Done

        return test

    handles = [model.bert.encoder.layer[depth - 1].register_forward_hook(hook(depth)) for depth in tested]
    try:
        model(**batch)
    except _Done:
        return answers[0]
    finally:
        for handle in handles:
            handle.remove()
    raise AssertionError("someone was left")


# -------------------------------------------------------------------------------------------------------- the clock


def inputs_of(batch: int) -> list[Input]:
    """The inputs of a round: eight of one sample, or one of several."""
    ids = torch.randint(1000, 30_000, (CALLS[batch], batch, TOKENS))
    return [{"input_ids": one, "attention_mask": torch.ones_like(one)} for one in ids]


def leaving_of(tested: tuple[int, ...], batch: int) -> list[Tensor]:
    """Where each sample of each input leaves."""
    dealt = torch.tensor(DEALT[tested])
    return list(dealt[:, None]) if batch == 1 else [dealt.repeat(batch // len(dealt))] * CALLS[batch]


Way = Callable[[int, Input], Tensor]
"""Answers the i-th input of a round."""


def ways_of(model: Any, cut: Any, batch: int) -> dict[str, Way]:
    """Every way to answer, by its name in `WAYS`."""
    few, half, every = (leaving_of(tested, batch) for tested in (FEW, HALF, ALL))
    six = [torch.full_like(one, MEAN) for one in few]
    stack = ad.Stack(model)

    def engines(kind: Any, leaving: list[Tensor], tested: tuple[int, ...]) -> Way:
        made = [EarlyExit(stack, kind(1.0, tested, leaving=one[:, None].float())) for one in leaving]
        return lambda i, x: made[i](x).logits

    at_six = EarlyExit(stack, AtDepth(MEAN))
    return {
        "full": lambda i, x: model(**x).logits,
        "few": engines(Dealt, few, FEW),
        "few, convergence": engines(DealtConvergence, few, FEW),
        "few, hand": lambda i, x: by_hand(model, x, few[i], FEW),
        "few, slowest": lambda i, x: by_hand(model, x, few[i], FEW, wait=True),
        "few, exception": lambda i, x: by_exception(model, x, few[i], FEW),
        "half": engines(Dealt, half, HALF),
        "all": engines(Dealt, every, ALL),
        "all, hand": lambda i, x: by_hand(model, x, every[i], ALL),
        "six": engines(Dealt, six, FEW),
        "six, depth": lambda i, x: at_six(x).logits,
        "six, exception": lambda i, x: by_exception(model, x, six[i], FEW),
        "six, cut": lambda i, x: cut(**x).logits,
    }


def fresh(batch: Input) -> Input:
    return {name: value.clone() for name, value in batch.items()}


def one_round(ways: dict[str, Way], inputs: list[Input], draw: random.Random) -> dict[str, float]:
    """CPU seconds of each way for all inputs; at each input the ways take turns, in an order drawn anew."""
    seconds = dict.fromkeys(ways, 0.0)
    for i, batch in enumerate(inputs):
        for name in draw.sample(list(ways), len(ways)):
            given = fresh(batch)
            start = time.process_time()
            ways[name](i, given)
            seconds[name] += time.process_time() - start
    return seconds


def check(ways: dict[str, Way], inputs: list[Input]) -> None:
    """See that ways that should agree do. It also warms all of them up, and each engine looks at its first batch."""
    answers = {name: torch.cat([way(i, fresh(batch)) for i, batch in enumerate(inputs)]) for name, way in ways.items()}
    for name, same in SAME.items():
        torch.testing.assert_close(answers[name], answers[same], rtol=1e-4, atol=1e-5)


def measure(batch: int, rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each way in each round, in this process."""
    model = BertForSequenceClassification(BertConfig(num_labels=3)).eval()
    cut = copy.deepcopy(model)
    cut.bert.encoder.layer = cut.bert.encoder.layer[:MEAN]
    found: dict[str, list[float]] = {}
    draw = random.Random(0)
    with torch.inference_mode():
        inputs, ways = inputs_of(batch), ways_of(model, cut, batch)
        check(ways, inputs)
        for number in range(rounds):
            for name, seconds in one_round(ways, inputs, draw).items():
                found.setdefault(name, []).append(seconds)
            print(f"batch {batch}, round {number + 1}: {summary(found)}", flush=True)
    return found


# ------------------------------------------------------------------------------------------------------- the results


def speedups(found: dict[str, list[float]], way: str) -> list[float]:
    return [full / seconds for full, seconds in zip(found["full"], found[way], strict=True)]


def shares(found: dict[str, list[float]], way: str) -> list[float]:
    return [one * MEAN / BLOCKS for one in speedups(found, way)]


def summary(found: dict[str, list[float]]) -> str:
    return ", ".join(f"{way} {statistics.median(speedups(found, way)):.2f} ×" for way in found)


def table(record: dict[str, dict[str, list[float]]]) -> list[str]:
    lines = ["| | " + " | ".join(f"batch {batch}" for batch in record) + " |", "|---|" + "---|" * len(record)]
    for way, words in WAYS.items():
        lines.append(
            f"| {words} | " + " | ".join(cell(found, way, int(batch)) for batch, found in record.items()) + " |"
        )
    return lines


def cell(found: dict[str, list[float]], way: str, batch: int) -> str:
    if way == "full":
        return f"{statistics.median(found[way]) / CALLS[batch]:.2f} CPU s"
    return f"{statistics.median(speedups(found, way)):.2f} × ({statistics.median(shares(found, way)):.3f})"


def checks(record: dict[str, dict[str, list[float]]]) -> list[str]:
    lines = []
    for way in HELD:
        for batch, found in record.items():
            share = sorted(shares(found, way))
            middle = statistics.median(share)
            lines.append(
                f"- {WAYS[way]}, batch {batch}: at least {WITHIN} of the ideal: {'yes' if middle >= WITHIN else 'NO'} "
                f"({middle:.3f}; {share[0]:.3f} to {share[-1]:.3f} over {len(share)} rounds)"
            )
    return lines


def page(record: dict[str, Any]) -> str:
    found = record["seconds"]
    lines = [
        "BERT-base, 128 tokens: how many times faster than the full model, and in brackets what share that is of the",
        f"ideal, {BLOCKS / MEAN:.0f} ×. Of eight samples one each leaves at {listed(DEALT[FEW])}; where every second",
        f"depth is tested, at {listed(DEALT[HALF])}; where every one is, at {listed(DEALT[ALL])}.",
        "",
        *table(found),
        "",
        *checks(found),
        "",
        record["machine"] + ".",
    ]
    return "\n".join(lines)


def listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", choices=tuple(ROUNDS), default=list(ROUNDS))
    parser.add_argument("--rounds", type=int, help=f"(default: {ROUNDS})")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    file = RESULTS / "exit_speed.json"
    record: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"seconds": {}}
    record["machine"] = f"{processor()}, one thread; torch {version('torch')}, transformers {version('transformers')}"
    for batch in chosen.batches:
        record["seconds"][str(batch)] = measure(batch, chosen.rounds or ROUNDS[batch])
    RESULTS.mkdir(exist_ok=True)
    file.write_text(json.dumps(record, indent=1) + "\n")
    (RESULTS / "exit_speed.md").write_text(page(record) + "\n")
    print(page(record))


if __name__ == "__main__":
    main()
