"""Product quantization: channels are split into groups, each with its own quantizer.

"Product Quantization for Nearest Neighbor Search", Jégou et al., PAMI 2011; in tokenizers: ImageFolder,
arXiv:2410.01756.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jtok.errors import UserError
from jtok.tokenizers.quantizers.bottleneck import Quantized


class Product(nnx.Module):
    """Gives the i-th group of `widths[i]` channels to the i-th quantizer; one index a group."""

    def __init__(self, parts: Sequence[Callable[..., Quantized]], widths: Sequence[int]):
        if len(parts) != len(widths):
            raise UserError(f"a product of {len(parts)} quantizers needs as many widths, not {len(widths)}.")
        self.parts, self.widths = nnx.List(list(parts)), tuple(widths)

    def __call__(self, z: Float[Array, "*b d"], *, train: bool = False) -> Quantized:
        """z [..., sum of widths] -> values of that shape, indices [..., groups]; losses are means over groups."""
        if z.shape[-1] != sum(self.widths):
            raise UserError(f"a product of widths {self.widths} takes {sum(self.widths)} channels, not {z.shape[-1]}.")
        cuts = [sum(self.widths[:i]) for i in range(1, len(self.widths))]
        outputs = [part(x, train=train) for part, x in zip(self.parts, jnp.split(z, cuts, -1), strict=True)]
        return Quantized(
            jnp.concatenate([o.values for o in outputs], -1),
            jnp.stack([o.indices for o in outputs], -1),
            mean_losses([o.losses for o in outputs]),
        )

    def decode(self, indices: Int[Array, "*b g"]) -> Float[Array, "*b d"]:
        """The codes of indices, group after group."""
        return jnp.concatenate([part.decode(indices[..., i]) for i, part in enumerate(self.parts)], -1)


def mean_losses(each: Sequence[dict[str, Array]]) -> dict[str, Array]:
    """The mean of every loss over all parts; a part without it (FSQ has none) counts as zero."""
    names = dict.fromkeys(name for losses in each for name in losses)
    return {name: sum(losses.get(name, 0.0) for losses in each) / len(each) for name in names}
