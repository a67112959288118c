"""What is exported answers as the model cut there by hand does, for any policy, batch and length; or is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_models
import torch
from torch import Tensor, nn

import anydepth as ad
from anydepth.core.heads import separate_heads
from anydepth.errors import AnydepthError, ExportError, PolicyError, ReadoutMismatch, TraceFileError, UnsupportedHead
from anydepth.onnx import exporter as exporting
from anydepth.onnx import segments
from anydepth.onnx.exporter import export
from anydepth.onnx.router import Router

pytestmark = pytest.mark.usefixtures("operators_listed_once")

ROOT = Path(__file__).parents[2]


def cut(model: nn.Module, blocks: str, depth: int) -> nn.Module:
    """A copy of the model with the first blocks only: what an exit there must answer."""
    small = copy.deepcopy(model)
    kept = small.get_submodule(blocks)
    del kept[depth:]
    return small


def answer(model: nn.Module, batch: Any) -> np.ndarray:
    with torch.no_grad():
        output = model(**batch) if isinstance(batch, dict) else model(batch)
    return getattr(output, "logits", output).numpy()


def arrays(batch: Any) -> Any:
    return {name: value.numpy() for name, value in batch.items()} if isinstance(batch, dict) else batch.numpy()


def text(samples: int, length: int, *, padded: bool) -> dict[str, Tensor]:
    """Texts of a size the export has not seen; padded ones have from 3 tokens up."""
    generator = torch.Generator().manual_seed(samples * length)
    ids = torch.randint(5, tiny_models.VOCABULARY, (samples, length), generator=generator)
    mask = torch.ones_like(ids)
    if padded:
        lengths = torch.randint(3, length + 1, (samples, 1), generator=generator)
        mask = (torch.arange(length) < lengths).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    model, batch = tiny_models.build("bert")
    folder = tmp_path_factory.mktemp("bert") / "out"
    export(model, ad.Confidence(0.6, depths=(2,)), batch, folder)
    return model, folder


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("samples", "length"), [(1, 5), (5, 12), (2, 30)])
def test_texts_of_any_length(bert: tuple[nn.Module, Path], samples: int, length: int, padded: bool) -> None:
    model, folder = bert
    batch = text(samples, length, padded=padded)
    for shown in Router(folder).look(arrays(batch)):
        expected = answer(cut(model, "bert.encoder.layer", shown.depth), batch)
        np.testing.assert_allclose(shown.logits, expected, atol=1e-5)
        if shown.score is not None:
            top = np.exp(expected - expected.max(1, keepdims=True))
            np.testing.assert_allclose(1 / (1 + np.exp(-shown.score)), 1 / top.sum(1), atol=1e-5)


def test_a_segment_asks_only_for_what_it_needs(bert: tuple[nn.Module, Path]) -> None:
    """No embeddings in any but the first, so no token ids."""
    graphs = [onnx.load(bert[1] / name).graph for name in ("blocks-1-2.onnx", "blocks-3-4.onnx")]
    assert [[value.name for value in graph.input] for graph in graphs] == [
        ["input_ids", "attention_mask"],
        ["h2", "attention_mask"],
    ]
    assert [[value.name for value in graph.output] for graph in graphs] == [["logits", "score", "h2"], ["logits"]]
    table = tiny_models.VOCABULARY * tiny_models.WIDTH
    assert [any(np.prod(w.dims) == table for w in graph.initializer) for graph in graphs] == [True, False]


def test_nothing_of_this_machine_is_in_the_files(bert: tuple[nn.Module, Path]) -> None:
    for path in bert[1].iterdir():
        raw = path.read_bytes()
        assert not any(word in raw for word in (b"site-packages", str(ROOT).encode(), b".py")), path.name


def test_the_manifest(bert: tuple[nn.Module, Path]) -> None:
    model, folder = bert
    content = json.loads((folder / "export.json").read_text())
    assert content["policy"] == "Confidence(threshold=0.6, depths=(2,), temperature=1.0)"
    assert content["level"] == pytest.approx(np.log(0.6 / 0.4))
    assert content["model"]["class"] == type(model).__name__
    assert content["inputs"]["input_ids"] == {"dtype": "int64", "shape": ["batch", "sequence"]}
    assert [(one["start"], one["stop"]) for one in content["segments"]] == [(0, 2), (2, 4)]
    assert set(content["files"]) == {path.name for path in folder.iterdir()} - {"export.json"}
    assert Router(folder).classes == tuple(f"LABEL_{index}" for index in range(tiny_models.CLASSES))


def test_images(tmp_path: Path) -> None:
    """And nothing of the model is changed by it: mode, blocks, answer."""
    model, batch = tiny_models.build("vit")
    before, blocks = answer(model, batch), list(model.vit.layers)
    model.train()
    found = export(model, ad.Entropy(0.5, depths=(1,)), batch, tmp_path / "out")
    assert model.training
    model.eval()
    assert list(model.vit.layers) == blocks
    np.testing.assert_array_equal(answer(model, batch), before)
    others = {"pixel_values": torch.rand(5, 3, 8, 8)}
    shown = list(Router(tmp_path / "out").look(arrays(others)))
    assert [one.depth for one in shown] == [1, 4] == list(found.exits)
    for one in shown:
        np.testing.assert_allclose(one.logits, answer(cut(model, "vit.layers", one.depth), others), atol=1e-5)
    assert [value.name for value in onnx.load(tmp_path / "out/blocks-2-4.onnx").graph.input] == ["h1"]
    assert found.apart < 1e-5


# --- A model that is quick to trace -----------------------------------------------------------------------------------


class Small(nn.Module):
    """Vectors in, no tokens."""

    def __init__(self, block: Callable[[int], nn.Module] = tiny_models.Block, depth: int = 4) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.trunk = nn.ModuleList(block(16) for _ in range(depth))
        self.last = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.trunk:
            x = block(x)
        return self.last(x)


def small(**settings: Any) -> Small:
    torch.manual_seed(0)
    model = Small(**settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    return model


X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "policy",
    [
        ad.Confidence(0.8, depths=(1, 3), temperature={1: 0.5, 3: 2.0}),
        ad.Patience(2, depths=(1, 3)),
        ad.Convergence(0.8, depths=(1, 3)),
        ad.AtDepth(4),
    ],
    ids=repr,
)
def test_any_policy_as_in_torch(policy: Any, tmp_path: Path) -> None:
    model = small()
    found = export(model, policy, X[:3], tmp_path / "out")
    router, expected = Router(tmp_path / "out"), ad.EarlyExit(model, policy)(X)
    out = router(X.numpy())
    assert len(set(out.depth.tolist())) > 1 or isinstance(policy, ad.AtDepth), "else this test shows nothing"
    np.testing.assert_array_equal(out.depth, expected.depth)
    np.testing.assert_allclose(out.logits, expected.logits, atol=1e-5)
    np.testing.assert_array_equal(out.blocks, expected.blocks)
    if policy.reads != "state":  # a graph reads out all of its samples, torch only those that leave
        np.testing.assert_array_equal(out.readouts, expected.readouts)
    for depth in set(out.depth.tolist()):
        here = out.depth == depth
        np.testing.assert_allclose(out.logits[here], answer(cut(model, "trunk", depth), X[here]), atol=1e-5)
    assert found.exits == router.exits
    assert (router.level is None) == isinstance(policy, ad.AtDepth)


def test_one_graph_for_one_depth(tmp_path: Path) -> None:
    """From a batch of one sample, though torch takes a size of 1 for a constant; labels are set aside."""
    model = small()
    export(model, ad.AtDepth(2), {"x": X[:1], "labels": torch.zeros(1)}, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["blocks-1-2.onnx", "export.json"]
    graph = onnx.load(tmp_path / "out/blocks-1-2.onnx").graph
    assert ([one.name for one in graph.input], [one.name for one in graph.output]) == (["x"], ["logits"])
    out = Router(tmp_path / "out")({"x": X.numpy()})
    np.testing.assert_allclose(out.logits, answer(cut(model, "trunk", 2), X), atol=1e-5)


def test_weights_that_a_graph_cannot_hold_lie_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "_LARGEST", 0)
    model = small()
    found = export(model, ad.AtDepth(1), X[:3], tmp_path / "out")
    beside = tmp_path / "out/blocks-1-1.onnx.data"
    assert found.bytes == (beside.stat().st_size + (tmp_path / "out/blocks-1-1.onnx").stat().st_size,)
    np.testing.assert_allclose(Router(found.folder)(X.numpy()).logits, answer(cut(model, "trunk", 1), X), atol=1e-5)
    beside.write_bytes(bytes(beside.stat().st_size))
    with pytest.raises(TraceFileError, match=r"blocks-1-1\.onnx\.data was changed after it was written"):
        Router(found.folder)


def test_each_depth_has_its_head(tmp_path: Path) -> None:
    model = small()
    heads = separate_heads(model.last, 4)
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.normal_()
    export(ad.Stack(model, heads=heads), ad.Confidence(0.9, depths=(2,)), X[:3], tmp_path / "out")
    for shown in Router(tmp_path / "out").look(X.numpy()):
        expected = cut(model, "trunk", shown.depth)
        expected.last = model.last if shown.depth == 4 else heads[shown.depth]
        np.testing.assert_allclose(shown.logits, answer(expected, X), atol=1e-5)


def test_a_policy_of_ones_own(tmp_path: Path) -> None:
    from dataclasses import dataclass

    from anydepth.exits.policies import Policy

    @dataclass(frozen=True)
    class FirstClass(Policy):
        def scores(self, depth: int, seen: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor | None]:
            return seen[:, 0].sigmoid(), None

    export(small(), FirstClass(0.5, depths=(1,)), X[:3], tmp_path / "out")
    expected = ad.EarlyExit(small(), FirstClass(0.5, depths=(1,)))(X).depth
    np.testing.assert_array_equal(Router(tmp_path / "out")(X.numpy()).depth, expected)


def test_what_is_said_of_it(tmp_path: Path) -> None:
    seen: list[tuple[int, int | None, str]] = []
    found = export(
        small(),
        ad.Margin(0.9, depths=(1,)),
        X[:3],
        tmp_path / "out",
        name="mine",
        classes=("a", "b", "c"),
        about={"promise": "none"},
        progress=lambda *news: seen.append(news),
    )
    assert seen == [(1, 2, "segments"), (2, 2, "segments")]
    assert (found.model, found.exits, found.last) == ("mine", (1, 4), 4)
    assert found.batches == ((3, 8), (1, 8), (6, 8))
    assert [(found.folder / name).stat().st_size for name in found.files] == list(found.bytes)
    router = Router(found.folder)
    assert router.classes == ("a", "b", "c")
    assert router.manifest["about"] == {"promise": "none"}
    assert json.loads(json.dumps(found.as_plain()))["apart"] == found.apart <= 1e-5


# --- What is refused --------------------------------------------------------------------------------------------------


class Undecided(tiny_models.Block):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else x


class Alone(tiny_models.Block):
    """Does something else for a sample that is alone."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (0.5 if x.shape[0] == 1 else 1.0)


