"""Is a trace slower than the same route written plainly, or than another version's? Three shapes, in pairs.

    python benchmarks/trace_pairs.py [--rounds 5] [--batches 6] [--only bert] [--against OTHER/src]

Each round starts a process for each version, which runs every model by turns in two ways, on the same batches: the
floor, a forward with `output_hidden_states` and the model's head at each depth, written out; and `anydepth.trace`. A
pair is both in one process, one after the other, so that a machine that slows down slows both. CPU seconds; medians
over rounds, least and most in brackets. Beside them stand the operations of matrix products, counted once: they are the
same on every machine. Models are built from configs with random weights: nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__)
SHAPES = ("bert", "vit", "gpt2")
_SAMPLES, _TOKENS, _CLASSES, _WORDS = 16, 64, 10, 4000
_WIDTH, _BLOCKS = 256, 8

Pair = dict[str, float]
"""CPU seconds of each way, "floor" and "trace", and their "operations", trace over floor."""


def cpu_seconds(run: Callable[[], Any]) -> float:
    before = resource.getrusage(resource.RUSAGE_SELF)
    run()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def built(shape: str, count: int) -> tuple[Any, list[dict[str, Any]]]:
    """A model of a shape, and so many batches."""
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": _WIDTH, "num_hidden_layers": _BLOCKS, "num_attention_heads": 4, "intermediate_size": 1024}
    model: Any
    if shape == "vit":
        config = transformers.ViTConfig(image_size=64, patch_size=8, num_labels=_CLASSES, **sizes)
        model = transformers.ViTForImageClassification(config)
        batches = [{"pixel_values": torch.rand(_SAMPLES, 3, 64, 64)} for _ in range(count)]
    elif shape == "bert":
        config = transformers.BertConfig(vocab_size=_WORDS, num_labels=_CLASSES, **sizes)
        model = transformers.BertForSequenceClassification(config)
        batches = [{"input_ids": torch.randint(5, _WORDS, (_SAMPLES, _TOKENS))} for _ in range(count)]
    else:
        config = transformers.GPT2Config(vocab_size=_WORDS, n_embd=_WIDTH, n_layer=_BLOCKS, n_head=4)
        model = transformers.GPT2LMHeadModel(config)
        batches = [{"input_ids": torch.randint(5, _WORDS, (_SAMPLES // 4, _TOKENS))} for _ in range(count)]
    if shape != "gpt2":
        batches = [{**batch, "labels": torch.randint(_CLASSES, (_SAMPLES,))} for batch in batches]
    return model.eval(), batches


def head(shape: str, model: Any, state: Any) -> Any:
    """The model's own head on the state of a depth below the last, written out."""
    if shape == "bert":
        return model.classifier(model.bert.pooler(state))
    if shape == "vit":
        return model.classifier(model.vit.layernorm(state)[:, 0])
    return model.lm_head(model.transformer.ln_f(state))


def floor(shape: str, model: Any, batches: Sequence[dict[str, Any]]) -> None:
    """What any trace must do: all states, the head at each depth, and of its logits what a row of a trace holds."""
    import torch

    for batch in batches:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        with torch.no_grad():
            output = model(**inputs, output_hidden_states=True)
            for state in output.hidden_states[:-1]:
                statistics_of(head(shape, model, state), batch)
            statistics_of(output.logits, batch)


def statistics_of(logits: Any, batch: dict[str, Any]) -> Any:
    """Top class, confidence, entropy and cross-entropy."""
    import torch

    if "labels" in batch:
        labels = batch["labels"]
    else:
        logits, labels = logits[:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten()
    logarithms = logits.log_softmax(-1)
    top = logarithms.max(-1)
    entropy = -(logarithms.exp() * logarithms).sum(-1)
    return top.indices, top.values.exp(), entropy, torch.nn.functional.nll_loss(logarithms, labels, reduction="none")


def measured(shapes: Sequence[str], batches_each: int, *, turned: bool, counted: bool) -> dict[str, Pair]:
    """One pair of each model, in this process; `turned`: the trace first; `counted`: operations, too."""
    import torch

    import anydepth as ad

    torch.set_num_threads(1)
    pairs: dict[str, Pair] = {}
    for shape in shapes:
        model, batches = built(shape, batches_each)
        ways: dict[str, Callable[[Any], Any]] = {
            "floor": partial(floor, shape, model),
            "trace": partial(ad.trace, model, measures=("cosine",), tokens="each" if shape == "gpt2" else "first"),
        }
        for run in ways.values():  # what is set up on the first call is nobody's cost
            run(batches[:1])
        order = reversed(ways) if turned else ways
        pairs[shape] = {way: cpu_seconds(partial(ways[way], batches)) for way in order}
        if counted:
            count = {way: operations(partial(run, batches)) for way, run in ways.items()}
            pairs[shape]["operations"] = count["trace"] / count["floor"]
    return pairs


def operations(run: Callable[[], Any]) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def in_process(source: Path, chosen: argparse.Namespace, *, turned: bool, counted: bool) -> dict[str, Pair]:
    """`measured` with the package of a src folder."""
    options = ["--only", *chosen.only, "--batches", str(chosen.batches)]
    options += [flag for flag, given in (("--turned", turned), ("--counted", counted)) if given]
    command = [sys.executable, str(HERE), "--child", *options]
    environment = os.environ | {"PYTHONPATH": str(source.resolve()), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        sys.exit(done.stderr.strip().splitlines()[-1])
    pairs: dict[str, Pair] = json.loads(done.stdout.splitlines()[-1])
    return pairs


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def table(rounds: dict[str, list[dict[str, Pair]]], shapes: Sequence[str]) -> str:
    """A row for each model and version; with two versions, the ratio of their traces' ratios to the floor."""
    heads = [
        "shape",
        "version",
        "floor, CPU s",
        "trace, CPU s",
        "trace / floor",
        "beside the other",
        "operations / floor",
    ]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for shape in shapes:
        ratios = {
            version: [each[shape]["trace"] / each[shape]["floor"] for each in runs] for version, runs in rounds.items()
        }
        for version, runs in rounds.items():
            seconds = [spread([each[shape][way] for each in runs]) for way in ("floor", "trace")]
            others = next((values for name, values in ratios.items() if name != version), None)
            beside = "" if others is None else spread([a / b for a, b in zip(ratios[version], others, strict=True)])
            counted = f"{runs[0][shape]['operations']:.3f}"
            lines.append(f"| {' | '.join([shape, version, *seconds, spread(ratios[version]), beside, counted])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=6, help="of 16 samples (GPT-2: 4): what is set up counts less")
    parser.add_argument("--only", nargs="+", choices=SHAPES, default=SHAPES)
    parser.add_argument("--against", type=Path, help="the src folder of another version")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--turned", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--counted", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        print(json.dumps(measured(chosen.only, chosen.batches, turned=chosen.turned, counted=chosen.counted)))
        return
    sources = {"this": HERE.parents[1] / "src"} | ({"other": chosen.against} if chosen.against else {})
    rounds: dict[str, list[dict[str, Pair]]] = {version: [] for version in sources}
    for number in range(chosen.rounds):
        for version in sources if number % 2 == 0 else reversed(sources):
            pair = in_process(sources[version], chosen, turned=number % 2 == 1, counted=number == 0)
            rounds[version].append(pair)
    print(f"$ python benchmarks/trace_pairs.py {shlex.join(sys.argv[1:])}\n")
    print(table(rounds, chosen.only))


if __name__ == "__main__":
    main()
