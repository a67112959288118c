"""A sample of the sweep in benchmarks/models: each kind and mechanism, held against a slow reference."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "models"))
from all_cases import all_cases
from sweep_verdicts import EXACT, judge

SAMPLE = (
    "transformers/LlamaForCausalLM",
    "transformers/Gemma2ForCausalLM",
)
CASES = {case.key: case for case in all_cases()}


@pytest.mark.filterwarnings("ignore")  # of other libraries, on models that nobody trained
@pytest.mark.parametrize("key", SAMPLE)
def test_a_model_of_each_kind_is_exact(key: str) -> None:
    finding = judge(CASES[key])
    assert (finding.category, finding.reason) == (EXACT, "")


def test_the_record_is_of_the_cases_there_are() -> None:
    recorded = {f"{finding['library']}/{finding['name']}" for finding in RECORD}
    assert recorded <= CASES.keys()
