"""How the tensors of a decoder are read from a checkpoint."""

from __future__ import annotations

from jtok.checkpoints.match import Part
from jtok.checkpoints.vlm_names import LANGUAGE_NAMES
from jtok.models.decoder.decoder import DecoderConfig


def language_part(config: DecoderConfig) -> Part:
    """The decoder's part; files of models with tied embeddings may hold the table twice."""
    return Part(LANGUAGE_NAMES, config, config.depth, spare=("head",) if config.tied else ())
