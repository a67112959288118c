"""The router on graphs made by hand, so that what it does is told apart from what the exporter does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from anydepth.errors import AnydepthError, DataError, ModelError, TraceFileError
from anydepth.onnx.router import Router
from anydepth.storage.checksums import file_record, with_checksum

SOURCE = Path(__file__).parents[2] / "src"
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
LEVEL = 0.5
CONSTANTS = [
    helper.make_tensor("one", FLOAT, [1], [1.0]),
    helper.make_tensor("axis", INT64, [1], [1]),
    helper.make_tensor("table", FLOAT, [3, 2], [0.0, 0.0, 1.0, 1.0, 2.0, 2.0]),
]


def graph(path: Path, nodes: list[Any], inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
    """Write a graph of nodes `(op, inputs, outputs)`; inputs and outputs by name, with (type, shape)."""
    made = helper.make_graph(
        [helper.make_node(op, list(given), list(got)) for op, given, got in nodes],
        "segment",
        [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
        [helper.make_tensor_value_info(name, *kind) for name, kind in outputs.items()],
        [value for value in CONSTANTS if any(value.name in given for _, given, _ in nodes)],
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


def write_manifest(folder: Path, segments: list[dict[str, Any]], inputs: dict[str, Any], **more: Any) -> None:
    content = {
        "format": 1,
        "model": {"depth": segments[-1]["stop"], "classes": {"0": "no", "1": "yes"}},
        "level": LEVEL if len(segments) > 1 else None,
        "inputs": inputs,
        "segments": segments,
        "files": {path.name: file_record(path) for path in folder.glob("*.onnx")},
        **more,
    }
    (folder / "export.json").write_text(json.dumps(with_checksum(content)))


ROWS = {"x": {"dtype": "float32", "shape": ["batch", 2]}}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three exits at 2, 3 and 5. The logits at each are the state, which each segment adds 1 to.

    The score is the mean of x at depth 2, and at depth 3 the sum of what the memory kept of it.
    """
    folder = tmp_path_factory.mktemp("exported")
    rows, scores = (FLOAT, ["batch", 2]), (FLOAT, ["batch"])
    graph(
        folder / "a.onnx",
        [
            ("Add", ["x", "one"], ["h2"]),
            ("Identity", ["h2"], ["logits"]),
            ("Identity", ["x"], ["memory2"]),
            ("ReduceMean", ["x", "axis"], ["column"]),
            ("Squeeze", ["column", "axis"], ["score"]),
        ],
        {"x": rows},
        {"logits": rows, "score": scores, "h2": rows, "memory2": rows},
    )
    graph(
        folder / "b.onnx",
        [
            ("Add", ["h2", "one"], ["h3"]),
            ("Identity", ["h3"], ["logits"]),
            ("ReduceSum", ["memory2", "axis"], ["column"]),
            ("Squeeze", ["column", "axis"], ["score"]),
        ],
        {"h2": rows, "memory2": rows},
        {"logits": rows, "score": scores, "h3": rows},
    )
    graph(folder / "c.onnx", [("Add", ["h3", "x"], ["logits"])], {"h3": rows, "x": rows}, {"logits": rows})
    cuts = {"a.onnx": (0, 2), "b.onnx": (2, 3), "c.onnx": (3, 5)}
    write_manifest(folder, [{"file": f, "start": a, "stop": b} for f, (a, b) in cuts.items()], ROWS)
    return folder


def naive(x: np.ndarray) -> tuple[list[list[float]], list[int]]:
    """Sample by sample, in words: what the three graphs above do."""
    logits, depths = [], []
    for row in x:
        total = row[0] + row[1]
        if total / 2 >= LEVEL:  # of NaN, neither is true
            found, depth = row + 1, 2
        elif total >= LEVEL:
            found, depth = row + 2, 3
        else:
            found, depth = row + 2 + row, 5
        logits.append(found.tolist())
        depths.append(depth)
    return logits, depths


NUMBERS = st.one_of(st.floats(-2, 2, width=32), st.just(float("nan")), st.just(0.5))


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=7))
def test_each_sample_leaves_where_its_score_says(exported: Path, rows: list[tuple[float, float]]) -> None:
    x = np.array(rows, dtype=np.float32)
    out = Router(exported)({"x": x})
    logits, depths = naive(x)
    np.testing.assert_allclose(out.logits, logits, rtol=1e-6)
    assert out.depth.tolist() == depths
    on_their_way = [sum(depth >= block for depth in depths) for block in range(1, 6)]
    # depth 1 is not an exit, nor is 4: samples that leave at 2 went through block 2
    expected = [len(x), len(x), on_their_way[2], on_their_way[3], on_their_way[4]]
    assert out.blocks.tolist() == expected
    assert out.readouts.tolist() == [0, len(x), expected[2], 0, expected[4]]
    undecided = int(np.isnan(x).any(1).sum())
    assert out.undecided.tolist() == [0, undecided, undecided, 0, 0]


