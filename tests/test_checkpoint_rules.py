"""Tables of rules, both ways: what is written under released names is read back, on the host and on devices."""

from __future__ import annotations

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok.checkpoints.match import Format, Part
from jtok.checkpoints.read import read
from jtok.checkpoints.rules import Rule, attention, fused, linear, norm, table
from jtok.checkpoints.safetensor_files import open_weights, write_safetensors
from jtok.checkpoints.write import released
from jtok.errors import UserError

CONFIG = types.SimpleNamespace(patch=2, kernel=(5, 3, 2, 2, 2))
SHAPES = {
    "token": (1, 6), "patch.kernel": (12, 5), "patch.bias": (5,), "video.kernel": (24, 5),
    "smooth.kernel": (3, 2, 4, 5),
    "trunk.blocks.norm.scale": (2, 6), "trunk.blocks.norm.bias": (2, 6), "trunk.blocks.qkv.kernel": (2, 6, 3, 2, 4),
    "trunk.blocks.qkv.bias": (2, 3, 2, 4), "trunk.blocks.out.kernel": (2, 2, 4, 6), "trunk.blocks.out.bias": (2, 6),
    "trunk.blocks.up.kernel": (2, 6, 2, 7), "q.kernel": (6, 4), "kv.kernel": (6, 8), "pixel.kernel": (6, 3),
}  # fmt: skip
TABLE = [
    table("token", "token", ones=1),
    *linear("old_embed embed", "patch", how="patch"),
    *linear("video", "video", how="volume", bias=False),
    *linear("smooth", "smooth", how="conv", bias=False),
    *norm("layer.{}.ln", "trunk.blocks.norm"),
    *attention("layer.{}", "trunk.blocks", "qkv"),
    *fused("layer.{}.gate", "trunk.blocks.up", lambda c: (slice(None), 0), lambda c: 0),
    *fused("layer.{}.value", "trunk.blocks.up", lambda c: (slice(None), 1), lambda c: 1),
    Rule(("in_proj",), "q.kernel", "linear", thirds=(0, 1)),
    Rule(("in_proj",), "kv.kernel", "linear", thirds=(1, 3)),
    *linear("pixel", "pixel", bias=False, ones=2),
]


@pytest.fixture(scope="module")
def params() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {path: rng.standard_normal(shape, np.float32) for path, shape in SHAPES.items()}


def again(path, params, *, on_device: bool = False, **more) -> dict:
    like = {name: jax.ShapeDtypeStruct(a.shape, jnp.float32) for name, a in {**params, **more}.items()}
    return read(open_weights(path), {"": Part(TABLE, CONFIG)}, like, Format(), on_device=on_device)


@pytest.mark.parametrize("on_device", [False, True])
def test_what_is_written_is_read_back(on_device, params, tmp_path):
    tensors = released(params, CONFIG, TABLE)
    write_safetensors(tmp_path / "a.safetensors", tensors, {})
    for path, a in again(tmp_path / "a.safetensors", params, on_device=on_device).items():
        np.testing.assert_array_equal(a, params[path], err_msg=path)


def test_tensors_lie_in_the_file_as_torch_has_them(params):
    tensors = released(params, CONFIG, TABLE)
    shapes = {name: a.shape for name, a in tensors.items() if not name.startswith("layer.1")}
    assert shapes == {
        "token": (1, 1, 6), "old_embed.weight": (5, 3, 2, 2), "old_embed.bias": (5,), "video.weight": (5, 3, 2, 2, 2),
        "smooth.weight": (5, 4, 3, 2), "layer.0.ln.weight": (6,), "layer.0.ln.bias": (6,),
        "layer.0.in_proj_weight": (24, 6), "layer.0.in_proj_bias": (24,), "layer.0.out_proj.weight": (6, 8),
        "layer.0.out_proj.bias": (6,), "layer.0.gate.weight": (7, 6), "layer.0.value.weight": (7, 6),
        "in_proj": (12, 6), "pixel.weight": (3, 6, 1, 1),
    }  # fmt: skip
    patch = params["patch.kernel"].reshape(2, 2, 3, 5)
    assert tensors["old_embed.weight"][4, 2, 1, 0] == patch[1, 0, 2, 4]
    assert tensors["layer.1.out_proj.weight"][5, 7] == params["trunk.blocks.out.kernel"][1, 1, 3, 5]
    assert tensors["layer.1.value.weight"][3, 2] == params["trunk.blocks.up.kernel"][1, 2, 1, 3]
    assert tensors["in_proj"][5, 2] == params["kv.kernel"][2, 1]


def test_all_missing_and_unknown_tensors_are_named_in_one_sentence(params, tmp_path):
    tensors = released(params, CONFIG, TABLE)
    tensors["other"] = tensors.pop("layer.1.gate.weight")
    write_safetensors(tmp_path / "a.safetensors", tensors, {})
    with pytest.raises(UserError, match=r"it lacks layer\.1\.gate\.weight and it has unknown other\.$"):
        again(tmp_path / "a.safetensors", params)


def test_parameters_without_a_rule_are_refused(params, tmp_path):
    extra = {"scale": np.ones(3, np.float32)}
    with pytest.raises(UserError, match="these names have no place for scale"):
        released(params | extra, CONFIG, TABLE)
    write_safetensors(tmp_path / "a.safetensors", released(params, CONFIG, TABLE), {})
    with pytest.raises(UserError, match="have no scale"):
        again(tmp_path / "a.safetensors", params, **extra)
