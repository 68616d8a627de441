"""How a codebook is used."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jaxtyping import Int

from jtok.errors import UserError


@dataclasses.dataclass(frozen=True)
class CodeUsage:
    """used: codes that occur. entropy: of how often each occurs, in nats; smoothed: the same with 1e-4 added to every
    count."""

    size: int
    used: int
    entropy: float
    smoothed: float

    @property
    def share(self) -> float:
        """Share of the codebook that occurs."""
        return self.used / self.size

    @property
    def bits(self) -> float:
        """Entropy in bits: what an ideal entropy coder spends on a token."""
        return self.entropy / math.log(2)

    @property
    def perplexity(self) -> float:
        """Number of codes that, used equally, would have this entropy."""
        return math.exp(self.entropy)


def code_usage(indices: Int[np.ndarray, "..."], size: int) -> CodeUsage:
    """Of all given indices; raises UserError if one is outside [0, size) or there is none."""
    flat = np.asarray(indices).reshape(-1)
    if not flat.size or flat.min() < 0 or flat.max() >= size:
        raise UserError(f"indices must be in [0, {size}) and at least one; leave padding out.")
    counts = np.bincount(flat, minlength=size).astype(np.float64)
    p, smooth = counts[counts > 0] / counts.sum(), (counts + 1e-4) / (counts + 1e-4).sum()
    entropy, smoothed = (float(-(x * np.log(x)).sum()) for x in (p, smooth))
    return CodeUsage(size, int((counts > 0).sum()), entropy, smoothed)
