"""One-D-Piece: a small stage-1 model decoded at several lengths."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from tests.parity.adapters.titok import columns, first, tokenizer
from tests.parity.case import Case

SLUG = "one-d-piece"


def tiny(case: Case) -> dict[str, Any]:
    net = tokenizer(case, drop_tail=True)
    image = jnp.moveaxis(jnp.asarray(case.inputs["image"]), 1, -1)
    code = net.analyse(image)
    out = {f"decoded_len{n}": first(net.proxy_logits(code.take(n))) for n in case.params["lengths"]}
    return out | {
        "z": columns(net.encoder(image, net.latent_tokens[...])),
        "indices": code.ids[:, None],
        "z_quantized": columns(code.latents),
        "decoded_train": first(net.proxy_logits(code.take(int(case.inputs["train_keep"][0])))),
    }


COMPONENTS = {"tiny": tiny}
TOLERANCE = {"tiny": (1e-4, 1e-4)}
