"""Files with timm's names: the config inferred from tensors, and the same outputs as the model they were made from."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from jtok.errors import UserError
from jtok.models.towers.load import load_vit
from tests.models import hf_tiny
from tests.models.timm_names import timm_tensors
from tests.models.towers import assert_close, assert_same, run

pytestmark = pytest.mark.usefixtures("highest_precision")
HEADS = {"heads": 4}  # 32 channels: no rule gives the number of heads of so small a model


def written(tmp_path, tensors, **config):
    """A directory as the hub has it."""
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, tmp_path / "model.safetensors")
    if config:
        (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize(
    ("case", "family", "fields"),
    [
        ("vit", "vit", {"eps": 1e-12}),
        ("deit", "vit", {"eps": 1e-12}),
        ("dinov2", "vit", {}),
        ("dinov2_registers", "vit", {}),
        ("clip", "clip", {"act": "quick_gelu", "final_norm": "pooled"}),
        ("siglip", "clip", {}),
    ],
)
def test_as_loaded_from_transformers(case, family, fields, tmp_path):
    model = hf_tiny.build(case)
    (tmp_path / "hf").mkdir()
    model.save_pretrained(tmp_path / "hf")
    config, params = load_vit(tmp_path / "hf")
    path = written(tmp_path, timm_tensors(model, family)) / "model.safetensors"
    inferred, same = load_vit(path, fields={**HEADS, **fields})
    assert dataclasses.replace(inferred, antialias=config.antialias) == config
    assert_same(same, params)


def test_swiglu(tmp_path):
    model = hf_tiny.build("dinov2", use_swiglu_ffn=True)
    model.save_pretrained(tmp_path)
    config, params = load_vit(tmp_path)
    tensors = timm_tensors(model, "vit")
    for kind in ("weight", "bias"):
        for i in range(config.depth):
            halves = [tensors.pop(f"blocks.{i}.mlp.{half}_proj.{kind}") for half in ("gate", "up")]
            tensors[f"blocks.{i}.mlp.fc1.{kind}"] = np.concatenate(halves)
            tensors[f"blocks.{i}.mlp.fc2.{kind}"] = tensors.pop(f"blocks.{i}.mlp.down_proj.{kind}")
    inferred, same = load_vit(written(tmp_path, tensors) / "model.safetensors", fields=HEADS)
    assert (inferred.mlp_kind, inferred.mlp) == ("swiglu", config.mlp)
    assert_same(same, params)


def test_table_without_rows_for_special_tokens(tmp_path):
    """timm's `no_embed_class`: the class token's position, if any, is in the token."""
    model = hf_tiny.build("dinov2_registers")
    tensors = timm_tensors(model, "vit")
    tensors["cls_token"] = tensors["cls_token"] + tensors["pos_embed"][:, :1]
    tensors["pos_embed"] = tensors["pos_embed"][:, 1:]
    config, params = load_vit(written(tmp_path, tensors), fields=HEADS)
    assert (config.class_position, config.side, config.special) == (False, 4, 5)
    pixels = hf_tiny.images(70)
    with torch.no_grad():
        theirs = model(pixels)
    ours = run(config, params, pixels)
    assert_close(ours.tokens.x, theirs.last_hidden_state)
    assert_close(ours.pooled, theirs.pooler_output)


def test_mean_of_patches_then_fc_norm(tmp_path):
    model = hf_tiny.build("vit")
    tensors = timm_tensors(model, "vit")
    for kind in ("weight", "bias"):
        tensors[f"fc_norm.{kind}"] = tensors.pop(f"norm.{kind}")
    config, params = load_vit(written(tmp_path, tensors), fields={**HEADS, "eps": 1e-12})
    assert (config.head, config.final_norm, config.classes) == ("mean", "pooled", 10)
    pixels = hf_tiny.images(64)
    with torch.no_grad():
        last = model(pixels, output_hidden_states=True).hidden_states[-1]
        logits = model.classifier(model.vit.layernorm(last[:, 1:].mean(1)))
    assert_close(run(config, params, pixels).logits, logits)


def test_no_class_token(tmp_path):
    tensors = timm_tensors(hf_tiny.build("vit"), "vit")
    del tensors["cls_token"]
    tensors["pos_embed"] = tensors["pos_embed"][:, 1:]
    config, params = load_vit(written(tmp_path, tensors), fields=HEADS)
    assert (config.class_token, config.head, config.special) == (False, "mean", 0)
    ours = run(config, params, hf_tiny.images(64))
    assert ours.tokens.x.shape == (2, 16, 32)
    pooled = torch.from_numpy(np.array(ours.tokens.x)).mean(1)
    logits = pooled @ torch.from_numpy(tensors["head.weight"]).T + torch.from_numpy(tensors["head.bias"])
    assert_close(ours.logits, logits)


def test_heads_and_activation_by_rule(tmp_path):
    tensors = timm_tensors(hf_tiny.build("clip", hidden_size=192, intermediate_size=64), "clip")
    config, _ = load_vit(written(tmp_path, tensors, architecture="vit_tiny_patch14_clip_quickgelu_56"))
    assert (config.heads, config.act, config.eps, config.pre_norm) == (3, "quick_gelu", 1e-5, True)


def test_unknown_number_of_heads(tmp_path):
    path = written(tmp_path, timm_tensors(hf_tiny.build("vit"), "vit"))
    with pytest.raises(UserError, match="number of attention heads"):
        load_vit(path)


def test_table_that_is_no_square(tmp_path):
    tensors = timm_tensors(hf_tiny.build("vit"), "vit")
    tensors["pos_embed"] = tensors["pos_embed"][:, :13]
    with pytest.raises(UserError, match="position table of 13 patches"):
        load_vit(written(tmp_path, tensors), fields=HEADS)