def test_company_and_order_do_not_matter(exported: Path) -> None:
    router = Router(exported)
    x = np.random.default_rng(0).uniform(-1, 1, (40, 2)).astype(np.float32)
    whole = router({"x": x})
    assert set(whole.depth.tolist()) == {2, 3, 5}, "else this test shows nothing"
    turned = router({"x": x[::-1].copy()})
    np.testing.assert_array_equal(turned.depth[::-1], whole.depth)
    np.testing.assert_array_equal(turned.logits[::-1], whole.logits)
    alone = [router({"x": x[row : row + 1]}) for row in range(40)]
    np.testing.assert_array_equal(np.concatenate([one.depth for one in alone]), whole.depth)
    np.testing.assert_array_equal(np.concatenate([one.logits for one in alone]), whole.logits)


def test_nobody_left_nothing_runs(exported: Path) -> None:
    out = Router(exported)({"x": np.full((3, 2), 0.9, np.float32)})
    assert (out.depth.tolist(), out.blocks.tolist()) == ([2, 2, 2], [3, 3, 0, 0, 0])


def test_look_lets_nobody_go(exported: Path) -> None:
    x = np.array([[0.9, 0.7], [0.1, 0.2]], dtype=np.float32)
    first, second, last = Router(exported).look({"x": x})
    assert [first.depth, second.depth, last.depth] == [2, 3, 5]
    np.testing.assert_allclose(first.score, x.mean(1), rtol=1e-6)
    np.testing.assert_allclose(second.score, x.sum(1), rtol=1e-6)
    assert last.score is None
    np.testing.assert_allclose(last.logits, 2 * x + 2, rtol=1e-6)


def test_what_it_says_of_itself(exported: Path) -> None:
    router = Router(str(exported))
    assert (router.exits, router.level, router.classes) == ((2, 3, 5), LEVEL, ("no", "yes"))
    assert router.inputs == ROWS


def test_the_only_input_needs_no_name(exported: Path) -> None:
    x = np.array([[0.9, 0.7], [0.1, 0.2]], dtype=np.float32)
    assert Router(exported)(x).depth.tolist() == Router(exported)({"x": x}).depth.tolist() == [2, 5]


def test_the_callers_arrays_are_left_alone(exported: Path) -> None:
    x = np.array([[0.9, 0.7], [0.1, 0.2]], dtype=np.float32)
    before = x.copy()
    Router(exported)({"x": x})
    np.testing.assert_array_equal(x, before)


