"""Text to ids and back, from a checkpoint's tokenizer.json, and ids to text one at a time."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import tokenizers
from tokenizers.decoders import DecodeStream

from jtok.errors import UserError
from jtok.models.vlm.processing.settings import read_json


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A fast tokenizer with the ids that its checkpoint gives a meaning to.

    `stops` end a generation; `pad` fills up a batch. `image` and `video` are the placeholders, None where the model
    has none.
    """

    inner: tokenizers.Tokenizer
    bos: int | None
    pad: int
    stops: tuple[int, ...]
    image: int | None = None
    video: int | None = None
    prefix: tuple[int, ...] = ()  # what encode() puts in front: the beginning-of-sequence id, where the model wants one

    def encode(self, text: str) -> list[int]:
        """Ids of a prompt. Special tokens written in the text count as such; a missing `prefix` is put in front.

        Raises UserError for words that a closed vocabulary lacks.
        """
        try:
            ids = self.inner.encode(text, add_special_tokens=False).ids
        except Exception as error:  # plain, of a closed vocabulary that lacks a word
            unknown = self._unknown(text)
            why = f"it does not know {', '.join(unknown)}" if unknown else str(error)
            raise UserError(
                f"the model's tokenizer has no tokens for some words ({why}): use words it knows."
            ) from None
        if any(i in ids for i in self.prefix):
            return ids  # the template has written it itself
        return [*self.prefix, *ids]

    def _unknown(self, text: str) -> list[str]:
        """Words that a closed vocabulary lacks; special tokens in the text are words like others."""
        known, splitter = self.inner.get_vocab(), self.inner.pre_tokenizer
        for token in self.inner.get_added_tokens_decoder().values():
            text = text.replace(str(token), " ")
        text = self.inner.normalizer.normalize_str(text) if self.inner.normalizer is not None else text
        words = [word for word, _ in splitter.pre_tokenize_str(text)] if splitter is not None else text.split()
        return [f"'{word}'" for word in dict.fromkeys(words) if word not in known]

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """Text of ids; special tokens are left out unless `special`."""
        return self.inner.decode([int(i) for i in ids], skip_special_tokens=not special)

    def token(self, index: int | None) -> str:
        """How an id is written; empty for None."""
        return "" if index is None else self.inner.id_to_token(index) or ""

    def stream(self) -> TextStream:
        """A decoder of one answer, fed id by id."""
        return TextStream(self)


class TextStream:
    """Decodes one answer id by id. What `push` and `finish` return, put together, is `decode` of all the ids.

    Characters of several tokens come out whole, with the token that completes them.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._sent = 0

    def push(self, index: int) -> str:
        """The text that has become certain with this id; may be empty."""
        self._ids.append(int(index))
        text = self._stream.step(self._tokenizer.inner, int(index)) or ""
        self._sent += len(text)
        return text

    def finish(self) -> str:
        """What was held back: an unfinished character, as the replacement character."""
        rest = self._tokenizer.decode(self._ids)[self._sent :]
        self._sent += len(rest)
        return rest


def load_tokenizer(directory: str | pathlib.Path) -> Tokenizer:
    """The tokenizer of a checkpoint directory.

    Reads tokenizer.json; ids come from config.json (placeholders), tokenizer_config.json (beginning, padding) and
    generation_config.json (stops). Raises UserError where a file or a token is missing, or a file broken.
    """
    path = pathlib.Path(directory) / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"'{directory}' has no tokenizer.json: save it with the fast tokenizer of transformers.")
    try:
        inner = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception for whatever it cannot parse
        raise UserError(f"'{path}' cannot be read as a tokenizer ({error}).") from None
    inner.no_padding()
    inner.no_truncation()
    config, stated = read_json(directory, "config.json"), read_json(directory, "tokenizer_config.json")
    text = config.get("text_config") or config
    bos = _named(inner, stated, "bos_token", text.get("bos_token_id"))
    stops = _stops(inner, stated, read_json(directory, "generation_config.json"), text)
    pad = _named(inner, stated, "pad_token", config.get("pad_token_id", text.get("pad_token_id")))
    return Tokenizer(
        inner=inner,
        bos=bos,
        pad=pad if pad is not None else (stops[0] if stops else 0),
        stops=stops,
        image=_placeholder(inner, config, "image"),
        video=_placeholder(inner, config, "video"),
        prefix=_prefix(inner, stated, bos),
    )


def _named(inner: tokenizers.Tokenizer, stated: Mapping[str, Any], name: str, otherwise: int | None) -> int | None:
    """Id of a token that tokenizer_config.json names, as a string or as an object with `content`."""
    token = stated.get(name)
    token = token.get("content") if isinstance(token, Mapping) else token
    if token is None:
        return otherwise
    index = inner.token_to_id(token)
    if index is None:
        raise UserError(f"tokenizer_config.json names '{token}' as {name}, and tokenizer.json has no such token.")
    return index


def _stops(
    inner: tokenizers.Tokenizer, stated: Mapping[str, Any], generation: Mapping[str, Any], text: Mapping[str, Any]
) -> tuple[int, ...]:
    end = generation.get("eos_token_id", text.get("eos_token_id"))
    ids = [end] if isinstance(end, int) else list(end or ())
    named = _named(inner, stated, "eos_token", None)
    return tuple(dict.fromkeys([*ids, *([] if named is None else [named])]))


def _prefix(inner: tokenizers.Tokenizer, stated: Mapping[str, Any], bos: int | None) -> tuple[int, ...]:
    """The beginning-of-sequence id if tokenizer.json's post-processor adds it, or tokenizer_config.json asks for it."""
    around = inner.encode("", add_special_tokens=True).ids
    wanted = stated.get("add_bos_token", bool(around) and around[0] == bos)
    return (bos,) if wanted and bos is not None else ()


def _placeholder(inner: tokenizers.Tokenizer, config: Mapping[str, Any], kind: str) -> int | None:
    index = config.get(f"{kind}_token_id", config.get(f"{kind}_token_index"))
    if index is not None and inner.id_to_token(index) is None:
        raise UserError(
            f"config.json says the {kind} token has id {index}, and tokenizer.json has no such id: "
            "the tokenizer is of another model, or was saved without its added tokens."
        )
    return index
