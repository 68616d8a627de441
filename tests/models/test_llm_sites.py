"""Sites inside of and after a layer of a language model, against layers computed one by one with dense attention."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jtok.cache import Cache
from jtok.layers.stack import Run
from jtok.models.decoder.decoder import Decoder, DecoderConfig
from jtok.models.decoder.prefill import prefill
from jtok.ops.merge import Matching
from jtok.plan import SLOTS, Plan
from jtok.reducer import Reducer
from jtok.sites import llm_sites
from jtok.slots import LayerRule
from tests.parity.language import prompt

pytestmark = pytest.mark.usefixtures("highest_precision")

CONFIG = DecoderConfig(vocabulary=7, width=16, depth=4, heads=4, kv_heads=2, head_dim=4, mlp=24)
IMAGE, LENGTH, STARTS = 8, 15, (2, 4)
ALL = ("last_token_attention", "peak_attention", "peak_text_attention", "attention_received")


@pytest.fixture(scope="module")
def decoder():
    return Decoder(CONFIG, nnx.Rngs(0))


@dataclasses.dataclass(frozen=True)
class Half(Reducer):
    """Keeps the half with the largest of a signal."""

    by: str = "last_token_attention"

    @property
    def reads(self):
        return (self.by,)

    def count(self, patches):
        return patches // 2

    def __call__(self, tokens, s, memory):
        score = getattr(s, self.by)
        score = score.mean(1) if score.ndim == 3 else score
        index = jnp.sort(jax.lax.top_k(score, tokens.count // 2)[1], 1).astype(jnp.int32)
        return tokens.take(index), {**memory, "kept": index}


@dataclasses.dataclass(frozen=True)
class Watch(Reducer):
    """Remembers what it is given."""

    name: str
    reads: tuple[str, ...] = ALL
    observes = True

    def __call__(self, tokens, s, memory):
        given = {name: getattr(s, name) for name in self.reads} | {"x": tokens.x}
        return tokens, {**memory, self.name: given}


@dataclasses.dataclass(frozen=True)
class Pairs(Reducer):
    """Every second token joins the one before it, by size, and attention is in proportion from then on."""

    def count(self, patches):
        return patches // 2

    def __call__(self, tokens, s, memory):
        rows, half = tokens.x.shape[0], tokens.count // 2
        kept, source = (jnp.broadcast_to(jnp.arange(at, 2 * half, 2), (rows, half)) for at in (0, 1))
        slot = jnp.broadcast_to(jnp.arange(half), (rows, half))
        joined = tokens.join(Matching(kept, source, slot))
        return joined.replace(proportional=True), memory


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).standard_normal((2, LENGTH, CONFIG.width)).astype(np.float32)


def read(decoder, x, plan):
    """(the sequence after the last layer, caches, memory)."""

    @jax.jit
    def run():
        sequence, tokens = prompt(x, STARTS, IMAGE, plan)
        keys = jax.random.split(jax.random.key(0), len(x))
        state = Run(plan, tokens, llm_sites(CONFIG.depth), keys, slots=SLOTS)
        return *prefill(decoder, sequence, state, 0, plan.placed), state.memory

    return run()


def dense(decoder, i, x, position, bias=None):
    """(the residual after attention of layer i, its keys, probabilities [H,L,L]) for one row x [L,D]."""
    layer = decoder.layers.layer(i)
    q, k, v = (a[0] for a in layer.project(x[None], decoder.rope(position[None, :, None])))
    shared = CONFIG.heads // CONFIG.kv_heads
    keys, values = (jnp.repeat(a, shared, 1) for a in (k, v))
    logits = jnp.einsum("qhd,khd->hqk", q, keys) * CONFIG.head_dim**-0.5
    logits = logits if bias is None else logits + bias
    logits = jnp.where(jnp.tril(jnp.ones(logits.shape[1:], bool)), logits, -jnp.inf)
    p = jax.nn.softmax(logits, -1)
    return layer.attended(x[None], jnp.einsum("hqk,khd->qhd", p, values)[None])[0], k, p


def mlp(decoder, i, x):
    return decoder.layers.layer(i).feed_forward(x[None])[0]


def slots_of(row):
    return np.arange(STARTS[row], STARTS[row] + IMAGE)


@pytest.mark.parametrize("reducer", [Half("peak_attention"), Pairs()], ids=["prune", "merge"])
def test_after_a_layer_is_before_the_next(decoder, x, reducer):
    after, before = (read(decoder, x, Plan({f"llm.layer.{site}": reducer})) for site in ("1.output", "2.input"))
    for got, want in zip(jax.tree.leaves(after[:2]), jax.tree.leaves(before[:2]), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-6)
    assert [(cache.layers, cache.slots) for cache in after[1]] == [(2, LENGTH), (2, LENGTH - IMAGE // 2)]


@pytest.mark.parametrize("at", [0, 3])
def test_a_layer_that_prunes_attends_with_all_and_its_mlp_runs_on_the_others(decoder, x, at):
    sequence, caches, memory = read(decoder, x, Plan({f"llm.layer.{at}.after_attention": Half()}))
    few = LENGTH - IMAGE // 2
    slots = np.concatenate([np.full(cache.layers, cache.slots) for cache in caches])
    np.testing.assert_array_equal(slots, [LENGTH if i <= at else few for i in range(CONFIG.depth)])
    for row in range(2):
        h, position, keys = jnp.asarray(x[row]), jnp.arange(LENGTH), []
        for i in range(CONFIG.depth):
            h, k, p = dense(decoder, i, h, position)
            keys.append(k)
            if i == at:
                score = p[:, -1, slots_of(row)].mean(0)
                gone = slots_of(row)[np.argsort(score)[: IMAGE // 2]]
                h, position = np.delete(h, gone, 0), np.delete(position, gone)
            h = mlp(decoder, i, h)
        np.testing.assert_allclose(sequence.x[row], h, atol=1e-5)
        np.testing.assert_array_equal(sequence.position[row, :, 0], position)
        cached = [cache.k[i] for cache in caches for i in range(cache.layers)]
        for got, want in zip(cached, keys, strict=True):
            np.testing.assert_allclose(got[row], want, atol=1e-5)
    assert (np.asarray(memory["kept"]) < IMAGE).all()


@pytest.mark.parametrize("where", ["after_attention", "output"])
def test_observers_change_nothing_and_are_given_signals_of_their_layer(decoder, x, where):
    plain, whole, _ = read(decoder, x, Plan())
    sequence, caches, memory = read(decoder, x, Plan({f"llm.layer.{i}.{where}": Watch(f"{i}") for i in (1, 2)}))
    np.testing.assert_allclose(sequence.x, plain.x, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([cache.k for cache in caches]), whole[0].k, atol=1e-5)
    for row in range(2):
        h, position, image = jnp.asarray(x[row]), jnp.arange(LENGTH), slots_of(row)
        for i in range(3):
            h, _, p = dense(decoder, i, h, position)
            entering, h = h, mlp(decoder, i, h)
            if i == 0:
                continue
            peak, seen = p.max(0), memory[f"{i}"]
            expected = {
                "last_token_attention": p[:, -1, image],
                "peak_attention": peak[image][:, image].mean(0),
                "peak_text_attention": peak[image[-1] + 1 :][:, image].sum(0),
                "attention_received": p.mean(0).sum(0)[image],
                "x": (entering if where == "after_attention" else h)[image],
            }
            for name, want in expected.items():
                np.testing.assert_allclose(seen[name][row], want, atol=1e-5, err_msg=f"{name} of layer {i}")


def test_merged_pairs_count_twice_from_the_next_layer_on(decoder, x):
    sequence, caches, _ = read(decoder, x, Plan({"llm.layer.1.after_attention": Pairs()}))
    assert caches[0].bias is None and caches[1].bias is not None
    for row in range(2):
        h, position, image = jnp.asarray(x[row]), np.arange(LENGTH), slots_of(row)
        bias = None
        for i in range(CONFIG.depth):
            h, _, _ = dense(decoder, i, h, jnp.asarray(position), bias)
            if i == 1:
                merged = h.at[image[::2]].set((h[image[::2]] + h[image[1::2]]) / 2)
                h = np.delete(merged, image[1::2], 0)
                first = position[image[0]]
                position, bias = np.delete(position, image[1::2]), np.zeros(LENGTH - IMAGE // 2, np.float32)
                bias[first : first + IMAGE // 2] = np.log(2)
                position[first : first + IMAGE // 2] = nearest(first)
            h = mlp(decoder, i, h)
        np.testing.assert_allclose(sequence.x[row], h, atol=1e-5)
        np.testing.assert_array_equal(sequence.position[row, :, 0], position)


def nearest(first):
    """Positions of the patches nearest to the centres of pairs; halves go to the even one."""
    return first + np.round(np.arange(0.5, IMAGE, 2)).astype(int)


@dataclasses.dataclass(frozen=True)
class Some(LayerRule):
    """Before a layer the tokens leave that a signal of the layer before puts below its mean."""

    exits: tuple[int, ...]
    reads: tuple[str, ...] = ("last_token_attention",)

    def leave(self, tokens, s, memory, layer):
        score = s.last_token_attention.mean(1)
        return score < score.mean(1, keepdims=True)


def test_a_rule_may_let_some_tokens_leave(decoder, x):
    sequence, caches, _ = read(decoder, x, Plan(layers=Some((2,))))
    assert [cache.slots for cache in caches] == [LENGTH, LENGTH]
    for row in range(2):
        h, position = jnp.asarray(x[row]), jnp.arange(LENGTH)
        for i in range(CONFIG.depth):
            if i == 2:
                score = p[:, -1, slots_of(row)].mean(0)  # noqa: F821  (of layer 1)
                gone = slots_of(row)[np.asarray(score < score.mean())]
                h, position = np.delete(h, gone, 0), np.delete(position, gone)
            h, _, p = dense(decoder, i, h, position)
            h = mlp(decoder, i, h)
        assert 0 < len(gone) < IMAGE
        np.testing.assert_allclose(sequence.x[row][np.asarray(sequence.valid[row])], h, atol=1e-5)
        assert isinstance(caches[1], Cache) and caches[1].valid[row].sum() == LENGTH - len(gone)
