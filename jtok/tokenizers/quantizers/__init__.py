"""Bottlenecks of image tokenizers: from latents to indices (or a distribution) and back.

Each is a frozen dataclass or an `nnx.Module` with `__call__(z, *, train=False) -> Quantized` and
`decode(indices) -> values`; `size` is the number of values that an index can take.
"""

from jtok.tokenizers.quantizers.bottleneck import Quantized
from jtok.tokenizers.quantizers.bsq import BSQ
from jtok.tokenizers.quantizers.fsq import FSQ
from jtok.tokenizers.quantizers.gaussian import Gaussian
from jtok.tokenizers.quantizers.lfq import LFQ
from jtok.tokenizers.quantizers.multi_scale import MultiScaleVQ
from jtok.tokenizers.quantizers.product import Product
from jtok.tokenizers.quantizers.residual import Residual
from jtok.tokenizers.quantizers.vq import VQ

__all__ = ["BSQ", "FSQ", "LFQ", "VQ", "Gaussian", "MultiScaleVQ", "Product", "Quantized", "Residual"]
