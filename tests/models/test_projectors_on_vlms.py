"""Projectors in a tiny LLaVA: answers, training, and transformers' logits for what is pooled."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from transformers.modeling_outputs import BaseModelOutputWithPooling

from jtok.checkpoints.reducer_files import save_projector
from jtok.errors import UserError
from jtok.methods.reduce import reduce
from jtok.models.decoder.sampling import Sampling
from tests.models import language

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("highest_precision")]

#: Options that make four tokens of 16 patches.
FOUR = {
    "mlp-projector": {},
    "tokenpacker": {"heads": 4},
    "mqt": {"queries": 16, "heads": 4},
    "m3": {"projector": "mlp2x_gelu"},
}


@pytest.mark.parametrize("name", FOUR)
def test_four_tokens_answer(llava, name):
    model = reduce(llava[1], name, tokens=4, **FOUR[name])
    inputs = language.inputs(language.prompts())
    assert model.read(inputs, max_new_tokens=4).sequence.x.shape[1] == inputs.ids.shape[1] + 4
    ids = np.concatenate(
        [block for block, _ in model.answer(model.start(inputs, max_new_tokens=4), 4, sampling=Sampling())], 1
    )
    assert ids.shape == (2, 4) and (ids >= 0).all()


def test_learned_parameters_go_into_the_program_as_arguments(llava, tmp_path):
    model = reduce(llava[1], "tokenpacker", tokens=4, heads=4)
    inputs = language.inputs(language.prompts())
    learned = model.plan.params()
    moved = jax.tree.map(lambda a: a + 0.1, learned)
    programs = model._read._cache_size()
    plans = [model.plan.with_params(params) for params in (learned, moved)]
    got = [model._read(model.params, plan, inputs, 1, None).logits for plan in plans]
    assert model._read._cache_size() == programs + 1 and np.abs(np.asarray(got[0] - got[1])).max() > 1e-3
    save_projector(tmp_path / "packer.safetensors", model.plan.with_params(moved))
    reloaded = reduce(llava[1], "tokenpacker", tokens=4, heads=4, weights=tmp_path / "packer.safetensors")
    jax.tree.map(np.testing.assert_array_equal, reloaded.plan.params(), moved)
    with pytest.raises(UserError, match="nothing to learn"):
        reduce(llava[1], "m3", tokens=4, weights=tmp_path / "packer.safetensors")


@pytest.mark.parametrize("name", ["mlp-projector", "m3"])
def test_pooled_features_in_transformers_give_our_logits(llava, name):
    reference, model = llava
    ours = reduce(model, name, tokens=4).read(language.inputs(language.prompts()), max_new_tokens=1).logits
    for row, one in zip(ours, language.prompts(), strict=True):
        inputs = language.reference(one)
        with torch.no_grad():
            whole = reference.get_image_features(inputs["pixel_values"]).pooler_output[0]
            pooled = torch.nn.functional.avg_pool2d(whole.T.reshape(1, -1, 4, 4), 2).flatten(2)[0].T
            shorter = np.delete(one.ids, np.flatnonzero(one.ids == language.IMAGE)[4:])
            ids = torch.tensor(shorter[None]).long()
            outputs = {"image": BaseModelOutputWithPooling(pooler_output=[pooled])}
            expected = reference(input_ids=ids, attention_mask=torch.ones_like(ids), mm_encoder_outputs=outputs).logits
        np.testing.assert_allclose(row, expected[0, -1].numpy(), rtol=0, atol=1e-4)


def loss_of(model, inputs):
    """(plan -> cross-entropy of the answers' first tokens; the same of a model that is read for an answer)."""
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: model.config.network(nnx.Rngs(0))))

    def cross(logits):
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray([3, 7])).mean()

    def trained(plan):
        return cross(nnx.merge(graphdef, nnx.State(model.params))(inputs, plan, 0).logits)

    return trained, lambda reduced: cross(reduced.read(inputs, max_new_tokens=0).logits)


@pytest.mark.slow
def test_a_drawn_count_trains_as_that_count(llava):
    """The step's key is traced: one program for whatever is drawn."""
    model = reduce(llava[1], "mqt", tokens=4, **FOUR["mqt"])
    trained, read = loss_of(model, language.inputs(language.prompts()))

    def loss(learned, key):
        (plan,) = model.plan.with_params(learned).for_training(key)
        return trained(plan)

    key = jax.random.key(5)
    value, grads = jax.jit(jax.value_and_grad(loss))(model.plan.params(), key)
    for path, g in jax.tree.leaves_with_path(grads):
        assert np.isfinite(g).all() and (np.asarray(g) != 0).any(), jax.tree_util.keystr(path)
    count = int(model.plan.for_training(key)[0].projector_count)
    assert count < 16
    np.testing.assert_allclose(value, read(reduce(llava[1], "mqt", tokens=count, **FOUR["mqt"])), atol=1e-5)


@pytest.mark.slow
def test_a_step_takes_the_mean_over_the_scales(llava):
    model = reduce(llava[1], "m3", tokens=4, scales=(1, 4))
    trained, read = loss_of(model, language.inputs(language.prompts()))
    value = jax.jit(lambda key: sum(map(trained, model.plan.for_training(key))) / 2)(jax.random.key(0))
    alone = [read(reduce(llava[1], "m3", tokens=scale)) for scale in (1, 4)]
    np.testing.assert_allclose(value, np.mean(alone), atol=1e-5)
    assert abs(alone[0] - alone[1]) > 1e-3
