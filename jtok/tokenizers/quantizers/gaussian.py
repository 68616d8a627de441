"""The continuous bottleneck: a diagonal Gaussian with a Kullback-Leibler term.

"Auto-Encoding Variational Bayes", arXiv:1312.6114; log-variances are clamped to [-30, 20] as in latent diffusion,
arXiv:2112.10752.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jtok.errors import UserError
from jtok.tokenizers.quantizers.bottleneck import Quantized


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """Reads mean and log-variance, [..., 2 d], and gives a latent [..., d]. weight: of the KL term."""

    weight: float = 1e-6

    def split(self, z: Float[Array, "*b d2"]) -> tuple[Float[Array, "*b d"], Float[Array, "*b d"]]:
        """(mean, log-variance), float32."""
        if z.shape[-1] % 2:
            raise UserError(f"a Gaussian bottleneck reads mean and log-variance, an even width, not {z.shape[-1]}.")
        mean, log_variance = jnp.split(z.astype(jnp.float32), 2, -1)
        return mean, jnp.clip(log_variance, -30.0, 20.0)

    def __call__(self, z: Float[Array, "*b d2"], *, train: bool = False, key: Array | None = None) -> Quantized:
        """A sample with `key`, the mean without; indices are None. Loss `kl`: nats a latent, mean over latents."""
        mean, log_variance = self.split(z)
        values = mean
        if key is not None:
            values = mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape)
        if not train:
            return Quantized(values, None)
        kl = 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance).sum(-1).mean()
        return Quantized(values, None, {"kl": kl, "total": self.weight * kl})
