"""Auxiliary patch targets of a tower in training: which digit each patch shows, and where that digit is."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jtok.tokens import Tokens

DIGITS = 10
#: Targets of a patch: its digit or none, whether it holds the digit's centre, and the digit's box.
OUTPUTS = DIGITS + 1 + 1 + 4


def new_heads(width: int) -> dict[str, dict[str, Array]]:
    """Linear heads that read the tower: "patch" reads every patch, "image" the class token. They start at zero."""
    return {
        "patch": {"kernel": jnp.zeros((width, OUTPUTS)), "bias": jnp.zeros(OUTPUTS)},
        "image": {"kernel": jnp.zeros((width, DIGITS)), "bias": jnp.zeros(DIGITS)},
    }


def dense_targets(
    labels: Int[Array, "B K"], boxes: Float[Array, "B K 4"], side: int, size: int
) -> tuple[Int[Array, "B N"], Bool[Array, "B N"], Bool[Array, "B N"], Float[Array, "B N 4"]]:
    """What each of side * side patches of an image of `size` pixels shows.

    (digit, 10 where there is none; whether that is certain, which it is not for patches that a box just touches;
    whether the centre of a digit's box is in the patch; that box over the image's size).
    """
    patch = size / side
    edges = jnp.arange(side) * patch
    y0, x0, y1, x1 = jnp.moveaxis(boxes[:, :, None], -1, 0)  # [B,K,1]
    rows = jnp.clip(jnp.minimum(y1, edges + patch) - jnp.maximum(y0, edges), 0)
    columns = jnp.clip(jnp.minimum(x1, edges + patch) - jnp.maximum(x0, edges), 0)
    overlap = (rows[:, :, :, None] * columns[:, :, None]).reshape(*labels.shape, -1) / patch**2  # [B,K,N]
    best, most = overlap.argmax(1), overlap.max(1)
    shown = most >= 0.25
    digit = jnp.where(shown, jnp.take_along_axis(labels, best, 1), DIGITS)
    box = jnp.take_along_axis(boxes, best[..., None], 1) / size
    cell = jnp.floor((boxes[..., :2] + boxes[..., 2:]) / 2 / patch).astype(jnp.int32)
    centre = (cell[..., 0] * side + cell[..., 1])[..., None] == jnp.arange(side * side)
    return digit, shown | (most == 0), (centre & (labels >= 0)[..., None]).any(1), box


def dense_loss(heads, features: Tokens, batch, side: int, size: int) -> dict[str, Float[Array, ""]]:
    """Losses of the heads that read the tower: each patch predicts its digit, the class token those of the image."""
    x = features.x.astype(jnp.float32)
    digit, certain, centre, box = dense_targets(batch["labels"], batch["boxes"], side, size)
    out = x[:, 1:] @ heads["patch"]["kernel"] + heads["patch"]["bias"]
    classes, is_centre, boxes = jnp.split(out, [DIGITS + 1, DIGITS + 2], -1)
    each = optax.softmax_cross_entropy_with_integer_labels(classes, digit)
    shown = digit < DIGITS
    # patches of digits are about a sixth: both sides count alike
    digits, ground = (jnp.sum(each * m) / jnp.maximum(jnp.sum(m), 1) for m in (shown & certain, ~shown & certain))
    at_centre = optax.sigmoid_binary_cross_entropy(is_centre[..., 0], centre.astype(jnp.float32))
    off = jnp.abs(boxes - box).mean(-1)
    present = jax.nn.one_hot(batch["labels"], DIGITS).max(1)
    logits = x[:, 0] @ heads["image"]["kernel"] + heads["image"]["bias"]
    return {
        "patch_digit": digits,
        "patch_ground": ground,
        "patch_centre": (at_centre * (shown | centre)).sum() / jnp.maximum((shown | centre).sum(), 1),
        "patch_box": 5 * jnp.sum(off * shown) / jnp.maximum(jnp.sum(shown), 1),
        "image_digits": optax.sigmoid_binary_cross_entropy(logits, present).mean(),
    }
