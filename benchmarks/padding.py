"""How much of what is computed is padding, and what sorting texts by length saves, in pairs.

    OMP_NUM_THREADS=1 python benchmarks/padding.py [--samples 1000] [--repeats 3] [--count-only]

Two kinds of texts: sentences of movie reviews (`mr`; "short"), and pieces of the Brown corpus (`brown`; "mixed"),
cut at lengths drawn log-normally. Where an asset is missing, texts are made of made-up words with lengths like its own,
and the table says so. The model is MiniLM (`minilm`), or one of its shape with random weights. Positions are counted
over all batches of 32 as a trace reads them; a window of one batch is the order of the data. A trace is the default
one, without a folder; CPU seconds, sorted and in the order of the data in turn, in one process.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import processor
from peers.apart import cpu_seconds

import anydepth as ad
from anydepth import data
from anydepth.assets.registry import path
from anydepth.data.batching import Batches
from anydepth.errors import AssetError
from anydepth.models import loading as models
from anydepth.models.loaded import LoadedModel

RESULTS = Path(__file__).parent / "results"
MEDIAN, SPREAD, LONGEST = 50, 1.0, 400  # words of a piece: their median, the deviation of their logarithm, the most


def short_texts(count: int) -> tuple[list[str], str]:
    try:
        rows = list(csv.DictReader((path("mr") / "test.csv").open(encoding="utf-8")))
    except AssetError:
        lengths = np.random.default_rng(0).gamma(4, 5, count).round().clip(1, 60).astype(int)
        return made_up(lengths), "made up, lengths as MR's"
    return [row["text"] for row in rows[:count]], "MR"


def mixed_texts(count: int) -> tuple[list[str], str]:
    rng = np.random.default_rng(1)
    lengths = rng.lognormal(np.log(MEDIAN), SPREAD, count).round().clip(1, LONGEST).astype(int)
    try:
        lines = (path("brown") / "train.jsonl").read_text(encoding="utf-8").splitlines()
    except AssetError:
        return made_up(lengths), "made up, lengths as of pieces of Brown"
    words = " ".join(json.loads(line)["text"] for line in lines).split()
    ends = lengths.cumsum()
    return [" ".join(words[end - length : end]) for end, length in zip(ends, lengths, strict=True)], "pieces of Brown"


def made_up(lengths: np.ndarray) -> list[str]:
    rng, words = np.random.default_rng(2), ("the", "a", "film", "story", "is", "of", "and", "good", "dull", "plays")
    return [" ".join(rng.choice(words, length)) for length in lengths]


def minilm(folder: Path) -> tuple[LoadedModel, str]:
    try:
        return models.load(str(path("minilm")), device="cpu"), "MiniLM-L6"
    except AssetError:
        import transformers
        from tokenizers import Tokenizer, pre_tokenizers
        from tokenizers import models as kinds

        config = transformers.BertConfig(
            hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
        )
        transformers.BertModel(config).save_pretrained(folder)
        words = Tokenizer(kinds.WordLevel({"[PAD]": 0, "[UNK]": 1}, unk_token="[UNK]"))
        words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", model_max_length=512
        ).save_pretrained(folder)
        return models.load(str(folder), device="cpu"), "of MiniLM-L6's shape"


def padding(batches: Batches) -> float:
    """The share of positions that are padding."""
    computed = real = 0
    for batch in batches:
        computed += batch["attention_mask"].numel()
        real += int(batch["attention_mask"].sum())
    return 1 - real / computed


def seconds(batches: Batches) -> float:
    start = cpu_seconds()
    ad.trace(batches.model.model, batches)
    return cpu_seconds() - start


def measure(
    kind: str, texts_of: Callable[[int], tuple[list[str], str]], model: LoadedModel, chosen: argparse.Namespace
) -> dict[str, Any]:
    import datasets

    texts, source = texts_of(chosen.samples)
    with tempfile.TemporaryDirectory() as folder:
        datasets.Dataset.from_dict({"text": texts}).save_to_disk(folder)
        by_length = data.batches(data.load(folder), model, batch_size=32)
        ways = {"sorted": by_length, "in order": replace(by_length, sorted_batches=1)}
        shares = {way: padding(batches) for way, batches in ways.items()}
        runs: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(0 if chosen.count_only else chosen.repeats):
            for way, batches in ways.items():
                runs[way].append(seconds(batches))
                print(f"{kind}, {way}: {runs[way][-1]:.1f} CPU s", flush=True)
    return {"kind": kind, "source": source, "samples": len(texts), "padding": shares, "runs": runs}


def row(measured: dict[str, Any]) -> str:
    shares, runs = measured["padding"], measured["runs"]
    line = f"| {measured['kind']} ({measured['source']}), {measured['samples']:,} texts "
    line += f"| {shares['in order']:.1%} | {shares['sorted']:.1%} "
    if not runs["sorted"]:
        return line + "| | | |"
    ratio = statistics.median(before / after for before, after in zip(runs["in order"], runs["sorted"], strict=True))
    before, after = (statistics.median(runs[way]) for way in ("in order", "sorted"))
    return line + f"| {before:.1f} | {after:.1f} | {ratio:.2f} × |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--count-only", action="store_true", help="count padding, and run no trace")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model, name = minilm(Path(folder))
        results = [
            measure("short", short_texts, model, chosen),
            measure("mixed", mixed_texts, model, chosen),
        ]
    lines = [
        f"Model: {name}. Batches of 32; a trace with the default measures.",
        "",
        "| texts | padding, in order | sorted | CPU s, in order | sorted | ratio, median of pairs |",
        "|---|---|---|---|---|---|",
        *map(row, results),
    ]
    print("\n".join(lines))
    if not chosen.count_only:
        record = {"model": name, "processor": processor(), "results": results}
        (RESULTS / "padding.json").write_text(json.dumps(record, indent=1) + "\n")
        (RESULTS / "padding.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
