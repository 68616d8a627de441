"""Released names of the tensors of convolutional autoencoders, and what their shapes say of the architecture."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from itertools import count, takewhile

from flax import nnx

from jtok.checkpoints.rules import Rule, linear, norm
from jtok.errors import UserError
from jtok.tokenizers.autoencoder import ConvDecoder, ConvEncoder, ConvShape, Level


@dataclasses.dataclass(frozen=True)
class Naming:
    """Names of the parts under `encoder.` and `decoder.`: {l} is the level, {b} its number from the deepest one,
    {i} the block, {n} the same numbered from one. parts: of attention, norm, query, key, value and output."""

    down: str = "down.{l}.block.{i}"
    down_attention: str = "down.{l}.attn.{i}"
    shrink: str = "down.{l}.downsample.conv"
    up: str = "up.{l}.block.{i}"
    up_attention: str = "up.{l}.attn.{i}"
    grow: str = "up.{l}.upsample.conv"
    mid: str = "mid.block_{n}"
    mid_attention: str = "mid.attn_1"
    norm_out: str = "norm_out"
    shortcut: str = "nin_shortcut"
    parts: tuple[str, ...] = ("norm", "q", "k", "v", "proj_out")


_DIFFUSERS = Naming(
    down="down_blocks.{l}.resnets.{i}",
    down_attention="down_blocks.{l}.attentions.{i}",
    shrink="down_blocks.{l}.downsamplers.0.conv",
    up="up_blocks.{b}.resnets.{i}",
    up_attention="up_blocks.{b}.attentions.{i}",
    grow="up_blocks.{b}.upsamplers.0.conv",
    mid="mid_block.resnets.{i}",
    mid_attention="mid_block.attentions.0",
    norm_out="conv_norm_out",
    shortcut="conv_shortcut",
    parts=("group_norm", "to_q", "to_k", "to_v", "to_out.0"),
)
#: ldm: taming-transformers, latent diffusion, MAGE and MAR. titok: the file of MaskGIT's VQGAN in TiTok's release.
#: diffusers and diffusers_old: `AutoencoderKL`, since and before version 0.17.
NAMINGS = {
    "ldm": Naming(),
    "titok": Naming(mid="mid.{i}", grow="up.{l}.upsample_conv"),
    "diffusers": _DIFFUSERS,
    "diffusers_old": dataclasses.replace(_DIFFUSERS, parts=("group_norm", "query", "key", "value", "proj_attn")),
}


def encoder_names(net: ConvEncoder, ours: str, theirs: str, naming: str) -> Iterator[Rule]:
    """The released names of an encoder's parameters."""
    n, last = NAMINGS[naming], len(net.down) - 1
    yield from _ends(ours, theirs, n)
    yield from _middle(net, ours, theirs, n)
    for i, level in enumerate(net.down):
        yield from _level(level, f"{ours}.down.{i}", theirs, n.down, n.down_attention, n, i, last - i)
    for i in range(len(net.shrink)):
        yield from linear(f"{theirs}.{n.shrink.format(l=i)}", f"{ours}.shrink.{i}", how="conv")


def decoder_names(net: ConvDecoder, ours: str, theirs: str, naming: str) -> Iterator[Rule]:
    """The released names of a decoder's parameters."""
    n, last = NAMINGS[naming], len(net.up) - 1
    yield from _ends(ours, theirs, n)
    yield from _middle(net, ours, theirs, n)
    for i, level in enumerate(net.up):
        yield from _level(level, f"{ours}.up.{i}", theirs, n.up, n.up_attention, n, i, last - i)
    for i in range(last):
        yield from linear(f"{theirs}.{n.grow.format(l=i + 1, b=last - i - 1)}", f"{ours}.grow.{i}", how="conv")


