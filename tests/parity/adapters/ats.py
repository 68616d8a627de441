"""ATS: two sampling blocks in a row of the one code, scoring and sampling of the other."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jtok.methods.vit import ats
from jtok.signals import Signals
from jtok.tokens import Tokens, from_features
from tests.parity import timm_weights
from tests.parity.case import Case

SLUG = "ats"


def lucid(case: Case) -> dict[str, np.ndarray]:
    """The reducer after the attention half of a block: rows sampled inside the attention are the same rows."""
    p, x, out = case.params, case.inputs["x"], {}
    layer = timm_weights.block(case.weights, p["num_heads"], p["ln_eps"])

    def run(tokens: Tokens, reducer: ats.ATS) -> Tokens:
        place = jnp.broadcast_to(jnp.arange(tokens.count), tokens.x.shape[:2])
        tokens, signals = layer.attend(tokens.replace(carry={"place": place}), reducer.reads)
        tokens, _ = reducer(tokens, Signals(**signals), {})
        return layer.feed_forward(tokens)

    tokens = from_features(jnp.asarray(x), (x.shape[1] - 1,), 1, jnp.asarray(case.inputs["mask"]))
    for i in (1, 2):
        reducer = ats.ATS(p[f"sample_count_{i}"])
        tokens = crop(jax.jit(run, static_argnums=1)(tokens, reducer))
        mask = tokens.mask()
        # the recorded code fills empty slots with copies of the class token
        y = jnp.where(mask[..., None], tokens.x, tokens.x[:, :1])
        ids = jnp.where(mask, tokens.carry["place"], 0)
        out |= {f"y{i}": y, f"mask{i}": mask, f"ids{i}": ids, f"steps{i}": ats.grid(reducer.samples)}
    return out


def crop(tokens: Tokens) -> Tokens:
    """To the slots that some image fills, as the recorded code does."""
    longest = int(tokens.mask().sum(1).max())
    return tokens.take(jnp.broadcast_to(jnp.arange(longest), (tokens.x.shape[0], longest)))


def official(case: Case) -> dict[str, np.ndarray]:
    samples = case.params["n_ref_tokens"] - 1
    return jax.jit(_official, static_argnums=3)(*(case.inputs[name] for name in ("attn", "v", "x")), samples)


def _official(attention, v, x, samples: int) -> dict:
    n = x.shape[1]
    score = ats.official_score(attention[:, :, 0, 1:], v.swapaxes(1, 2)[:, 1:])
    _, order = ats.official_sample(score, samples)
    # rows of the attention matrix travel with the tokens, as in the recorded code
    tokens = from_features(x, (n - 1,), 1).replace(carry={"attention": attention.swapaxes(1, 2)})
    signals = Signals(class_attention=attention[:, :, 0], values=v.swapaxes(1, 2))
    tokens, _ = ats.ATS(samples, "official")(tokens, signals, {})
    policy = tokens.mask().astype(jnp.float32)[..., None]
    return {
        "sorted_scores": jnp.take_along_axis(score, order, 1),
        "sorted_indices": order,
        "selected_x": tokens.x,
        "selected_attn": (tokens.carry["attention"] * policy[..., None]).swapaxes(1, 2),
        "policy": policy,
    }


COMPONENTS = {"lucid": lucid, "official": official}
TOLERANCE = {"lucid": (0, 1e-5), "official": (0, 1e-5)}
