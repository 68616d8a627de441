"""Every method of the catalogue that can be placed in a vision-language model, in a tiny LLaVA-1.5."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import torch

from jtok.methods import catalogue
from jtok.methods.reduce import reduce
from jtok.models.vlm.arrange import arrange
from jtok.models.vlm.processing import pad_batch
from tests.models import language, oracle

pytestmark = pytest.mark.usefixtures("highest_precision")


def reduces(name: str) -> bool:
    """Whether a method takes visual tokens away at sites or by its projector, and not only inside the tower."""
    plan = catalogue.make_plan(name, catalogue.LANGUAGE, **({"space": "language"} if name == "trim" else {}))
    inside = any(site.stage == "tower" and site.where != "output" for site in plan.sites) or name == "expedit"
    acts = bool(plan.sites or plan.projector or plan.grid)
    return acts and (not inside or name == "tome")


METHODS = [name for name in catalogue.methods() if reduces(name) or name in ("random", "uniform-grid", "average-pool")]
TOKENS = 4  # of 16, and a square: what the pooling projectors can make
OPTIONS = {
    "trim": {"space": "language"},  # with CLIP's text tower in test_clip_text.py
    "sparsevlm": {"average_tokens": 8},  # a mean over layers, the first two of which keep all
}


@functools.cache
def batch(rows: tuple[int, ...] = (0, 1)):
    """Some of two prompts of different length; text is padded to the same length in any batch."""
    prompts = language.prompts()
    return arrange(pad_batch([prompts[i] for i in rows], 0), language.GRID, step=16)


KEYS = oracle.row_keys(2)


@pytest.fixture(scope="module")
def model(llava):
    """The model without a plan, compiled once."""
    return oracle.gentle(llava[1])


@pytest.fixture(scope="module", params=METHODS)
def case(request, model):
    """(catalogue entry, the reduced model, what it read); compiled once for all tests of a method."""
    entry = catalogue.find(request.param)
    # what is dropped can only be hidden if the others keep order and place, whatever the method does by itself
    options = {"positions": "restore"} if entry.assignment == "none" else {}
    amount = {} if "average_tokens" in OPTIONS.get(entry.name, {}) else {"tokens": TOKENS}
    options = {**amount, **options, **OPTIONS.get(entry.name, {})}
    reduced = reduce(model, entry.name, **options)
    with jax.default_matmul_precision("highest"):  # as in the tests, or they would compile it again
        return entry, reduced, reduced.read(batch(), max_new_tokens=1, key=KEYS)


def same_row(one, i, other, j):
    """Row i of one output equals row j of another: its logits, and the owner of every patch at every site."""
    np.testing.assert_allclose(one.logits[i], other.logits[j], rtol=0, atol=1e-4)
    np.testing.assert_array_equal(one.sequence.visual.owner[i], other.sequence.visual.owner[j])
    assert one.stages.keys() == other.stages.keys()
    for site, stage in other.stages.items():
        np.testing.assert_array_equal(one.stages[site].owner[i], stage.owner[j], err_msg=site)


def test_a_row_does_not_depend_on_the_others(case):
    _, reduced, both = case
    for row in range(2):
        twice = reduced.read(
            batch((row, row)), max_new_tokens=1, key=KEYS[np.array([row, row])]
        )  # no program of its own
        same_row(twice, 0, both, row)
        same_row(twice, 1, both, row)


@pytest.mark.slow
def test_a_batch_equals_batches_of_one(case):
    _, reduced, both = case
    for row in range(2):
        same_row(reduced.read(batch((row,)), max_new_tokens=1, key=KEYS[row : row + 1]), 0, both, row)


def test_the_decoder_gets_as_many_tokens_as_were_asked_for(case):
    entry, reduced, both = case
    left = np.asarray(both.sequence.visual.mask()).sum(1)
    if reduced.plan.adaptive:  # a cap
        assert ((left >= 1) & (left <= TOKENS)).all()
    else:
        assert (left == TOKENS).all() or ("llm" in reduced.plan.stages and (left < 16).all())
    assert (both.sequence.valid.sum(1) == left + batch().valid.sum(1)).all()
    assert np.isfinite(both.logits).all()


def test_dropping_and_keeping_positions_is_hiding(case, model):
    entry, reduced, both = case
    if entry.assignment != "none" or reduced.plan.grid or not oracle.before_decoder(reduced.plan):
        pytest.skip("the oracle is for methods that drop whole patches before the decoder")
    dropped, hidden = oracle.dropped_and_hidden(model, reduced, batch(), KEYS)
    np.testing.assert_allclose(dropped, hidden, rtol=0, atol=1e-6)
    whole = np.asarray(model.read(batch(), max_new_tokens=1, key=KEYS).logits)
    assert np.abs(dropped - whole).max() > 1e-3, "hiding must change something, or the oracle says nothing"


def theirs(reference, output, visual, prompt, row):
    """Logits of transformers' decoder over a prompt's text around our visual tokens [N,D], each at our position."""
    decoder, sequence = reference.model.language_model, jax.tree.map(lambda a: np.asarray(a[row]), output.sequence)
    text = prompt.ids[prompt.ids != language.IMAGE]
    with torch.no_grad():
        x = torch.zeros(len(text) + len(visual), visual.shape[1])
        x[torch.tensor(sequence.others[: len(text)]).long()] = decoder.embed_tokens(torch.tensor(text).long())
        x[torch.tensor(sequence.slots).long()] = torch.tensor(visual)
        where = torch.tensor(sequence.position[: len(x), 0])[None]
        mask = torch.ones(1, len(x), dtype=torch.long)  # given, or gaps between positions would be taken for borders
        out = decoder(inputs_embeds=x[None], position_ids=where, attention_mask=mask, use_cache=False)
        return reference.lm_head(out.last_hidden_state)[0, -1].numpy()


@pytest.mark.parametrize("name", ["random", "visionzip"])
def test_our_tokens_in_transformers_give_our_logits(llava, name):
    reference, model = llava
    plan = reduce(model, name, tokens=TOKENS).plan
    plan = dataclasses.replace(plan, sites={**plan.sites, "llm.input": oracle.Watch()})
    output = dataclasses.replace(model, plan=plan).read(batch(), max_new_tokens=1, key=KEYS)
    visual = np.asarray(output.memory["watch"]["x"])
    for row, prompt in enumerate(language.prompts()):
        expected = theirs(reference, output, visual[row], prompt, row)
        np.testing.assert_allclose(output.logits[row], expected, rtol=0, atol=1e-3)
