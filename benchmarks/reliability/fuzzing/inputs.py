"""What a try is given: tiny models, data and earlier results, and ways to damage a copy of them."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tests" / "helpers"))
import checkpoints

ROWS = 48
PICTURES = 8
NAMES = {"id2label": {0: "dull", 1: "great"}, "label2id": {"dull": 0, "great": 1}}
COLOURS = {"id2label": {0: "blue", 1: "red"}, "label2id": {"blue": 0, "red": 1}}
WIDE = {"initializer_range": 0.5}  # so that answers differ between samples and depths


def build(folder: Path) -> None:
    """Models and data; what earlier commands leave is made of them by `EARLIER`."""
    import torch

    shutil.rmtree(folder, ignore_errors=True)  # of a campaign that was ended in the middle
    torch.manual_seed(0)
    checkpoints.bert(folder / "bert", **NAMES, **WIDE, num_hidden_layers=3)
    checkpoints.gpt2(folder / "gpt2", **WIDE)
    checkpoints.vit(folder / "vit", num_labels=10, **WIDE)
    checkpoints.vit(folder / "colours", num_labels=2, channels=3, **COLOURS, **WIDE)
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(checkpoints.WORDS, size=rng.integers(2, 9))) for _ in range(ROWS)]
    labels = [("dull", "great")[row % 2] for row in range(ROWS)]
    lines = [f"{text},{label},review {row}" for row, (text, label) in enumerate(zip(texts, labels, strict=True))]
    (folder / "reviews.csv").write_text("\n".join(["text,label,name", *lines]) + "\n")
    rows = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
    (folder / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "corpus.txt").write_text("\n".join(texts) + "\n")
    (folder / "prompts.txt").write_text("the film\na plot was\n")
    for split in ("train", "test"):
        for name, channel in (("red", 0), ("blue", 2)):
            place = folder / "pictures" / split / name
            place.mkdir(parents=True)
            for index in range(PICTURES // 2):
                pixels = rng.integers(0, 40, size=(9, 7, 3), dtype=np.uint8)
                pixels[..., channel] += 200
                Image.fromarray(pixels).save(place / f"{index}.png")


_LOOSE = ["--tolerance", "0.5", "--confidence", "0.8"]
_SHORT = ["--prompt-tokens", "2", "--new-tokens", "3", "--share", "0.5"]
# what earlier commands left, for those that read it
EARLIER: dict[str, list[str]] = {
    "trace-a": ["trace", "bert", "--data", "reviews.csv", "--keep-states", "--out", "trace-a"],
    "trace-b": ["trace", "bert", "--data", "reviews.csv", "--max-length", "4", "--keep-states", "--out", "trace-b"],
    "exits": ["exit", "bert", "--data", "reviews.csv", *_LOOSE, "--depths", "1,2", "--no-tune", "--out", "exits"],
    "lm-exits": ["exit", "gpt2", "--data", "corpus.txt", *_LOOSE, *_SHORT, "--out", "lm-exits"],
}

# Of what an earlier command left, files whose damage must be seen: whoever takes it answers wrongly. (Of a tokenizer
# and a config it is what they do that is sealed: a field that does nothing may go.)
SEALED = {"trace.json", "arrays.safetensors", "sums.safetensors", "states.npy", "sample.npy", "exit.json"}

JSON_VALUES = ["null", "[]", "{}", "0", '"x"', "[" * 100_000, '{"a":' * 50_000, "NaN", "", "\ufeff{}", '{"format": 99}']


def damage(rng: random.Random, path: Path) -> str:
    """Damage one file, and say how."""
    raw = path.read_bytes()
    kinds = list(_DAMAGES)
    if path.suffix == ".json":
        kinds += list(_OF_JSON) * 2
    if path.suffix in (".csv", ".jsonl", ".txt"):
        kinds += list(_OF_TEXT)
    kind = rng.choice(kinds)
    path.write_bytes((_DAMAGES | _OF_JSON | _OF_TEXT)[kind](rng, raw))
    return f"{path.name}: {kind}"


def _flipped(rng: random.Random, raw: bytes) -> bytes:
    if not raw:
        return b"x"
    place = rng.randrange(len(raw))
    return raw[:place] + bytes([raw[place] ^ (1 << rng.randrange(8))]) + raw[place + 1 :]


def _zeroed(rng: random.Random, raw: bytes) -> bytes:
    place = rng.randrange(max(len(raw), 1))
    return raw[:place] + bytes(len(raw[place : place + 64])) + raw[place + 64 :]


def _other_field(rng: random.Random, raw: bytes, kind: str) -> bytes:
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError):
        return b"null"
    place = content
    while isinstance(place, dict | list) and place:
        key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
        if not isinstance(place[key], dict | list) or not place[key] or rng.random() < 0.4:
            if kind == "gone":
                del place[key]
            else:
                place[key] = None if kind == "null" else rng.choice([[], {}, "x", -1, 1e300, True, [None]])
            break
        place = place[key]
    return json.dumps(content).encode()


def files_of(place: Path) -> list[Path]:
    """All files below, or the file itself."""
    if os.path.isfile(place):
        return [place]
    return sorted(path for path in place.rglob("*") if path.is_file())


_DAMAGES: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "emptied": lambda rng, raw: b"",
    "cut": lambda rng, raw: raw[: rng.randrange(max(len(raw), 1))],
    "flipped": _flipped,
    "zeroed": _zeroed,
    "noise": lambda rng, raw: rng.randbytes(rng.randrange(1, 400)),
    "grown": lambda rng, raw: raw + rng.randbytes(rng.randrange(1, 200)),
}
_OF_JSON: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "other json": lambda rng, raw: rng.choice(JSON_VALUES).encode(),
    "a field nulled": partial(_other_field, kind="null"),
    "a field gone": partial(_other_field, kind="gone"),
    "a field of another type": partial(_other_field, kind="other"),
}
_OF_TEXT: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "latin-1": lambda rng, raw: raw + "caf\xe9,great,n\n".encode("latin-1"),
    "nul": lambda rng, raw: raw[:30] + b"\0" + raw[30:],
    "escapes": lambda rng, raw: raw + b"\x1b[31mred\x1b[0m \x07\xc2\x9b1m,great,=1+1\n",
}


def is_sealed(asset: str, file: Path) -> bool:
    """Whether damage to a file of what an earlier command left must be seen."""
    if asset not in EARLIER:
        return False
    return file.name in SEALED or ("exits" in asset and file.suffix == ".safetensors")


def copy(source: Path, target: Path) -> None:
    """Copy an input, unless it is there, or is no file."""
    if os.path.exists(source) and not os.path.exists(target):
        target.parent.mkdir(parents=True, exist_ok=True)  # a name may have a slash in it
        (shutil.copytree if os.path.isdir(source) else shutil.copy)(source, target)


ODD_NAMES = [
    "a b",
    "d[1]",
    "a*b",
    "what?",
    "[/]",
    "[bold]x",
    "\x1b[31mred",
    "two\nlines",
    "tab\there",
    "-x",
    "--out",
    "~nosuch",
    "$HOME",
    "ünï—コード",
    "\u202egnp",
    "\x9b1m",
    os.fsdecode(b"\xff\xfe"),
    "a'b\"c",
    "%s{}",
    "=1+1",
    "..x",
    "con.",
    "n" * 200,
    "a:b",
    "\\back",
]
POSSIBLE_NAMES = [name for name in ODD_NAMES if "\udcff" not in name]
"""Of a result: what is no text is refused."""
NOWHERE = [
    "~nosuch/x",
    "n" * 300,
    "/dev/null/x",
    "loop/x",
    "",
    ".",
    "..",
    "nowhere",
    "org/nowhere",
    "a/b/c",
]
NOWHERE += [
    "http://127.0.0.1:9/x",
    "hf://x",
    "s3://b/k",
    "timm:",
    "timm:nothing",
    "digits:x",
    "zip://x::y",
    "/proc/self/mem",
]
