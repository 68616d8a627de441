"""HiRED's budgets for several images in a row and by area, and what it keeps of a mosaic in a tiny LLaVA-NeXT."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jtok.methods.reduce import reduce
from jtok.methods.vlm.hired import HiREDCrops, plan
from jtok.models.vlm.arrange import arrange
from jtok.models.vlm.load_vlm import load_vlm
from jtok.models.vlm.model import VLM
from jtok.models.vlm.processing import pad_batch
from jtok.target import Target
from tests.models import language
from tests.models.test_families import llava_next, next_prompt

EARLY = jax.random.uniform(jax.random.key(0), (1, 8, 36))


def test_each_image_of_a_row_has_its_own_budget():
    reducer = HiREDCrops(0.3)
    both = reducer.budgets(EARLY, jnp.asarray([[0, 0, 0, 0, 0, 1, 1, -1]]))
    one, other = (reducer.budgets(EARLY[:, a:b], jnp.zeros((1, b - a), int)) for a, b in ((0, 5), (5, 7)))
    np.testing.assert_array_equal(both[0], [*one[0], *other[0], 0])
    alone = reducer.budgets(EARLY, jnp.asarray([[0, 1, 2, 3, 4, 5, 6, -1]]))
    np.testing.assert_array_equal(alone[0], [10] * 7 + [0])  # images that are not cut: int(0.3 * 36) each


def test_shares_by_area_count_the_patches_above_each_crop():
    early = jnp.zeros((1, 5, 36)).at[0, 0].set(jnp.arange(36) % 6 >= 3)  # the right half is important
    strips, areas = (HiREDCrops(0.4, crops=c).budgets(early, jnp.zeros((1, 5), int))[0] for c in (None, (2, 2)))
    total = int(5 * 36 * 0.4) - int(int(5 * 36 * 0.4) * 0.5)
    np.testing.assert_array_equal(areas, [36, 0, total // 2, 0, total // 2])
    # three patches of every row: of nine a strip holds four or five
    assert strips.sum() <= 36 + total and (strips[1:] > 0).all()


def test_images_without_crops_keep_exactly_the_tokens_asked_for():
    target = Target(depth=4, grid=(24, 24), width=8, layers=2)
    for tokens in (1, 7, 29, 64, 144, 575, 576):
        reducer = plan(target, tokens=tokens).at("projector")
        assert reducer.count(576) == tokens and reducer.count(5 * 576) == 5 * tokens


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """(transformers' LLaVA-NeXT, ours)."""
    torch.manual_seed(0)
    reference, path = language.randomise(llava_next()), tmp_path_factory.mktemp("next")
    reference.set_attn_implementation("eager")
    reference.save_pretrained(path)
    return reference, VLM(*load_vlm(path))


PROMPTS = [next_prompt((100, 90), 3, 5, 0), next_prompt((50, 110), 6, 4, 1)]  # four crops and two, both unpadded


def inputs(*rows: int):
    return arrange(pad_batch([PROMPTS[row] for row in rows], 0), language.GRID, step=16)


@pytest.mark.usefixtures("highest_precision")
def test_crops_spend_their_budgets_on_late_attention(model):
    reference, ours = model
    both, rate, alpha = inputs(0, 1), 0.3, 0.5
    reading = reduce(ours, "hired", keep=rate, alpha=alpha).read(both, max_new_tokens=1)
    owner, live = np.asarray(reading.sequence.visual.owner), np.asarray(reading.sequence.visual.mask())
    assert live.shape[1] == int(5 * 16 * rate)
    for row, one in enumerate(PROMPTS):
        pixels = torch.tensor(one.visuals[0].pixels)
        with torch.no_grad():
            layers = reference.model.vision_tower(pixels, output_attentions=True).attentions
        early, late = (layers[i][:, :, 0, 1:].sum(1).numpy() for i in (0, -2))
        inside = np.asarray(both.places.inside)[row].reshape(5, 16)
        expected = np.zeros((5, 16), bool)
        parts = len(pixels)
        total = int(parts * 16 * rate)
        whole = int(total * alpha)
        important = np.zeros(16)
        important[np.argsort(-early[0])[: int(16 * (1 - alpha))]] = 1
        shares = important.reshape(parts - 1, -1).sum(1)
        budgets = [whole, *np.floor(shares / shares.sum() * (total - whole)).astype(int)]
        for crop, budget in enumerate(budgets):
            ranked = np.argsort(-np.where(inside[crop], late[crop], -1))[:budget]
            expected[crop, ranked] = inside[crop, ranked]
        np.testing.assert_array_equal((owner[row] >= 0).reshape(5, 16), expected)
        assert live[row].sum() == expected.sum() > 0


@pytest.mark.usefixtures("highest_precision")
@pytest.mark.parametrize("name", ["hired", "divprune", "visionzip"])
def test_a_mosaic_does_not_depend_on_its_batch(model, name):
    reduced = reduce(model[1], name, tokens=4)
    both, one = reduced.read(inputs(0, 1), max_new_tokens=1), reduced.read(inputs(1), max_new_tokens=1)
    np.testing.assert_allclose(one.logits[0], both.logits[1], rtol=0, atol=1e-4)
    assert one.sequence.visual.mask().sum() == both.sequence.visual.mask()[1].sum()
