"""Windows and mixtures keep everything that a token set carries, whatever a reducer does with it."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jtok.reducer import Reducer
from jtok.signals import Signals
from jtok.tokens import from_features
from jtok.wrappers import Windowed


@dataclasses.dataclass(frozen=True)
class TakeFirst(Reducer):
    """Keeps the first `keep` tokens and notes what it saw in their carry."""

    keep: int

    def count(self, patches):
        return min(self.keep, patches)

    def __call__(self, tokens, signals, memory):
        tokens = tokens.replace(carry={**tokens.carry, "noted": tokens.x[..., 0]})
        index = jnp.broadcast_to(jnp.arange(self.count(tokens.count), dtype=jnp.int32), (tokens.x.shape[0], self.keep))
        return tokens.take(index), memory


@settings(max_examples=4, deadline=None)  # every shape is compiled anew
@given(st.integers(1, 3), st.integers(1, 2), st.integers(1, 4), st.integers(0, 2))
def test_windows_carry_what_tokens_carry_and_what_a_reducer_writes(rows, columns, keep, special):
    grid = (2 * rows, 2 * columns)
    n = special + grid[0] * grid[1]
    x = jnp.arange(2 * n * 3, dtype=jnp.float32).reshape(2, n, 3)
    tokens = from_features(x, grid, special).replace(carry={"before": x[..., 1], "wide": x[:, :, None]})
    windows = Windowed(TakeFirst(keep), (2, 2))
    out = jax.jit(lambda tokens: windows(tokens, Signals(), {})[0])(tokens)
    assert out.patches == windows.count(grid[0] * grid[1]) == rows * columns * keep
    np.testing.assert_array_equal(out.carry["before"], out.x[..., 1])
    np.testing.assert_array_equal(out.carry["wide"], out.x[:, :, None])
    np.testing.assert_array_equal(out.carry["noted"][:, special:], out.x[:, special:, 0])
    assert (np.asarray(out.carry["noted"])[:, :special] == 0).all()
    owner = np.asarray(out.owner)
    kept = owner >= 0
    np.testing.assert_array_equal(kept.sum(1), [rows * columns * keep] * 2)
    patch = np.take_along_axis(np.asarray(out.x), np.maximum(owner, 0)[..., None], 1)
    np.testing.assert_array_equal(patch[kept], np.asarray(tokens.x)[:, special:][kept])


MIX = jax.jit(lambda tokens, weights: tokens.mix(weights))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_mixture_owns_the_patches_that_it_takes(data):
    n, k = 6, 3
    weights = data.draw(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=k * n, max_size=k * n))
    w = np.asarray(weights, np.float32).reshape(1, k, n)
    tokens = from_features(jax.random.normal(jax.random.key(0), (1, n, 2)), (1, n))
    out = MIX(tokens, jnp.asarray(w))
    expected = np.where(w[0].max(0) > 0, w[0].argmax(0), -1)
    np.testing.assert_array_equal(out.owner[0], expected)
    np.testing.assert_allclose(out.size[0].sum(), (w[0].max(0) > 0).sum(), rtol=1e-5)
