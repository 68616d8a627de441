"""The site `decode`, and attention in proportion to size: what the cache knows of every slot."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jtok.cache import drop
from jtok.errors import UserError
from jtok.methods.baselines.keep_attended import KeepAttended
from jtok.plan import Plan
from jtok.reducer import Reducer
from jtok.slots import CachePolicy
from tests.models import language
from tests.models.test_vlm import Keep, gentle

pytestmark = pytest.mark.usefixtures("highest_precision")


@dataclasses.dataclass(frozen=True)
class Drop(CachePolicy):
    """Drops nothing, or all visual slots when it is called `at` (first or later)."""

    at: str = "never"
    reads: tuple[str, ...] = ("last_token_attention",)

    def __call__(self, cache, step):
        return drop(cache, cache.visual) if self.at == ("first" if step.prefill else "later") else cache


def planned(model, policy=None, **sites):
    sites = {name.replace("_", "."): reducer for name, reducer in sites.items()}
    return dataclasses.replace(model, plan=Plan(sites, cache=policy))


def decode(model, tokens=9, block=4, state=None):
    """(ids, last logits, last state)."""
    state = model.start(language.inputs(language.prompts()), max_new_tokens=12) if state is None else state
    parts = []
    for ids, state in model.answer(state, tokens, block=block):  # noqa: B007, B020
        parts.append(ids)
    return np.concatenate(parts, 1), np.asarray(state.logits), state


def without_images(state):
    """The state in which nobody attends to visual slots."""
    return dataclasses.replace(state, caches=tuple(drop(cache, cache.visual) for cache in state.caches))


def test_a_policy_that_drops_nothing_changes_nothing(llava):
    model = llava[1]
    plain, watched = (decode(planned(model, policy)) for policy in (None, Drop()))
    np.testing.assert_array_equal(plain[0], watched[0])
    np.testing.assert_allclose(plain[1], watched[1], rtol=0, atol=1e-5)


def test_dropping_all_visual_slots_is_masking_them(llava):
    model = llava[1]
    start = model.start(language.inputs(language.prompts()), max_new_tokens=12)
    expected = decode(model, state=without_images(start))
    ids, logits, _ = decode(planned(model, Drop("first")))
    np.testing.assert_array_equal(ids, expected[0])
    np.testing.assert_allclose(logits, expected[1], rtol=0, atol=1e-5)
    compacted = decode(planned(model, KeepAttended(0)))
    np.testing.assert_array_equal(compacted[0], expected[0])
    np.testing.assert_allclose(compacted[1], expected[1], rtol=0, atol=1e-5)
    assert compacted[2].caches[0].slots == start_slots(model) - 16


def start_slots(model):
    return model.start(language.inputs(language.prompts()), max_new_tokens=12).caches[0].slots


def test_a_policy_acts_behind_every_block(llava):
    """The first block sees the image, what follows does not."""
    model = llava[1]
    ids, logits, _ = decode(planned(model, Drop("later")), tokens=8)
    first, _, state = decode(model, tokens=4)
    rest, expected, _ = decode(model, tokens=4, state=without_images(state))
    np.testing.assert_array_equal(ids, np.concatenate([first, rest], 1))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)


def test_what_is_kept_is_what_transformers_attends_to(llava):
    """The prompt's last token chooses, by the mean over heads and layers of the cache."""
    reference, model = llava
    state = planned(model, KeepAttended(5)).start(language.inputs(language.prompts()), max_new_tokens=12)
    (cache,) = state.caches
    assert cache.slots == start_slots(model) - 11
    for row, (one, (before, _, _)) in enumerate(zip(language.prompts(), language.PROMPTS, strict=True)):
        with torch.no_grad():
            attentions = reference(**language.reference(one), output_attentions=True).attentions
        score = np.mean([a[0].mean(0)[-1, before : before + 16].numpy() for a in attentions], 0)
        kept = np.sort(np.asarray(cache.position)[row, np.asarray(cache.valid & cache.visual)[row], 0]) - before
        np.testing.assert_array_equal(kept, np.sort(np.argsort(-score)[:5]))
        assert cache.valid[row].sum() == len(one.ids) - 11
        np.testing.assert_array_equal(cache.next, [len(p.ids) for p in language.prompts()])