def test_it_runs_where_there_is_no_torch(exported: Path, tmp_path: Path) -> None:
    """Neither torch nor anything else but numpy and onnxruntime is needed, or imported; and no telemetry is written."""
    script = """
import sys
for name in ("torch", "transformers", "jaxtyping", "safetensors", "pandas", "scipy", "rich", "cyclopts", "onnx"):
    sys.modules[name] = None  # to import it is an error
from anydepth.onnx.router import Router
import numpy
out = Router(sys.argv[1])({"x": numpy.array([[0.9, 0.7], [0.1, 0.2]], dtype="float32")})
print(out.depth.tolist())
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(exported)],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(SOURCE), "PATH": "", "HOME": str(tmp_path), "TMPDIR": str(tmp_path)},
        check=False,
    )
    assert (done.stdout, done.returncode) == ("[2, 5]\n", 0), done.stderr
    assert list(tmp_path.iterdir()) == []


X = np.zeros((2, 2), dtype=np.float32)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "input 'x' is missing: expected x, as at the export"),
        ({"y": X}, "input 'x' is missing: expected x, as at the export"),
        ({"x": X, "labels": X}, "input 'labels' is unknown: expected x, as at the export"),
        (
            {"x": X.astype(np.float64)},
            "input 'x' is float64, expected a numpy array of float32: make it one, as by numpy.asarray(..., "
            "dtype='float32')",
        ),
        ({"x": X.tolist()}, "input 'x' is list, expected a numpy array of float32: make it one, as by "),
        ({"x": X[0]}, "input 'x' has shape (2,), expected (batch, 2), none 0"),
        ({"x": X[:, :1]}, "input 'x' has shape (2, 1), expected (batch, 2) with batch 2, none 0"),
        ({"x": X[:0]}, "input 'x' has shape (0, 2), expected (batch, 2) with batch 0, none 0"),
        ([X], "input 'x' is list, expected a numpy array of float32: make it one, as by "),
    ],
)
def test_wrong_inputs(exported: Path, inputs: Any, message: str) -> None:
    router = Router(exported)
    with pytest.raises(DataError) as caught:
        router(inputs)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    """One exit; looks tokens up in a table of three, and adds the mask."""
    graph(
        tmp_path / "a.onnx",
        [
            ("Gather", ["table", "ids"], ["rows"]),
            ("ReduceSum", ["rows", "axis"], ["sums"]),
            ("Squeeze", ["sums", "axis"], ["flat"]),
            ("ReduceSum", ["mask", "axis"], ["count"]),
            ("Add", ["flat", "count"], ["logits"]),
        ],
        {"ids": (INT64, ["batch", "sequence"]), "mask": (FLOAT, ["batch", "sequence"])},
        {"logits": (FLOAT, ["batch", 2])},
    )
    inputs = {
        name: {"dtype": kind, "shape": ["batch", "sequence"]} for name, kind in (("ids", "int64"), ("mask", "float32"))
    }
    write_manifest(tmp_path, [{"file": "a.onnx", "start": 0, "stop": 3}], inputs)
    return tmp_path


def test_one_graph_for_all(tokens: Path) -> None:
    router = Router(tokens)
    out = router({"ids": np.array([[0, 1, 2], [1, 1, 1]]), "mask": np.ones((2, 3), np.float32)})
    assert (router.level, router.exits) == (None, (3,))
    assert out.logits.tolist() == [[6.0, 6.0], [6.0, 6.0]]
    assert (out.depth.tolist(), out.blocks.tolist(), out.readouts.tolist()) == ([3, 3], [2, 2, 2], [0, 0, 2])


def test_several_inputs_come_by_name(tokens: Path) -> None:
    with pytest.raises(DataError, match="^the inputs are ndarray, expected a dict of arrays: ids, mask$"):
        Router(tokens)(np.zeros((2, 3), np.int64))


def test_sizes_must_agree(tokens: Path) -> None:
    with pytest.raises(
        DataError, match=r"input 'mask' has shape \(2, 4\), expected \(batch, sequence\) with batch 2, seq"
    ):
        Router(tokens)({"ids": np.zeros((2, 3), np.int64), "mask": np.zeros((2, 4), np.float32)})


def test_what_the_graph_cannot_take_is_one_line(tokens: Path) -> None:
    with pytest.raises(DataError) as caught:
        Router(tokens)({"ids": np.full((1, 2), 7), "mask": np.ones((1, 2), np.float32)})
    assert str(caught.value).startswith("blocks 1..3 fail on these inputs: ")
    assert "\n" not in str(caught.value)


def damage(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes())) and None


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / "export.json").unlink(), "export.json does not exist: export the model again"),
        (lambda folder: (folder / "a.onnx").unlink(), "a.onnx is missing: export the model again"),
        (damage("a.onnx", lambda raw: raw[:-9]), "bytes, expected"),
        (damage("a.onnx", lambda raw: raw[:-1] + b"!"), "a.onnx was changed after it was written: its checksum is ano"),
        (damage("export.json", lambda raw: raw[:40]), "export.json is corrupt or cannot be read ("),
        (damage("export.json", lambda raw: b"[]"), "export.json has format None, expected 1: export the model again"),
        (
            damage("export.json", lambda raw: raw.replace(b'"format": 1', b'"format": 2')),
            "export.json has format 2, expected 1: export the model again with this version of anydepth",
        ),
        (
            damage("export.json", lambda raw: raw.replace(b'"stop": 3', b'"stop": 2')),
            "export.json was changed after it was written: export the model again",
        ),
    ],
)
def test_damage(tokens: Path, harm: Callable[[Path], None], message: str) -> None:
    harm(tokens)
    with pytest.raises(TraceFileError) as caught:
        Router(tokens)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_graph_that_is_none(tokens: Path) -> None:
    (tokens / "a.onnx").write_bytes(b"no graph at all")
    write_manifest(tokens, [{"file": "a.onnx", "start": 0, "stop": 3}], {})
    with pytest.raises(ModelError, match=r"^onnxruntime cannot run .*a\.onnx: "):
        Router(tokens)


def test_a_provider_that_is_none(tokens: Path) -> None:
    with pytest.raises(AnydepthError, match=r"^onnxruntime cannot run .*NoSuchProvider"):
        Router(tokens, providers=("NoSuchProvider",))


def test_without_onnxruntime(tokens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModelError, match=r"is run by onnxruntime: pip install onnxruntime$"):
        Router(tokens)


def test_settings_of_onnxruntime_are_the_callers(exported: Path) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    assert Router(exported, options=options)({"x": X}).depth.tolist() == [5, 5]
