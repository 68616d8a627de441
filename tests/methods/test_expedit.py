"""Expedit: clustering in the middle, the full grid at the end."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jtok import UserError, make_plan
from jtok.methods.vit.expedit import Cluster, Reconstruct, reconstruct
from jtok.models.towers.vit import ViT, ViTConfig
from jtok.ops import cluster
from jtok.signals import Signals
from jtok.tokens import from_features

pytestmark = pytest.mark.usefixtures("highest_precision")


soft = jax.jit(cluster.local_soft_k_means, static_argnums=range(1, 6))
rebuild = jax.jit(reconstruct, static_argnums=(3, 5))


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_the_grid_is_restored_at_the_output():
    config = ViTConfig(image=24, patch=4, width=8, depth=3, heads=2, mlp=16)
    model = ViT(config, nnx.Rngs(0))
    plan = make_plan("expedit", config.target(), keep=0.25, nearest=4)
    assert plan.counts(36) == [("tower.block.1.output", 36, 9), ("tower.output", 9, 36)]
    out = jax.jit(lambda images: model(images, plan))(random(2, 24, 24, 3))
    assert out.tokens.x.shape == (2, 37, 8) and np.isfinite(out.tokens.x).all()
    np.testing.assert_array_equal(out.tokens.owner, np.broadcast_to(np.arange(1, 37), (2, 36)))
    np.testing.assert_array_equal(out.tokens.position[0, 1:3], [[0, 0], [0, 1]])
    assert "expedit" not in out.memory


def test_clusters_share_patches_out_and_are_their_means():
    x = random(2, 24, 3)
    centroids, share, real = soft(x, (4, 6), (2, 3), 5, 0.5, 3)
    np.testing.assert_allclose(share.sum(1), 1, atol=1e-6)
    assert real.all()
    mean = jnp.einsum("bmp,bpd->bmd", share, x) / share.sum(-1, keepdims=True)
    np.testing.assert_allclose(centroids, mean, atol=1e-5)
    near = cluster.near_cells((4, 6), (2, 3), 3)
    assert (np.asarray(share)[:, ~near] == 0).all() and (np.asarray(share)[:, near] > 0).all()
    assert not near[0, 5] and near[0, 3]  # the first cell reaches over the second one, not into the third


def test_padding_is_inert_in_the_clusters():
    x, valid = random(1, 24, 3), np.ones((1, 24), bool)
    valid[:, [0, 7]] = False
    junk = jnp.where(valid[..., None], x, 1e3)
    a, b = (soft(y, (4, 6), (2, 3), 3, 0.5, 3, jnp.asarray(valid)) for y in (x, junk))
    np.testing.assert_allclose(a[0], b[0], atol=1e-6)
    assert (np.asarray(b[1])[:, :, [0, 7]] == 0).all()


def test_one_cell_a_patch_and_a_sharp_temperature_give_every_patch_its_own_token():
    x, y = 3 * random(1, 12, 4), random(1, 12, 4, seed=1)
    centroids, _, _ = soft(x, (3, 4), (3, 4), 5, 50.0, 3)
    np.testing.assert_allclose(centroids, x, atol=1e-4)
    for normalize in ("l1", "l2"):
        np.testing.assert_allclose(rebuild(x, centroids, y, 3, 50.0, normalize), y, atol=1e-4)


def test_normalisation_is_by_sum_or_by_euclidean_norm():
    x, clusters = random(1, 10, 3), random(1, 6, 3, seed=1)
    ones = jnp.ones((1, 6, 2))
    np.testing.assert_allclose(rebuild(x, clusters, ones, 4, 0.1, "l1"), 1, atol=1e-6)
    flat = rebuild(x, clusters, ones, 4, 0.0, "l2")  # all distances count alike: ties are kept
    np.testing.assert_allclose(flat, 6**0.5, atol=1e-5)
    nearest, every = (rebuild(x, clusters, ones, k, 0.1, "l2") for k in (2, -1))
    assert (np.asarray(nearest) < np.asarray(every)).all() and np.asarray(nearest).max() <= 2**0.5 + 1e-5


def test_misplaced_reducers_are_refused():
    s = Signals()

    def cluster_first(tokens):
        return Cluster((2, 2))(tokens, s, {})

    tokens = from_features(random(1, 17, 4), (4, 4), 1)
    clustered, memory = jax.eval_shape(cluster_first, tokens)
    with pytest.raises(UserError, match="its first reducer must be placed before"):
        jax.eval_shape(lambda t: Reconstruct(16)(t, s, {}), tokens)
    with pytest.raises(UserError, match="place it before any other reducer"):
        jax.eval_shape(cluster_first, clustered)
    with pytest.raises(UserError, match="made 4 clusters, but 3 are left"):
        jax.eval_shape(lambda t, m: Reconstruct(16)(t.take(jnp.arange(4)[None]), s, m), clustered, memory)
