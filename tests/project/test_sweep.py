"""A sample of the sweep in benchmarks/models: each kind and mechanism, held against a slow reference."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "models"))
import slow_reference
from all_cases import all_cases
from categories import CRASH, EXACT, NOT_BUILT, REFUSED, USELESS, WRONG
from model_checks import Step, attempt
from sweep_cases import Built, Case, NotBuilt
from sweep_page import page
from sweep_table import table
from sweep_verdicts import Facts, judge, true_reason

from anydepth.errors import ReadoutMismatch

SAMPLE = (
    "transformers/GPT2LMHeadModel",
    "transformers/LlamaForCausalLM",
    "transformers/Gemma2ForCausalLM",  # soft-cap, sliding windows
    "transformers/RwkvForCausalLM",  # no attention
    "transformers/BertForMaskedLM",
    "transformers/FNetForMaskedLM",  # takes no mask
    "transformers/LongformerForMaskedLM",
    "transformers/BertForTokenClassification",
    "transformers/BertForMultipleChoice",  # several texts of each sample in one axis
    "transformers/LlamaForSequenceClassification",  # read out at the last token
    "transformers/LlamaForQuestionAnswering",
    "transformers/SEWForSequenceClassification",  # sound, shortened by convolutions
    "transformers/ViTForImageClassification",
    "transformers/BeitForImageClassification",
    "transformers/TimesformerForVideoClassification",
    "transformers/SwinForImageClassification",  # stages of differing shape
    "transformers/DetrForObjectDetection",  # queries, with boxes beside their classes
    "transformers/BartForConditionalGeneration",
    "timm/vision_transformer",
    "torchvision/VisionTransformer",
    "torch/TransformerEncoder, batch_first",
)
CASES = {case.key: case for case in all_cases()}


@pytest.mark.filterwarnings("ignore")  # of other libraries, on models that nobody trained
@pytest.mark.parametrize("key", SAMPLE)
def test_a_model_of_each_kind_is_exact(key: str) -> None:
    finding = judge(CASES[key])
    assert finding.category == EXACT, finding.reason
    assert {finding.steps[name].result for name in ("states", "readout", "trace", "truncate")} == {"ok"}


# --- the instrument itself: faults that are put in are seen ----------------------------------------------------------


class Residual(nn.Module):
    """A classifier of four blocks, whose answer may be made of all of them."""

    def __init__(self, *, sums: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.sums = nn.Linear(8, 16), nn.Linear(16, 5), sums
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.Tanh()) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states = [self.first(x)]
        for block in self.blocks:
            states.append(block(states[-1]))
        return self.last(sum(states[1:]) if self.sums else states[-1])


def case_of(model: nn.Module) -> Case:
    batches = [torch.randn(3, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    built = Built(model.eval(), batches, [3, 3], "text classification", classifies=True)
    return Case("made", "torch", "text classification", lambda: built)


@pytest.mark.parametrize(("sums", "category"), [(False, EXACT), (True, REFUSED)])
def test_verdicts_on_models_made_for_them(sums: bool, category: str) -> None:
    finding = judge(case_of(Residual(sums=sums)))
    assert finding.category == category, finding.reason


def test_what_cannot_be_built_is_not_judged() -> None:
    def build() -> Built:
        raise NotBuilt("needs another library")

    finding = judge(Case("made", "torch", "tagging", build))
    assert (finding.category, finding.reason) == (NOT_BUILT, "needs another library")


def test_a_number_that_is_off_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    from anydepth.core.stack import Stack

    readout = Stack.readout
    monkeypatch.setattr(
        Stack, "readout", lambda self, state, *args, **more: readout(self, state, *args, **more) * 1.001
    )
    monkeypatch.setattr("anydepth.core.learning.check", lambda *args: None)
    finding = judge(case_of(Residual()))
    assert finding.category == WRONG
    assert "readout of h[0] is off by 0.001" in finding.reason


def test_exceptions_of_others_are_crashes_and_our_own_are_refusals() -> None:
    def fail(error: Exception) -> Step:
        def check() -> None:
            raise error

        return attempt(check)

    assert fail(RuntimeError("shapes")).result == "crash"
    assert fail(ReadoutMismatch("broken")).result == "refused"


@pytest.mark.parametrize(
    ("line", "facts", "true"),
    [
        ("Swin: states differ in shape between depths", {"stages": True}, True),
        ("Bart: states differ in shape between depths", {"stages": False}, False),
        ("the readout law is broken at 'blocks'", {"aggregates": True}, True),
        ("the replay law is broken at 'blocks'", {"aggregates": False}, False),
        ("CLIP has several lists of blocks; name one with blocks='...'", {"stages": True}, False),
    ],
)
def test_a_reason_is_true_where_the_model_shows_it(line: str, facts: dict[str, bool], true: bool) -> None:
    known = {"stages": False, "shared": False, "aggregates": False, "own_cache": False, "classifies": True}
    assert (true_reason(line, Facts(**{**known, **facts}, lists=1, answer_axes=2, kind="")) is not None) == true


@pytest.mark.parametrize("sums", [False, True])
def test_aggregation_is_seen_by_disturbing_the_first_block(sums: bool) -> None:
    model = Residual(sums=sums).eval()
    assert slow_reference.aggregates(model, list(model.blocks), torch.randn(3, 8)) == sums


def test_the_table_counts_kinds_and_categories() -> None:
    findings = [
        {"name": name, "library": library, "kind": "causal LM", "category": category}
        for name, library, category in (
            ("A", "transformers", EXACT),
            ("B", "transformers", CRASH),
            ("C", "timm", USELESS),
        )
    ]
    assert table(findings).splitlines()[2:] == [
        "| causal LM | 2 | 1 | 0 | 0 | 0 | 0 | 1 | 0 |",
        "| timm | 1 | 0 | 0 | 0 | 1 | 0 | 0 | 0 |",
        "| **all** | 3 | 1 | 0 | 0 | 1 | 0 | 1 | 0 |",
    ]


def test_the_page_is_made_of_the_results() -> None:
    root = Path(__file__).parents[2]
    record = json.loads((root / "benchmarks/models/results/sweep.json").read_text("utf-8"))
    assert (root / "docs/models.md").read_text("utf-8") == page(record)
