"""A tokenizer of whole words for those of `tiny_models` text models, and texts in its words."""

import tiny_models
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL = ("[PAD]", "[BOS]", "[EOS]", "[CLS]", "[SEP]")


def tokenizer(*, framed: bool = False) -> PreTrainedTokenizerFast:
    """One token a word: `w05`, `w06`, ...; the ids of special ones are those of `tiny_models`."""
    words = {
        word: place
        for place, word in enumerate([*SPECIAL, *(f"w{place:02}" for place in range(5, tiny_models.VOCABULARY))])
    }
    found = Tokenizer(models.WordLevel(words, unk_token="w05"))
    found.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if framed:
        found.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 3), ("[SEP]", 4)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=found, pad_token="[PAD]", bos_token="[BOS]", eos_token="[EOS]", cls_token="[CLS]",
        sep_token="[SEP]", unk_token="w05",
    )  # fmt: skip


def text(length: int = 9, seed: int = 0) -> str:
    ids = torch.randint(5, tiny_models.VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed))
    return " ".join(f"w{one:02}" for one in ids.tolist())


def ids_of(words: str) -> torch.Tensor:
    return torch.tensor([int(word[1:]) for word in words.split()])
