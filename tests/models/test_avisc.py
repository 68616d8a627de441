"""The decoding slot with AvisC in it, in a tiny LLaVA: the second stream, the answer and a second question."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jtok.errors import UserError
from jtok.methods import catalogue
from jtok.models.vlm.arrange import arrange
from jtok.models.vlm.processing import pad_batch
from jtok.plan import Plan
from jtok.reducer import Reducer
from jtok.slots import CachePolicy
from tests.models import language

pytestmark = pytest.mark.usefixtures("highest_precision")
PROMPTS = [language.prompt(3, 5, 0), language.prompt(6, 9, 1), language.prompt(4, 2, 2)]
TOKENS = 3
ALPHA, BETA = 1.0, 0.05


@dataclasses.dataclass(frozen=True)
class Watch(CachePolicy):
    """Changes nothing; that it reads keeps the attention in the cache."""

    reads = ("last_token_attention",)

    def __call__(self, cache, step):
        return cache


@dataclasses.dataclass(frozen=True, eq=False)
class Masked(Reducer):
    """Zeros in place of the tokens of a mask [rows,N]."""

    mask: np.ndarray

    def __call__(self, tokens, signals, memory):
        return tokens.replace(x=jnp.where(self.mask[..., None], 0, tokens.x)), memory


def inputs(rows=(0, 1, 2), answer=None):
    """Prompts with an answer after them; text is padded to the same length in any batch."""
    longer = []
    for number, row in enumerate(rows):
        one = PROMPTS[row]
        ids = one.ids if answer is None else np.concatenate([one.ids, answer[number]])
        longer.append(dataclasses.replace(one, ids=ids, positions=np.arange(len(ids), dtype=np.int32)))
    return arrange(pad_batch(longer, 0), language.GRID, step=32)


@pytest.fixture(scope="module")
def models(llava):
    """(with AvisC, without, without but with the tokens masked that AvisC masks)."""
    model = llava[1]
    plan = catalogue.make_plan("avisc", model.config.target(), alpha=ALPHA, beta=BETA, lamb=0.3)
    watching = dataclasses.replace(model, plan=Plan(cache=Watch()))
    output = watching.read(inputs(), max_new_tokens=8)
    masked = Plan({"projector": Masked(to_mask(output))})
    return dataclasses.replace(model, plan=plan), watching, dataclasses.replace(model, plan=masked)


def to_mask(output) -> np.ndarray:
    """The tokens [3,16] that are not blind, a row at a time, from the attention that the caches hold."""
    attention = np.concatenate([np.asarray(cache.attention, np.float64) for cache in output.caches])
    slots, masks = np.asarray(output.sequence.slots), []
    for row in range(len(slots)):
        a = attention[:, row, slots[row]]
        portion = a.sum(1) / a.sum()
        order = np.argsort(-portion)
        mean = a[order[: 1 + (np.cumsum(portion[order]) < 0.5).sum()]].mean(0)
        masks.append(mean < mean.mean() + 0.3 * mean.std(ddof=1))
    assert 0 < np.sum(masks) < np.size(masks)
    return np.stack(masks)


def combined(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    out = (1 + ALPHA) * first - ALPHA * second
    return np.where(first < np.log(BETA) + first.max(1, keepdims=True), -np.inf, out)


def answered(model, rows=(0, 1, 2)):
    """(ids [B,TOKENS], the state after them)."""
    state, parts = model.start(inputs(rows), max_new_tokens=8), []
    for ids, state in model.answer(state, TOKENS, block=TOKENS):  # noqa: B007, B020
        parts.append(ids)
    return np.concatenate(parts, 1), state


@pytest.fixture(scope="module")
def answer(models):
    return answered(models[0])


def test_the_second_stream_reads_masked_embeddings(models):
    model, plain, masked = models
    output = model.read(inputs(), max_new_tokens=8)
    second = masked.read(inputs(), max_new_tokens=8).logits
    np.testing.assert_allclose(output.logits, plain.read(inputs(), max_new_tokens=8).logits, atol=1e-4)
    np.testing.assert_allclose(output.second.logits, second, atol=1e-4)
    assert np.abs(second - output.logits).max() > 0.1
    assert all(cache.attention is None for cache in (*output.caches, *output.second.caches))


def test_a_greedy_answer_follows_the_combined_logits(models, answer):
    _, plain, masked = models
    ids, state = answer
    for step in range(TOKENS + 1):
        longer = inputs(answer=ids[:, :step])
        first, second = (np.asarray(m.read(longer, max_new_tokens=8).logits) for m in (plain, masked))
        if step < TOKENS:
            np.testing.assert_array_equal(combined(first, second).argmax(1), ids[:, step])
    np.testing.assert_allclose(state.logits, first, atol=1e-4)
    np.testing.assert_allclose(state.second.logits, second, atol=1e-4)


def test_rows_alone_give_the_same_answer(models, answer):
    ids, state = answer
    for row in range(3):
        twice, alone = answered(models[0], (row, row, row))  # no program of its own
        np.testing.assert_array_equal(twice[0], ids[row])
        np.testing.assert_allclose(alone.logits[0], state.logits[row], atol=1e-4)
        np.testing.assert_allclose(alone.second.logits[0], state.second.logits[row], atol=1e-4)


def test_a_second_question_is_read_by_both_streams(models, answer):
    model, plain, masked = models
    ids, _ = answer
    text = np.random.default_rng(1).integers(5, 90, (3, 4)).astype(np.int32)
    state = model.add(answered(model)[1], text, np.ones((3, 4), bool))
    whole = inputs(answer=np.concatenate([ids, text], 1))
    for ours, reference in ((state, plain), (state.second, masked)):
        np.testing.assert_allclose(ours.logits, reference.read(whole, max_new_tokens=8).logits, atol=1e-4)


@pytest.mark.parametrize("options", [{"scheme": "blur"}, {"beta": 0.0}])
def test_bad_options_are_named(models, options):
    with pytest.raises(UserError, match="avisc"):
        catalogue.make_plan("avisc", models[0].config.target(), **options)


def test_reduction_inside_the_language_model_is_refused(models):
    model = models[0]
    plan = model.plan + catalogue.make_plan("fastv", model.config.target(), 0.5)
    with pytest.raises(UserError, match="avisc.*reduce before"):
        dataclasses.replace(model, plan=plan).read(inputs(), max_new_tokens=8)
