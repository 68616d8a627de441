"""FasterVLM: mask and kept features from recorded attention; the projector is the identity."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jtok.methods.vlm.fastervlm import FasterVLM
from jtok.signals import Signals
from jtok.tokens import from_features
from tests.parity.case import Case

SLUG = "fastervlm"


def core(case: Case) -> dict[str, np.ndarray]:
    x, keep = jnp.asarray(case.inputs["hidden"]), case.params["keep"]
    tokens = from_features(x, (x.shape[1] - 1,), 1)
    signals = Signals(class_attention=jnp.asarray(case.inputs["attn"])[:, :, 0])
    reducer = FasterVLM(keep)
    kept, _ = reducer(tokens, signals, {})
    return {
        "score": reducer.score(tokens, signals, {})[:, 1:],
        "mask": np.asarray(kept.owner) >= 0,
        "kept": kept.split()[1].x,
    }


COMPONENTS = {"core": core}
TOLERANCE = {"core": (0, 1e-5)}