def test_attention_of_the_latest_token(llava):
    """After a block it is that of the block's last token, layer by layer, as a full prefill would give it."""
    model = planned(llava[1], Drop(), **{"llm_layer_2_input": Keep()})
    ids, _, state = decode(model, tokens=3)
    assert [cache.attention.shape[0] for cache in state.caches] == [2, 2]
    longer = []
    for row, one in zip(ids, language.prompts(), strict=True):
        whole = np.concatenate([one.ids, row])
        longer.append(dataclasses.replace(one, ids=whole, positions=np.arange(len(whole), dtype=np.int32)))
    full = model.read(language.inputs(longer), max_new_tokens=0)
    for cache, whole in zip(state.caches, full.caches, strict=True):
        for row in range(2):
            ours, theirs = (np.asarray(c.attention)[:, row, np.asarray(c.valid)[row]] for c in (cache, whole))
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
            np.testing.assert_allclose(ours.sum(1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        (Plan(cache=Keep()), "Keep cannot be placed at 'cache', which takes a CachePolicy"),
        (Plan({"llm.input": KeepAttended(3)}), "KeepAttended cannot be placed at 'llm.input', which takes a Reducer"),
        (Plan(cache=Drop(reads=("keys",))), "Drop reads keys; .* may read last_token_attention"),
    ],
)
def test_what_does_not_belong_there_is_refused(llava, plan, says):
    model = dataclasses.replace(llava[1], plan=plan)
    with pytest.raises(UserError, match=says):
        model.read(language.inputs(language.prompts()), max_new_tokens=1)


@dataclasses.dataclass(frozen=True)
class Twins(Reducer):
    """Every second token becomes the one before it; merged into it, or both kept."""

    merged: bool
    proportional: bool = True

    def count(self, patches):
        return patches // 2 if self.merged else patches

    def __call__(self, tokens, signals, memory):
        index = jnp.arange(0, tokens.count, 2) if self.merged else jnp.arange(tokens.count) // 2 * 2
        here = tokens.take(jnp.broadcast_to(index, (tokens.x.shape[0], len(index))))
        if not self.merged:
            return here, memory
        return here.replace(size=2 * here.size, proportional=self.proportional), memory


def prefix(model):
    """The model with prompts that see themselves: else the first of two twins does not see the second."""
    language = dataclasses.replace(model.config.language, bidirectional=True)
    return dataclasses.replace(model, config=dataclasses.replace(model.config, language=language))


@pytest.mark.slow
@pytest.mark.parametrize(("site", "change"), [("projector", prefix), ("llm_layer_3_input", lambda model: model)])
def test_a_merged_pair_counts_twice(llava, site, change):
    """In the prompt, in the answer and for a second question: two equal tokens at one place are one of size two."""
    model, logits = change(gentle(llava[1])), []
    for merged in (False, True):
        ids, after, state = decode(planned(model, **{site: Twins(merged)}), tokens=4)
        slots = state.caches[-1].slots
        text = 20 + np.arange(6, dtype=np.int32).reshape(2, 3)
        asked = model.add(state, text, np.ones((2, 3), bool)).logits
        logits.append((ids, after, np.asarray(asked), slots))
    both, one = logits
    np.testing.assert_array_equal(both[0], one[0])
    np.testing.assert_allclose(both[1], one[1], rtol=0, atol=1e-5)
    np.testing.assert_allclose(both[2], one[2], rtol=0, atol=1e-5)
    assert one[3] == both[3] - 8
    once = decode(planned(model, **{site: Twins(True, proportional=False)}), tokens=4)
    assert np.abs(once[1] - one[1]).max() > 1e-3


def test_sizes_of_a_tower_that_attends_in_proportion_stay_there(llava):
    """A mark set between blocks of the tower is for the tower's attention: the language model has no bias."""
    model = planned(llava[1], **{"tower_block_1_output": Mark()})
    assert model.read(language.inputs(language.prompts()), max_new_tokens=1).caches[0].bias is None


@dataclasses.dataclass(frozen=True)
class Mark(Reducer):
    """Marks the tokens, changes nothing else."""

    def __call__(self, tokens, signals, memory):
        return tokens.replace(proportional=True), memory
