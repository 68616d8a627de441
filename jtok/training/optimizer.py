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

    Frozen leaves are not given to it, so they neither count in the norm nor cost memory. Leaves whose name begins with
    one of `train.parts` have an optimizer of their own (see `_part`).
    mask: `{name: array} -> {name: bool}`, which leaves decay.
    """
    rest = _whole(train, mask)
    if not train.parts:
        return rest
    rules = {name: _part(train, part, mask) for name, part in train.parts.items()}

    def labels(params: dict[str, Array]) -> dict[str, str]:
        heads = {name: name.split(".", 1)[0] for name in params}
        return {name: head if head in rules else "" for name, head in heads.items()}

    return optax.partition({"": rest, **rules}, labels)


def _part(train: ml_collections.ConfigDict, part: ml_collections.ConfigDict, mask) -> optax.GradientTransformation:
    """The optimizer of one part of the parameters. `assign`: it is not learned, the loss says what it becomes
    (`jtok.training.aside.assign`). Else as `train` with the part's own `lr`, from update `start` on."""
    if part.get("assign"):
        return optax.sgd(1.0)
    start = part.get("start", 0)
    settings = {"lr": part.get("lr", train.lr), "steps": train.steps - start}
    settings["min_lr"] = train.min_lr * settings["lr"] / train.lr
    inner = _whole(ml_collections.ConfigDict({**train.to_dict(), **settings}), mask)
    return optax.conditionally_mask(inner, lambda step: step >= start)


def _whole(train: ml_collections.ConfigDict, mask) -> optax.GradientTransformation:
    rate = learning_rate(train)
    adam = {"b1": train.b1, "b2": train.b2, "weight_decay": train.weight_decay}
    if train.optimizer == "muon":
        update = optax.contrib.muon(
            rate, weight_decay=train.weight_decay, weight_decay_mask=mask, adam_b1=train.b1, adam_b2=train.b2,
            adam_weight_decay=train.weight_decay, muon_weight_dimension_numbers=matrices, consistent_rms=0.2,
        )  # fmt: skip
    else:
        update = optax.adamw(rate, **adam, mask=mask)
    return optax.chain(optax.clip_by_global_norm(train.clip), update) if train.clip else update


def matrices(params: dict[str, Array]) -> dict[str, optax.contrib.MuonDimensionNumbers | None]:
    """Which parameters Muon turns (kernels between hidden layers), and which of their axes are inputs and outputs.

    The first axis of kernels in `blocks` counts layers; attention's output projection has two axes of inputs.
    """
    found = {}
    for name, a in params.items():
        if isinstance(a, optax.MaskedNode):  # not of those that Muon turns
            found[name] = a
            continue
        first = int(".blocks." in f".{name}")
        split = a.ndim - 1 if name.endswith("out.kernel") else first + 1
        axes = tuple(range(first, split)), tuple(range(split, a.ndim))
        hidden = name.endswith("kernel") and not name.startswith("dense.")
        found[name] = optax.contrib.MuonDimensionNumbers(*axes) if hidden else None
    return found


def averaged(ema, params, decay: float, step):
    """Exponential moving average after update number `step` (from 1).

    The decay is `min(decay, (1 + step) / (10 + step))`, so that a short run is not held at its random start. Written
    as a step towards `params`, it leaves a frozen leaf bit for bit as it is.
    """
    rate = 1.0 - jax.numpy.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda old, new: old + (rate * (new - old)).astype(old.dtype), ema, params)
