"""The attention slot with VAR in it: a tiny decoder against attention matrices written out, prompt and answer."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jtok.errors import UserError
from jtok.layers.stack import Run
from jtok.methods import catalogue
from jtok.models.decoder.append import append
from jtok.models.decoder.decoder import Decoder, DecoderConfig
from jtok.models.decoder.prefill import cuts, prefill
from jtok.plan import SLOTS
from jtok.sites import llm_sites
from jtok.slots import Attending
from jtok.target import Target
from tests.parity import language

pytestmark = pytest.mark.usefixtures("highest_precision")
CONFIG = DecoderConfig(vocabulary=8, width=32, depth=5, heads=4, kv_heads=2, head_dim=8, mlp=48, eps=1e-6)
TARGET = Target(4, (1, 8), 16, layers=5, language_width=32)
STARTS, IMAGE, LENGTHS, LENGTH = (3, 2, 5), 8, (18, 13, 16), 18
STEPS = ((0, 1), (1, 4))  # a token of an answer, then a question of three
FASTV = 3  # the first layer that reads fewer tokens
RULE = {"tau": 3.0, "rho": 0.6, "summ": 0.1, "dims": (5, 9)}
VALID = np.arange(LENGTH) < np.asarray(LENGTHS)[:, None]


@functools.cache
def decoder() -> Decoder:
    return Decoder(CONFIG, nnx.Rngs(0))


@functools.cache
def embedded() -> tuple[np.ndarray, np.ndarray]:
    """(embeddings of prompts with sinks among text and image, embeddings of what follows)."""
    g = np.random.default_rng(0)
    x, answers = g.standard_normal((3, LENGTH, 32), np.float32), g.standard_normal((3, 4, 32), np.float32)
    x[:, 0, 5] = 40
    for row, start in enumerate(STARTS):
        x[row, start + 2, 9] = -40
    x[1, STARTS[1] + 5, 5] = 35
    answers[:, 1, 9] = 40  # would be a sink, had it been in the prompt
    return x, answers


decoder(), embedded()  # made on import: first made inside a trace, they would leak out of it


@functools.cache
def ours(fastv: bool):
    """(sequence after the prompt, outputs of what follows [3,4,D]) as prefill and append give them."""
    plan = catalogue.make_plan("var-attention-sink", TARGET, **RULE)
    if fastv:
        plan = plan + catalogue.make_plan("fastv", TARGET, tokens=5, layer=FASTV)

    @jax.jit
    def read(x, answers):
        sequence, tokens = language.prompt(x, STARTS, IMAGE, plan, valid=VALID)
        run = Run(plan, tokens, llm_sites(CONFIG.depth), jax.random.split(jax.random.key(0), 3), slots=SLOTS)
        sequence, caches = prefill(decoder(), sequence, run, 4, "keep")
        outputs = []
        for start, stop in STEPS:
            present = jnp.ones((3, stop - start), bool)
            y, caches = append(decoder(), caches, answers[:, start:stop], present, plan.attention)
            outputs.append(y)
        return sequence, jnp.concatenate(outputs, 1)

    with jax.default_matmul_precision("highest"):
        return read(*embedded())


def redistributed(a: np.ndarray, sink: np.ndarray, visual: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Attention [H,L,S] after VAR, a query at a time."""
    a = a.copy()
    image_sinks = sink & visual
    for h, q in np.ndindex(a.shape[:2]):
        row = a[h, q]
        image = row[visual].sum()
        if not after[q] or not image_sinks.any() or image < RULE["summ"]:
            continue
        if row[image_sinks].sum() / image > RULE["rho"]:
            continue
        plain = visual & ~sink
        budget = 0.4 * row[sink].sum()
        share = row[plain] / row[plain].sum()
        row[sink] *= 0.6
        row[plain] += budget * share
    return a


@functools.partial(jax.jit, static_argnums=0)
def projected(i: int, x: jax.Array):
    """(queries, keys, values [L,H,Dh]) of layer i for the positions 0, 1, ..."""
    rope = decoder().rope(jnp.arange(x.shape[0])[None, :, None])
    q, k, v = (rows[0] for rows in decoder().layers.layer(i).project(x[None], rope))
    return q, jnp.repeat(k, 2, 1), jnp.repeat(v, 2, 1)


