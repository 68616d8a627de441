"""The config of a Llama-3.2-Vision checkpoint, and how its tensors are read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from jtok.checkpoints.match import Part
from jtok.checkpoints.vlm_names import LANGUAGE_NAMES
from jtok.errors import UserError
from jtok.layers.activations import activation_named
from jtok.layers.projector import ProjectorConfig
from jtok.models.decoder.decoder import Dtype
from jtok.models.decoder.language_config import decoder_config
from jtok.models.towers.tiled_config import TiledConfig
from jtok.models.vlm.families.mllama.names import BLOCK_NAMES, CROSS_NAMES, PROJECTOR_NAMES, TOWER_NAMES
from jtok.models.vlm.families.mllama.network import MllamaConfig
from jtok.models.vlm.families.mllama.processing import arrangements

#: What transformers takes for a field that a config.json leaves out.
_TOWER: dict[str, Any] = {
    "hidden_size": 1280,
    "hidden_act": "gelu",
    "num_hidden_layers": 32,
    "num_global_layers": 8,
    "attention_heads": 16,
    "num_channels": 3,
    "intermediate_size": 5120,
    "image_size": 448,
    "patch_size": 14,
    "norm_eps": 1e-5,
    "max_num_tiles": 4,
    "intermediate_layers_indices": (3, 7, 15, 23, 30),
}
_TEXT: dict[str, Any] = {
    "vocab_size": 128256,
    "intermediate_size": 14336,
    "num_hidden_layers": 40,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5e5,
}
_CROSS = (3, 8, 13, 18, 23, 28, 33, 38)
#: Rows of the embedding table after the vocabulary, for the image placeholder's id.
_EXTRA = 8


def mllama_config(path: str | os.PathLike, stated: Mapping[str, Any], dtype: Dtype) -> MllamaConfig:
    """The config of a vision-language model from a config.json of model type `mllama`.

    Raises UserError, one sentence each, for what jtok does not have: activations, other arrangements of tiles than all
    of at most so many, layers that do not exist.
    """
    text = {**(stated.get("text_config") or {}), "model_type": "llama", "tie_word_embeddings": False}
    tower = _tower(path, stated.get("vision_config") or {}, dtype)
    layers = text.get("cross_attention_layers")
    layers = tuple(sorted(_CROSS if layers is None else layers))
    whole = decoder_config(text, path, _TEXT, dtype=dtype, storage=dtype)
    if not layers or len(set(layers)) < len(layers) or not 0 <= layers[0] <= layers[-1] < whole.depth:
        raise UserError(f"'{path}' has cross_attention_layers {list(layers)}: name some of its {whole.depth} layers.")
    language = decoder_config(
        text,
        path,
        _TEXT,
        dtype=dtype,
        storage=dtype,
        depth=whole.depth - len(layers),
        cross=tuple(layer - k for k, layer in enumerate(layers)),
        extra_ids=_EXTRA,
    )
    projector = ProjectorConfig(tower.outputs, language.width, depth=1)
    return MllamaConfig(tower, projector, language, stated.get("image_token_index", 128256))


def _tower(path: str | os.PathLike, stated: Mapping[str, Any], dtype: Dtype) -> TiledConfig:
    fields = {**_TOWER, **{name: value for name, value in stated.items() if value is not None}}
    act = activation_named(fields["hidden_act"], path, "in its tower")
    tiles, local = fields["max_num_tiles"], fields["num_hidden_layers"]
    known = [list(a) for a in arrangements(tiles)]
    if [list(a) for a in fields.get("supported_aspect_ratios", known)] != known:
        raise UserError(f"'{path}' lists supported_aspect_ratios that are not all of at most {tiles} tiles: {known}.")
    taps = tuple(fields["intermediate_layers_indices"])
    if not taps or not all(0 <= tap < local for tap in taps):
        raise UserError(f"'{path}' takes features of tower layers {list(taps)}: name some of its {local} local layers.")
    tower = TiledConfig(
        image=fields["image_size"],
        patch=fields["patch_size"],
        width=fields["hidden_size"],
        local=local,
        deep=fields["num_global_layers"],
        heads=fields["attention_heads"],
        mlp=fields["intermediate_size"],
        channels=fields["num_channels"],
        tiles=tiles,
        aspects=len(known),
        taps=taps,
        act=act,
        eps=fields["norm_eps"],
        dtype=dtype,
    )
    outputs = fields.get("vision_output_dim", tower.outputs)
    if outputs != tower.outputs:
        raise UserError(f"'{path}' states vision_output_dim {outputs}, and its layers give {tower.outputs} features.")
    return tower


def mllama_parts(config: MllamaConfig) -> dict[str, Part]:
    """How the tensors are read. In the files cross-attention layers are numbered among the others."""
    c, language = config.language, {}
    for number in range(c.depth + len(c.cross)):
        crossed = sum(layer < number for layer in config.layers)
        language[number] = ("language.cross", crossed) if number in config.layers else ("language", number - crossed)
    return {
        "tower": Part(TOWER_NAMES, config.tower, config.tower.local),
        "tower.deep": Part(BLOCK_NAMES, config.tower, config.tower.deep),
        "projector": Part(PROJECTOR_NAMES, config.projector),
        "language": Part(LANGUAGE_NAMES, c, c.depth, stacks=language),
        "language.cross": Part(CROSS_NAMES, c, len(c.cross)),
    }
