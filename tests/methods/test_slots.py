"""Properties of what a plan holds besides reducers, for every method of the catalogue that fills such a slot.

One tiny LLaVA-1.5 with random weights reads three prompts of different length and writes four tokens after each, once
compiled for each method; a method that is new in the catalogue is covered without being named here.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jtok import kernels
from jtok.cache import new_cache
from jtok.evaluation.cost.flops import FlopCount, count_jaxpr
from jtok.layers.projector import ProjectorConfig
from jtok.methods import catalogue
from jtok.models.decoder.decoder import DecoderConfig
from jtok.models.decoder.generate import State, answering, decode_block
from jtok.models.decoder.sampling import Sampling
from jtok.models.towers.vit import ViTConfig
from jtok.models.vlm.arrange import Inputs, arrange
from jtok.models.vlm.network import VLMConfig
from jtok.models.vlm.processing import Prompt, Span, VisualInput, pad_batch
from jtok.plan import Plan
from jtok.slots import Attending, CacheStep
from jtok.tokens import from_features

pytestmark = pytest.mark.usefixtures("highest_precision")
SLOTS = ("attention", "cache", "decoding")
METHODS = [name for name in catalogue.methods() if set(SLOTS) & set(catalogue.facts(name).slots)]
#: Where the defaults are for models that are large: thresholds that a tiny one reaches.
OPTIONS = {"var-attention-sink": {"tau": 2.4, "rho": 1.0, "summ": 0.0}}
GRID, IMAGE, SIDE, STEPS = (3, 3), 60, 12, 4
CONFIG = VLMConfig(
    family="llava",
    tower=ViTConfig(image=SIDE, patch=4, width=16, depth=1, heads=2, mlp=24, classes=0),
    projector=ProjectorConfig(inputs=16, width=24),
    language=DecoderConfig(vocabulary=64, width=24, depth=4, heads=4, kv_heads=2, head_dim=6, mlp=32),
    image_token=IMAGE,
)


def prompt(before: int, after: int, seed: int) -> Prompt:
    """Text, an image of random pixels, text."""
    g = np.random.default_rng(seed)
    pixels = g.standard_normal((1, 3, SIDE, SIDE), dtype=np.float32)
    image = VisualInput("image", pixels, (SIDE, SIDE), (Span("image", GRID, GRID),), 9)
    ids = np.concatenate([g.integers(1, 50, before), np.full(9, IMAGE), g.integers(1, 50, after)]).astype(np.int32)
    return Prompt(ids, (image,), (before,), np.arange(len(ids), dtype=np.int32))


PROMPTS = [prompt(3, 5, 0), prompt(6, 9, 1), prompt(4, 2, 2), prompt(2, 8, 3)]
KEYS = jax.random.split(jax.random.key(0), 3)


def inputs(rows: tuple[int, int, int] = (0, 1, 2)) -> Inputs:
    """A batch of three prompts; text is padded to the same length in any."""
    return arrange(pad_batch([PROMPTS[row] for row in rows], 0), GRID, step=16)


@functools.cache
def network():
    """(graphdef, state) of the model."""
    return nnx.split(CONFIG.network(nnx.Rngs(0)))


network()  # made on import: first made inside a trace, it would leak out of it


def answered(plan: Plan, given: Inputs):
    """(logits after the prompt, ids [3,STEPS] of the answer, the last state)."""
    graphdef, state = network()
    model = nnx.merge(graphdef, state)
    reading = model(given, plan, STEPS, KEYS)
    decoder, params = nnx.split(model.language)
    start = State(reading.caches, reading.logits, jnp.zeros(3, bool), KEYS, reading.second)
    ids, last = decode_block(decoder, params, start, STEPS, STEPS, (), Sampling(), answering(plan))
    return reading.logits, ids, last


def made(name: str) -> Plan:
    """The method's plan for the tiny model, a new object at every call."""
    return catalogue.make_plan(name, CONFIG.target(), **OPTIONS.get(name, {}))


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A method's compiled program, its cost, and its output for the first batch."""

    plan: Plan
    run: jax.stages.Compiled
    cost: FlopCount
    out: tuple

    @property
    def bytes(self) -> int:
        return sum(cache.bytes for cache in self.out[2].caches)


@functools.cache
def compiled(name: str) -> Compiled:
    plan = made(name)
    with jax.default_matmul_precision("highest"):
        traced = jax.jit(answered).trace(plan, inputs())
        run = traced.lower().compile()
        return Compiled(plan, run, count_jaxpr(traced.jaxpr), run(plan, inputs()))


@pytest.fixture(params=METHODS)
def case(request) -> Compiled:
    return compiled(request.param)


def same_row(one, i: int, other, j: int) -> None:
    """Row i of one run's outputs is row j of another's."""
    np.testing.assert_allclose(one[0][i], other[0][j], atol=1e-4)
    np.testing.assert_array_equal(one[1][i], other[1][j])
    np.testing.assert_allclose(one[2].logits[i], other[2].logits[j], atol=1e-4)


