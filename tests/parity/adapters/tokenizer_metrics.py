"""PSNR, SSIM, the Fréchet distance, codebook statistics and the head of LPIPS."""

from __future__ import annotations

import numpy as np

from jtok.evaluation.metrics.code_usage import code_usage
from jtok.evaluation.metrics.frechet import Statistics, frechet_distance
from jtok.evaluation.metrics.image_quality import psnr, ssim
from jtok.training.losses import lpips
from tests.parity.case import Case

SLUG = "tokenizer-metrics"


def image(case: Case) -> dict[str, np.ndarray]:
    a, b = case.inputs["reference"], case.inputs["reconstruction"]
    return {
        "psnr": psnr(a, b),
        "ssim_uniform7": ssim(a, b, "uniform7"),
        "ssim_gauss11": ssim(a, b, "gauss11"),
        "tm_psnr": psnr(a, b),
        "tm_psnr_pooled": psnr(a, b, pooled=True),
        "tm_ssim": ssim(a, b, "full"),
    }


def frechet(case: Case) -> dict[str, np.ndarray]:
    x, y = (Statistics.of(case.inputs[f"features_{name}"]) for name in "xy")
    distance = np.asarray(frechet_distance(x, y))
    means = {"mu_x": x.mean, "mu_y": y.mean, "sigma_x": x.covariance, "sigma_y": y.covariance}
    return means | {"fid_torchmetrics": distance, "fid_pytorch_fid": distance}


def codebook(case: Case) -> dict[str, np.ndarray]:
    result = code_usage(case.inputs["indices"], case.params["codebook"])
    named = {"entropy_nats": result.entropy, "entropy_bits": result.bits, "usage_entropy_eps": result.smoothed}
    return {name: np.asarray(value) for name, value in (named | {"used": result.used}).items()}


def lpips_head(case: Case) -> dict[str, np.ndarray]:
    count = case.params["layers"]

    def last(name):
        return np.moveaxis(case.inputs[name], 1, -1)

    a, b = ([last(f"feat{side}_{i}") for i in range(count)] for side in (0, 1))
    each = lpips.head(a, b, [case.inputs[f"lin_{i}"].reshape(-1) for i in range(count)])
    want = case.outputs["per_layer"].shape
    return {
        "per_layer": each if each.shape == want else each.T,
        "lpips": each.sum(0),
        "scaled_image": np.moveaxis(np.asarray(lpips.scaled(last("image"))), -1, 1),
    }


COMPONENTS = {"image": image, "frechet": frechet, "codebook": codebook, "lpips-head": lpips_head}
TOLERANCE = {"image": (0, 1e-4), "frechet": (1e-4, 1e-6), "codebook": (1e-6, 1e-6), "lpips-head": (1e-5, 1e-7)}
