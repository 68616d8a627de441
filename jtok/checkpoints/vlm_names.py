"""Names of tensors in checkpoints of decoders and vision-language models, in every spelling.

A name is cut into (part, layer, rest): the part it belongs to, the layer's number, and what stands behind, which is
looked up in the part's table. Files, modules and older releases of transformers differ only in what leads.
"""

from __future__ import annotations

import re
from typing import Any

from jtok.checkpoints.names import Rule, split_name

#: A part of a model and the module names by which it is known, anywhere in front.
_PARTS = {
    "tower.deep": re.compile(r"^(?:model\.)?vision_model\.global_transformer\."),
    "tower": re.compile(
        r"^(?:model\.)?(?:vision_tower\.(?:vision_model\.)?|visual\.(?!merger\.mlp\.)|vision_model\.(?:transformer\.)?)"
    ),
    "projector": re.compile(r"^(?:model\.)?(?:multi_modal_projector|visual\.merger\.mlp)\."),
    "newline": re.compile(r"^(?:model\.)?(?=image_newline$)"),
    "language": re.compile(r"^(?:(?:model|language_model|text_model)\.)*"),
}

#: Buffers that older files hold.
IGNORED = re.compile(r"(^|\.)(rotary_emb\.inv_freq|position_ids|masked_bias)$")


def split_part(name: str) -> tuple[str, int | None, str]:
    """(part, layer or None, rest of the name)."""
    for part, lead in _PARTS.items():
        found = lead.match(name)
        if found:
            return part, *split_name(name[found.end() :])
    raise AssertionError("the last part takes any name")


def _heads(c: Any, part: str) -> slice:
    stops = {"q": (0, c.heads), "k": (c.heads, c.heads + c.kv_heads), "v": (c.heads + c.kv_heads, None)}
    return slice(*stops[part])


def _projection(part: str) -> list[Rule]:
    """Query, key or value heads of the fused projection."""
    name = f"self_attn.{part}_proj"
    return [
        Rule((f"{name}.weight",), "blocks.qkv.kernel", "linear", lambda c: (slice(None), _heads(c, part))),
        Rule((f"{name}.bias",), "blocks.qkv.bias", "flat", lambda c: _heads(c, part)),
    ]


def _half(name: str, index: int) -> list[Rule]:
    """Gate or value half of the MLP."""
    return [
        Rule((f"mlp.{name}.weight",), "blocks.up.kernel", "linear", lambda c: (slice(None), index)),
        Rule((f"mlp.{name}.bias",), "blocks.up.bias", "flat", lambda c: index),
    ]


def _linear(names: str, path: str, how: str = "linear") -> list[Rule]:
    spellings = names.split()
    return [
        Rule(tuple(f"{n}.weight" for n in spellings), f"{path}.kernel", how),
        Rule(tuple(f"{n}.bias" for n in spellings), f"{path}.bias", "flat"),
    ]


LANGUAGE_NAMES = [
    Rule(("embed_tokens.weight",), "embedding", "flat"),
    Rule(("input_layernorm.weight",), "blocks.norm1.scale", "flat"),
    *_projection("q"),
    *_projection("k"),
    *_projection("v"),
    *_linear("self_attn.o_proj", "blocks.out", "heads"),
    Rule(("post_attention_layernorm.weight",), "blocks.norm2.scale", "flat"),
    *_half("gate_proj", 0),
    *_half("up_proj", 1),
    *_linear("mlp.down_proj", "blocks.down"),
    Rule(("norm.weight",), "norm.scale", "flat"),
    Rule(("lm_head.weight",), "head", "linear"),
]

#: Projectors: one linear layer (PaliGemma), or two (LLaVA; `0` and `2` in files of the original code).
PROJECTOR_NAMES = [*_linear("linear_1 linear 0", "layers.0"), *_linear("linear_2 2", "layers.1")]

NEWLINE_NAMES = [Rule(("image_newline",), "", "flat")]
