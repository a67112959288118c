"""What a token stands for: leading spaces are kept, bytes and unknown ids are written out."""

import pytest
from tokenizers import ByteLevelBPETokenizer, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from anydepth.lens.token_text import spelled


def byte_level():
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(["the cat sat on the mat"] * 5, vocab_size=300, show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, eos_token="<|end|>")


def word_pieces():
    vocabulary = {"[UNK]": 0, "[CLS]": 1, "[PAD]": 2, "the": 3, "##ing": 4, ",": 5, "a": 6}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", cls_token="[CLS]", pad_token="[PAD]")


def sentence_pieces():
    vocabulary = {"<unk>": 0, "▁a": 1, "▁the": 2, "ing": 3, "<0x0A>": 4, "<0xE6>": 5, "▁": 6}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def of(tokenizer, *pieces):
    ids = [tokenizer.convert_tokens_to_ids(piece) for piece in pieces]
    found = spelled(tokenizer, ids)
    return [found[one] for one in ids]


def test_bytes_in_one_token_are_characters_and_pieces_of_a_character_are_written_out():
    tokenizer = byte_level()
    assert of(tokenizer, "Ġthe", "at", "Ċ", "Ã", "æ", "Ġ") == [" the", "at", "\n", "<0xC3>", "<0xE6>", " "]


def test_every_byte_is_told_apart():
    tokenizer = byte_level()
    ids = range(256)
    found = spelled(tokenizer, ids)
    assert len(set(found.values())) == 256
    readable = {chr(byte) for byte in range(128)}
    assert readable <= set(found.values())
    assert {f"<0x{byte:02X}>" for byte in range(128, 256)} <= set(found.values())


def test_spaces_before_a_word_are_kept_and_none_is_made_up_inside_one():
    assert of(word_pieces(), "the", "##ing") == [" the", "ing"]
    assert of(sentence_pieces(), "▁the", "ing", "▁") == [" the", "ing", " "]


def test_a_vocabulary_of_byte_tokens_keeps_their_names_where_they_are_no_character():
    assert of(sentence_pieces(), "<0x0A>", "<0xE6>") == ["\n", "<0xE6>"]


def test_special_tokens_go_by_their_names():
    tokenizer = word_pieces()
    assert of(tokenizer, "[CLS]", "[UNK]", "[PAD]") == ["[CLS]", "[UNK]", "[PAD]"]
    assert of(byte_level(), "<|end|>") == ["<|end|>"]


@pytest.mark.parametrize("make", [byte_level, word_pieces, sentence_pieces])
def test_an_id_beyond_the_vocabulary_is_written_as_such(make):
    assert spelled(make(), [50_300, 50_300]) == {50_300: "<50300>"}
