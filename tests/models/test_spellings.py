"""The same tensors under the names of other releases, of modules in memory, and inside larger models."""

import json
import re

import pytest
from safetensors.numpy import load_file, save_file

from jtok.models.towers.load import load_params, load_vit
from tests.models import hf_tiny
from tests.models.towers import assert_same

CASES = ["clip", "siglip", "siglip2", "dinov2", "dinov2_registers", "vit", "deit"]


@pytest.fixture(params=CASES)
def saved(request, tmp_path):
    """(model, its directory, config, parameters)."""
    model = hf_tiny.build(request.param)
    model.save_pretrained(tmp_path)
    return model, tmp_path, *load_vit(tmp_path)


def renamed(path, rename):
    tensors = load_file(path / "model.safetensors")
    save_file({rename(name): tensor for name, tensor in tensors.items()}, path / "model.safetensors")


def test_names_in_memory(saved):
    model, path, config, params = saved
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    save_file(tensors, path / "model.safetensors")
    assert_same(load_vit(path)[1], params)


@pytest.mark.parametrize("lead", ["vision_model.", "vision_tower.vision_model.", "module.", "model.vision_tower.", ""])
def test_leading_module_names(saved, lead):
    _, path, _, params = saved
    renamed(path, lambda name: lead + re.sub(r"^(vit|deit)\.", "", name) if "classifier" not in name else name)
    assert_same(load_vit(path)[1], params)


def test_shards(saved):
    model, path, _, params = saved
    (path / "model.safetensors").unlink()
    model.save_pretrained(path, max_shard_size="30KB")
    assert len(list(path.glob("*.safetensors"))) > 1 and (path / "model.safetensors.index.json").exists()
    assert_same(load_vit(path)[1], params)


def test_a_file_alone_fits_a_config_given(saved):
    _, path, config, params = saved
    (path / "config.json").unlink()
    assert_same(load_params(path / "model.safetensors", config, params), params)


def test_gated_mlp_in_one_tensor_or_two(tmp_path):
    model = hf_tiny.build("dinov2", use_swiglu_ffn=True)
    model.save_pretrained(tmp_path)
    in_file = load_file(tmp_path / "model.safetensors")
    in_memory = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    assert any("mlp.weights_in" in name for name in in_file) and any("mlp.gate_proj" in name for name in in_memory)
    _, params = load_vit(tmp_path)
    save_file(in_memory, tmp_path / "model.safetensors")
    assert_same(load_vit(tmp_path)[1], params)


def test_vision_side_of_a_clip_model(tmp_path):
    model = hf_tiny.build("clip_full")
    model.save_pretrained(tmp_path / "both")
    model.vision_model.save_pretrained(tmp_path / "vision")
    both, vision = load_vit(tmp_path / "both"), load_vit(tmp_path / "vision")
    assert both[0] == vision[0]
    assert_same(both[1], vision[1])


def test_old_position_buffers_and_text_tensors_are_passed_over(tmp_path):
    hf_tiny.build("clip").save_pretrained(tmp_path)
    _, params = load_vit(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    extra = tensors["embeddings.class_embedding"]
    names = ("vision_model.embeddings.position_ids", "visual_projection.weight", "logit_scale", "text_model.x.weight")
    save_file({**tensors, **{name: extra + i for i, name in enumerate(names)}}, tmp_path / "model.safetensors")
    assert_same(load_vit(tmp_path)[1], params)


def test_nested_config_that_states_differences_only(tmp_path):
    """Published SigLIP configs leave defaults out."""
    hf_tiny.build("siglip").save_pretrained(tmp_path)
    config, _ = load_vit(tmp_path)
    stated = json.loads((tmp_path / "config.json").read_text())
    for name in ("num_channels", "hidden_act", "layer_norm_eps", "vision_use_head"):
        del stated[name]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip", "vision_config": stated}))
    assert load_vit(tmp_path)[0] == config
