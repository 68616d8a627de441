"""What every method in the slot `inputs` must satisfy, over the catalogue, on the small tower."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jtok.evaluation.cost.flops import count
from jtok.methods import catalogue
from jtok.methods.inputs.pixelprune import PixelPrune
from tests.methods import catalogue as c

METHODS = [name for name, facts in c.FACTS.items() if "inputs" in facts.slots]
pytestmark = pytest.mark.usefixtures("highest_precision")


def flat_images() -> jax.Array:
    """Images of which the upper half, and of the first one three quarters, has one colour."""
    images = c.images().at[:, :12].set(0.25)
    return images.at[0, :, :12].set(0.25)


@pytest.fixture(scope="module", params=METHODS)
def case(request):
    """(plan, the tower compiled with it for any image, what that gives)."""
    plan = catalogue.make_plan(request.param, c.CONFIG.target())
    run = jax.jit(lambda x, plan: c.tower()(x, plan))
    with jax.default_matmul_precision("highest"):
        return plan, run, run(flat_images(), plan)


def test_rows_do_not_depend_on_their_batch(case):
    plan, run, out = case
    other = run(flat_images().at[1:].set(c.images()[1:] + 1), plan)
    np.testing.assert_allclose(other.logits[0], out.logits[0], atol=1e-5)
    np.testing.assert_array_equal(other.tokens.owner[0], out.tokens.owner[0])


def test_a_cap_for_the_images_at_hand_changes_nothing(case):
    """Outside of jit the rule sees the pixels first, and takes no more slots than they need."""
    plan, _, out = case
    fitted = c.tower()(flat_images(), plan)
    np.testing.assert_allclose(fitted.logits, out.logits, atol=1e-5)
    live, kept = np.asarray(fitted.tokens.mask()).sum(1), np.asarray(out.tokens.mask()).sum(1)
    np.testing.assert_array_equal(live, kept)
    if plan.adaptive:
        assert fitted.tokens.count < out.tokens.count == 37 and kept.min() < kept.max()


def test_counts_and_cost_are_those_of_what_is_left(case):
    plan, _, out = case
    assert plan.counts(36)[0][0] == "input" and out.tokens.patches == plan.counts(36)[0][2]
    pixels = np.zeros((1, 36, 48), np.float32)
    graphdef, state = nnx.split(c.tower())

    def flops(plan):
        return count(lambda s, x: nnx.merge(graphdef, s)(x, plan).logits, state, c.images()).flops

    assert flops(plan.for_pixels(pixels, (6, 6))) < 0.8 * flops(None)


def test_a_threshold_drops_more_and_scans_agree_on_one_colour():
    noise = jax.random.uniform(jax.random.key(0), (2, 36, 48))
    strict, loose = (np.asarray(PixelPrune(threshold=t).keep(noise, (6, 6))).sum() for t in (0.0, 0.6))
    assert strict == 72 and loose < 72
    for scan in ("pred_2d", "raster", "serpentine"):
        kept = PixelPrune(scan, threshold=0.1).keep(jnp.zeros((1, 36, 48)), (6, 6))
        np.testing.assert_array_equal(np.flatnonzero(kept[0]), [0])
