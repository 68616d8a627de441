"""Every method in the language model, in a tiny LLaVA: it reads, answers, and a row does not see its batch."""

import jax
import numpy as np
import pytest

from jtok.errors import UserError
from jtok.methods import catalogue
from jtok.methods.reduce import reduce
from jtok.models.vlm.arrange import arrange
from jtok.models.vlm.processing import pad_batch
from jtok.sites import Site
from jtok.target import Target
from tests.methods.catalogue import LANGUAGE
from tests.models import language, oracle

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("highest_precision")]

SHARE = {
    "sparsevlm": {"average_tokens": 8},  # of 16, as an average over layers
    "dart": {"tokens": 12},  # four pivots, and one for each of eight
}
WRITTEN = 5


@pytest.fixture(scope="module")
def model(llava):
    """Gentle, so that an answer does not hang on rounding."""
    return oracle.gentle(llava[1])


def greedy(model, prompts):
    """(ids [B,WRITTEN], logits after them, caches) of the greedy answer."""
    inputs = arrange(pad_batch(prompts, 0), language.GRID, step=16)
    state, parts = model.start(inputs, max_new_tokens=WRITTEN), []
    for ids, state in model.answer(state, WRITTEN, block=WRITTEN):  # noqa: B007, B020
        parts.append(ids)
    return np.concatenate(parts, 1), np.asarray(state.logits), state.caches


@pytest.fixture(scope="module", params=LANGUAGE)
def case(request, model):
    """(the reduced model, what it answered to two prompts of different length)."""
    reduced = reduce(model, request.param, **SHARE.get(request.param, {"tokens": 4}))
    with jax.default_matmul_precision("highest"):
        return reduced, greedy(reduced, language.prompts())


def test_caches_shrink_where_tokens_go(case):
    reduced, (ids, logits, caches) = case
    assert np.isfinite(logits).all() and (ids >= 0).all()
    rows, depth = reduced.plan.counts(16), reduced.config.language.depth
    sites = [(Site.parse(name), out) for name, _, out in rows if name.startswith("llm.layer")]
    remaining = [
        16,
        *(out for site, out in sites if site.layer + (site.where != "input") < depth),
    ]  # seen by some layer
    text = 16 + WRITTEN
    assert [cache.slots - text for cache in caches[-len(remaining) :]] == remaining
    lengths = [len(one.ids) + WRITTEN for one in language.prompts()]
    for cache, visual in zip(caches[-len(remaining) :], remaining, strict=True):
        np.testing.assert_array_equal(cache.valid.sum(1), [n - 16 + visual for n in lengths])
        renumbered = reduced.plan.positions == "renumber"
        np.testing.assert_array_equal(cache.next, cache.valid.sum(1) if renumbered else lengths)


def test_two_prompts_are_answered_as_each_alone(case):
    reduced, (ids, logits, _) = case
    for row, one in enumerate(language.prompts()):
        alone, its, _ = greedy(reduced, [one])
        np.testing.assert_array_equal(alone[0], ids[row])
        np.testing.assert_allclose(its[0], logits[row], rtol=0, atol=1e-5)


def test_masking_fastv_answers_like_dropping_fastv(model):
    variants = (reduce(model, "fastv", tokens=4, variant=v) for v in ("drop", "mask"))
    dropped, hidden = (greedy(reduced, language.prompts()) for reduced in variants)
    np.testing.assert_array_equal(dropped[0], hidden[0])
    np.testing.assert_allclose(dropped[1], hidden[1], rtol=0, atol=1e-5)
    assert dropped[2][-1].slots == hidden[2][-1].slots - 12


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("fastv", {"layer": 0}, "fastv cannot be placed before layer 0: choose 1 to 3"),
        ("fastv", {"layer": 4}, "layer 4"),
        ("fastv", {"variant": "delete"}, "drop or mask"),
        ("fastv", {"tokens": 17}, "17 tokens"),
        ("pyramiddrop", {"blocks": (2, 1)}, "1 to 3"),
        ("pyramiddrop", {"rates": (0.5,)}, "rates has 1 numbers for 3 blocks"),
        ("sparsevlm", {"version": 3}, "no version 3"),
        ("sparsevlm", {"blocks": (4,)}, "from 1 to 3"),
        ("sparsevlm", {"counts": (8,)}, "3 sites"),
        ("sparsevlm", {"average_tokens": 4}, "average over layers"),
        ("dart", {"layer": 9}, "layer 9"),
        ("dart", {"pivots": 0}, "one visual pivot"),
        ("dart", {"positions": "sorted"}, "keep, renumber, restore, order"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(model, method, options, words):
    with pytest.raises(UserError, match=words) as error:
        reduce(model, method, **options)
    assert "\n" not in str(error.value)


def test_published_budgets_of_sparsevlm():
    target = Target(depth=24, grid=(24, 24), width=1024, layers=32)
    plan = catalogue.make_plan("sparsevlm", target, average_tokens=192)
    assert list(map(str, plan.sites)) == ["llm.input", *(f"llm.layer.{i}.input" for i in (3, 7, 16))]
    assert [r._sizes(576, 576)[0] for r in list(plan.sites.values())[1:]] == [300, 200, 110]
    plan = catalogue.make_plan("sparsevlm", target, average_tokens=150)
    counts = [576, *(out for _, _, out in plan.counts(576)[1:])]
    average = sum(a * b for a, b in zip(counts, (3, 4, 9, 16), strict=True)) / 32
    assert 145 < average <= 150
