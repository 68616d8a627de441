"""Properties of methods that are calibrated, over the whole catalogue, on two prompts of a tiny LLaVA."""

from __future__ import annotations

import json

import numpy as np
import pytest

from jtok.errors import UserError
from jtok.methods import catalogue
from jtok.methods.reduce import reduce
from jtok.methods.vlm import fitprune, vtw
from jtok.target import Target
from tests.models import language
from tests.models.vlm_tiny import tiny

pytestmark = pytest.mark.usefixtures("highest_precision")

METHODS = [name for name, entry in catalogue.methods().items() if entry.calibrate is not None]
#: What a model of random weights needs to meet.
SEARCH = {"vtw": {"eta": 10.0}}


def calibrated(name: str, *prompts) -> dict:
    batches = [language.inputs([one]) for one in prompts]
    return catalogue.find(name).calibrate(tiny(), iter(batches), **SEARCH.get(name, {}))


@pytest.fixture(scope="module", params=METHODS)
def case(request):
    """(name, the options that were found on two prompts)."""
    return request.param, calibrated(request.param, *language.prompts())


def test_what_is_found_is_json_and_makes_a_plan(case):
    name, options = case
    written = json.loads(json.dumps(options))
    assert written == options and options
    model = reduce(tiny(), name, **written)
    assert hash(model.plan) == hash(reduce(tiny(), name, **options).plan)
    reading = model.read(language.inputs(language.prompts()), max_new_tokens=1)
    assert np.isfinite(reading.logits).all()
    assert (
        reading.caches[-1].slots <= tiny().read(language.inputs(language.prompts()), max_new_tokens=1).caches[-1].slots
    )


def test_order_of_samples_does_not_matter(case):
    name, options = case
    assert calibrated(name, *language.prompts()[::-1]) == options


def test_fitprune_samples_in_one_batch_or_alone():
    together = fitprune.calibrate(tiny(), [language.inputs(language.prompts())], reduction=50)
    alone = fitprune.calibrate(tiny(), [language.inputs([one]) for one in language.prompts()], reduction=50)
    assert together == alone and sum(alone["removals"]) > 0


def test_fitprune_removes_more_where_more_is_to_be_saved():
    batches = [language.inputs(language.prompts())]
    low, high = (sum(fitprune.calibrate(tiny(), batches, reduction=r)["removals"]) for r in (10, 70))
    assert low < high < 16


@pytest.mark.parametrize("reduction", fitprune.RECIPES)
def test_fitprune_gives_published_recipes(reduction):
    target = Target(depth=24, grid=(24, 24), width=1024, layers=32)
    recipe = fitprune.RECIPES[reduction]
    left = 576 - sum(recipe)
    plans = (catalogue.make_plan("fitprune", target, **o) for o in ({"reduction": reduction}, {"tokens": left}))
    for plan in plans:
        counts = {site: before - after for site, before, after in plan.counts(576)}
        assert counts == {f"llm.layer.{i}.after_attention": n for i, n in enumerate(recipe) if n}
        assert plan.counts(576)[-1][2] == left


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"reduction": 60}, "576 visual tokens, this model has 4 and 16"),
        ({"removals": (1, 2)}, "2 layers; the model has 4"),
        ({"removals": (4, 4, 4, 4)}, "one must stay"),
        ({"removals": (4, -1, 0, 0)}, "none below 0"),
        ({"removals": (1, 0, 0, 0), "keep": 0.5}, "give only one of them"),
    ],
)
def test_fitprune_refuses_in_one_sentence(options, words):
    with pytest.raises(UserError, match=words) as error:
        catalogue.make_plan("fitprune", tiny().config.target(), **options)
    assert "\n" not in str(error.value)


def test_a_search_that_finds_nothing_says_so():
    batches = [language.inputs(language.prompts())]
    with pytest.raises(UserError, match="give a larger eta"):
        vtw.calibrate(tiny(), batches, eta=-1)
    with pytest.raises(UserError, match="choose 1 to 3"):
        vtw.calibrate(tiny(), batches, first=4)
    with pytest.raises(UserError, match="between 0 and 100"):
        fitprune.calibrate(tiny(), batches, reduction=100)


def test_the_first_layer_that_meets_eta_is_taken_even_if_a_later_one_does_not():
    kl = np.array([[0.5, 0.01, 0.2], [0.3, 0.03, 0.2]])
    assert vtw.first_layer(kl, 5, 0.02) == 6
