"""Shapes of vision-language models by name, with random parameters: for measuring, where no checkpoint is needed."""

from __future__ import annotations

import difflib
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jtok.errors import UserError
from jtok.layers.projector import ProjectorConfig
from jtok.models.decoder.decoder import DecoderConfig, Dtype
from jtok.models.towers.vit import ViTConfig
from jtok.models.vlm.network import VLMConfig

_CLIP = {"pre_norm": True, "patch_bias": False, "act": "quick_gelu", "eps": 1e-5, "final_norm": "none", "head": "none"}


def _tower(width: int, layers: int, heads: int, image: int = 336) -> dict[str, Any]:
    """CLIP's tower, of which LLaVA takes the features of the last layer but one."""
    return {"image": image, "patch": 14, "width": width, "depth": layers - 1, "heads": heads, "mlp": 4 * width, **_CLIP}


def _llama(width: int, depth: int, heads: int, mlp: int, vocabulary: int = 32064) -> dict[str, Any]:
    sizes = {"width": width, "depth": depth, "heads": heads, "kv_heads": heads, "head_dim": width // heads, "mlp": mlp}
    return {**sizes, "vocabulary": vocabulary, "eps": 1e-5}


#: (tower, decoder) of LLaVA-1.5 (arXiv:2310.03744), and of smaller models of its build. `llava-cpu` has the 576 visual
#: tokens and the depth of the tower; it has half the layers, and a vocabulary in proportion to its width.
PRESETS = {
    "llava-1.5-7b": (_tower(1024, 24, 16), _llama(4096, 32, 32, 11008)),
    "llava-1.5-13b": (_tower(1024, 24, 16), _llama(5120, 40, 40, 13824)),
    "llava-cpu": (_tower(128, 24, 2), _llama(256, 16, 4, 688, 2048)),
    "llava-tiny": (_tower(32, 4, 2, image=56), _llama(48, 4, 4, 96, 128)),
}


def make_vlm_config(preset: str, *, dtype: Dtype = "float32") -> VLMConfig:
    """The config of a preset; `dtype` of the decoder's parameters and of all activations.

    Raises UserError for an unknown preset, naming the nearest ones.
    """
    if preset not in PRESETS:
        near = difflib.get_close_matches(preset, PRESETS, 3, 0.4) or PRESETS
        raise UserError(f"there is no vision-language preset '{preset}'; did you mean {' or '.join(near)}?")
    tower, language = PRESETS[preset]
    return VLMConfig(
        family="llava",
        tower=ViTConfig(**tower, dtype=dtype),
        projector=ProjectorConfig(tower["width"], language["width"]),
        language=DecoderConfig(**language, dtype=dtype, storage=dtype),
        image_token=language["vocabulary"] - 1,
    )


def random_params(config: VLMConfig, seed: int = 0) -> dict[str, Any]:
    """Parameters drawn in their own dtype, layer by layer: beside them there is never more than one layer's array.

    Norms are one, biases zero, all else normal with deviation 0.02.
    """
    like = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: config.network(nnx.Rngs(0))), nnx.Param))
    leaves, tree = jax.tree_util.tree_flatten_with_path(like)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return jax.tree.unflatten(tree, [_draw(p, leaf, k) for (p, leaf), k in zip(leaves, keys, strict=True)])


def _draw(path: tuple, leaf: jax.ShapeDtypeStruct, key: jax.Array) -> jax.Array:
    name = str(path[-1].key)
    if name in ("scale", "bias"):
        return jnp.full(leaf.shape, float(name == "scale"), leaf.dtype)
    return _normal(key, leaf.shape, leaf.dtype)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _normal(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    if len(shape) <= 2:
        return 0.02 * jax.random.normal(key, shape, dtype)
    return jax.lax.map(lambda k: 0.02 * jax.random.normal(k, shape[1:], dtype), jax.random.split(key, shape[0]))
