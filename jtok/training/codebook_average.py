"""A codebook of moving averages while a tokenizer trains, with revival of dead codes (`config.codebook`).

The averages are assigned step by step (`aside.assign`) and live in params["state"]; the tokenizer's own codebook is
frozen, and is read from them wherever the tokenizer is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Float

from jtok.errors import UserError
from jtok.tokenizers.code import Code
from jtok.tokenizers.quantizers.ema import Codebook, EmaVQ
from jtok.tokenizers.titok import TiTok, TiTokConfig
from jtok.training.aside import assign


class CodebookAverage:
    """`EmaVQ` in place of a TiTok's vector quantizer."""

    def __init__(self, config: ml_collections.ConfigDict, shape: TiTokConfig):
        if shape.bottleneck != "vq":
            raise UserError(f"config.codebook.average is for a bottleneck 'vq', not '{shape.bottleneck}'.")
        if not config.train.parts.get("state", {}).get("assign"):
            raise UserError("config.codebook.average needs config.train.parts.state = {'assign': True}.")
        self.vq = EmaVQ(config.codebook.average, shape.cosine, shape.beta, dead=config.codebook.dead)

    def init(self, net: Mapping[str, Any]) -> dict[str, Array]:
        """Averages as if every code had been assigned one latent equal to it."""
        codes = jnp.asarray(net["quantizer"]["codebook"], jnp.float32)
        return {"codes": codes, "count": jnp.ones(len(codes)), "total": codes}

    def put(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The tokenizer's parameters with the averaged codes in them."""
        return {**params["tokenizer"], "quantizer": {"codebook": params["state"]["codes"]}}

    def __call__(
        self, params: Mapping[str, Any], net: TiTok, images: Float[Array, "B H W 3"], key: Array
    ) -> tuple[Code, Float[Array, ""]]:
        """(code of all latents, with its losses; what assigns the averages, worth zero)."""
        z = net.latents(images)
        book = Codebook(*(params["state"][name] for name in ("codes", "count", "total")))
        quantized = self.vq(z, book, train=True)
        new = self.vq.update(book, z, quantized.indices, key)
        beside = sum(assign(getattr(book, name), getattr(new, name)) for name in ("codes", "count", "total"))
        return Code(
            quantized.values, quantized.indices, jnp.full(z.shape[0], z.shape[1], jnp.int32), quantized.losses
        ), beside
