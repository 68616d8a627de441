"""Generation with a cache: the tokens of transformers, independent rows, reduced caches, second questions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jtok.errors import UserError
from jtok.models.decoder.sampling import Sampling, sample
from jtok.models.vlm.processing import Prompt
from jtok.plan import Plan
from tests.models import language
from tests.models.test_vlm import KEPT, Keep

pytestmark = pytest.mark.usefixtures("highest_precision")


def answer(model, prompts, tokens=16, max_new_tokens=16, **options):
    """(ids [B, tokens], the last state)."""
    state, parts = model.start(language.inputs(prompts), max_new_tokens=max_new_tokens), []
    for ids, state in model.answer(state, tokens, **options):  # noqa: B007, B020
        parts.append(ids)
    return np.concatenate(parts, 1), state


def test_greedy_tokens_are_those_of_transformers(llava):
    reference, model = llava
    ours, state = answer(model, language.prompts(), block=5)
    for row, one in enumerate(language.prompts()):
        with torch.no_grad():
            out = reference.generate(**language.reference(one), max_new_tokens=16, do_sample=False)
        np.testing.assert_array_equal(ours[row], out[0, len(one.ids) :].numpy())
    assert len(set(ours.ravel())) > 4  # not one token for ever
    assert not state.done.any()


def test_rows_stop_on_their_own(llava):
    _, model = llava
    free, _ = answer(model, language.prompts())
    stop = int(free[0, 3])
    ends = [int(np.argmax(row == stop)) if stop in row else 15 for row in free]
    assert ends[0] <= 3
    out, state = answer(model, language.prompts(), stops=(stop,))
    for row, end in enumerate(ends):
        np.testing.assert_array_equal(out[row, : end + 1], free[row, : end + 1])
        assert (out[row, end + 1 :] == -1).all()
        written = state.caches[0].valid[row].sum() - len(language.prompts()[row].ids)
        assert written == end + 1


@pytest.mark.parametrize("positions", ["keep", "renumber"])
def test_decoding_after_a_reduction_is_reading_the_longer_prompt(llava, positions):
    """The caches below and above the site hold different numbers of slots, and stay right while they grow."""
    _, model = llava
    model = dataclasses.replace(model, plan=Plan({"llm.layer.2.input": Keep()}, positions=positions))
    prompts = language.prompts()
    out, state = answer(model, prompts, tokens=5, max_new_tokens=9)
    assert [cache.layers for cache in state.caches] == [2, 2]
    assert state.caches[0].slots - state.caches[1].slots == 16 - len(KEPT)
    longer = []
    for row, one in zip(out, prompts, strict=True):
        ids = np.concatenate([one.ids, row])
        longer.append(Prompt(ids, one.visuals, one.offsets, np.arange(len(ids), dtype=np.int32)))
    output = model.read(language.inputs(longer), max_new_tokens=9)
    np.testing.assert_allclose(state.logits, output.logits, rtol=0, atol=1e-4)
    for cache, whole in zip(state.caches, output.caches, strict=True):
        np.testing.assert_array_equal(cache.next, whole.next)
    if positions == "renumber":
        np.testing.assert_array_equal(state.caches[1].next, state.caches[1].valid.sum(1))


def test_a_second_question_on_the_cache_is_reading_the_conversation(llava):
    _, model = llava
    model = dataclasses.replace(model, plan=Plan({"tower.output": Keep()}))
    prompts, lengths = language.prompts(), (4, 2)
    out, state = answer(model, prompts, tokens=3, max_new_tokens=12)
    text = np.zeros((2, 4), np.int32)
    for row, n in enumerate(lengths):
        text[row, :n] = 20 + np.arange(n)
    state = model.add(state, text, np.arange(4) < np.asarray(lengths)[:, None])
    whole = []
    for row, (one, n) in enumerate(zip(prompts, lengths, strict=True)):
        ids = np.concatenate([one.ids, out[row], text[row, :n]])
        whole.append(Prompt(ids, one.visuals, one.offsets, np.arange(len(ids), dtype=np.int32)))
    output = model.read(language.inputs(whole), max_new_tokens=12)
    np.testing.assert_allclose(state.logits, output.logits, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(state.caches[0].next, output.caches[0].next)
    with pytest.raises(UserError, match="5 free slots"):
        next(model.answer(state, 6))
    with pytest.raises(UserError, match="5 free slots"):
        model.add(state, np.zeros((2, 6), np.int32), np.ones((2, 6), bool))


def test_draws_come_from_the_nucleus_and_rows_are_independent():
    p = jnp.asarray([[0.5, 0.3, 0.15, 0.05], [0.05, 0.05, 0.1, 0.8]])
    keys = jax.random.split(jax.random.key(0), 400)

    def draws(sampling):
        return np.asarray(jax.vmap(lambda k: sample(jnp.log(p), jax.random.split(k, 2), sampling))(keys))

    assert (draws(Sampling()) == [0, 3]).all()
    samples = draws(Sampling(1.0, top_p=0.7))
    assert set(samples[:, 0]) == {0, 1} and set(samples[:, 1]) == {3}
    assert abs((samples[:, 0] == 0).mean() - 0.5 / 0.8) < 0.1
    assert set(draws(Sampling(1.0))[:, 0]) == {0, 1, 2, 3}
    two = jax.random.split(jax.random.key(5), 2)
    alone = [sample(jnp.log(p[i : i + 1]), two[i : i + 1], Sampling(1.0))[0] for i in range(2)]
    np.testing.assert_array_equal(sample(jnp.log(p), two, Sampling(1.0)), alone)
    for wrong in ({"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.5}):
        with pytest.raises(UserError):
            Sampling(**wrong)
