"""The small adaptive tokenizer that comes with jtok: tiles of photographs."""

from __future__ import annotations

import importlib.resources

from jtok.errors import UserError
from jtok.tokenizers.files import load_tokenizer
from jtok.tokenizers.protocol import ImageTokenizer

#: File of the package that holds it; trained by configs/tokenizer/photos.py.
ASSET = "assets/photos_tokenizer.safetensors"


def open_tokenizer(name: str, base: str | None = None) -> ImageTokenizer:
    """The tokenizer of a file or of a released directory, or the one that comes with jtok ("shipped").

    base: file of its base tokenizer or VAE. Raises UserError where there is none.
    """
    if name != "shipped":
        return load_tokenizer(name, base or None)
    if base:
        raise UserError("the tokenizer that comes with jtok uses no base tokenizer: leave --base out.")
    path = importlib.resources.files("jtok") / ASSET
    if not path.is_file():
        raise UserError("no tokenizer comes with this copy of jtok: add --tokenizer=FILE, as jtok train writes it.")
    return load_tokenizer(str(path))
