"""Presets against transformers' own classes (on torch's meta device: nothing is allocated) and published counts."""

import dataclasses
import math
from pathlib import Path

import jax
import pytest
import torch
import transformers
from flax import nnx

from jtok.checkpoints.safetensor_files import Weights
from jtok.errors import UserError
from jtok.models.towers.infer import config_from_transformers
from jtok.models.towers.presets import PRESETS, make_config, pixel_statistics
from jtok.models.towers.vit import ViT

#: Settings of the published checkpoints that differ from the defaults of transformers' config classes.
_S, _B = (384, 12, 6, 1536), (768, 12, 12, 3072)
_TI, _L, _H, _SO = (192, 12, 3, 768), (1024, 24, 16, 4096), (1280, 32, 16, 5120), (1152, 27, 16, 4304)
PUBLISHED = {
    "vit_ti16": ("ViT", _TI, {"num_labels": 1000}),
    "vit_h14": ("ViT", _H, {"num_labels": 1000, "patch_size": 14}),
    "deit_s16": ("DeiT", _S, {"num_labels": 1000}),
    "clip_b16": ("CLIP", _B, {"patch_size": 16}),
    "clip_l14_336": ("CLIP", _L, {"patch_size": 14, "image_size": 336}),
    "siglip_so400m_14_384": ("Siglip", _SO, {"patch_size": 14, "image_size": 384}),
    "siglip2_b16_naflex": ("Siglip2", _B, {}),
    "dinov2_s14": ("Dinov2", _S, {"image_size": 518}),
    "dinov2_g14": ("Dinov2", (1536, 40, 24, 0), {"image_size": 518, "use_swiglu_ffn": True}),
    "dinov2_b14_registers": ("Dinov2WithRegisters", _B, {"image_size": 518, "patch_size": 14}),
}
_CLASSES = {
    "ViT": ("ViTConfig", "ViTForImageClassification"),
    "DeiT": ("DeiTConfig", "DeiTForImageClassificationWithTeacher"),
    "Dinov2": ("Dinov2Config", "Dinov2Model"),
    "Dinov2WithRegisters": ("Dinov2WithRegistersConfig", "Dinov2WithRegistersModel"),
}


def shapes_of(config):
    return nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: ViT(config, nnx.Rngs(0))), nnx.Param))


def count(tree) -> int:
    return sum(math.prod(a.shape) for a in jax.tree.leaves(tree))


def reference(preset: str):
    """(names and shapes of the published model's tensors, its config as JSON values)."""
    family, (width, depth, heads, mlp), changes = PUBLISHED[preset]
    config_class, model_class = _CLASSES.get(family, (f"{family}VisionConfig", f"{family}VisionModel"))
    sizes = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads, "intermediate_size": mlp}
    if family.startswith("Dinov2"):
        sizes.pop("intermediate_size")
    config = getattr(transformers, config_class)(**sizes, **changes)
    with torch.device("meta"):
        model = getattr(transformers, model_class)(config)
    return {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}, config.to_dict()


@pytest.mark.parametrize("preset", PUBLISHED)
def test_preset_is_the_published_model(preset):
    tensors, stated = reference(preset)
    weights = Weights(Path(preset), tensors, {}, {})
    weights.__dict__["config"] = stated
    config = make_config(preset)
    inferred = config_from_transformers(weights)
    if config.packed:  # its image size says nothing
        inferred = dataclasses.replace(inferred, image=config.image)
    assert dataclasses.replace(inferred, eps=config.eps) == config
    used = {name: shape for name, shape in tensors.items() if "mask_token" not in name}
    assert count(shapes_of(config)) == sum(math.prod(shape) for shape in used.values())


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        ("vit_ti16", 5_717_416),
        ("vit_s16", 22_050_664),
        ("vit_b16", 86_567_656),
        ("vit_l16", 304_326_632),
        ("deit_ti16", 5_910_800),
        ("deit_s16", 22_436_432),
        ("deit_b16", 87_338_192),
        ("dinov2_s14", 22_056_576 - 384),  # without the mask token
        ("dinov2_b14", 86_580_480 - 768),
        ("dinov2_l14", 304_368_640 - 1024),
        ("dinov2_g14", 1_136_480_768 - 1536),
    ],
)
def test_published_parameter_counts(preset, parameters):
    assert count(shapes_of(make_config(preset))) == parameters


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_a_model(preset):
    config = make_config(preset)
    mean, deviation = pixel_statistics(preset)
    assert len(mean) == len(deviation) == config.channels
    assert config.width // config.heads * config.heads == config.width and config.target().depth == config.depth


def test_unknown_preset_and_field():
    with pytest.raises(UserError, match="did you mean vit_b16"):
        make_config("vit_b_16")
    with pytest.raises(UserError, match="did you mean depth"):
        make_config("vit_b16", {"deep": 3})
    with pytest.raises(UserError, match="not a multiple of 5 heads"):
        make_config("vit_b16", {"heads": 5})
    with pytest.raises(UserError, match="no multiple of patch 16: 224 is"):
        make_config("vit_b16", {"image": 225})
