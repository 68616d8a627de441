"""`jtok tokenize`: encodes an image of any size as a .jtok file, each tile with the tokens it needs."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from absl import flags as absl_flags

from jtok.errors import UserError
from jtok.flags import Command

DEFAULT = "28dB"


def _flags(values: absl_flags.FlagValues) -> None:
    text = f"target PSNR of every tile (default: {DEFAULT}); tiles that cannot reach it take all tokens"
    absl_flags.DEFINE_string("quality", None, text, flag_values=values)
    absl_flags.DEFINE_integer("tokens", None, "the same number of tokens for every tile, instead", flag_values=values)
    text = "file to write (default: the image's name with .jtok)"
    absl_flags.DEFINE_string("out", None, text, short_name="o", flag_values=values)
    absl_flags.DEFINE_integer("overlap", 4, "pixels that neighbouring tiles share", flag_values=values, lower_bound=0)
    tokenizer_flag(values, "shipped")


def tokenizer_flag(values: absl_flags.FlagValues, default: str) -> None:
    """--tokenizer, shared by all commands that encode images."""
    text = "file of a trained tokenizer, or 'shipped', the one that comes with jtok"
    absl_flags.DEFINE_string("tokenizer", default, text, flag_values=values)


def parse_quality(text: str) -> float:
    """ "28dB", "28 dB" or "28" as a number. Raises UserError for anything else, and for one out of range."""
    from jtok.tokenizers.codec import check_quality

    match = re.fullmatch(r"\s*([+-]?\d+(?:\.\d*)?)\s*(?:dB)?\s*", text, re.IGNORECASE)
    if not match:
        raise UserError(f"--quality={text} is not a PSNR: give decibels, such as --quality={DEFAULT}.")
    check_quality(float(match[1]))
    return float(match[1])


def _run(args, config) -> int:
    if not args.picture:
        raise UserError("there is no image: give its file first, such as jtok tokenize photo.jpg.")
    if args.quality and args.tokens is not None:
        raise UserError("--quality and --tokens are both given: give one of the two.")
    out = Path(args.out) if args.out else Path(args.picture).with_suffix(".jtok")
    if out.exists() and Path(args.picture).exists() and out.samefile(args.picture):
        raise UserError(f"'{out}' is the image itself: give another file with --out=FILE.")
    quality = None if args.tokens is not None else parse_quality(args.quality or DEFAULT)
    from jtok import compile_cache
    from jtok.data.picture import read_picture
    from jtok.tokenizers.codec import Codec
    from jtok.tokenizers.container import pack
    from jtok.tokenizers.shipped import open_tokenizer
    from jtok.viz.files import write_whole

    compile_cache.enable()
    picture, notes = read_picture(args.picture)
    for note in notes:
        print(f"jtok tokenize: '{args.picture}': {note}", file=sys.stderr)
    codec = Codec(open_tokenizer(args.tokenizer), overlap=args.overlap)
    if quality is None:
        made, missed = codec.encode(picture, tokens=args.tokens), 0
    else:
        analysis = codec.analyse(picture)
        made, missed = (
            codec.container(analysis.tiling, analysis.ids, analysis.at_quality(quality)),
            analysis.missed(quality).sum(),
        )
    data = pack(made)
    reached = _psnr(picture, codec.decode(made))
    if missed:
        print(
            f"jtok tokenize: {quality:g} dB is out of reach in {missed} of {made.tiling.count} tiles, which take all "
            f"{codec.lengths[-1]} tokens; the image has {reached:.2f} dB",
            file=sys.stderr,
        )
    write_whole(out, data)
    print(f"{out}: {describe(made, len(data))}, PSNR {reached:.2f} dB")
    return 0


def describe(c, size: int) -> str:
    """Size, tokens and bits per pixel of a container of `size` bytes."""
    t, low, high = c.tiling, int(c.counts.min()), int(c.counts.max())
    each = f"{low} each" if low == high else f"{low} to {high} each, {c.counts.mean():.1f} on average"
    pixels = f"{t.width} x {t.height} pixels, {size} bytes, {8 * size / (t.width * t.height):.4f} bits per pixel"
    return f"{pixels}, {c.counts.sum()} tokens in {t.count} tiles ({each})"


def _psnr(image, reconstruction) -> float:
    from jtok.evaluation.metrics.image_quality import psnr

    return float(psnr(image[None] / 255, reconstruction[None] / 255)[0])


COMMAND = Command(
    "tokenize", "Encode an image with as few tokens as its quality needs.", _flags, _run, argument="picture"
)
