"""Real models on real data against what has nothing to do with this library. Slow: run by `make bench`.

Needs the assets and the trained model of docs/trace.md; without them it is skipped and says how to get them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anydepth.assets.registry import cache_root

ASSETS = cache_root()
MODEL = Path(__file__).parents[2] / "runs" / "minilm-mr"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (MODEL / "config.json").exists() or not (ASSETS / "mr" / "test.csv").exists(),
        reason="python -m anydepth.assets get minilm mr; python examples/finetune_text.py --out runs/minilm-mr",
    ),
]

COUNT = 500


@pytest.fixture(scope="module")
def sentences() -> Any:
    import pandas

    return pandas.read_csv(ASSETS / "mr" / "test.csv", keep_default_na=False).head(COUNT)


@pytest.fixture(scope="module")
def printed(sentences: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the command line prints of the same sentences."""
    import contextlib
    import io

    from anydepth.cli.app import run

    folder = tmp_path_factory.mktemp("real")
    sentences.to_csv(folder / "mr.csv", index=False)
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        status = run(["trace", str(MODEL), "--data", str(folder / "mr.csv"), "--out", str(folder / "out"), "--json"])
    assert status == 0
    return json.loads(shown.getvalue())


def shallow(depth: int, sentences: Any) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and [CLS] states of a model that transformers loads with fewer blocks; one sentence at a time."""
    from transformers import AutoTokenizer, BertForSequenceClassification, logging

    logging.set_verbosity_error()
    model = BertForSequenceClassification.from_pretrained(MODEL, num_hidden_layers=depth).eval()
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    predictions, states = [], []
    with torch.no_grad():
        for text in sentences["text"]:
            tokens = tokenizer(text, return_tensors="pt")
            states.append(model.bert(**tokens).last_hidden_state[0, 0].double().numpy())
            predictions.append(int(model(**tokens).logits.argmax()))
    return np.array(predictions), np.stack(states)


def debiased_cka(x: np.ndarray, y: np.ndarray) -> float:
    """From the definition: HSIC1 of Song et al. 2012 on Gram matrices without their diagonals."""

    def hsic(k: np.ndarray, m: np.ndarray) -> float:
        n = len(k)
        both = k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k.sum(0) @ m.sum(0))
        return float((np.trace(k @ m) + both) / (n * (n - 3)))

    k, m = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


def test_depths_are_the_shallower_models(sentences: Any, printed: dict[str, Any]) -> None:
    labels = sentences["label"].to_numpy()
    last, last_states = shallow(6, sentences)
    for depth in (2, 5):
        found = printed["depths"][depth]
        predictions, states = shallow(depth, sentences)
        # batches are padded and these sentences are not: a tie may fall the other way
        assert found["accuracy"] == pytest.approx((predictions == labels).mean(), abs=1 / COUNT)
        assert found["agreement"] == pytest.approx((predictions == last).mean(), abs=1 / COUNT)
        assert found["cka_to_last"] == pytest.approx(debiased_cka(states, last_states), abs=1e-5)
        a, b = states - states.mean(0), last_states - last_states.mean(0)
        cosine = ((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).mean()
        assert found["cosine_to_last"] == pytest.approx(cosine, abs=1e-5)
