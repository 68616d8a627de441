"""jtok's own files, and every way in which a checkpoint can be bad."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from jtok.errors import UserError
from jtok.models.towers.load import load_params, load_vit, save_params
from jtok.models.towers.vit import ViT, ViTConfig
from tests.models import hf_tiny
from tests.models.towers import assert_same

CONFIG = ViTConfig(image=32, patch=8, width=16, depth=2, heads=2, mlp=32, classes=3, registers=2)


@pytest.fixture(scope="module")
def params():
    """Random parameters of a small tower."""
    shapes = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: ViT(CONFIG, nnx.Rngs(0))), nnx.Param))
    draw = np.random.default_rng(0)
    return jax.tree.map(lambda a: jnp.asarray(draw.normal(size=a.shape), a.dtype), shapes)


@pytest.fixture
def own(tmp_path, params):
    """A file in jtok's own format."""
    save_params(tmp_path / "tower.safetensors", params, CONFIG, {"accuracy": "0.5"})
    return tmp_path / "tower.safetensors"


@pytest.fixture
def clip(tmp_path):
    """A Hugging Face directory."""
    hf_tiny.build("clip").save_pretrained(tmp_path)
    return tmp_path


def edited(path, change):
    """The file with its dict of tensors changed, metadata kept."""
    with safe_open(path, "np") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata)
    return path


