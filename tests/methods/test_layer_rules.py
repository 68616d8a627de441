"""Properties of methods that let visual tokens leave the language model, over the whole catalogue, in a tiny LLaVA."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jtok.errors import UserError
from jtok.evaluation.cost.flops import count
from jtok.methods import catalogue
from jtok.methods.reduce import reduce
from jtok.models.vlm.model import VLM
from jtok.reducer import Reducer
from jtok.sites import Site
from tests.methods.catalogue import FACTS
from tests.models import language
from tests.models.vlm_tiny import tiny

pytestmark = pytest.mark.usefixtures("highest_precision")

METHODS = [name for name, facts in FACTS.items() if "layers" in facts.slots]
FREE = 2


@dataclasses.dataclass(frozen=True)
class HideAll(Reducer):
    """Drops nothing and hides every token from what comes after."""

    def __call__(self, tokens, signals, memory):
        return tokens.replace(valid=jnp.zeros_like(tokens.mask())), memory


@pytest.fixture(scope="module")
def full() -> VLM:
    return tiny()


@pytest.fixture(scope="module", params=METHODS)
def case(request, full):
    """(reduced model, inputs of two prompts, what reading them gives)."""
    reduced, inputs = reduce(full, request.param), language.inputs(language.prompts())
    with jax.default_matmul_precision("highest"):
        return reduced, inputs, reduced.read(inputs, max_new_tokens=FREE)


def test_caches_after_an_exit_have_no_slots_for_what_left(case):
    reduced, inputs, reading = case
    exits, text = reduced.plan.layers.exits, inputs.ids.shape[1]
    left = reduced.plan.counts(16)[-1]
    assert left[0] == f"layers.{exits[-1]}"
    assert reading.caches[0].slots == text + 16 + FREE
    last = reading.caches[-1]
    assert last.slots == text + left[2] + FREE and last.layers == reduced.config.language.depth - exits[-1]
    ends = np.asarray(inputs.position)[..., 0].max(1) + 1
    for cache in reading.caches:
        np.testing.assert_array_equal(cache.next, ends)


def test_a_row_does_not_depend_on_its_batch(case):
    reduced, _, reading = case
    for row, one in enumerate(language.prompts()):
        alone = reduced.read(language.inputs([one]), max_new_tokens=FREE)
        np.testing.assert_allclose(alone.logits[0], reading.logits[row], atol=1e-4)


def test_padding_is_inert(case):
    reduced, inputs, reading = case
    other = dataclasses.replace(inputs, ids=np.where(inputs.valid, inputs.ids, 7))
    assert (other.ids != inputs.ids).any()
    np.testing.assert_allclose(reduced.read(other, max_new_tokens=FREE).logits, reading.logits, atol=1e-5)


@pytest.mark.slow
def test_jit_changes_nothing(case):
    reduced, inputs, reading = case
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: reduced.config.network(nnx.Rngs(0))))
    plain = nnx.merge(graphdef, nnx.State(reduced.params))(inputs, reduced.plan, FREE)
    np.testing.assert_allclose(plain.logits, reading.logits, atol=1e-4)


def test_an_exit_is_masking_what_leaves(case, full):
    """Later layers read as they would if every visual token were hidden from them."""
    reduced, inputs, reading = case
    if reduced.plan.counts(16)[-1][2]:
        pytest.skip("some visual tokens stay")
    site = Site("llm", reduced.plan.layers.exits[-1], "input")
    hidden = dataclasses.replace(full, plan=dataclasses.replace(full.plan, sites={site: HideAll()}))
    want = hidden.read(inputs, max_new_tokens=FREE).logits
    np.testing.assert_allclose(reading.logits, want, atol=1e-4)
    assert np.abs(np.asarray(full.read(inputs, max_new_tokens=FREE).logits) - want).max() > 1e-3


def test_an_answer_goes_on(case):
    reduced, inputs, reading = case
    ((ids, state),) = reduced.answer(reduced.start(inputs, max_new_tokens=FREE), FREE, block=FREE)
    np.testing.assert_array_equal(ids[:, 0], np.asarray(reading.logits).argmax(-1))
    assert np.isfinite(state.logits).all()


def test_it_costs_less(case, full):
    reduced, inputs, _ = case
    network = nnx.eval_shape(lambda: full.config.network(nnx.Rngs(0)))

    def macs(plan):
        return count(lambda model: model(inputs, plan, 0).logits, network).gmacs

    assert macs(reduced.plan) < macs(full.plan)


@pytest.mark.parametrize("name", METHODS)
def test_plans_hash_and_say_where_they_act(name, full):
    one, same = (catalogue.make_plan(name, full.config.target()) for _ in range(2))
    assert hash(one) == hash(same) and one == same
    assert "llm" in one.stages and one.counts(16)[-1][0].startswith("layers.")


@pytest.mark.parametrize("name", METHODS)
def test_a_tower_alone_and_two_rules_are_refused(name, full):
    target = full.config.target()
    with pytest.raises(UserError, match="language model"):
        catalogue.make_plan(name, dataclasses.replace(target, layers=0))
    plan = catalogue.make_plan(name, target)
    other = dataclasses.replace(plan, layers=dataclasses.replace(plan.layers, exits=(1, 2)))
    with pytest.raises(UserError, match="layers"):
        _ = plan + other


def test_vtw_where_the_paper_has_it(full):
    target = dataclasses.replace(full.config.target(), layers=32)
    assert catalogue.make_plan("vtw", target).layers.exits == (15,)
    assert catalogue.make_plan("vtw", target, layer=20).counts(16) == [("layers.20", 16, 0)]
    for layer in (0, 32):
        with pytest.raises(UserError, match=f"before layer {layer}: choose 1 to 31"):
            catalogue.make_plan("vtw", target, layer=layer)
