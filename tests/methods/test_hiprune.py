"""What the golden vectors of HiPrune do not hold: images of several sizes on one padded grid, and bad options."""

import jax.numpy as jnp
import numpy as np
import pytest

from jtok.errors import UserError
from jtok.methods.vlm.hiprune import HiPrune, ObjectLayer, plan
from jtok.signals import Signals
from jtok.target import Target
from jtok.tokens import from_features


def kept(scores: np.ndarray, grid: tuple[int, int], padded: tuple[int, int], repick: bool) -> np.ndarray:
    """Which patches of an image [rows, columns] stay when it lies on a grid of `padded`, [rows, columns]."""
    inside = np.zeros(padded, bool)
    inside[: grid[0], : grid[1]] = True
    laid = np.full((2, *padded), 9.0, np.float32)  # padding that would win if it were read
    laid[:, : grid[0], : grid[1]] = scores
    middle, last = (jnp.asarray(part.reshape(1, -1)) for part in laid)
    t = from_features(jnp.ones((1, inside.size, 2)), padded, 0, jnp.asarray(inside.reshape(1, -1)))
    t, _ = ObjectLayer()(t, Signals(attention_received=middle), {})
    left, _ = HiPrune(8, 1, repick)(t, Signals(attention_received=last), {})
    assert "hiprune" not in left.carry
    return (np.asarray(left.owner) >= 0).reshape(padded)[: grid[0], : grid[1]]


@pytest.mark.parametrize("repick", [False, True])
def test_padding_changes_nothing(repick):
    scores = np.random.default_rng(0).permutation(2 * 3 * 4).reshape(2, 3, 4).astype(np.float32) / 12
    alone = kept(scores, (3, 4), (3, 4), repick)
    np.testing.assert_array_equal(kept(scores, (3, 4), (5, 7), repick), alone)
    assert alone.sum() == 8 or repick


def test_neighbours_wrap_to_the_next_row_and_are_clamped():
    scores = np.full((2, 3, 4), 0.1, np.float32)
    scores[0, 2, 3] = 1  # the last patch: beside it 10 and (clamped) itself, above it 7
    scores[1] = np.arange(12).reshape(3, 4) / 100
    np.testing.assert_array_equal(np.flatnonzero(kept(scores, (3, 4), (3, 4), False)), [4, 5, 6, 7, 8, 9, 10, 11])
    scores[0, 2, 3], scores[0, 1, 0], scores[1] = 0, 1, -scores[1]  # patch 4: beside it 3 (wrapped) and 5, 0 and 8
    np.testing.assert_array_equal(np.flatnonzero(kept(scores, (3, 4), (3, 4), False)), [0, 1, 2, 3, 4, 5, 6, 8])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.5}, "alpha is 1.5"),
        ({"alpha": 1.0, "tokens": 8}, "more than 8 tokens"),
        ({"layer": 11}, "layer 11 .* from 0 to 10"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        plan(Target(12, (6, 6), 8), **options)
