"""How well any tokenizer keeps whole images at given numbers of tokens, and what its tokens cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float, Int, UInt8

from jtok.evaluation.metrics.code_usage import code_usage
from jtok.evaluation.metrics.frechet import Statistics, frechet_distance
from jtok.evaluation.metrics.image_features import RANDOM_CONV, in_batches, random_convolutions
from jtok.evaluation.metrics.image_quality import as_eight_bit, psnr, ssim
from jtok.evaluation.metrics.inception import Inception
from jtok.tokenizers.code import Code
from jtok.tokenizers.protocol import ImageTokenizer
from jtok.training.losses.lpips import LPIPS

Images = UInt8[np.ndarray, "N S S 3"]


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """Images at one number of tokens, and which of their ids [N,K] count (None: continuous latents)."""

    images: Float[np.ndarray, "N S S 3"]
    ids: Int[np.ndarray, "N K"] | None
    used: Bool[np.ndarray, "N K"]


@dataclasses.dataclass(frozen=True)
class Networks:
    """Those that the user has files of."""

    inception: Inception | None = None
    lpips: LPIPS | None = None


def usual_counts(tokenizer: ImageTokenizer) -> tuple[int, ...]:
    """1, 2, 4, ... and all tokens, as far as the tokenizer has these lengths."""
    lengths = tokenizer.lengths
    if len(lengths) == 1 or not tokenizer.prefix:
        return lengths
    powers = (2**i for i in range(lengths[-1].bit_length()))
    return (*(n for n in powers if lengths[0] <= n < lengths[-1]), lengths[-1])


def check_counts(tokenizer: ImageTokenizer, counts: Sequence[int]) -> None:
    """Raises UserError for a number of tokens that the tokenizer does not have."""
    for count in counts:
        tokenizer.check_count(count)


def reconstruct(
    tokenizer: ImageTokenizer, images: Images, counts: Sequence[int], batch: int = 16
) -> list[Reconstruction]:
    """The images again at each number of tokens; all images go through one program of `batch` images.

    Raises UserError for a number that the tokenizer does not have.
    """
    check_counts(tokenizer, counts)
    graph, state = nnx.split(tokenizer)

    def again(state, pixels, count):
        net = nnx.merge(graph, state)
        pixels = pixels.astype(jnp.float32) / 255
        code = net.analyse(pixels).take(count) if net.prefix else net.encode(pixels, count)
        return net.decode(code), code.ids, used(code)

    # a number that changes shapes is a constant of its program, others are not
    run = jax.jit(again, static_argnums=() if tokenizer.prefix else 2)
    rows = np.minimum(np.arange(-(-len(images) // batch) * batch), len(images) - 1).reshape(-1, batch)
    made = []
    for count in counts:
        parts = [jax.device_get(run(state, images[r], count)) for r in rows]
        pixels, ids, held = (_joined(part, len(images)) for part in zip(*parts, strict=True))
        made.append(Reconstruction(as_eight_bit(pixels), ids, held))
    return made


def _joined(batches: Sequence[Any], n: int) -> Any:
    return None if batches[0] is None else np.concatenate(batches)[:n]


def used(code: Code) -> Bool[np.ndarray, "B K"]:
    """Which latents are meant: a prefix, or those that KARL needs."""
    needed = code.extra.get("needed")
    return jnp.arange(code.latents.shape[1]) < code.count[:, None] if needed is None else needed


def evaluate_tokenizer(
    tokenizer: ImageTokenizer, images: Images, counts: Sequence[int], networks: Networks | None = None, batch: int = 16
) -> list[dict[str, Any]]:
    """One row for each number of tokens: PSNR and SSIM (gauss11) of 8-bit images, LPIPS and rFID where there are
    networks (else a Fréchet distance under its own name), use of the codebook, and bits per pixel (`coded`: by an ideal
    entropy coder). The bits of which tokens KARL keeps are counted, those of a length are not.
    """
    check_counts(tokenizer, counts)
    networks = networks or Networks()
    features = networks.inception or jax.tree_util.Partial(random_convolutions)
    name = RANDOM_CONV if networks.inception is None else "rfid"
    real = images.astype(np.float64) / 255
    statistics = Statistics.of(in_batches(features, real.astype(np.float32), batch))
    rows = []
    for count, made in zip(counts, reconstruct(tokenizer, images, counts, batch), strict=True):
        row = {"tokens": count, "mean_tokens": float(made.used.sum(1).mean())}
        row |= {"psnr": float(psnr(real, made.images).mean()), "ssim": float(ssim(real, made.images).mean())}
        if networks.lpips is not None:
            row["lpips"] = _lpips(networks.lpips, real, made.images, batch)
        found = Statistics.of(in_batches(features, made.images.astype(np.float32), batch))
        row[name] = frechet_distance(statistics, found)
        rows.append(row | _rate(tokenizer, made))
    return rows


def _rate(tokenizer: ImageTokenizer, made: Reconstruction) -> Mapping[str, Any]:
    size, pixels = tokenizer.codes, made.images.shape[1] ** 2
    if made.ids is None or not size:
        return {}
    usage = code_usage(made.ids[made.used], size)
    tokens, length = made.used.sum(1).mean(), made.used.shape[1]
    return {
        "codes": size,
        "usage": usage.share,
        "perplexity": usage.perplexity,
        "bits_per_pixel": tokenizer.bits(tokens, length) / pixels,
        "coded_bits_per_pixel": tokenizer.bits(tokens, length, usage.bits) / pixels,
    }


def _lpips(net: LPIPS, a: np.ndarray, b: np.ndarray, batch: int) -> float:
    run = jax.jit(net)
    a, b = (np.asarray(x, np.float32) for x in (a, b))
    parts = [np.asarray(run(a[i : i + batch], b[i : i + batch])) for i in range(0, len(a), batch)]
    return float(np.concatenate(parts).mean())