def find_naming(tensors: Mapping[str, tuple[int, ...]], prefix: str) -> str | None:
    """The one of `NAMINGS` that the tensors under `prefix` follow, None if none."""
    for name, n in NAMINGS.items():
        first, mid = (f"{prefix}encoder.{p.format(l=0, i=0, n=1)}.conv1.weight" for p in (n.down, n.mid))
        attention = f"{prefix}encoder.{n.mid_attention}.{n.parts[1]}.weight"
        older = name.startswith("diffusers") and attention not in tensors
        if first in tensors and mid in tensors and not older:
            return name
    return None


def find_shape(tensors: Mapping[str, tuple[int, ...]], prefix: str, naming: str, source: str) -> ConvShape:
    """The architecture of a file's autoencoder by the shapes of its tensors. Raises UserError if parts are missing."""
    n = NAMINGS[naming]

    def has(part: str) -> bool:
        return f"{prefix}{part}" in tensors

    def width(part: str, axis: int = 0) -> int:
        if not has(part):
            raise UserError(f"'{source}' lacks {prefix}{part}: it is no whole autoencoder.")
        return tensors[f"{prefix}{part}"][axis]

    def first(level: int, block: int) -> str:
        return f"encoder.{n.down.format(l=level, i=block)}.conv1.weight"

    levels = len(list(takewhile(lambda i: has(first(i, 0)), count())))

    def attended(side: str, pattern: str) -> tuple[int, ...]:
        places = [pattern.format(l=i, b=levels - 1 - i, i=0) for i in range(levels)]
        return tuple(i for i, place in enumerate(places) if has(f"{side}.{place}.{n.parts[0]}.weight"))

    return ConvShape(
        channels=width("decoder.conv_in.weight", 1),
        width=width("encoder.conv_in.weight"),
        widths=tuple(width(first(i, 0)) for i in range(levels)),
        blocks=len(list(takewhile(lambda i: has(first(0, i)), count()))),
        middle=len(list(takewhile(lambda i: has(f"encoder.{n.mid.format(i=i, n=i + 1)}.conv1.weight"), count()))),
        attention=attended("encoder", n.down_attention),
        decoder_attention=attended("decoder", n.up_attention),
        style="ldm" if has("encoder.conv_in.bias") else "maskgit",
    )


def _ends(ours: str, theirs: str, n: Naming) -> Iterator[Rule]:
    yield from linear(f"{theirs}.conv_in", f"{ours}.conv_in", how="conv")
    yield from linear(f"{theirs}.conv_out", f"{ours}.conv_out", how="conv")
    yield from norm(f"{theirs}.{n.norm_out}", f"{ours}.norm_out")


def _middle(net: nnx.Module, ours: str, theirs: str, n: Naming) -> Iterator[Rule]:
    for i in range(len(net.mid.blocks)):
        yield from _block(f"{ours}.mid.blocks.{i}", f"{theirs}.{n.mid.format(i=i, n=i + 1)}", n)
    yield from _attention(f"{ours}.mid.attention", f"{theirs}.{n.mid_attention}", n)


def _level(level: Level, ours: str, theirs: str, block: str, attention: str, n: Naming, l: int, b: int):  # noqa: E741
    for i in range(len(level.blocks)):
        yield from _block(f"{ours}.blocks.{i}", f"{theirs}.{block.format(l=l, b=b, i=i)}", n)
    for i in range(len(level.attention)):
        yield from _attention(f"{ours}.attention.{i}", f"{theirs}.{attention.format(l=l, b=b, i=i)}", n)


def _block(ours: str, theirs: str, n: Naming) -> Iterator[Rule]:
    for i in (1, 2):
        yield from norm(f"{theirs}.norm{i}", f"{ours}.norm{i}")
        yield from linear(f"{theirs}.conv{i}", f"{ours}.conv{i}", how="conv")
    yield from linear(f"{theirs}.{n.shortcut}", f"{ours}.shortcut", how="conv")


def _attention(ours: str, theirs: str, n: Naming) -> Iterator[Rule]:
    yield from norm(f"{theirs}.{n.parts[0]}", f"{ours}.norm")
    for ours_part, part in zip(("q", "k", "v", "out"), n.parts[1:], strict=True):
        yield from linear(f"{theirs}.{part}", f"{ours}.{ours_part}")
