"""All cases of the sweep, in the order in which they are checked."""

from __future__ import annotations

import random
import re

from other_libraries import other_cases
from sweep_cases import Case
from timm_families import timm_cases
from transformers_classes import transformers_cases


def all_cases() -> list[Case]:
    """Every case, in an order that stays: the first class of each type before the others of that type.

    So a sweep that is stopped early has seen every architecture once before it sees a second head of any.
    """
    ranks: dict[str, int] = {}
    ranked = []
    for case in transformers_cases():
        body = re.split(r"For(?=[A-Z])|LMHead", case.name)[0]
        ranks[body] = ranks.get(body, -1) + 1
        ranked.append((ranks[body], case))
    first = [*(case for rank, case in ranked if rank == 0), *timm_cases(), *other_cases()]
    rest = [case for rank, case in sorted(ranked, key=lambda entry: entry[0]) if rank > 0]
    shuffled = random.Random(0).sample(first, len(first))
    return [*shuffled, *rest]
