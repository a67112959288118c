"""Command lines: every verb and every option of the command line, with values that fit and values that do not."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

# What no option can use, or few can.
BAD = [
    "",
    "x",
    "-1",
    "0",
    "nan",
    "inf",
    "-inf",
    "1e309",
    "9" * 25,
    "4294967296",
    "18446744073709551616",
    "1e-320",
    "0.5",
]
BAD += [
    "[/]",
    "\x1b[31m",
    "a,b",
    ",",
    "1,,2",
    "-1,0",
    "99",
    "2,99",
    "ü",
    "null",
    "None",
    "1 GB",
    "=1+1",
    "n" * 300,
    "\u0663",
]

# Values that fit, by option; a verb's own under "verb --option".
GOOD: dict[str, list[str]] = {
    "--split": ["file", "test", "train"],
    "--limit": ["1", "7", "30", "1000"],
    "--batch-size": ["1", "5", "64"],
    "--max-length": ["2", "4", "8"],
    "--stride": ["1", "2"],
    "--measures": ["cka", "cosine,cka", "rsa", "knn", "none", "procrustes", "cca"],
    "--tokens": ["first", "last", "each", "mean"],
    "--positions": ["1", "3"],
    "--readout": ["tail", "raw", "none"],
    "--text-column": ["text", "name"],
    "--label-column": ["label", "name"],
    "--image-column": ["image"],
    "--id-column": ["name"],
    "--blocks": ["bert.encoder.layer", "transformer.h", "vit.layers"],
    "--labels-as-texts": ["a photo of a {}", "no place for a name"],
    "--states-limit": ["1GB", "1kB", "5"],
    "--lens": ["the film", "a \x1b[31m plot"],
    "--device": ["cpu", "cuda", "meta", "mps"],
    "--dtype": ["auto", "float32", "float16", "bfloat16"],
    "--seed": ["0", "1", "123"],
    "--objective": ["aligned", "standard", "uniform", "sampled", "distilled", "cosine", "heads", "mixture"],
    "--weights": ["linear", "uniform", "final", "1,2,3", "1,2"],
    "--exits": ["1", "1,2", "all", "sampled"],
    "--distillation": ["0", "0.5", "1"],
    "--task": ["text-classification", "token-classification", "image-classification", "causal-lm"],
    "--eval-data": ["{data}"],
    "--eval-split": ["file", "test"],
    "--eval-limit": ["2", "9"],
    "--config": ["{out}/settings.yaml"],
    "--num-train-epochs": ["1", "0.1"],
    "--max-steps": ["1", "2"],
    "--learning-rate": ["0", "1e-3"],
    "--lr-scheduler-type": ["linear", "cosine", "constant"],
    "--warmup-steps": ["0", "1", "0.1"],
    "--weight-decay": ["0.1"],
    "--max-grad-norm": ["0", "1"],
    "--optim": ["adamw_torch", "sgd"],
    "--per-device-train-batch-size": ["4"],
    "--per-device-eval-batch-size": ["16"],
    "--gradient-accumulation-steps": ["2"],
    "--label-smoothing-factor": ["0.1"],
    "--dataloader-num-workers": ["0"],
    "--eval-steps": ["1"],
    "--save-steps": ["1", "0.5"],
    "--save-total-limit": ["1"],
    "--logging-steps": ["1"],
    "--report-to": ["none"],
    "--despite": ["data", "tokens", "data,tokens"],
    "--permutations": ["0", "9"],
    "--policy": ["confidence", "margin", "entropy", "patience", "convergence"],
    "--depths": ["1", "1,2"],
    "--tolerance": ["0.3", "0.5"],
    "--confidence": ["0.8", "0.95"],
    "--against": ["model", "labels"],
    "--prompt-tokens": ["2"],
    "--new-tokens": ["3"],
    "--share": ["0", "0.5"],
    "--depth": ["1", "2", "auto"],
    "--threshold": ["0.5", "2"],
    "--prompt": ["the film", "a plot was"],
    "--prompts": ["{prompts}"],
    "--draft-depth": ["1", "auto"],
    "--draft-length": ["1", "4"],
    "--exit": ["{lm}"],
    "--max-new-tokens": ["3", "100"],
    "--temperature": ["0.5", "2"],
    "--top-k": ["1", "5"],
    "--top-p": ["0.5", "1"],
    "--epochs": ["1"],
    "--scale": ["cpu", "full"],
    "--seeds": ["1"],
    "--steps": ["1"],
    "--use": ["x={data}", "google-bert/bert-base-uncased={model}"],
}

SILENT = {"--help", "--out", "--data", "--torch-compile", "--fp16", "--bf16"}  # given otherwise, or minutes long
STEPS = ["--max-steps", "2", "--use-cpu"]
EXIT = ["--tolerance", "0.5", "--confidence", "0.8", "--depths", "1", "--no-tune"]
LM_EXIT = ["--tolerance", "0.5", "--confidence", "0.8", "--prompt-tokens", "2", "--new-tokens", "3", "--share", "0.5"]


@dataclass(frozen=True)
class Shape:
    """A command line that works, in words that `{name}` in them stand for a copy of an input."""

    verb: str
    inputs: dict[str, str]
    words: tuple[str, ...]
    rows: int | None = None

    @property
    def argv(self) -> list[str]:
        return [self.verb, *self.words]


def _trace(model: str, data: str, rows: int, *more: str) -> Shape:
    return Shape(
        "trace", {"model": model, "data": data}, ("{model}", "--data", "{data}", "--out", "{out}", *more), rows
    )


def _align(model: str, data: str, *more: str) -> Shape:
    words = ("{model}", "--data", "{data}", "--out", "{out}", *STEPS, *more)
    return Shape("align", {"model": model, "data": data}, words)


def shapes(rows: int, pictures: int) -> dict[str, list[Shape]]:
    """Command lines that work, by verb."""
    data = ("--data", "{data}", "--out", "{out}")
    classify = {"model": "bert", "data": "reviews.csv"}
    generate = {"model": "gpt2", "prompts": "prompts.txt", "lm": "lm-exits"}
    return {
        "trace": [
            _trace("bert", "reviews.csv", rows),
            _trace("bert", "reviews.jsonl", rows),
            _trace("gpt2", "corpus.txt", rows),
            _trace("colours", "pictures", pictures),
            _trace("vit", "digits", 20, "--limit", "20"),
        ],
        "align": [
            _align("bert", "reviews.csv"),
            _align("gpt2", "corpus.txt", "--max-length", "8"),
            _align("colours", "pictures"),
        ],
        "compare": [
            Shape("compare", {"a": "trace-a", "b": "trace-b"}, ("{a}", "{b}", "--despite", "data", "--out", "{out}")),
            Shape("compare", {"a": "trace-a", "b": "trace-a"}, ("{a}", "{b}", "--out", "{out}")),
        ],
        "exit": [
            Shape("exit", classify, ("{model}", *data, *EXIT)),
            Shape("exit", {"model": "gpt2", "data": "corpus.txt"}, ("{model}", *data, *LM_EXIT)),
        ],
        "predict": [Shape("predict", {"model": "exits", "data": "reviews.csv"}, ("{model}", *data), rows)],
        "generate": [
            Shape("generate", generate, ("{model}", "--prompt", "the film", "--max-new-tokens", "4")),
            Shape("generate", generate, ("{model}", "--prompts", "{prompts}", "--max-new-tokens", "4", "--depth", "1")),
            Shape("generate", generate, ("{model}", "--prompt", "a", "--max-new-tokens", "4", "--draft-depth", "1")),
            Shape("generate", generate, ("{model}", "--prompt", "a", "--max-new-tokens", "3", "--exit", "{lm}")),
        ],
        "truncate": [
            Shape("truncate", {"model": "bert"}, ("{model}", "--depth", "1", "--out", "{out}")),
            Shape("truncate", classify, ("{model}", "--depth", "2", *data)),
            Shape("truncate", classify, ("{model}", "--depth", "auto", "--tolerance", "0.9", *data)),
        ],
        "export": [
            Shape("export", {"model": "bert"}, ("{model}", "--exits", "1", "--out", "{out}")),
            Shape("export", {"model": "exits"}, ("{model}", "--out", "{out}")),
        ],
        "demo": [Shape("demo", {}, ("--epochs", "1", "--out", "{out}"))],
        "reproduce": [
            Shape("reproduce", {}, ("--list", "--out", "{out}")),
            Shape("reproduce", {}, ("--verdict", "--out", "{out}")),
            Shape("reproduce", {}, ("nosuch", "--out", "{out}")),
        ],
    }


# How often each verb is tried: the demo and an export take as long as ten of the others.
SHARES = {"trace": 26, "align": 14, "compare": 12, "exit": 12, "predict": 12, "generate": 10, "truncate": 8}
SHARES |= {"export": 3, "demo": 1, "reproduce": 2}


def options() -> dict[str, dict[str, bool]]:
    """Options of each verb by their flags, and whether they take a value: as the command line itself has them."""
    from anydepth.cli.app import COMMANDS
    from anydepth.cli.command import flags_of

    return {
        verb: {
            flag: setting.hint is not bool
            for setting in command.settings
            if not setting.option.positional
            for flag in flags_of(setting)
        }
        for verb, command in COMMANDS.items()
    }


def more(rng: random.Random, verb: str, known: dict[str, bool]) -> Iterator[str]:
    """Up to four further options, most of them with values that fit."""
    usable = sorted(set(known) - SILENT)
    for _ in range(rng.choice([0, 0, 1, 1, 2, 3, 4])):
        flag = rng.choice(usable)
        yield flag
        if known[flag]:
            fits = GOOD.get(f"{verb} {flag}", GOOD[flag])
            value = rng.choice(fits if rng.random() < 0.6 else BAD)
            yield fits[0] if (flag, value) == ("--epochs", "99") else value  # an hour of training is no fault
