"""GAP: whatever a method leaves, in any order, visual tokens and answers keep their positions."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jtok import make_plan
from jtok.errors import UserError
from jtok.layers.stack import Run
from jtok.models.decoder.decoder import Decoder, DecoderConfig
from jtok.models.decoder.prefill import prefill
from jtok.plan import Plan
from jtok.reducer import Reducer
from jtok.sites import llm_sites
from tests.parity import language

IMAGE, STARTS, LENGTH = 9, (2, 4), 15
TARGET = language.target(IMAGE, 3, 2)
LEFT = (7, 1, 4)  # of nine patches, in an order that a score might give


@dataclasses.dataclass(frozen=True)
class Shuffle(Reducer):
    """Leaves three tokens, not in order; `merge` gives two more tokens to the first and one to the second."""

    merge: bool = False

    def count(self, patches):
        return len(LEFT)

    def __call__(self, tokens, signals, memory):
        rows = tokens.x.shape[0]
        kept = tokens.take(jnp.broadcast_to(jnp.asarray(LEFT, jnp.int32), (rows, 3)))
        if not self.merge:
            return kept, memory
        others = tokens.take(jnp.broadcast_to(jnp.asarray((6, 8, 2), jnp.int32), (rows, 3)))
        return kept.absorb(others, jnp.broadcast_to(jnp.asarray((0, 0, 1), jnp.int32), (rows, 3))), memory


@pytest.fixture(scope="module")
def read():
    """(plan) -> (sequence after the last layer, caches) of a small decoder and two rows of random embeddings."""
    config = DecoderConfig(vocabulary=8, width=16, depth=3, heads=2, kv_heads=2, head_dim=8, mlp=24, tied=True)
    decoder = Decoder(config, nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(2, LENGTH, 16)).astype(np.float32)

    def run(plan: Plan):
        @jax.jit
        def reading():
            sequence, tokens = language.prompt(x, STARTS, IMAGE, plan)
            return prefill(decoder, sequence, Run(plan, tokens, llm_sites(decoder.config.depth)), 2, plan.placed)

        return reading()

    return run


def ids(sequence) -> np.ndarray:
    """Positions in the order of slots, [B,L]."""
    assert np.asarray(sequence.valid).all()
    return np.asarray(sequence.position[..., 0])


def visual(sequence) -> np.ndarray:
    """Positions of the visual tokens in the order of their slots, counted from the image's start."""
    slots = np.sort(np.asarray(sequence.slots), 1)
    return np.take_along_axis(ids(sequence), slots, 1) - np.asarray(STARTS)[:, None]


def test_order_and_ids_are_restored(read):
    out, caches = read(Plan({"llm.layer.1.input": Shuffle()}, positions="restore"))
    np.testing.assert_array_equal(visual(out), [[1, 4, 7]] * 2)
    for row, start in enumerate(STARTS):
        kept = {start + i for i in LEFT}
        want = [i for i in range(LENGTH) if not start <= i < start + IMAGE or i in kept]
        np.testing.assert_array_equal(ids(out)[row], want)
    for cache in caches:  # an answer continues from the length of the whole prompt, in every layer
        np.testing.assert_array_equal(cache.next, [LENGTH, LENGTH])
    assert [cache.slots for cache in caches] == [LENGTH + 2, LENGTH - 6 + 2]


def test_a_merged_token_is_placed_at_its_centre(read):
    out, _ = read(Plan({"llm.input": Shuffle(merge=True)}, positions="restore"))
    np.testing.assert_array_equal(visual(out), [[2, 4, 7]] * 2)  # 1 and 2 (rounded to even), 4, and 6 to 8


def test_the_ablations_restore_either_order_or_ids(read):
    values, _ = read(Plan({"llm.input": Shuffle()}, positions="keep"))
    np.testing.assert_array_equal(visual(values), [list(LEFT)] * 2)
    order, caches = read(Plan({"llm.input": Shuffle()}, positions="order"))
    plain, _ = read(Plan({"llm.input": Shuffle()}, positions="renumber"))
    for some in (order, plain):
        np.testing.assert_array_equal(ids(some), [list(range(LENGTH - 6))] * 2)
    np.testing.assert_array_equal(caches[0].next, [LENGTH - 6] * 2)
    ascending = np.asarray(order.slots)[:, np.argsort(LEFT)]
    assert (np.diff(ascending) > 0).all(), "the tokens lie as in the prompt"
    assert (np.diff(np.asarray(plain.slots)) > 0).all(), "the tokens lie as the method left them"


def test_gap_combines_with_any_method():
    assert make_plan("gap", TARGET).positions == "restore" and not make_plan("gap", TARGET).sites
    assert make_plan("fastv+gap", TARGET, 0.5).sites == make_plan("fastv", TARGET, 0.5).sites
    both = make_plan("pyramiddrop+gap", TARGET, 0.5)
    assert (both.positions, both.name) == ("restore", "pyramiddrop+gap")
    assert both.sites == make_plan("pyramiddrop", TARGET, 0.5).sites
    assert (make_plan("pyramiddrop", TARGET, 0.5) + make_plan("gap", TARGET)).positions == "restore"
    assert make_plan("pyramiddrop", TARGET, 0.5, positions="restore").positions == "restore"
    assert make_plan("fastv", TARGET, 0.5, positions="renumber").positions == "renumber"
    assert make_plan("none", TARGET, positions=None) == Plan()


def test_gap_keeps_what_the_method_keeps(read):
    plans = [make_plan(name, TARGET, tokens=4) for name in ("fastv+gap", "fastv")]
    ours, theirs = (read(plan)[0] for plan in plans)
    np.testing.assert_array_equal(visual(ours), visual(theirs))
    np.testing.assert_allclose(ours.x, theirs.x, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("gap", {"keep": 0.5}, "gap keeps no share of the tokens"),
        ("fastvv+gap", {}, "fastv"),
        ("fastv+gap", {"of": "fastv"}, "fastv\\+gap has no option 'of'"),
        ("fastv+gap", {"topk.stages": 2}, "is for topk, and the methods are fastv, gap"),
        ("gap", {"positions": "kept"}, "keep, renumber, restore, order"),
    ],
)
def test_bad_requests_are_refused_in_one_sentence(name, options, words):
    with pytest.raises(UserError, match=words) as error:
        make_plan(name, TARGET, **options)
    assert "\n" not in str(error.value)


def test_positions_of_two_sites_follow_each_other(read):
    """Renumbered at every site: layers in between see no gaps."""
    plan = make_plan("pyramiddrop", TARGET, blocks=(1, 2), rates=(0.7, 0.35))
    out, caches = jax.tree.map(np.asarray, read(plan))
    np.testing.assert_array_equal([cache.next[0] for cache in caches], [15, 12, 9])
    np.testing.assert_array_equal(ids(out), [list(range(9))] * 2)
