"""Residual or not: two networks of nine layers that differ in their skip connections only, traced side by side.

    python examples/residual.py
    python examples/residual.py --data ~/.cache/anydepth/assets/fashion-mnist --width 128

The paper's smallest experiment: with skip connections, cosine, CKA and accuracy rise together over the layers of an
MLP; without them they part. Both networks are trained on the same images in the same order, from the same weights, on
the answer of the last layer alone. By default the images are scikit-learn's digits (8 x 8), so nothing is downloaded;
a folder must hold train.parquet and test.parquet with the columns `image` and `label`.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import anydepth as ad

LAYERS = 9
Images = tuple[Tensor, Tensor]  # pixels (n, P) about the training images' mean in units of their spread, labels (n,)
KINDS = {True: "with skip connections", False: "without"}


class Layer(nn.Module):
    """One layer, which adds to its input or takes its place."""

    def __init__(self, width: int, *, skip: bool) -> None:
        super().__init__()
        self.norm, self.map, self.skip = nn.LayerNorm(width), nn.Linear(width, width), skip

    def forward(self, h: Tensor) -> Tensor:
        new = functional.relu(self.map(self.norm(h)))
        return h + new if self.skip else new


class Network(nn.Module):
    """Pixels in, logits out; nothing after the last layer but the classifier."""

    def __init__(self, pixels: int, width: int, classes: int, *, skip: bool) -> None:
        super().__init__()
        self.embed = nn.Linear(pixels, width)
        self.layers = nn.ModuleList(Layer(width, skip=skip) for _ in range(LAYERS))
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        for layer in self.layers:
            h = layer(h)
        return self.classifier(h)


def digits() -> tuple[Images, Images]:
    """Scikit-learn's digits: three quarters to train on, a quarter to trace."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    cut = len(order) * 3 // 4
    pixels, labels = found.data.astype(np.float32), found.target.astype(np.int64)
    return scaled((pixels[order[:cut]], labels[order[:cut]]), (pixels[order[cut:]], labels[order[cut:]]))


def folder(path: Path, limit: int) -> tuple[Images, Images]:
    """At most `limit` images of each split of a folder."""
    import pandas
    from PIL import Image

    parts = []
    for split in ("train", "test"):
        table = pandas.read_parquet(path / f"{split}.parquet").head(limit)
        images = [np.asarray(Image.open(io.BytesIO(one["bytes"])).convert("L")).ravel() for one in table["image"]]
        parts.append((np.stack(images).astype(np.float32), table["label"].to_numpy(np.int64)))
    return scaled(*parts)


def scaled(train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> tuple[Images, Images]:
    """Both about the training images' mean, in units of their standard deviation."""
    mean, scale = train[0].mean(), train[0].std()
    found = [(torch.from_numpy((pixels - mean) / scale), torch.tensor(labels)) for pixels, labels in (train, test)]
    return found[0], found[1]


def train(network: Network, images: Images, *, epochs: int, seed: int) -> None:
    """AdamW on the cross-entropy of the last layer's answer."""
    pixels, labels = images
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.01)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for chosen in torch.randperm(len(labels), generator=generator).split(64):
            optimizer.zero_grad()
            functional.cross_entropy(network(pixels[chosen]), labels[chosen]).backward()
            optimizer.step()


def traced(images: tuple[Images, Images], *, skip: bool, width: int, epochs: int, seed: int) -> ad.Trace:
    """One network, trained and traced."""
    learn, (pixels, labels) = images
    torch.manual_seed(seed)
    network = Network(learn[0].shape[1], width, int(learn[1].max()) + 1, skip=skip)
    train(network, learn, epochs=epochs, seed=seed)
    batches = list(zip(pixels.split(256), labels.split(256), strict=True))
    return ad.trace(network, batches, measures=["cosine", "cka"])


def spread(values: Sequence[float]) -> str:
    """Mean over seeds, and how far it goes."""
    return f"{np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def told(kind: str, traces: Sequence[ad.Trace]) -> str:
    """By layer, means over seeds; and how well cosine and CKA agree over all pairs of depths, seed by seed."""
    curves = {
        "accuracy": [trace.accuracy for trace in traces],
        "cosine to last": [trace.similarity["cosine"][:, -1] for trace in traces],
        "CKA to last": [trace.similarity["cka"][:, -1] for trace in traces],
    }
    lines = [f"{kind}, depths 0 to {LAYERS}, means over {len(traces)} seeds"]
    lines += [
        f"  {name:<15}{' '.join(f'{value:6.2f}' for value in np.mean(of, axis=0))}" for name, of in curves.items()
    ]
    agreements = [trace.measure_agreement()["cosine", "cka"] for trace in traces]
    lines.append(f"  cosine and CKA, spearman: {spread([found.spearman[0] for found in agreements])}")
    lines.append(f"  cosine and CKA, pearson: {spread([found.pearson[0] for found in agreements])}")
    apart = [float(np.abs(trace.similarity["cosine"] - trace.similarity["cka"])[:, -1].max()) for trace in traces]
    return "\n".join([*lines, f"  furthest apart, to last: {spread(apart)}"])


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Nine layers with and without skip connections, traced.")
    parser.add_argument("--data", default="digits", help="digits, or a folder (default: %(default)s)")
    parser.add_argument(
        "--limit", type=int, default=6000, help="images of each split of a folder (default: %(default)s)"
    )
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    settings = parser.parse_args(arguments)
    if settings.data != "digits" and not Path(settings.data).expanduser().is_dir():
        parser.error(f"{settings.data} is not there: run 'python -m anydepth.assets get {Path(settings.data).name}'")
    return settings


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    settings = read_arguments(arguments)
    images = digits() if settings.data == "digits" else folder(Path(settings.data).expanduser(), settings.limit)
    for skip, kind in KINDS.items():
        chosen = {"skip": skip, "width": settings.width, "epochs": settings.epochs}
        print(told(kind, [traced(images, seed=seed, **chosen) for seed in range(settings.seeds)]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
