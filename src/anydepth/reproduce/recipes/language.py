"""The language models of two recipes: those of the paper, and what two cores can train."""

from __future__ import annotations

from dataclasses import replace

from anydepth.reproduce.subjects import Subject

SMALL_GPT2 = Subject(
    title="GPT-2 of 8 blocks and width 128 from scratch, Brown",
    model="made:gpt2",
    data="asset:brown",
    task="causal-lm",
    train=160,
    held_out=16,
    eval_split="test",
    from_scratch=True,
    length=128,
    positions=8,
    batch_size=16,
    training={
        "per_device_train_batch_size": 8,
        "learning_rate": 2e-3,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "weight_decay": 0.01,
        "num_train_epochs": 1.0,
    },
)
SMALL_LLAMA = replace(
    SMALL_GPT2,
    title="Llama of 12 blocks and width 192 from scratch, Brown",
    model="made:llama",
    train=80,
    training={**SMALL_GPT2.training, "learning_rate": 1e-3},
)
GPT2 = Subject(
    title="GPT-2 small trained on, WikiText-103",
    model="openai-community/gpt2",
    data="Salesforce/wikitext:wikitext-103-raw-v1",
    task="causal-lm",
    eval_split="test",
    length=256,
    positions=8,
    batch_size=16,
    training={
        "max_steps": 40_000,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 16,
        "learning_rate": 2e-5,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0.1,
        "max_grad_norm": 1.0,
        "bf16": True,
    },
)
LLAMA = replace(
    GPT2, title="Llama-3-8B as released, WikiText-103", model="meta-llama/Meta-Llama-3-8B", batch_size=4, training={}
)
