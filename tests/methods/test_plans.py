"""What plans must bear, over the whole catalogue: nothing here runs a model."""

from __future__ import annotations

import dataclasses
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jtok.errors import UserError
from jtok.methods import catalogue
from jtok.plan import Plan
from jtok.sites import WHERE, Site, cross_sites, llm_sites, tower_sites
from jtok.target import Target
from tests.methods import catalogue as c

NAMES = c.METHODS + c.PROJECTORS + c.LANGUAGE
SHARELESS = ("pixelprune",)  # what it keeps depends on the image alone: it refuses a share
PAIRS = random.Random(0).sample([(a, b) for a in NAMES for b in NAMES if a != b], 60)


def target(name: str, grid: tuple[int, int] = (6, 6)) -> Target:
    """What the method is made for: a tower by itself, or one with a language model."""
    layers = {} if name in c.METHODS else {"layers": 8, "language_width": c.CONFIG.width}
    return Target(c.CONFIG.depth, grid, c.CONFIG.width, c.CONFIG.heads, 1, classes=c.CONFIG.classes, **layers)


def plan(name: str, keep: float = 0.5, grid: tuple[int, int] = (6, 6)) -> Plan:
    return catalogue.make_plan(name, target(name, grid), None if name in SHARELESS else keep)


@pytest.mark.parametrize("name", NAMES)
def test_flattens_and_comes_back(name):
    made = plan(name)
    leaves, shape = jax.tree.flatten(made)
    back = jax.tree.unflatten(shape, leaves)
    hash(shape)  # what jit keys its programs by
    assert list(back.sites) == list(made.sites)
    assert back.counts(36) == made.counts(36)
    for got, want in zip(jax.tree.leaves(back), leaves, strict=True):
        np.testing.assert_array_equal(got, want)
    if not made.params():
        assert back == made and hash(back) == hash(made)


@pytest.mark.parametrize("name", NAMES)
def test_an_equal_plan_is_not_traced_again(name):
    traces = []

    def count(plan, x):
        traces.append(plan.name)
        return x + 1

    run = jax.jit(count)
    run(plan(name), jnp.zeros(2))
    run(plan(name), jnp.zeros(2))
    assert len(traces) == 1


@pytest.mark.parametrize("name", NAMES)
def test_another_grid_gives_its_counts(name):
    assert plan(name).for_grid((8, 8)).counts(64) == plan(name, grid=(8, 8)).counts(64)


@pytest.mark.parametrize("name", NAMES)
def test_the_order_in_which_sites_are_written_makes_no_difference(name):
    made = plan(name)
    turned = dataclasses.replace(made, sites=dict(reversed(list(made.sites.items()))))
    assert turned == made and list(turned.sites) == list(made.sites)


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_a_sum_has_the_sites_of_both_or_is_refused(first, second):
    a, b = plan(first), plan(second)
    try:
        both = a + b
    except UserError as error:
        sentence = str(error)
        assert sentence.endswith(".") and "\n" not in sentence
        assert a.name in sentence and b.name in sentence, "the sentence names both methods"
        return
    assert set(both.sites) == {*a.sites, *b.sites}
    assert list(both.sites) == sorted(both.sites)
    assert set(both.reads) == {*a.reads, *b.reads}
    for slot in ("inputs", "projector", "attention", "layers", "cache", "decoding"):
        assert getattr(both, slot) == (getattr(b, slot) if getattr(a, slot) is None else getattr(a, slot))


SITES = st.one_of(
    st.just(Site("projector")),
    st.builds(lambda i: Site("cross", i, "input"), st.integers(0, 99)),
    st.builds(lambda i, where: Site("llm", i, where), st.integers(0, 99), st.sampled_from(WHERE)),
    st.builds(Site, st.sampled_from(["tower", "encoder"]), st.integers(0, 99), st.sampled_from(WHERE)),
    st.builds(Site, st.sampled_from(["tower", "encoder"])),
)


@given(SITES)
def test_a_printed_site_is_read_back(site):
    assert Site.parse(str(site)) == site


@given(st.integers(1, 40), st.integers(1, 5), st.randoms(use_true_random=False))
def test_sites_sort_as_a_forward_pass_reaches_them(depth, crosses, rng):
    for last in (llm_sites(depth), cross_sites(crosses)):
        reached = [*tower_sites(depth), Site("projector"), *last]
        shuffled = list(reached)
        rng.shuffle(shuffled)
        assert sorted(shuffled) == reached