def test_it_reads_ragged_prompts_and_answers(case):
    logits, ids, last = case.out
    assert ids.shape == (3, STEPS) and (np.asarray(ids) >= 0).all()
    assert np.isfinite(logits).all() and np.isfinite(last.logits).all()
    lengths = [len(PROMPTS[row].ids) + STEPS for row in range(3)]
    for cache in last.caches:
        np.testing.assert_array_equal(cache.next, lengths)


def test_a_row_does_not_depend_on_its_batch(case):
    """Which has rows of its own random numbers, so that a row stays in its place."""
    other = case.run(case.plan, inputs((0, 3, 3)))
    same_row(other, 0, case.out, 0)
    other = case.run(case.plan, inputs((2, 1, 0)))
    same_row(other, 1, case.out, 1)


def test_padding_is_inert(case):
    given = inputs()
    noise = np.random.default_rng(0).integers(1, 50, given.ids.shape).astype(given.ids.dtype)
    assert not given.valid.all()
    other = case.run(case.plan, dataclasses.replace(given, ids=np.where(given.valid, given.ids, noise)))
    for row in range(3):
        same_row(other, row, case.out, row)


@pytest.mark.parametrize("name", METHODS)
def test_the_plan_hashes_and_is_an_argument_of_compiled_functions(name):
    plan = made(name)
    assert plan == compiled(name).plan and hash(plan) == hash(compiled(name).plan) and plan != Plan()
    again = compiled(name).run(plan, inputs())  # refuses an argument of another structure
    same_row(again, 0, compiled(name).out, 0)


def macs_of_a_token(name: str) -> int:
    """Multiply-adds of one token of an answer, where kernels state what they cost."""
    state = compiled(name).out[2]
    decoder, params = nnx.split(nnx.merge(*network()).language)
    plan = answering(compiled(name).plan)
    step = jax.make_jaxpr(lambda state: decode_block(decoder, params, state, STEPS, STEPS, (), Sampling(), plan))(state)
    return count_jaxpr(step, "cuda").macs


def test_its_cost_is_counted(case):
    """A smaller cache saves in every token; another attention and a second stream cost more."""
    plan, plain = case.plan, compiled("none")
    if plan.attention is not None or (plan.decoding is not None and plan.decoding.contrasts):
        assert case.cost.macs > plain.cost.macs
    elif plan.cache is not None and case.bytes < plain.bytes:
        assert macs_of_a_token(plan.name) < macs_of_a_token("none")
    assert case.cost.flops != plain.cost.flops and not case.cost.uncounted


def test_the_answer_differs_from_that_without_it(case):
    plain = compiled("none").out
    assert np.abs(np.asarray(case.out[2].logits - plain[2].logits)).max() > 1e-4


def attending(shape: tuple[int, int, int, int] = (3, 12, 4, 6)) -> Attending:
    """Random arrays of one layer; the last row is shorter."""
    b, length, heads, width = shape
    x, q, k, v = (
        jax.random.normal(jax.random.key(i), (b, length, *rest))
        for i, rest in enumerate(((24,), (heads, width), (2, width), (2, width)))
    )
    slots = jnp.arange(length)
    valid = slots < jnp.asarray([length, length, length - 3])[:, None]
    visual = jnp.broadcast_to((slots >= 2) & (slots < 7), valid.shape)
    return Attending(x.at[:, 3, 0].set(30), q, k, v, valid, visual, (slots >= 7) & valid)


def alone(plan: Plan):
    """(function, arguments) for every slot that the plan fills, called alone on random arrays."""
    a = attending()
    logits, second = (jax.random.normal(jax.random.key(i), (3, 64)) for i in (8, 9))
    attention = jax.nn.softmax(jax.random.normal(jax.random.key(7), (4, 3, 20)))[..., :12]
    if plan.attention is not None:
        base = {"valid": a.valid, "causal": True}
        yield lambda a: plan.attention(a, lambda v, **m: kernels.attention_scores(a.q, a.k, v, **base, **m).out), a
    if plan.cache is not None:
        place = jnp.broadcast_to(jnp.arange(12)[None, :, None], (3, 12, 1))
        known = {"visual": a.visual, "visuals": 5, "attention": attention[:2]}
        cache = new_cache(jnp.stack([a.k, -a.v]), jnp.stack([a.v, a.k]), place, a.valid, 0, **known)
        yield lambda cache: plan.cache(cache, CacheStep(True, 0, 2)), cache
    if plan.decoding is not None:
        yield lambda pair: plan.decoding(*pair), (logits, second)
        if plan.decoding.contrasts:
            tokens = from_features(jax.random.normal(jax.random.key(6), (3, 12, 24)), (3, 4), 0, a.valid)
            yield lambda given: plan.decoding.second_stream(*given, KEYS), (tokens, attention)


@pytest.mark.parametrize("name", METHODS)
def test_jit_changes_nothing(name):
    for function, argument in alone(made(name)):
        plain, traced = (jax.tree.leaves(f(argument)) for f in (function, jax.jit(function)))
        for one, other in zip(plain, traced, strict=True):
            np.testing.assert_allclose(one, other, atol=2e-5)