@pytest.mark.parametrize(
    ("make", "policy", "error", "message"),
    [
        (lambda: small(block=Undecided), ad.AtDepth(1), ExportError, "Small: blocks 1..1 cannot be traced to ONNX: "),
        (lambda: small(block=Alone), ad.AtDepth(1), ReadoutMismatch, "Small: the replay law is broken at 'trunk': "),
        (
            lambda: small().bfloat16(),
            ad.AtDepth(1),
            ExportError,
            "Small has bfloat16 weights on cpu, expected float32 ",
        ),
        (small, ad.AtDepth(5), PolicyError, "the policy exits at depth 5, and the model has 4 blocks"),
        (small, ad.Confidence(0.5, (2, 7)), PolicyError, "the policy tests depth 7, and the model has 4 blocks"),
        (nn.Flatten, ad.AtDepth(1), AnydepthError, "Flatten has no list of blocks"),
    ],
)
def test_refused(make: Any, policy: Any, error: type[Exception], message: str, tmp_path: Path) -> None:
    with pytest.raises(error) as caught:
        export(make(), policy, X[:3], tmp_path / "out")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir()), "nothing is left behind"


def test_answers_for_every_position(tmp_path: Path) -> None:
    model, batch = tiny_models.build("bert tagger")
    with pytest.raises(UnsupportedHead, match="positions attend to each other, and cannot exit one by one"):
        export(model, ad.AtDepth(1), batch, tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "diary.txt").write_text("dear")
    with pytest.raises(ExportError, match="holds something already: give another folder with --out$"):
        export(small(), ad.AtDepth(1), X, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["diary.txt"]


def test_without_the_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "find_spec", lambda name: None if name.startswith("onnx") else True)
    with pytest.raises(ExportError) as caught:
        export(small(), ad.AtDepth(1), X, tmp_path / "out")
    assert str(caught.value) == "an export takes onnx, onnxscript, onnxruntime: pip install 'anydepth[onnx]'"
