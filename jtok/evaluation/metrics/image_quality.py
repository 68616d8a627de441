"""How near a reconstruction is to its picture: PSNR and SSIM, an image at a time, in float64 on the host."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity

from jtok.errors import UserError

Images = Float[np.ndarray, "B H W 3"]


def as_eight_bit(images: Images) -> Images:
    """Images in [0, 1] as a file of 8 bits a channel would hold them, which is what papers measure."""
    return np.round(np.clip(np.asarray(images, np.float64), 0, 1) * 255) / 255


def psnr(reference: Images, reconstruction: Images, *, pooled: bool = False) -> Float[np.ndarray, "..."]:
    """Peak signal-to-noise ratio in dB of images in [0, 1], [B]; infinite for equal images.

    pooled: one number from the mean squared error of the whole batch, which is not the mean of the images' numbers.
    """
    a, b = _pair(reference, reconstruction)
    error = np.square(a - b).mean(None if pooled else (1, 2, 3))
    with np.errstate(divide="ignore"):
        return -10 * np.log10(error)


def ssim(
    reference: Images, reconstruction: Images, kind: Literal["gauss11", "uniform7", "full"] = "gauss11"
) -> Float[np.ndarray, "B"]:
    """Structural similarity of images in [0, 1], Wang et al. 2004, mean over channels; say which kind you report.

    gauss11: Gaussian window of 11 taps, sigma 1.5, borders left out. uniform7: scikit-image's default, a flat window
    of 7 and sample covariances. full: gauss11 with mirrored borders, which are not left out (torchmetrics).
    """
    a, b = _pair(reference, reconstruction)
    if kind == "full":
        return np.array([_ssim_map(x, y).mean() for x, y in zip(a, b, strict=True)])
    least = 11 if kind == "gauss11" else 7
    if min(a.shape[1:3]) < least:
        raise UserError(f"SSIM of kind {kind} needs {least} pixels a side; the images have {a.shape[1]}x{a.shape[2]}.")
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False} if kind == "gauss11" else {}
    options |= {"data_range": 1.0, "channel_axis": -1}
    return np.array([structural_similarity(x, y, **options) for x, y in zip(a, b, strict=True)])


def _ssim_map(a: Float[np.ndarray, "H W C"], b: Float[np.ndarray, "H W C"]) -> Float[np.ndarray, "H W C"]:
    def blur(x):
        return gaussian_filter(x, (1.5, 1.5, 0), truncate=3.5, mode="mirror")

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = (np.maximum(blur(x * x) - m * m, 0) for x, m in ((a, mean_a), (b, mean_b)))
    cov, c1, c2 = blur(a * b) - mean_a * mean_b, 0.01**2, 0.03**2
    top = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
    return top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))


def _pair(reference: Images, reconstruction: Images) -> tuple[np.ndarray, np.ndarray]:
    a, b = (np.asarray(x, np.float64) for x in (reference, reconstruction))
    if a.shape != b.shape or a.ndim != 4:
        raise UserError(f"images of shapes {a.shape} and {b.shape} cannot be compared: give two batches [B,H,W,C].")
    return a, b