@functools.partial(jax.jit, static_argnums=0)
def finished(i: int, x: jax.Array, y: jax.Array) -> jax.Array:
    """The output [L,D] of layer i, whose attention gives y [L,H,Dh]."""
    return decoder().layers.layer(i).finish(x[None], y[None])[0]


def by_hand(row: int, kept: np.ndarray, rule: bool = True) -> np.ndarray:
    """What enters the final norm [L,D] of one row: its prompt, what follows, and padding.

    Layers from FASTV on read what is `kept` [L].
    """
    prompts, answers = embedded()
    n, image = LENGTHS[row], range(STARTS[row], STARTS[row] + IMAGE)
    x = np.concatenate([prompts[row, :n], answers[row], np.zeros((LENGTH - n, 32), np.float32)])
    slots = np.arange(len(x))
    visual = np.isin(slots, image)
    for i in range(CONFIG.depth):
        q, k, v = (np.asarray(rows, np.float64) for rows in projected(i, x))
        visible = (slots[:, None] >= slots) & (kept if i >= FASTV else True)
        logits = np.where(visible, np.einsum("lhd,shd->hls", q, k) / 8**0.5, -1e30)
        a = np.exp(logits - logits.max(-1, keepdims=True))
        a = a / a.sum(-1, keepdims=True)
        if rule and 2 <= i < CONFIG.depth - 1:
            h = np.asarray(x, np.float64)
            level = np.abs(h[:, [5, 9]]).max(1) / np.sqrt((h**2).mean(1) + 1e-6)
            present = kept if i >= FASTV else np.ones_like(kept)
            sink = (level > RULE["tau"]) & (slots < n) & present
            a = redistributed(a, sink, visual & present, slots >= image.stop)
        x = finished(i, x, np.einsum("hls,shd->lhd", a, v).astype(np.float32))
    return np.asarray(x)


@pytest.mark.parametrize("fastv", [False, True])
def test_prompt_and_answer_equal_explicit_matrices(fastv):
    sequence, after = ours(fastv)
    for row, n in enumerate(LENGTHS):
        real = np.asarray(sequence.valid[row])
        at = np.asarray(sequence.position)[row, real, 0]
        assert len(at) == n - (3 if fastv else 0)
        kept = np.isin(np.arange(LENGTH + 4), [*at, *range(n, n + 4)])
        want, without = by_hand(row, kept), by_hand(row, kept, rule=False)
        np.testing.assert_allclose(sequence.x[row][real], want[at], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(after[row], want[n : n + 4], rtol=1e-4, atol=1e-4)
        changed = np.abs(want - without).max(1) > 1e-2
        end = STARTS[row] + IMAGE
        assert not changed[:end].any() and changed[end:n].any() and changed[n : n + 4].any()


def test_a_new_run_of_layers_begins_where_the_rule_does():
    plan = catalogue.make_plan("var-attention-sink", TARGET, **RULE)
    assert cuts(plan, 5) == [0, 2, 4, 5]


def test_nothing_grows_with_queries_times_keys():
    """A program for many slots holds no array of L x S entries besides the kernel's own tiles."""
    plan = catalogue.make_plan("var-attention-sink", TARGET, **RULE)
    length = 96

    def rule(x, q, k, visual):
        valid = jnp.ones((1, length), bool)
        return plan.attention(Attending(x, q, k, k, valid, visual, ~visual), lambda v: v[:, :, :1] + 0 * q)[0]

    shapes = [jax.ShapeDtypeStruct((1, length, *rest), jnp.float32) for rest in ((32,), (4, 8), (2, 8))]
    jaxpr = jax.make_jaxpr(rule)(*shapes, jax.ShapeDtypeStruct((1, length), bool))
    assert max(v.aval.size for eqn in jaxpr.eqns for v in eqn.outvars) < length * length


@pytest.mark.parametrize(("options", "says"), [({"dims": (32,)}, "0 to 31"), ({"p": 1.5}, "from 0 to 1")])
def test_bad_options_are_named(options, says):
    with pytest.raises(UserError, match=says):
        catalogue.make_plan("var-attention-sink", TARGET, **options)


def test_sink_features_are_those_of_the_model():
    dims = [catalogue.make_plan("var-attention-sink", Target(2, (2, 2), 8, layers=4, language_width=w)).attention.dims
            for w in (4096, 5120, 64)]  # fmt: skip
    assert dims == [(1415, 2533), (2100, 4743), None]
