"""Tokenizers: the ids a checkpoint means, text in pieces, and files that are refused."""

import re

import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from jtok.errors import UserError
from jtok.models.vlm.processing.text import Tokenizer, load_tokenizer
from tests.models.processing.checkpoints import SENTENCES, byte_level, write

TRICKY = [*SENTENCES, "", "�", "a�b", "👨‍👩‍👧‍👦", "é" * 3, "\n \t", "𐍈𐍈"]
BYTES = byte_level(["<pad>", "<s>", "</s>", "<image>"])
STREAMED = Tokenizer(BYTES, bos=1, pad=0, stops=(2,))


def byte_fallback() -> Tokenizer:
    """As Llama's: pieces with a lower bar for spaces, and a token for each byte that no piece spells."""
    bytes_ = {f"<0x{i:02X}>": 3 + i for i in range(256)}
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, **bytes_, "▁": 259, **{c: 260 + i for i, c in enumerate("abcdefgh.")}}
    inner = tokenizers.Tokenizer(models.BPE(vocab, [], byte_fallback=True, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    inner.add_special_tokens(["<s>", "</s>"])
    return Tokenizer(inner, bos=1, pad=0, stops=(2,))


def streamed(tokenizer, ids):
    stream = tokenizer.stream()
    pieces = [stream.push(i) for i in ids]
    return pieces, stream.finish()


@pytest.mark.parametrize("text", TRICKY)
@pytest.mark.parametrize("tokenizer", [STREAMED, byte_fallback()], ids=["byte level", "byte fallback"])
def test_pieces_are_the_text(tokenizer, text):
    ids = tokenizer.encode(text)
    pieces, rest = streamed(tokenizer, ids)
    assert "".join(pieces) + rest == tokenizer.decode(ids) == text
    if "�" not in text:
        assert not rest and not any("�" in piece for piece in pieces)


@given(st.lists(st.integers(0, BYTES.get_vocab_size() - 1), max_size=30))
@settings(max_examples=300, deadline=None)
def test_any_ids_in_pieces_are_the_ids_at_once(ids):
    """Ids that spell no valid UTF-8 too: what a model may well produce."""
    pieces, rest = streamed(STREAMED, ids)
    assert "".join(pieces) + rest == STREAMED.decode(ids)


def test_a_character_of_several_tokens_comes_whole():
    ids = STREAMED.encode("犬🎉")
    assert len(ids) > 2
    pieces, rest = streamed(STREAMED, ids)
    assert [piece for piece in pieces if piece] == ["犬", "🎉"] and rest == ""
    pieces, rest = streamed(STREAMED, ids[:-1])
    assert "".join(pieces) == "犬" and set(rest) == {"�"}


def test_special_tokens_in_the_text_count_and_are_left_out_of_answers():
    ids = STREAMED.encode("<s>stop<image></s>")
    assert ids[0] == 1 and ids[-2:] == [3, 2]
    assert STREAMED.decode(ids) == "stop" and STREAMED.decode(ids, special=True) == "<s>stop<image></s>"
    assert "".join(streamed(STREAMED, ids)[0]) == "stop"


def test_ids_equal_those_of_transformers(tmp_path):
    directory = write(tmp_path, "llava")
    ours = load_tokenizer(directory)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(directory / "tokenizer.json"))
    for text in TRICKY:
        assert ours.encode(text) == theirs(text)["input_ids"]
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs(text)["input_ids"], skip_special_tokens=True)


def test_the_beginning_is_written_once(tmp_path):
    ours = load_tokenizer(write(tmp_path, "llava"))
    assert ours.prefix == (ours.bos,)
    assert ours.encode("stop") == ours.encode("<s>stop")
    never = load_tokenizer(write(tmp_path, "llava", tokenizer_config={"bos_token": "<s>", "add_bos_token": False}))
    assert never.encode("stop") == ours.encode("stop")[1:]
    always = load_tokenizer(
        write(tmp_path, "paligemma", tokenizer_config={"bos_token": "<bos>", "add_bos_token": True})
    )
    assert always.encode("stop")[0] == always.bos


def test_where_ids_come_from(tmp_path):
    ours = load_tokenizer(write(tmp_path, "qwen2_5_vl", generation_config={"eos_token_id": [5, 1, 5]}))
    names = ["<|image_pad|>", "<|video_pad|>", "<pad>", "<|im_end|>"]
    image, video, pad, stop = map(ours.inner.token_to_id, names)
    assert (ours.image, ours.video, ours.pad, ours.bos) == (image, video, pad, None)
    assert ours.stops == (5, 1) and stop == 1
    config = {"model_type": "llava", "image_token_index": 3, "text_config": {"eos_token_id": 2, "bos_token_id": 1}}
    files = dict(config=config, tokenizer_config=None, generation_config=None)
    old = load_tokenizer(write(tmp_path / "old", "llava", **files))
    assert (old.image, old.video, old.stops, old.pad, old.bos) == (3, None, (2,), 2, 1)


def test_files_that_are_refused(tmp_path):
    with pytest.raises(UserError, match="no tokenizer.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be read as a tokenizer"):
        load_tokenizer(tmp_path)
    unknown = {"model_type": "llava", "image_token_index": 32000}
    with pytest.raises(UserError, match=re.escape("the image token has id 32000, and tokenizer.json has no such id")):
        load_tokenizer(write(tmp_path, "llava", config=unknown))
    with pytest.raises(UserError, match="names '<end>' as eos_token"):
        load_tokenizer(write(tmp_path, "llava", tokenizer_config={"eos_token": "<end>"}))
