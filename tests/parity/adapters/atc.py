"""ATC: the reducer itself; groups are compared as a partition, their rows in the recorded order."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jtok.methods.vit.atc import ATC
from jtok.signals import Signals
from jtok.tokens import from_features
from tests.parity.case import Case, difference

SLUG = "atc"


def core(case: Case) -> dict[str, np.ndarray]:
    p, x = case.params, jnp.asarray(case.inputs["x"])
    special = int(p["class_token"])
    tokens = from_features(x, (x.shape[1] - special,), special)
    signals = Signals(keys=jnp.asarray(case.inputs["metric"])[:, :, None])
    reducer = ATC(p["num_clusters"], p["linkage"])
    plain, _ = reducer(tokens, signals, {})
    sized, _ = reducer(tokens.replace(size=jnp.asarray(case.inputs["size"])[..., 0]), signals, {})
    return {
        "labels": np.pad(np.asarray(plain.owner), ((0, 0), (special, 0))),
        "wavg_x": sized.x,
        "wavg_size": sized.size[..., None],
        "wavg_x_nosize": plain.x,
        "wavg_size_nosize": plain.size[..., None],
    }


def compare(case: Case, got: dict[str, np.ndarray]) -> float:
    """Renames our groups as recorded, which only works if both are the same partition."""
    want, ours = case.outputs["labels"], np.asarray(got["labels"])
    order = np.zeros(case.outputs["wavg_x"].shape[:2], np.int64)
    for b in range(len(want)):
        pairs = set(zip(want[b].tolist(), ours[b].tolist(), strict=True))
        assert len(pairs) == len({w for w, _ in pairs}) == len({o for _, o in pairs}), f"image {b}: another partition"
        for theirs, mine in pairs:
            order[b, theirs] = mine
    got = {k: np.take_along_axis(np.asarray(v), order[..., None], 1) for k, v in got.items() if k != "labels"}
    return max(difference(k, got[k], case.outputs[k], *TOLERANCE["core"]) for k in case.outputs if k != "labels")


COMPONENTS = {"core": core}
TOLERANCE = {"core": (0, 1e-5)}
