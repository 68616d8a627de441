"""Images a second that tokenizers encode and decode, and the share of the chip's matmul rate that this is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jtok.errors import UserError
from jtok.evaluation.cost.flops import count
from jtok.evaluation.cost.latency import measure
from jtok.tokenizers.autoencoder import ConvShape
from jtok.tokenizers.base_grid import frozen
from jtok.tokenizers.bases import AutoencoderKL, KLConfig
from jtok.tokenizers.flextok import FlexTokConfig
from jtok.tokenizers.protocol import ImageTokenizer
from jtok.tokenizers.registry import with_config
from jtok.tokenizers.shipped import open_tokenizer
from jtok.tokenizers.titok import TiTokConfig

_PHOTOS = TiTokConfig(
    image=32, patch=8, tokens=32, encoder=(128, 4, 4), decoder=(128, 4, 4), drop_tail=True,
    bottleneck="fsq", levels=(8, 8, 8, 5, 5, 5), code_width=6,
)  # fmt: skip
#: Shapes with random weights. photos: that of configs/tokenizer/photos.py. titok_l32: the release, pixel decoder and
#: all. flextok_d12, flextok_d18: with FlexTok's VAE of 16 channels, 20 steps and guidance (two passes a step).
PRESETS: dict[str, Any] = {
    "photos": _PHOTOS,
    "titok_l32": TiTokConfig(legacy=True, pixels=True),
    "flextok_d12": FlexTokConfig(encoder_depth=12, decoder_depth=12, encoder_width=768, decoder_width=768),
    "flextok_d18": FlexTokConfig(),
}
VAE = KLConfig(ConvShape(16, 128, (128, 256, 512, 512)))


def make_tokenizer(name: str, base: str | None = None, dtype: str = "float32") -> ImageTokenizer:
    """A preset with random weights, whose transformers compute in `dtype`; else what `open_tokenizer` opens."""
    if name not in PRESETS:
        return open_tokenizer(name, base)
    if base:
        raise UserError(f"{name} is a shape with random weights and brings its own base: leave --base out.")
    config = dataclasses.replace(PRESETS[name], dtype=dtype)
    tokenizer = with_config(config)(config, nnx.Rngs(0))
    if tokenizer.base_slot is not None:
        tokenizer.put_base(frozen(AutoencoderKL(VAE, nnx.Rngs(1))))
    return tokenizer


def matmul_rate(dtype: str) -> float:
    """FLOPs a second of a large square matmul of `dtype` on this machine, at the precision that models run with."""
    n = 8192 if jax.default_backend() in ("gpu", "tpu") else 1024
    a, b = (jax.random.normal(jax.random.key(i), (n, n), jnp.dtype(dtype)) for i in range(2))
    return 2 * n**3 / measure(jax.jit(jnp.matmul), a, b, repeats=10, min_seconds=0.3).median


def bench_tokenizer(
    tokenizer: ImageTokenizer, batches: Sequence[int], rate: float, repeats: int = 10, seconds: float = 0.5
) -> Iterator[dict[str, Any]]:
    """A row for encoding and one for decoding all tokens, at every batch size: milliseconds, images a second, GFLOPs an
    image, and the share of `rate` (FLOPs a second) that its matmuls and convolutions reach.

    Random pixels on the device to ids (or latents), and those to pixels on the device.
    """
    graph, state = nnx.split(tokenizer)
    side = tokenizer.image_side

    def encode(state, images):
        code = nnx.merge(graph, state).analyse(images)
        return dataclasses.replace(code, losses={}, extra=_kept(code.extra))

    def decode(state, code):
        return nnx.merge(graph, state).decode(code)

    for batch in batches:
        images = jax.random.uniform(jax.random.key(0), (batch, side, side, 3))
        code = jax.jit(encode)(state, images)
        for direction, run, given in (("encode", encode, images), ("decode", decode, code)):
            yield {"batch": batch, "direction": direction, **_row(run, state, given, batch, rate, repeats, seconds)}


def _row(run: Callable, state: Any, given: Any, batch: int, rate: float, repeats: int, seconds: float) -> dict:
    flops = count(run, state, given)
    time = measure(jax.jit(run), state, given, repeats=repeats, min_seconds=seconds)
    return {
        "images_per_second": time.throughput(batch),
        **{f"ms_{q}": 1e3 * getattr(time, q) for q in ("median", "p10", "p90")},
        "n": time.n,
        "gflops_per_image": flops.matmul / 1e9 / batch,
        "share_of_matmul_rate": flops.matmul / time.median / rate,
    }


def _kept(extra: dict[str, Any]) -> dict[str, Any]:
    """What decoding reads of a code: ALIT's other rounds are none of it."""
    return {name: value for name, value in extra.items() if name != "rounds"}


def bench_tokenizers(
    names: Sequence[str],
    batches: Sequence[int],
    *,
    base: str | None = None,
    dtype: str = "float32",
    repeats: int = 10,
    seconds: float = 0.5,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """The rows of all tokenizers, and what they ran on; `matmul_tflops` is measured in between.

    Raises UserError for a batch under 1, and for files that hold no tokenizer.
    """
    if not names or min(batches, default=0) < 1:
        raise UserError("give at least one tokenizer, and batches of at least one image each.")
    rate, rows = 0.0, []
    for name in names:
        tokenizer = make_tokenizer(name, base, dtype)
        rate = rate or matmul_rate(dtype)
        for row in bench_tokenizer(tokenizer, batches, rate, repeats, seconds):
            rows.append({"tokenizer": name, **row})
            say(f"{name}, batch {row['batch']}, {row['direction']}: {row['images_per_second']:.3g} images a second")
    return {
        "device": jax.devices()[0].device_kind,
        "platform": jax.default_backend(),
        "dtype": dtype,
        "matmul_tflops": rate / 1e12,
        "rows": rows,
    }
