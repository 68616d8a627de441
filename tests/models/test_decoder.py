"""Decoders loaded from transformers' own files compute what transformers computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from jtok.errors import UserError
from jtok.layers.rotary import Rotary, rotate, rotation
from jtok.models.decoder.decoder import Decoder
from jtok.models.vlm.load_vlm import load_decoder
from tests.models import language

pytestmark = pytest.mark.usefixtures("highest_precision")


def run(config, params, *arrays):
    """The jitted decoder's logits."""
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0))))
    apply = jax.jit(lambda params, *a: nnx.merge(graphdef, nnx.State(params))(*a))
    return np.asarray(apply(params, *(jnp.asarray(a) for a in arrays)))


@pytest.mark.parametrize("name", language.DECODERS)
def test_logits_of_padded_batches(name, tmp_path):
    model = language.decoder(name)
    model.save_pretrained(tmp_path)
    config, params = load_decoder(tmp_path)
    for side in ("left", "right"):
        ids, mask = language.padded(side)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        with torch.no_grad():
            theirs = model(input_ids=ids, attention_mask=mask.long(), position_ids=positions).logits.numpy()
        ours = run(config, params, ids.numpy(), mask.numpy())
        np.testing.assert_allclose(ours[mask.numpy()], theirs[mask.numpy()], rtol=0, atol=1e-4)
    assert np.abs(theirs).max() > 1  # the comparison is not one of zeros


def test_positions_with_gaps(tmp_path):
    model = language.decoder("llama")
    model.save_pretrained(tmp_path)
    config, params = load_decoder(tmp_path)
    ids, mask = language.padded("right", (7, 7))
    positions = torch.tensor([[0, 1, 2, 9, 30, 31, 40], [0, 5, 6, 7, 8, 9, 11]])
    with torch.no_grad():
        theirs = model(input_ids=ids, position_ids=positions).logits.numpy()
    ours = run(config, params, ids.numpy(), mask.numpy(), positions.numpy())
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


def test_multimodal_rotation_is_that_of_transformers():
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen

    sections, dim = (2, 3, 3), 16
    text = {**language.TEXT, "hidden_size": 64}
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(sections)}
    reference = qwen.Qwen2_5_VLRotaryEmbedding(qwen.Qwen2_5_VLTextConfig(**text, rope_parameters=rope))
    generator = np.random.default_rng(0)
    position = generator.integers(0, 50, (3, 2, 6))
    q = generator.standard_normal((2, 6, 4, dim), dtype=np.float32)
    q_torch = torch.tensor(q).transpose(1, 2)
    theirs, _ = qwen.apply_rotary_pos_emb(q_torch, q_torch, *reference(q_torch, torch.tensor(position)))
    turn = rotation(jnp.asarray(position).transpose(1, 2, 0), dim, Rotary(sections=sections))
    np.testing.assert_allclose(rotate(jnp.asarray(q), turn), theirs.transpose(1, 2).numpy(), atol=1e-5)


def test_files_of_older_releases_and_modules_load_alike(tmp_path):
    from safetensors.numpy import load_file, save_file

    language.decoder("qwen2").save_pretrained(tmp_path)
    _, params = load_decoder(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    renamed = {f"language_model.{name}": tensor for name, tensor in tensors.items()}
    renamed["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(6, np.float32)
    save_file(renamed, tmp_path / "model.safetensors")
    reloaded = load_decoder(tmp_path)[1]
    jax.tree.map(np.testing.assert_array_equal, params, reloaded)


def test_shards_load_as_one_file_and_in_the_dtype_asked_for(tmp_path):
    model = language.decoder("llama")
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="60KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    _, one = load_decoder(tmp_path / "one", dtype="bfloat16")
    _, many = load_decoder(tmp_path / "many", dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(one)} == {jnp.bfloat16.dtype}
    jax.tree.map(np.testing.assert_array_equal, one, many)
    next((tmp_path / "many").glob("*-00002-*")).unlink()
    with pytest.raises(UserError, match="lacks model-00002"):
        load_decoder(tmp_path / "many")


def test_all_faulty_names_in_one_sentence(tmp_path):
    from safetensors.numpy import load_file, save_file

    language.decoder("llama").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.2.mlp.up_proj.weight"], tensors["model.norm.weight"]
    tensors["model.layers.9.mlp.up_proj.weight"] = tensors["model.strange"] = np.zeros(3, np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError) as error:
        load_decoder(tmp_path)
    for part in ("layers.2.mlp.up_proj.weight", "norm.weight", "model.layers.9.mlp.up_proj.weight", "model.strange"):
        assert part in str(error.value)


def test_a_tensor_of_the_wrong_shape_is_named(tmp_path):
    from safetensors.numpy import load_file, save_file

    language.decoder("llama").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.1.self_attn.k_proj.weight"] = np.zeros((20, 48), np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"layers.1.self_attn.k_proj.weight.*\[20, 48\].*\[24, 48\]"):
        load_decoder(tmp_path)


def test_other_models_are_refused_before_any_weight(tmp_path):
    transformers.GPT2Config().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="gpt2.*llama"):
        load_decoder(tmp_path)
