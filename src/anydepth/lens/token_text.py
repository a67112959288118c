"""The text of vocabulary tokens, with leading spaces, and with incomplete bytes written out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

# What a decoder returns for bytes that are no character.
_UNREADABLE = "�"


def spelled(tokenizer: Any, ids: Iterable[int]) -> dict[int, str]:
    """The text of each token as it reads in the middle of a text.

    A token by itself is often decoded without its leading space, so each is decoded after another one.

    Returns:
        By id. Special tokens go by their names; bytes that are no whole character are written `<0xE6>`; an id that the
        tokenizer does not know is written `<50300>`.

    Example:
        >>> from tokenizers import Tokenizer, decoders, models
        >>> from transformers import PreTrainedTokenizerFast
        >>> words = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1, "▁cat": 2}, unk_token="[UNK]"))
        >>> words.decoder = decoders.Metaspace()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
        >>> spelled(tokenizer, [2, 1, 7])
        {2: ' cat', 1: '[UNK]', 7: '<7>'}
    """
    before = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
    start = tokenizer.decode(before) if before else ""
    special = set(tokenizer.all_special_ids)
    texts = {}
    for token in dict.fromkeys(ids):
        piece = tokenizer.convert_ids_to_tokens(token)
        text = tokenizer.decode([*before, token])
        known = text.startswith(start) and token not in special
        texts[token] = _legible(text[len(start) :] if known else "", piece, token)
    return texts


def _legible(text: str, piece: str | None, token: int) -> str:
    """The decoded text, or the vocabulary's entry where the text is empty or unreadable."""
    if not piece:
        return f"<{token}>"
    if text and _UNREADABLE not in text:
        return text
    alphabet = _byte_alphabet()
    named = re.fullmatch(r"<0x[0-9A-F]{2}>", piece)  # as SentencePiece calls its bytes
    if text and not named and all(character in alphabet for character in piece):
        return "".join(f"<0x{alphabet[character]:02X}>" for character in piece)
    return piece


@cache
def _byte_alphabet() -> Mapping[str, int]:
    """The characters that byte-level vocabularies write bytes with (GPT-2's), and the byte of each."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}
