"""The free oracle on Qwen2.5-VL: every method that drops tokens before the decoder, on images of different sizes."""

import dataclasses

import numpy as np
import pytest

from jtok.errors import UserError
from jtok.methods import catalogue
from jtok.methods.reduce import reduce
from jtok.models.vlm.load_vlm import load_vlm
from jtok.models.vlm.model import VLM
from tests.models import oracle, qwen

pytestmark = pytest.mark.usefixtures("highest_precision")

METHODS = [
    name
    for name, entry in catalogue.methods().items()
    if entry.assignment == "none" and entry.family in ("baseline", "vlm-encoder") and not catalogue.facts(name).slots
]
TOKENS = 4  # of the 15 of the largest image


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The model without a plan, compiled once."""
    path = tmp_path_factory.mktemp("qwen")
    qwen.model().save_pretrained(path)
    return oracle.gentle(VLM(*load_vlm(path)))


@pytest.fixture(scope="module")
def given(model):
    """Rows with one image and with two; the windows of two of the three are partly empty."""
    images = [qwen.visual("image", (1, h, w), h) for h, w in ((6, 10), (4, 8), (8, 6))]
    return qwen.inputs(model, [qwen.prompt([3, images[0], 5], 0), qwen.prompt([6, images[1], 2, images[2], 4], 1)])


@pytest.mark.parametrize("name", METHODS)
def test_dropping_and_keeping_positions_is_hiding(model, given, name):
    try:
        reduced = reduce(model, name, tokens=TOKENS)
    except UserError as refusal:
        assert "class token" in str(refusal)
        pytest.skip("reads the attention of a class token")
    plan = reduced.fitted(given).plan
    reducing = {str(site) for site, reducer in plan.sites.items() if not reducer.observes}
    assert reducing <= set(oracle.BEHIND_TOWER) and plan.projector is None
    keys, reduced = oracle.row_keys(2), dataclasses.replace(model, plan=dataclasses.replace(plan, positions="keep"))
    output = reduced.read(given, max_new_tokens=1, key=keys)
    hidden = model.read(oracle.hide(given, oracle.kept_patches(output)), max_new_tokens=1, key=keys)
    np.testing.assert_allclose(output.logits, hidden.logits, rtol=0, atol=1e-6)
    whole = model.read(given, max_new_tokens=1, key=keys)
    assert np.abs(output.logits - whole.logits).max() > 1e-3, "hiding must change something"
    remaining = np.asarray(output.sequence.visual.mask()).sum(1)
    assert remaining[0] == TOKENS and 2 <= remaining[1] <= 2 * TOKENS
