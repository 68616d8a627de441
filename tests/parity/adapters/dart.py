"""DART: the choice of tokens, from recorded keys and features."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jtok import make_plan
from jtok.signals import Signals
from jtok.tokens import from_features
from tests.parity import language
from tests.parity.case import Case

SLUG = "dart"


def core(case: Case) -> dict[str, np.ndarray]:
    p, image = case.params, case.params["image_tokens"]
    budget = p["max_num_trunction"]
    size = {"keep": 1 - p["reduction_ratio"]} if budget is None else {"tokens": budget}
    pivots = {"pivots": p["pivot_image"], "text_pivots": p["pivot_text"]}
    (reducer,) = make_plan("dart", language.target(image, 4), **size, **pivots).sites.values()
    visual, text = slice(p["image_start"], p["image_start"] + image), slice(p["image_start"] + image, None)
    keys, normed = jnp.moveaxis(jnp.asarray(case.inputs["keys"]), 1, 2), jnp.asarray(case.inputs["hidden_normed"])
    signals = Signals(
        keys=keys[:, visual],
        text_keys=keys[:, text],
        text_valid=jnp.ones(keys[:, text].shape[:2], bool),
        normed=normed[:, visual],
        text_normed=normed[:, text],
    )
    before = from_features(normed[:, visual], (1, image))
    after = jax.jit(lambda t, s: reducer(t, s, {})[0])(before, signals)
    assert after.count == reducer.count(image)
    return {"keep_image_index": p["image_start"] + language.taken(before, after)[0]}


COMPONENTS = {"core": core}
TOLERANCE = {"core": (0, 0)}