def sentence(call) -> str:
    """The one-line message that the user gets."""
    with pytest.raises(UserError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and text.endswith((".", "?"))
    return text


def test_round_trip(own, params):
    config, same = load_vit(own)
    assert config == CONFIG
    assert_same(same, params)
    assert_same(load_params(own, CONFIG, params), params)
    with safe_open(own, "np") as file:
        assert file.metadata()["accuracy"] == "0.5" and "blocks.attention.qkv.kernel" in file.keys()
    assert [p.name for p in own.parent.iterdir()] == [own.name]


def test_bfloat16_storage_halves_the_file_and_loads_as_float32(own, params):
    half = own.with_name("half.safetensors")
    save_params(half, params, CONFIG, storage="bfloat16")
    assert half.stat().st_size < 0.7 * own.stat().st_size
    _, loaded = load_vit(half)
    assert_same(loaded, jax.tree.map(lambda a: a.astype(jnp.bfloat16).astype(jnp.float32), params))


def test_activation_dtype_and_fields(own):
    config, params = load_vit(own, dtype="bfloat16", fields={"remat": True})
    assert (config.dtype, config.remat) == ("bfloat16", True)
    assert {a.dtype for a in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_a_tower_without_classifier_takes_a_file_with_one(own, params):
    bare = {name: tree for name, tree in params.items() if name != "head"}
    assert_same(load_params(own, dataclasses.replace(CONFIG, classes=0), bare), bare)


def test_a_failed_write_leaves_the_old_file(own, params, monkeypatch):
    before = own.read_bytes()

    def dies(tensors, filename, metadata):
        filename.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.numpy.save_file", dies)
    with pytest.raises(OSError, match="disk full"):
        save_params(own, params, CONFIG)
    assert own.read_bytes() == before and len(list(own.parent.iterdir())) == 1


def test_all_unknown_and_missing_tensors_in_one_sentence(clip):
    def change(tensors):
        tensors["a.stranger"] = tensors.pop("encoder.layers.1.self_attn.k_proj.bias")
        tensors["encoder.layers.1.q_norm.weight"] = tensors.pop("embeddings.position_embedding.weight")

    text = sentence(lambda: load_vit(edited(clip / "model.safetensors", change)))
    for name in ("layers.1.self_attn.k_proj.bias", "embeddings.position_embedding.weight"):
        assert name in text.split("it has unknown")[0]
    for name in ("a.stranger", "encoder.layers.1.q_norm.weight"):
        assert name in text.split("it has unknown")[1]
    assert text.count("self_attn") == 1


def test_missing_and_unknown_in_an_own_file(own):
    def change(tensors):
        tensors["blocks.strange"] = tensors.pop("blocks.mlp.up.bias")
        del tensors["norm.scale"]

    text = sentence(lambda: load_vit(edited(own, change)))
    assert "lacks blocks.mlp.up.bias, norm.scale" in text and "unknown blocks.strange" in text


def test_a_layer_too_many(clip):
    stated = json.loads((clip / "config.json").read_text())
    (clip / "config.json").write_text(json.dumps({**stated, "num_hidden_layers": 1}))
    text = sentence(lambda: load_vit(clip))
    assert "encoder.layers.1.mlp.fc1.weight" in text and "layers.0" not in text


@pytest.mark.parametrize("kind", ["own", "clip"])
def test_wrong_shape_names_the_tensor_and_both_shapes(kind, request, params):
    path = request.getfixturevalue(kind)
    name, shape, needed = {
        "own": ("blocks.mlp.up.kernel", [2, 16, 31], [2, 16, 32]),
        "clip": ("encoder.layers.1.mlp.fc2.weight", [32, 63], [32, 64]),
    }[kind]
    file = path if path.is_file() else path / "model.safetensors"
    edited(file, lambda tensors: tensors.update({name: np.zeros(shape, np.float32)}))
    text = sentence(lambda: load_vit(path))
    assert name in text and str(shape) in text and str(needed) in text


def test_other_number_of_classes(own, params):
    wider = {**params, "head": {"kernel": jnp.zeros((16, 7)), "bias": jnp.zeros(7)}}
    text = sentence(lambda: load_params(own, dataclasses.replace(CONFIG, classes=7), wider))
    assert "tensor head.bias of" in text and "shape [3], the model needs [7]" in text


def test_transposed_square_weights_would_not_pass_for_right(clip):
    """Square kernels have one shape either way: the parity tests, not shapes, guard them."""
    _, params = load_vit(clip)
    kernel = load_file(clip / "model.safetensors")["encoder.layers.1.self_attn.k_proj.weight"]
    np.testing.assert_array_equal(params["blocks"]["attention"]["qkv"]["kernel"][1, :, 1].reshape(32, 32), kernel.T)


def test_a_checkpoint_with_other_settings(own, params):
    text = sentence(lambda: load_params(own, dataclasses.replace(CONFIG, act="quick_gelu"), params))
    assert "act gelu" in text and "quick_gelu" in text


def test_nothing_there(tmp_path):
    assert "there is no checkpoint" in sentence(lambda: load_vit(tmp_path / "nothing"))


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_truncated_file(own, size):
    own.write_bytes(own.read_bytes()[:size])
    assert "not a whole safetensors file" in sentence(lambda: load_vit(own))


def test_foreign_file(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"PK\x03\x04" + bytes(500))
    assert "not a whole safetensors file" in sentence(lambda: load_vit(tmp_path / "x.safetensors"))


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt"])
def test_pickles_are_refused_unread(tmp_path, suffix):
    (tmp_path / f"weights{suffix}").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    assert "pickle" in sentence(lambda: load_vit(tmp_path / f"weights{suffix}"))
    assert "pickle" in sentence(lambda: load_vit(tmp_path))


def test_empty_directory(tmp_path):
    assert "no safetensors file" in sentence(lambda: load_vit(tmp_path))


def test_missing_shard(tmp_path):
    hf_tiny.build("vit").save_pretrained(tmp_path, max_shard_size="30KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.unlink()
    assert shard.name in sentence(lambda: load_vit(tmp_path))


def test_broken_index_and_config(clip):
    (clip / "config.json").write_text("{")
    assert "config.json" in sentence(lambda: load_vit(clip))
    (clip / "model.safetensors.index.json").write_text("[]")
    assert "index.json" in sentence(lambda: load_vit(clip))
    (clip / "model.safetensors.index.json").write_text("{}")
    assert "weight_map" in sentence(lambda: load_vit(clip))


def test_another_kind_of_model(clip, tmp_path):
    stated = json.loads((clip / "config.json").read_text())
    (clip / "config.json").write_text(json.dumps({**stated, "model_type": "resnet"}))
    assert "resnet" in sentence(lambda: load_vit(clip))
    (clip / "config.json").write_text(json.dumps({**stated, "hidden_act": "relu"}))
    assert "relu" in sentence(lambda: load_vit(clip))
    save_file({"wte.weight": np.zeros((4, 4), np.float32)}, tmp_path / "gpt.safetensors")
    assert "wte.weight" in sentence(lambda: load_vit(tmp_path / "gpt.safetensors"))


def test_image_that_patches_do_not_divide(own):
    assert "no multiple of patch 8" in sentence(lambda: load_vit(own, image=36))


def test_unknown_field(own):
    assert "did you mean heads" in sentence(lambda: load_vit(own, fields={"haeds": 2}))


def test_a_config_of_another_version(own, params):
    save_params(own, params, CONFIG, {"jtok.vit": '{"wings": 2}'})
    assert "wings" in sentence(lambda: load_vit(own))
