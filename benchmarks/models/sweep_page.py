"""The page for users, made of the sweep's findings: does my model work, and how far?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from categories import NAMED, NOT_BUILT
from sweep_table import table

_STEPS = {"trace": "trace", "align": "align", "exit": "exit", "truncate": "truncate", "generate": "generate"}
_SIGNS = {"ok": "✓", "n/a": "·", "refused": "–", "wrong": "✗", "crash": "✗"}
_HEAD = """# Does my model work?

Made by `python benchmarks/models/sweep.py --page docs/models.md` from tiny models with random weights: one for each
class that transformers {transformers} lists, the smallest of each timm family, and models of other libraries. Each was
held against its own plain forward, by hooks alone: states at every depth, the readout of each, a trace, the
aligned loss, exits, a cut saved and loaded again by its class, generation. *Exact* means that all of it that has a
meaning for the model came out equal to 1e-5 of the largest entry; *refused*, that anydepth said why in one line.
{tried}

{table}

What a class does that is not below shows on its first batch: `ad.Stack(model).verify(batch)` either holds, with the
size of what differs, or says in one line what was seen.

```python
import torch
from transformers import BertConfig, BertForSequenceClassification

import anydepth as ad

config = BertConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, vocab_size=50)
model = BertForSequenceClassification(config).eval()
stack = ad.Stack(model)
checked = stack.verify({{"input_ids": torch.randint(50, (2, 8))}})
print(stack.path, stack.depth, max(checked.readout, checked.cut, checked.replay, checked.plain) <= checked.tolerance)
```

A model with several stacks is traced at the last before its answer: the decoder of an encoder-decoder, the language
model of one that sees or hears. `ad.Stack(model, stack="encoder")`, `"decoder"`, `"image"`, `"text"` or `"audio"` takes
another (`--blocks encoder` on the command line), the rest of the model left as it is; two towers that do not feed each
other, as CLIP's, are to be named. A model in stages of differing shape (Swin) is traced at all of its blocks, and read
out, exited and cut at those of its last stage; `stack="both"` makes stages of an encoder and its decoder.
"""
_CLASSES = """
## {kind}

✓ exact, – refused with its reason, · without a meaning for this model{more}.

| class | {steps} | blocks |
|---|{columns}---|
{rows}
"""


def page(record: Mapping[str, Any]) -> str:
    """The page as Markdown, from the content of `results/sweep.json`."""
    findings = record["models"]
    built = [finding for finding in findings if finding["category"] != NOT_BUILT]
    tried = f"So far {len(findings):,} of {record['listed']:,} models have been tried, in an order drawn by chance."
    if len(findings) == record["listed"]:
        tried = f"All {len(findings):,} models of the list have been tried."
    text = _HEAD.format(transformers=record["versions"]["transformers"], table=table(findings), tried=tried)
    groups = Counter(_group(finding) for finding in built)
    for group in groups:
        own = sorted((finding for finding in built if _group(finding) == group), key=lambda finding: finding["name"])
        text += _section(group, own)
    missing = [finding["name"] for finding in findings if finding["category"] == NOT_BUILT]
    if missing:
        text += "\n## Not built\n\nNo tiny model or no batch of them could be made by rules; nothing is known of them: "
        text += ", ".join(f"`{name}`" for name in sorted(missing)) + ".\n"
    return text


def _group(finding: Mapping[str, Any]) -> str:
    return str(finding["kind"] if finding["library"] == "transformers" else finding["library"])


def _section(kind: str, findings: Sequence[Mapping[str, Any]]) -> str:
    rows, refusals = [], dict[str, list[str]]()
    for finding in findings:
        if finding["steps"].get("states", {}).get("result") != "ok":
            refusals.setdefault(_plain(finding["reason"], finding["name"]), []).append(finding["name"])
            continue
        signs = [_SIGNS[finding["steps"].get(step, {"result": "n/a"})["result"]] for step in _STEPS]
        named = f"`{finding['path']}`" + (" (to be named)" if finding["category"] == NAMED else "")
        rows.append(f"| `{finding['name']}` | {' | '.join(signs)} | {named} |")
    more = ", ✗ not right: do not use it" if any("✗" in row for row in rows) else ""
    if rows:
        text = _CLASSES.format(
            kind=kind, more=more, steps=" | ".join(_STEPS), columns="---|" * len(_STEPS), rows="\n".join(rows)
        )
    else:
        text = f"\n## {kind}\n"
    if refused := refusals.items():
        text += "\nRefused:\n\n"
        text += "".join(f"- {', '.join(f'`{name}`' for name in names)}: {reason}\n" for reason, names in refused)
    return text


def _plain(reason: str, name: str) -> str:
    """A reason on one line without the model's name, and no longer than a glance takes."""
    text = " ".join(reason.split()).replace(f"{name}: ", "").replace(f"{name} ", "").replace("|", "\\|")
    return text if len(text) <= 240 else f"{text[:237]}..."
