"""The signals that a decoder gives reducers during prefill: those of its attention, and those made at a site."""

from __future__ import annotations

from collections.abc import Collection

import jax.numpy as jnp
from jaxtyping import Array

from jtok import kernels
from jtok.layers.rotary import rotate
from jtok.layers.stacked import Stacked
from jtok.models.decoder.decoder import Decoder, Layer
from jtok.models.decoder.sequence import TokenSequence
from jtok.ops.score import peak_received
from jtok.sites import Site


def attention_signals(q: Array, k: Array, v: Array, sequence: TokenSequence, causal: bool, wants: Collection[str]):
    """(attention output, the signals of `wants` that attention gives): at the columns of the visual tokens."""
    asking, weight = sequence.asking
    rows = [asking] if "last_token_attention" in wants else []
    rows += [sequence.question] if "text_attention" in wants else []
    masks = {"valid": sequence.valid, "bias": sequence.bias, "causal": causal}
    index = jnp.concatenate(rows, 1) if rows else None
    result = kernels.attention_scores(q, k, v, **masks, rows=index, return_probabilities=index is not None)
    columns, signals = sequence.slots, {}
    if index is not None:
        probabilities = jnp.take_along_axis(result.probabilities, columns[:, None, None], 3)
        signals["last_token_attention"] = jnp.einsum("bhrn,br->bhn", probabilities[:, :, : weight.shape[1]], weight)
        signals["text_attention"] = probabilities[:, :, -sequence.text.question.shape[1] :]
    if "attention_received" in wants:
        weights = sequence.valid.astype(jnp.float32)
        received = kernels.attention_scores(q, k, v, **masks, rows="all", row_weights=weights).received
        signals["attention_received"] = jnp.take_along_axis(received, columns, 1)
    signals |= _peaks(q, k, sequence, causal, wants)
    arrays = {"queries": (q, columns), "keys": (k, columns), "values": (v, columns)}
    arrays["text_keys"] = (k, sequence.question)
    signals |= {name: kernels.gather(*arrays[name]) for name in arrays if name in wants}
    return result.out, {name: signals[name] for name in wants if name in signals}


def _peaks(q: Array, k: Array, sequence: TokenSequence, causal: bool, wants: Collection[str]) -> dict[str, Array]:
    """The signals of `wants` that take the largest attention over heads of every row."""
    visual = sequence.visual.mask().astype(jnp.float32)
    text = sequence.text.question_valid.astype(jnp.float32)
    rows = {
        "peak_attention": (sequence.slots, visual / jnp.maximum(visual.sum(1, keepdims=True), 1)),
        "peak_text_attention": (sequence.question, text),
    }
    masks = {"valid": sequence.valid, "bias": sequence.bias, "causal": causal}
    received = {name: peak_received(q, k, *rows[name], **masks) for name in rows if name in wants}
    return {name: jnp.take_along_axis(peak, sequence.slots, 1) for name, peak in received.items()}


def site_signals(
    decoder: Decoder, stack: Stacked, sequence: TokenSequence, reads: Collection[str], site: Site
) -> dict[str, Array]:
    """Those of the signals in `reads` that are made at the site itself."""
    wants, signals = set(reads), {}
    if "text_valid" in wants:
        signals["text_valid"] = sequence.text.question_valid
    arrays = dict.fromkeys(("rotary_position", "text_position"), sequence.position) | {"text_features": sequence.x}
    if wants & {"normed", "text_normed"}:
        arrays |= dict.fromkeys(("normed", "text_normed"), decoder.norm(sequence.x))
    for name in wants & arrays.keys():
        slots = sequence.question if name.startswith("text_") else sequence.slots
        signals[name] = kernels.gather(arrays[name], slots)
    if "rotary_logits" in wants:
        signals["rotary_logits"] = _rotary_logits(decoder, sequence)
    following = site.layer + (site.where == "output")
    if "next_last_token_attention" in wants and site.where != "after_attention" and following < decoder.config.depth:
        signals["next_last_token_attention"] = _next_attention(decoder, stack.layer(following), sequence)
    return {name: value for name, value in signals.items() if name in wants}


def _next_attention(decoder: Decoder, layer: Layer, sequence: TokenSequence) -> Array:
    """Attention of the last token to the visual ones under the next layer's weights, [B,H,N]."""
    q, k, _ = layer.project(sequence.x, decoder.rope(sequence.position))
    asking, weight = sequence.asking
    options = {"valid": sequence.valid, "bias": sequence.bias, "return_probabilities": True}
    if sequence.text.asks is None:  # the last token attends to every valid one
        p = kernels.attention_scores(kernels.gather(q, asking), k, k, rows=(0,), **options).probabilities
    else:
        causal = not decoder.config.bidirectional
        p = kernels.attention_scores(q, k, k, rows=asking, causal=causal, **options).probabilities
    p = jnp.einsum("bhrl,br->bhl", p, weight)
    return jnp.take_along_axis(p, sequence.slots[:, None], 2)


def _rotary_logits(decoder: Decoder, sequence: TokenSequence) -> Array:
    """Logits of question tokens to visual ones if all queries and keys were ones, [B,T,N]."""
    ones = jnp.ones((*sequence.valid.shape, 1, decoder.config.head_dim), jnp.float32)
    rotated = rotate(ones, decoder.rope(sequence.position))[:, :, 0]
    text, visual = (kernels.gather(rotated, slots) for slots in (sequence.question, sequence.slots))
    return jnp.einsum("btd,bnd->btn", text, visual) * decoder.config.head_dim**-0.5
