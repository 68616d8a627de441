"""AdamW with warm-up, cosine decay, clipping and decay on matrices only, from `config.train`."""

import jax
import ml_collections
import optax
from jaxtyping import Array


def learning_rate(train: ml_collections.ConfigDict) -> optax.Schedule:
    """Rate of the update that follows `count` updates.

    Update k = count + 1 uses `lr * k / warmup` while k <= warmup, then a half cosine that ends at `min_lr` at
    k = steps. (Counting from 1 spares the first update a rate of zero.)
    """
    cosine = optax.cosine_decay_schedule(train.lr, train.steps - train.warmup, alpha=train.min_lr / train.lr)
    rise = optax.linear_schedule(0.0, train.lr, max(train.warmup, 1))
    joined = optax.join_schedules([rise, cosine], [train.warmup])
    return lambda count: joined(count + 1)


def decays(name: str) -> bool:
    """Whether a parameter of this dotted name is decayed: kernels and embedding tables.

    The rule goes by name, since a stack of biases `[layers, width]` has the rank of a matrix. Position embeddings,
    biases, norms and single tokens are not decayed (as in DeiT, arXiv:2012.12877).
    """
    last = name.rsplit(".", 1)[-1]
    return last.endswith(("kernel", "embedding")) and not last.startswith("pos")


def decay_mask(params: dict[str, Array]) -> dict[str, bool]:
    """The mask `optax.adamw` takes, for parameters by name."""
    return {name: decays(name) for name in params}


def build(train: ml_collections.ConfigDict, mask=decay_mask) -> optax.GradientTransformation:
    """The optimizer over `{name: array}`: clip by global norm, then AdamW (arXiv:1711.05101).

    Frozen leaves are not given to it, so they neither count in the norm nor cost memory.
    mask: `{name: array} -> {name: bool}`, which leaves decay.
    """
    adamw = optax.adamw(learning_rate(train), b1=train.b1, b2=train.b2, weight_decay=train.weight_decay, mask=mask)
    return optax.chain(optax.clip_by_global_norm(train.clip), adamw) if train.clip else adamw


def averaged(ema, params, decay: float, step):
    """Exponential moving average after update number `step` (from 1).

    The decay is `min(decay, (1 + step) / (10 + step))`, so that a short run is not held at its random start. Written
    as a step towards `params`, it leaves a frozen leaf bit for bit as it is.
    """
    rate = 1.0 - jax.numpy.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda old, new: old + (rate * (new - old)).astype(old.dtype), ema, params)
