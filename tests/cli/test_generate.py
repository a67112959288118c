"""`anydepth generate`, and `anydepth exit` of a language model, end to end on a tiny one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch
import transformers
from run_cli import Command, in_folder

PROMPT = "the film was"


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2, a BERT classifier, and texts; read only."""
    root = tmp_path_factory.mktemp("assets")
    torch.manual_seed(0)
    checkpoints.gpt2(root / "gpt2")
    checkpoints.bert(root / "bert", num_hidden_layers=2)
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(checkpoints.WORDS, size=8)) for _ in range(60)]
    (root / "corpus.txt").write_text("\n".join(texts) + "\n")
    return root


@pytest.fixture
def command(assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Command:
    return in_folder(assets, tmp_path / "here", monkeypatch, capsys)


def by_transformers(assets: Path, count: int) -> str:
    """What the model writes on, loaded and asked by transformers alone."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(assets / "gpt2")
    model = transformers.AutoModelForCausalLM.from_pretrained(assets / "gpt2").eval()
    inputs = tokenizer(PROMPT, return_tensors="pt")
    text = model.generate(**inputs, max_new_tokens=count, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    return str(tokenizer.decode(text[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def test_drafts_write_what_the_model_writes(assets: Path, command: Command) -> None:
    expected = by_transformers(assets, 12)
    for way in ([], ["--draft-depth", "1"], ["--draft-depth", "1", "--draft-length", "3"], ["--draft-depth", "auto"]):
        done = command("generate", "~gpt2", "--prompt", PROMPT, "--max-new-tokens", "12", "--json", *way)
        assert done.status == 0, done.err
        found = json.loads(done.out)
        assert found["texts"] == [expected]
        assert found["tokens"] == 12


def test_text_streams_to_standard_output_and_figures_beside_it(assets: Path, command: Command) -> None:
    done = command("generate", "~gpt2", "--prompt", PROMPT, "--max-new-tokens", "9", "--draft-depth", "1", "--stats")
    assert done.status == 0, done.err
    assert PROMPT in done.out
    assert by_transformers(assets, 9).strip() in done.out
    assert "9 tokens in" in done.err
    assert "drafts accepted" in done.err
    assert "blocks run:" in done.err
    assert "tokens per second" not in done.out


def test_a_static_depth_counts_its_blocks(command: Command) -> None:
    done = command(
        "generate", "~gpt2", "--prompt", PROMPT, "--max-new-tokens", "5", "--depth", "1", "--stats", "--json"
    )
    assert json.loads(done.out)["spent"]["blocks"] == 5


def test_several_prompts_and_a_file_of_them(command: Command) -> None:
    Path("prompts.txt").write_text("the film\n\na plot\n")
    done = command(
        "generate", "~gpt2", "--prompt", PROMPT, "--prompts", "prompts.txt", "--max-new-tokens", "3", "--json"
    )
    found = json.loads(done.out)
    assert found["prompts"] == [PROMPT, "the film", "a plot"]
    assert len(found["texts"]) == 3


def test_sampling_repeats_with_its_seed(command: Command) -> None:
    def drawn(seed: str) -> list[str]:
        done = command(
            "generate", "~gpt2", "--prompt", PROMPT, "--sample", "--top-k", "20", "--seed", seed, "--draft-depth", "1",
            "--json", "--max-new-tokens", "20",
        )  # fmt: skip
        return list(json.loads(done.out)["texts"])

    assert drawn("1") == drawn("1") != drawn("2")


def test_exits_of_a_language_model(assets: Path, command: Command) -> None:
    """Calibrated, saved with the model, and used; nothing but the model it was calibrated for is taken."""
    done = command(
        "exit", "~gpt2", "--data", "~corpus.txt", "--tolerance", "0.2", "--depths", "1", "--prompt-tokens", "4",
        "--new-tokens", "4", "--out", "calibrated", "--json",
    )  # fmt: skip
    assert done.status == 0, done.err
    found = json.loads(done.out)
    assert found["generation"]["steps"][0]["threshold"] == 0.9999
    assert len(found["generation"]["steps"]) >= found["generation"]["passed"]
    used = command(
        "generate", "calibrated", "--exit", "calibrated", "--prompt", PROMPT, "--max-new-tokens", "4", "--json"
    )
    assert used.status == 0, used.err
    assert json.loads(used.out)["way"] == found["promise"]
    again = command("exit", "~gpt2", "--data", "~corpus.txt", "--tolerance", "0.2", "--depths", "1", "--prompt-tokens",
                    "4", "--new-tokens", "4", "--out", "calibrated")  # fmt: skip
    assert again.status == 0, again.err
    assert "Calibrated model" in again.out
    torch.manual_seed(9)
    checkpoints.gpt2(Path("other"))
    refused = command("generate", "other", "--exit", "calibrated", "--prompt", PROMPT)
    assert refused.status == 2
    assert "calibrate it" in refused.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["~gpt2"], "a prompt is empty: expected some text to continue"),
        (["~gpt2", "--prompt", " "], "a prompt is empty"),
        (["~gpt2", "--prompt", "good " * 3000], "expected one that leaves room for a token"),
        (["~gpt2", "--prompt", "good", "--depth", "9"], "depth 9 of GPT2LMHeadModel"),
        (["~gpt2", "--prompt", "good", "--draft-depth", "0"], "depth 0 of GPT2LMHeadModel"),
        (
            ["~gpt2", "--prompt", "good", "--draft-depth", "deep"],
            "--draft-depth is 'deep', expected a whole number",
        ),
        (
            ["~gpt2", "--prompt", "good", "--depth", "1", "--draft-depth", "1"],
            "than one way to generate came (--depth, --dr",
        ),
        (["~bert", "--prompt", "good"], "generates no text: expected a causal language model"),
        (["~gpt2", "--prompt", "good", "--exit", "nowhere"], "exit.json"),
        (["~gpt2", "--prompts", "nowhere.txt"], "the prompts in 'nowhere.txt' cannot be read"),
    ],
)
def test_bad_input_is_one_line(command: Command, arguments: list[str], message: str) -> None:
    done = command("generate", *arguments)
    assert done.status == 2
    assert message in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not done.out


def test_too_few_texts_to_promise(command: Command) -> None:
    done = command("exit", "~gpt2", "--data", "~corpus.txt", "--prompt-tokens", "4", "--out", "calibrated")
    assert done.status == 2
    assert "prompts, and to certify a tolerance of 0.01" in done.err
    assert not Path("calibrated").exists()


def test_what_a_model_writes_cannot_steer_the_terminal(capsys: Any) -> None:
    from anydepth.cli.terminal import write

    write("a\x1b[31mb\r\nc\td\x07")
    assert capsys.readouterr().out == "a\\x1b[31mb\nc\td\\x07"


def test_an_interrupt_says_that_the_command_starts_over(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("anydepth.jobs.generate._generated", stop)
    done = command("generate", "~gpt2", "--prompt", "good")
    assert (done.status, done.err) == (130, "anydepth: interrupted; the same command starts over\n")
