"""Exported towers: transformers loads them and computes the same; what it would take for another model is refused."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from safetensors.numpy import load_file

from jtok.errors import UserError
from jtok.export.hugging_face import save_tower
from jtok.models.towers.load import load_vit
from jtok.models.towers.vit import ViT, ViTConfig
from tests.models import hf_tiny
from tests.models.towers import assert_close, run

pytestmark = pytest.mark.usefixtures("highest_precision")

TINY = {"image": 32, "patch": 8, "width": 32, "depth": 2, "heads": 4, "mlp": 64}
SIGLIP = {"class_token": False, "head": "map", "act": "gelu_tanh"}
CLIP = {"pre_norm": True, "patch_bias": False, "act": "quick_gelu", "eps": 1e-5, "final_norm": "pooled"}
TRAINED = {
    "vit": {"classes": 5},
    "vit-no classifier": {},
    "deit": {"classes": 5, "distill_token": True, "head": "distill"},
    "clip": CLIP,
    "siglip": SIGLIP,
    "dinov2-registers": {"layer_scale": True, "registers": 4},
    "dinov2-gated": {"layer_scale": True, "mlp_kind": "swiglu", "mlp": 48},
}


def tower(**fields):
    """(config, parameters that hide nothing)."""
    config = ViTConfig(**{**TINY, **fields})
    shapes = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: ViT(config, nnx.Rngs(0))), nnx.Param))
    dice = np.random.default_rng(1)

    def drawn(path, a):  # about what initialisation gives, and nothing is compiled for each shape
        near = 1.0 if "scale" in jax.tree_util.keystr(path) else 0.0
        return jnp.asarray(near + 0.15 * dice.normal(size=a.shape), a.dtype)

    return config, jax.tree_util.tree_map_with_path(drawn, shapes)


@pytest.mark.parametrize("case", TRAINED)
def test_transformers_computes_the_same(case, tmp_path):
    config, params = tower(**TRAINED[case])
    stated = save_tower(tmp_path, config, params)
    kind = getattr(transformers, stated["architectures"][0])
    more = {"add_pooling_layer": False} if stated["architectures"] == ["ViTModel"] else {}
    model, notes = kind.from_pretrained(tmp_path, output_loading_info=True, attn_implementation="eager", **more)
    missing = set(notes["missing_keys"]) - {"embeddings.mask_token"}  # DINOv2's, used in its own training only
    assert not missing and not notes["unexpected_keys"] and not notes["mismatched_keys"]
    pixels = hf_tiny.images(config.image)
    with torch.no_grad():
        theirs = model.eval()(pixels, output_hidden_states=True)
    ours = run(config, params, pixels)
    for mine, other in zip(ours.hidden, theirs.hidden_states, strict=True):
        assert_close(mine, other)
    assert_close(ours.logits, theirs.logits) if config.classes else assert_close(ours.tokens.x, theirs[0])
    if config.head == "map" or config.pre_norm:
        assert_close(ours.pooled, theirs.pooler_output)


@pytest.mark.parametrize("case", ["clip", "siglip2", "dinov2_registers", "vit", "deit"])
def test_a_released_checkpoint_comes_out_as_it_came_in(case, tmp_path):
    theirs, mine = tmp_path / "theirs", tmp_path / "mine"
    hf_tiny.build(case).save_pretrained(theirs)
    mine.mkdir()
    save_tower(mine, *load_vit(theirs))
    before, after = (load_file(path / "model.safetensors") for path in (theirs, mine))
    before.pop("embeddings.mask_token", None)
    assert before.keys() == after.keys()
    for name, a in before.items():
        np.testing.assert_array_equal(a, after[name], err_msg=name)
    stated = [json.loads((path / "config.json").read_text()) for path in (theirs, mine)]
    assert {name: stated[0].get(name) for name in stated[1] if "label" not in name} == {
        name: value for name, value in stated[1].items() if "label" not in name
    }


@pytest.mark.parametrize(
    "fields", [{"classes": 5}, {"head": "mean", "final_norm": "pooled", "classes": 5}, SIGLIP, {"layer_scale": True}]
)
def test_timm_names(fields, tmp_path):
    config, params = tower(**fields)
    save_tower(tmp_path, config, params, "timm")
    assert "blocks.1.attn.qkv.weight" in load_file(tmp_path / "model.safetensors")
    told = {name: getattr(config, name) for name in ("heads", "act", "eps", "final_norm")}
    found, same = load_vit(tmp_path, fields=told)
    assert dataclasses.replace(found, antialias=config.antialias) == config
    jax.tree.map(np.testing.assert_array_equal, params, same)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"head": "mean", "classes": 5}, "head mean would be class"),
        ({"layer_scale": True, "classes": 5}, "classifier on DINOv2 reads other features"),
        ({**CLIP, "classes": 5}, "no place for head.bias, head.kernel"),
        ({"class_position": False}, "position"),
    ],
)
def test_what_transformers_has_not_is_refused(fields, said, tmp_path):
    with pytest.raises(UserError, match=said):
        save_tower(tmp_path, *tower(**fields))
