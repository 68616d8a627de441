"""The small vision-language model that comes with jtok and answers questions about digit scenes."""

from __future__ import annotations

import importlib.resources

from jtok.errors import UserError
from jtok.models.decoder.decoder import Dtype
from jtok.models.vlm.model import VLM, load

#: Directory of the package that holds it, in the layout of a Hugging Face checkpoint.
ASSET = "assets/digit_questions"


def shipped(*, dtype: Dtype = "float32") -> VLM:
    """The model, loaded. Raises UserError if this copy of jtok lacks it."""
    directory = importlib.resources.files("jtok") / ASSET
    if not directory.is_dir():
        raise UserError("no vision-language model comes with this copy of jtok: add --model=DIR, a checkpoint's.")
    return load(str(directory), dtype=dtype)
