"""Vector quantization with a learned codebook: by gradient, or as moving averages of what was assigned to each code.

"Neural Discrete Representation Learning" (VQ-VAE), arXiv:1711.00937; l2-normalised codes: ViT-VQGAN, arXiv:2110.04627;
entropy loss: MAGVIT, arXiv:2212.05199. The lookup is `jtok.kernels.nearest`, so the distances are never materialised.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jtok import kernels
from jtok.tokenizers.quantizers.bottleneck import Quantized, entropy, rotate, straight_through


def unit(x: Float[Array, "*b d"], eps: float = 1e-6) -> Float[Array, "*b d"]:
    """x / max(|x|, eps) along the last axis."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), eps)


def lookup(z: Float[Array, "*b d"], codebook: Float[Array, "k d"], cosine: bool = False) -> Int[Array, "*b"]:
    """Index of the nearest code of every latent, by Euclidean distance or by cosine."""
    flat = lax.stop_gradient(z.reshape(-1, z.shape[-1]).astype(jnp.float32))
    book = lax.stop_gradient(codebook.astype(jnp.float32))
    return kernels.nearest(flat, book, metric="cosine" if cosine else "l2")[1].reshape(z.shape[:-1])


class VQ(nnx.Module):
    """A codebook [size, width] that learns by gradient.

    cosine: latents and codes are normalised, losses and gradients included (raw_codes: only the lookup sees the
    normalised codes, as in MAGVIT's released code). beta: weight of the commitment term. reduce: losses are the mean
    over all elements, or the sum over channels and the mean over latents. pass_through: `identity` or `rotation`.
    entropy_weight and temperature: of MAGVIT's entropy loss; zero leaves it out (it needs all distances in memory).
    """

    def __init__(
        self,
        size: int,
        width: int,
        *,
        cosine: bool = False,
        raw_codes: bool = False,
        beta: float = 0.25,
        reduce: Literal["mean", "channels"] = "mean",
        pass_through: Literal["identity", "rotation"] = "identity",
        entropy_weight: float = 0.0,
        temperature: float = 1.0,
        rngs: nnx.Rngs,
    ):
        self.size, self.cosine, self.raw_codes, self.beta, self.reduce = size, cosine, raw_codes, beta, reduce
        self.pass_through, self.entropy_weight, self.temperature = pass_through, entropy_weight, temperature
        start = jax.random.uniform(rngs.params(), (size, width), minval=-1 / size, maxval=1 / size)
        self.codebook = nnx.Param(start)

    def _codes(self) -> Float[Array, "k d"]:
        codes = self.codebook[...].astype(jnp.float32)
        return unit(codes) if self.cosine and not self.raw_codes else codes

    def __call__(
        self, z: Float[Array, "*b d"], *, train: bool = False, where: Bool[Array, "*b"] | None = None
    ) -> Quantized:
        """z [..., width] -> values float32, indices [...]; losses `commitment`, `codebook` (and `entropy`), total.

        where: latents that count in commitment and codebook losses (default: all)."""
        z = z.astype(jnp.float32)
        z = unit(z) if self.cosine else z
        index = lookup(z, self.codebook[...], self.cosine)
        q = self._codes()[index]
        values = (rotate if self.pass_through == "rotation" else straight_through)(z, q)
        return Quantized(values, index, self._losses(z, q, where) if train else {})

    def _losses(self, z: Float[Array, "*b d"], q: Float[Array, "*b d"], where: Array | None) -> dict[str, Array]:
        where = None if where is None else where[..., None]
        scale = z.shape[-1] if self.reduce == "channels" else 1
        losses = {
            "commitment": scale * jnp.square(lax.stop_gradient(q) - z).mean(where=where),
            "codebook": scale * jnp.square(q - lax.stop_gradient(z)).mean(where=where),
        }
        total = self.beta * losses["commitment"] + losses["codebook"]
        if self.entropy_weight:
            codes = unit(self.codebook[...]) if self.cosine else self.codebook[...]
            entropies = entropy_loss(squared_distances(z.reshape(-1, z.shape[-1]), codes), self.temperature)
            losses |= {"entropy": entropies["total"]}
            total = total + self.entropy_weight * entropies["total"]
        return losses | {"total": total}

    def decode(self, indices: Int[Array, "*b"]) -> Float[Array, "*b d"]:
        """The codes of indices, as `__call__` returns them."""
        return self._codes()[indices]


def squared_distances(z: Float[Array, "n d"], codebook: Float[Array, "k d"]) -> Float[Array, "n k"]:
    """All squared Euclidean distances, float32."""
    dots = jnp.matmul(z, codebook.T, precision=lax.Precision.HIGHEST)
    return jnp.square(z).sum(-1, keepdims=True) - 2 * dots + jnp.square(codebook).sum(-1)


def entropy_loss(
    distances: Float[Array, "n k"],
    temperature: float = 1.0,
    *,
    hard: bool = False,
    sample_weight: float = 1.0,
    batch_weight: float = 1.0,
) -> dict[str, Array]:
    """MAGVIT's entropy loss: each latent shall be sure of its code, and the batch shall use all codes.

    hard: straight-through one-hot rows in place of the soft assignment. Returns sample, batch and total, in nats.
    """
    logits = -distances / temperature
    p, log_p = jax.nn.softmax(logits, -1), jax.nn.log_softmax(logits + 1e-5, -1)
    if hard:
        p = straight_through(p, jax.nn.one_hot(p.argmax(-1), p.shape[-1]))
    sample = -(p * log_p).sum(-1).mean()
    batch = entropy(p.mean(0), eps=1e-5)
    return {"sample": sample, "batch": batch, "total": sample_weight * sample - batch_weight * batch}


def usage_entropy(indices: Int[Array, "..."], size: int) -> Float[Array, ""]:
    """Entropy in nats of how often each code is used, counts smoothed by 1e-4."""
    counts = jnp.bincount(indices.reshape(-1), length=size) + 1e-4
    return entropy(counts / counts.sum())
