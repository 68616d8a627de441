"""Clustering primitives against plain loops and scikit-learn, and the four methods that merge by them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sklearn.cluster import AgglomerativeClustering, KMeans

from jtok import Target, make_plan
from jtok.methods.vit.atc import ATC
from jtok.methods.vit.dpc_knn import DPCKNN, EqualDPCKNN
from jtok.methods.vit.kmedoids import KMedoids
from jtok.methods.vit.token_pooling import TokenPooling
from jtok.ops import cluster
from jtok.signals import Signals
from jtok.tokens import from_features

pytestmark = pytest.mark.usefixtures("highest_precision")


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def same_partition(a, b):
    pairs = set(zip(a.tolist(), b.tolist(), strict=True))
    return len(pairs) == len({p for p, _ in pairs}) == len({q for _, q in pairs})


def padded(x, extra=4, seed=9):
    """(x padded with junk rows, which rows are real)."""
    junk = 5 * random(x.shape[0], extra, *x.shape[2:], seed=seed)
    valid = np.arange(x.shape[1] + extra) < x.shape[1]
    return np.concatenate([x, junk], 1), np.broadcast_to(valid, (x.shape[0], len(valid)))


@pytest.mark.parametrize("linkage", ["average", "complete", "single"])
def test_agglomeration_equals_scikit_learn(linkage):
    x = random(3, 20, 4)
    distance = cluster.cosine_distances(jnp.asarray(x))
    labels = np.asarray(jax.jit(lambda d: cluster.agglomerate(d, 6, linkage))(distance))
    for d, ours in zip(np.asarray(distance, np.float64), labels, strict=True):
        theirs = AgglomerativeClustering(6, metric="precomputed", linkage=linkage).fit_predict(d)
        assert same_partition(ours, theirs)
        firsts = [ours.tolist().index(group) for group in range(6)]
        assert firsts == sorted(firsts)  # numbered by first member


def test_agglomeration_breaks_ties_by_the_lowest_pair_and_ignores_padding():
    distance = jnp.ones((2, 5, 5))
    valid = jnp.array([[True] * 5, [True, True, False, False, True]])
    labels = np.asarray(jax.jit(lambda d, v: cluster.agglomerate(d, 3, valid=v))(distance, valid))
    assert labels[0].tolist() == [0, 0, 0, 1, 2]
    assert labels[1, [0, 1, 4]].tolist() == [0, 1, 2]  # three real tokens, three groups: nothing merges


def medoids_by_loops(d, start, iterations, weight, update):
    n, medoid = len(d), list(start)
    for _ in range(iterations):
        assign = np.argmin(d[:, medoid], 1)
        for k in range(len(medoid)):
            members = np.flatnonzero(assign == k)
            if update == "official":
                costs = [weight[i] * d[i].sum() if i in members else n * 1e6 for i in range(n)]
                new = int(np.argmin(costs))
            elif len(members):
                new = int(members[np.argmin([(weight[members] * d[i, members]).sum() for i in members])])
            else:
                new = medoid[k]
            medoid[k] = new
    return medoid, np.argmin(d[:, medoid], 1)


@pytest.mark.parametrize("update", ["official", "textbook"])
def test_medoids(update):
    x, weight = random(2, 14, 3), np.abs(random(2, 14, seed=1))
    x[1, 5] = x[1, 2]  # twins: the second one's group is empty
    start = np.array([[0, 3, 7, 9], [2, 5, 8, 11]], np.int32)
    run = jax.jit(lambda d, s, w: cluster.k_medoids(d, s, 3, weight=w, update=update))
    distance = cluster.distances(jnp.asarray(x))
    medoid, assign = run(distance, start, weight)
    for b, d in enumerate(np.asarray(distance)):
        want, groups = medoids_by_loops(d, start[b], 3, weight[b], update)
        assert np.asarray(medoid[b]).tolist() == want
        assert np.asarray(assign[b]).tolist() == groups.tolist()


def test_means_equal_scikit_learn_and_padding_is_inert():
    x, weight = random(2, 18, 3), np.abs(random(2, 18, seed=1)) + 0.1
    start = np.array([[0, 4, 9, 13], [1, 2, 3, 17]], np.int32)
    centres, assign = jax.jit(lambda x, w: cluster.k_means(x, jnp.asarray(start), 4, weight=w))(x, weight)
    for b in range(2):
        model = KMeans(4, init=x[b, start[b]], n_init=1, max_iter=4, tol=0, algorithm="lloyd")
        model.fit(x[b].astype(np.float64), sample_weight=weight[b])
        np.testing.assert_allclose(centres[b], model.cluster_centers_, atol=1e-5)
        assert np.asarray(assign[b]).tolist() == model.predict(x[b].astype(np.float64)).tolist()
    longer, valid = padded(x)
    heavy = np.pad(weight, ((0, 0), (0, 4)), constant_values=50)
    again, groups = jax.jit(lambda x, w, v: cluster.k_means(x, jnp.asarray(start), 4, weight=w, valid=v))(
        longer, heavy, valid
    )
    np.testing.assert_allclose(again, centres, atol=1e-6)
    assert np.array_equal(groups[:, :18], assign)


def test_density_peaks_find_blobs_and_padding_is_inert():
    middle = np.array([[0, 0], [6, 0], [0, 6], [6, 6]], np.float32)
    x = (np.repeat(middle, 5, 0) + 0.3 * random(20, 2))[None]
    run = jax.jit(lambda x, v: cluster.density_peaks(x, 4, 3, valid=v))
    centre, assign = run(x, np.ones((1, 20), bool))
    assert same_partition(np.asarray(assign[0]), np.repeat(np.arange(4), 5))
    longer, valid = padded(x)
    other_centre, other = run(longer, valid)
    assert np.array_equal(other_centre, centre) and np.array_equal(other[:, :20], assign)


def test_density_peaks_of_equal_tokens_take_the_first():
    centre, _ = jax.jit(lambda x: cluster.density_peaks(x, 2))(jnp.ones((1, 6, 2)))
    assert np.asarray(centre).tolist() == [[0, 1]]


def test_spread_by_maximum_takes_the_largest_of_the_largest_distances():
    x = jnp.array([[[0.0], [1.0], [10.0], [8.0], [4.0]]])
    picks = jax.jit(lambda x: cluster.spread_by_maximum(cluster.distances(x), 3, jnp.array([0])))(x)
    assert np.asarray(picks).tolist() == [[0, 2, 1]]  # 1 is 9 away from 10; farthest-first would take 4


def test_pooling_cells_overlap_where_they_do_not_divide():
    assert cluster.pooling_matrix(5, 2).tolist() == [[1, 1, 1, 0, 0], [0, 0, 1, 1, 1]]
    assert cluster.near_cells((4, 1), (4, 1), 3).sum(0).tolist() == [2, 3, 3, 2]


REDUCERS = {
    "kmedoids": KMedoids(5),
    "kmedoids-equal": KMedoids(5, equal_weight=True),
    "dpc-knn": DPCKNN(5, 6, rngs=nnx.Rngs(0)),
    "dpc-knn-equal": EqualDPCKNN(5),
    "atc": ATC(5),
    "token-pooling": TokenPooling(5),
    "token-pooling-medoids": TokenPooling(5, "weighted-kmedoids"),
}


def outcome(reducer, x, valid=None):
    """What a reducer makes of a class token and 12 patches (and padding)."""
    n = x.shape[1]
    tokens = from_features(jnp.asarray(x), (n - 1,), 1, valid)
    s = Signals(
        attention_received=jnp.abs(jnp.sin(tokens.x.sum(-1))),
        keys=tokens.x[:, :, None],
        key=jnp.broadcast_to(jax.random.key(3), (2,)),
    )
    return reducer(tokens, s, {})[0]


@pytest.mark.parametrize("name", REDUCERS)
def test_methods_conserve_patches_and_ignore_padding(name):
    reducer, x = REDUCERS[name], random(2, 13, 6)

    def run(x, valid=None):
        return outcome(reducer, x, valid)

    out = jax.jit(run)(x)
    assert out.count == 1 + reducer.count(12) == 6
    np.testing.assert_array_equal(out.x[:, 0], x[:, 0])
    np.testing.assert_allclose(out.size[:, 1:].sum(-1), 12)
    assert out.owner.min() >= 1 and out.owner.max() <= 5
    held = (np.asarray(out.owner)[:, None] == np.arange(1, 6)[:, None]).sum(-1)
    np.testing.assert_array_equal(held, out.size[:, 1:])
    if name == "kmedoids-equal":
        return  # its first token is drawn by slot, so more slots give another draw
    longer, valid = padded(x)
    again = jax.jit(run)(longer, valid)
    np.testing.assert_allclose(again.x, out.x, atol=1e-5)
    np.testing.assert_array_equal(again.owner[:, :12], out.owner)
    assert (np.asarray(again.owner[:, 12:]) == -1).all()
    np.testing.assert_array_equal(again.size, out.size)


@pytest.mark.parametrize("name", ["dpc-knn", "token-pooling", "kmedoids", "atc"])
def test_fewer_real_tokens_than_groups_leave_empty_slots(name):
    valid = np.arange(13) < np.array([[4], [13]])
    out = jax.jit(lambda x, valid: outcome(REDUCERS[name], x, valid))(random(2, 13, 6), valid)
    assert np.asarray(out.valid).sum(-1).tolist() == [4, 6]
    np.testing.assert_allclose(np.asarray(out.size)[:, 1:].sum(-1), [3, 12])


def test_the_score_of_dpc_knn_learns():
    reducer, x = REDUCERS["dpc-knn"], jnp.asarray(random(2, 13, 6))
    graphdef, state = nnx.split(reducer)
    grads = jax.jit(jax.grad(lambda s: (outcome(nnx.merge(graphdef, s), x).x ** 2).sum()))(state)
    kernel = np.asarray(grads["significance"]["kernel"][...])
    assert np.isfinite(kernel).all() and np.abs(kernel).max() > 1e-3


@pytest.mark.parametrize("name", ["kmedoids", "dpc-knn", "atc", "token-pooling"])
def test_plans_end_at_the_keep_ratio(name):
    target = Target(depth=12, grid=(14, 14), width=8)
    assert make_plan(name, target, keep=0.25).counts(196)[-1][2] == 49
    rates = make_plan(name, target, rates=(0.7, 0.49, 0.343)).counts(196)
    assert [row[2] for row in rates] == [137, 96, 67]
