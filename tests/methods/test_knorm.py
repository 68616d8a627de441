"""The cache slot with Knorm in it: what each head keeps, and that the memory of the cache goes down."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok.cache import new_cache
from jtok.errors import UserError
from jtok.methods import catalogue
from jtok.models.decoder.prefill import cuts
from jtok.slots import CacheStep
from jtok.target import Target

TARGET = Target(4, (3, 4), 16, layers=6, language_width=32)
SLOTS = 20
LENGTHS = (20, 9, 13)
PREFILL = CacheStep(True)


def policy(**options):
    return catalogue.make_plan("knorm", TARGET, **options).cache


def cache():
    """Two layers, three rows of different length; padding holds keys that are smaller than any other."""
    k, v = (jax.random.normal(jax.random.key(i), (2, 3, SLOTS, 2, 4)) for i in range(2))
    valid = jnp.arange(SLOTS) < jnp.asarray(LENGTHS)[:, None]
    k = jnp.where(valid[None, :, :, None, None], k, 0)
    position = jnp.broadcast_to(jnp.arange(SLOTS)[None, :, None], (3, SLOTS, 1))
    return new_cache(k, v, position, valid, 0)


@pytest.mark.parametrize(
    ("options", "left", "slots"),
    [
        ({"keep": 0.3}, [6, 2, 3], 6),
        ({"keep": 0.3, "variant": "l2compress", "prune_after": 9}, [6, 3, 4], 8),  # what a row of 8 would keep
        ({"keep": 0.3, "variant": "l2compress", "prune_after": 10}, [6, 9, 4], 9),  # a short row is left alone
    ],
)
def test_every_head_of_every_row_keeps_its_smallest_keys(options, left, slots):
    before = cache()
    after = jax.jit(lambda c: policy(**options)(c, PREFILL))(before)
    assert after.slots == slots
    assert after.bytes == before.bytes * slots // SLOTS
    np.testing.assert_array_equal(after.valid.sum(1), left)
    np.testing.assert_array_equal(after.next, before.next)
    for layer, row, head in np.ndindex(2, 3, 2):
        norms = np.linalg.norm(np.asarray(before.k)[layer, row, : LENGTHS[row], head], axis=-1)
        kept = np.argsort(norms)[: left[row]]
        for name in ("k", "v"):
            got = np.asarray(getattr(after, name))[layer, row, np.asarray(after.valid[row]), head]
            want = np.asarray(getattr(before, name))[layer, row, kept, head]
            order = slice(None) if len(kept) < LENGTHS[row] else np.argsort(np.linalg.norm(got, axis=-1))
            np.testing.assert_array_equal(got[order], want[order])


def test_decoding_steps_change_nothing():
    before = cache()
    assert policy(keep=0.3)(before, CacheStep(False)) is before


def test_skipped_layers_have_their_own_caches():
    plan = catalogue.make_plan("knorm", TARGET, 0.5, variant="l2compress", prune_after=4, skip_layers=[0, 3])
    assert cuts(plan, 6) == [0, 1, 3, 4, 6]
    before = cache()
    for layer, slots in ((0, 20), (1, 10), (3, 20), (4, 10)):
        assert plan.cache(before, CacheStep(True, layer, 6)).slots == slots


@pytest.mark.parametrize(
    ("options", "says"), [({"variant": "press "}, "press or l2compress"), ({"skip_layers": [6]}, "0 to 5")]
)
def test_bad_options_are_named(options, says):
    with pytest.raises(UserError, match=says):
        policy(**{"variant": "l2compress", **options})
