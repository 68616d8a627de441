"""`jtok detokenize`: decodes a .jtok file to an image."""

from __future__ import annotations

from pathlib import Path

from absl import flags as absl_flags

from jtok.commands.tokenize_ import describe, tokenizer_flag
from jtok.errors import UserError
from jtok.flags import Command


def _flags(values: absl_flags.FlagValues) -> None:
    text = "PNG file to write (default: the file's name with _decoded.png)"
    absl_flags.DEFINE_string("out", None, text, short_name="o", flag_values=values)
    absl_flags.DEFINE_integer("tokens", None, "use no more than this many tokens of each tile", flag_values=values)
    tokenizer_flag(values, "shipped")


def _run(args, config) -> int:
    if not args.file:
        raise UserError("there is no file: give it first, such as jtok detokenize photo.jtok.")
    source = Path(args.file)
    out = Path(args.out) if args.out else source.with_name(f"{source.stem}_decoded.png")
    if out.suffix.lower() != ".png":
        raise UserError(f"'{out}' is not the name of a PNG file: give one that ends in .png.")
    from PIL import Image

    from jtok import compile_cache
    from jtok.evaluation.figures.gallery import picture_bytes
    from jtok.tokenizers.codec import Codec
    from jtok.tokenizers.container import unpack
    from jtok.tokenizers.shipped import open_tokenizer
    from jtok.viz.files import write_whole

    compile_cache.enable()
    try:
        data = source.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read '{source}' ({error.strerror}): give a file made by `jtok tokenize`.") from error
    container = unpack(data, args.file)
    codec = Codec(open_tokenizer(args.tokenizer))
    picture = codec.decode(container, tokens=args.tokens, name=args.file)
    write_whole(out, picture_bytes(Image.fromarray(picture)))
    print(f"{out}: from {describe(container, len(data))}")
    return 0


COMMAND = Command("detokenize", "Decode a .jtok file to an image.", _flags, _run, argument="file")
