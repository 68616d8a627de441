"""VisionZip: dominant patches and all tokens that are left, from recorded attention, keys and features."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jtok.methods.vlm.visionzip import VisionZip
from jtok.signals import Signals
from jtok.tokens import from_features
from tests.parity.case import Case

SLUG = "visionzip"


def core(case: Case) -> dict[str, np.ndarray]:
    p, x = case.params, jnp.asarray(case.inputs["hidden"])
    attention, keys = (jnp.asarray(case.inputs[name]) for name in ("attn", "keys"))
    tokens = from_features(x, (x.shape[1] - 1,), 1)
    signals = Signals(class_attention=attention[:, :, 0], keys=keys.transpose(0, 2, 1, 3))
    reducer = VisionZip(p["dominant_patches"], p["contextual"], keep_class=True)
    kept, _ = reducer(tokens, signals, {})
    assert kept.patches == kept.count == reducer.count(x.shape[1] - 1)
    best = np.asarray(reducer.best(tokens, signals)) + 1
    return {"tokens": kept.x, "dominant_idx": np.pad(best, ((0, 0), (1, 0)))}


COMPONENTS = {"core": core}
TOLERANCE = {"core": (0, 1e-5)}
