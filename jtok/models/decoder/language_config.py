"""The `DecoderConfig` of a checkpoint's config.json (transformers): Llama, Vicuna, Mistral, Qwen2, Qwen2.5, Gemma."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jtok.errors import UserError
from jtok.layers.activations import activation_named
from jtok.layers.rotary import Rotary
from jtok.models.decoder.decoder import DecoderConfig, Dtype

#: What transformers takes for a field that a config.json leaves out; published nested configs hold differences only.
_LLAMA = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
_GEMMA = {
    **_LLAMA,
    "vocab_size": 256000,
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
}
_QWEN = {**_LLAMA, "vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32}
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "mistral": {**_LLAMA, "intermediate_size": 14336, "num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": _QWEN,
    "gemma": _GEMMA,
}  # fmt: skip


def decoder_config(
    stated: Mapping[str, Any],
    source: object,
    defaults: Mapping[str, Any] | None = None,
    *,
    dtype: Dtype = "float32",
    storage: Dtype = "float32",
    **extra: Any,
) -> DecoderConfig:
    """The config that the fields of a config.json (or its text_config) describe; `extra` are further ones.

    defaults: what is left out of `stated`, where that differs from other models with such a decoder. Raises UserError
    for a model type, an activation or rotary positions that jtok does not have.
    """
    kind = str(stated.get("model_type", ""))
    if kind not in DEFAULTS:
        raise UserError(f"'{source}' has a decoder of type '{kind}': jtok loads {', '.join(DEFAULTS)}.")
    fields = {
        **DEFAULTS[kind],
        **(defaults or {}),
        **{name: value for name, value in stated.items() if value is not None},
    }
    act = fields.get("hidden_activation") or ("gelu_pytorch_tanh" if kind == "gemma" else fields["hidden_act"])
    heads = fields["num_attention_heads"]
    bias = bool(fields.get("attention_bias", False))
    return DecoderConfig(
        **{
            "vocabulary": fields["vocab_size"],
            "width": fields["hidden_size"],
            "depth": fields["num_hidden_layers"],
            "heads": heads,
            "kv_heads": fields.get("num_key_value_heads", heads),
            "head_dim": fields.get("head_dim", fields["hidden_size"] // heads),
            "mlp": fields["intermediate_size"],
            "act": activation_named(act, source),
            "eps": fields["rms_norm_eps"],
            "qkv_bias": bias or kind.startswith("qwen2"),
            "out_bias": bias,
            "mlp_bias": bool(fields.get("mlp_bias", False)),
            "tied": bool(fields["tie_word_embeddings"]),
            "scaled_embedding": kind == "gemma",
            "offset_norm": kind == "gemma",
            "rotary": _rotary(fields, source),
            "window": _window(kind, stated, fields),
            "context": int(fields.get("max_position_embeddings") or 0),
            "dtype": dtype,
            "storage": storage,
            **extra,
        }
    )


def _window(kind: str, stated: Mapping[str, Any], fields: Mapping[str, Any]) -> int:
    """Attention window in tokens, 0 for none. In Mistral's config a window of null means none."""
    if kind == "mistral":
        return int(stated.get("sliding_window", fields["sliding_window"]) or 0)
    return int(fields.get("sliding_window") or 0) if fields.get("use_sliding_window") else 0


def _rotary(fields: Mapping[str, Any], source: object) -> Rotary:
    # transformers 5 writes rope_parameters; before, theta was a separate field and the rest in rope_scaling
    stated = {**(fields.get("rope_scaling") or {}), **(fields.get("rope_parameters") or {})}
    kind = stated.get("rope_type", stated.get("type", "default"))
    kind = "default" if kind == "mrope" else kind
    if kind not in ("default", "linear", "llama3"):
        raise UserError(f"'{source}' has rotary positions of type '{kind}': jtok has default, linear and llama3.")
    return Rotary(
        theta=float(stated.get("rope_theta", fields["rope_theta"])),
        kind=kind,
        factor=float(stated.get("factor", 1.0)),
        low=float(stated.get("low_freq_factor", 1.0)),
        high=float(stated.get("high_freq_factor", 4.0)),
        context=int(stated.get("original_max_position_embeddings", 8192)),
        sections=tuple(stated.get("mrope_section", fields.get("mrope_section", ()))),
    )
