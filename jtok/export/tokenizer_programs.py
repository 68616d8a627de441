"""A tokenizer as two programs, and what its card says."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jtok.checkpoints.safetensor_files import open_weights
from jtok.errors import UserError
from jtok.evaluation.cost.flops import count
from jtok.evaluation.cost.memory import parameters
from jtok.export.program import Program
from jtok.export.source import digests
from jtok.tokenizers.code import Code
from jtok.tokenizers.protocol import ImageTokenizer


def tokenizer_programs(tokenizer: ImageTokenizer) -> list[Program]:
    """`encode`: images uint8 [B,H,W,3] -> ids int32 [B,K] (float32 latents [B,K,d] without ids) and count [B].
    `decode`: these and count -> images uint8; entries after the count of a row are ignored.

    Raises UserError for a tokenizer that has no fixed size, or whose base tokenizer is missing.
    """
    side = getattr(tokenizer.config, "image", 0)
    if not side or getattr(tokenizer.config, "text_length", 0):
        raise UserError("programs are of tokenizers of plain images of one size, such as TiTok: this one takes more.")
    graphdef, state = nnx.split(tokenizer)
    image = jax.ShapeDtypeStruct((side, side, 3), jnp.uint8)

    def encode(images: jax.Array) -> dict[str, jax.Array]:
        code = nnx.merge(graphdef, state).encode(images.astype(jnp.float32) / 255)
        arrays = {"latents": code.latents.astype(jnp.float32)} if code.ids is None else {"ids": code.ids}
        return {**arrays, "count": code.count}

    def decode(code: jax.Array, counts: jax.Array) -> dict[str, jax.Array]:
        net = nnx.merge(graphdef, state)
        whole = net.from_ids(code, counts) if code.ndim == 2 else Code(code, None, counts)
        return {"images": jnp.round(net.decode(whole) * 255).astype(jnp.uint8)}

    given = jax.eval_shape(encode, jax.ShapeDtypeStruct((1, *image.shape), image.dtype))
    code = given["ids"] if "ids" in given else given["latents"]
    row = tuple(jax.ShapeDtypeStruct(a.shape[1:], a.dtype) for a in (code, given["count"]))
    programs = [Program("encode", encode, (image,)), Program("decode", decode, row)]
    jax.eval_shape(decode, *programs[1].arguments(1))  # fails here if the base tokenizer is missing
    return programs


def tokenizer_facts(tokenizer: ImageTokenizer, name: str, path: Path) -> dict[str, Any]:
    """What the card says of it."""
    c, lengths = tokenizer.config, tokenizer.lengths
    facts: dict[str, Any] = {
        "about": {
            "tokenizer": f"{type(tokenizer).__name__}, {lengths[0]} to {lengths[-1]} tokens an image"
            if len(lengths) > 1
            else f"{type(tokenizer).__name__}, {lengths[0]} tokens an image",
        },
        "model": dataclasses.asdict(c),
        "parameters": parameters(nnx.to_pure_dict(nnx.state(tokenizer, nnx.Param))).count,
        "data": None,
        "weights": {"path": Path(name).name, "sha256": digests(open_weights(path).files.values())},
    }
    costs = {}
    for program in tokenizer_programs(tokenizer):
        costs[f"{program.name}_gmacs"] = count(program.apply, *program.arguments(1)).gmacs
    return {**facts, "cost_of_an_image": costs}
