"""Metrics of reconstructions: known values, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from jtok.errors import UserError
from jtok.evaluation.metrics.code_usage import code_usage
from jtok.evaluation.metrics.frechet import Statistics, frechet_distance, inception_score
from jtok.evaluation.metrics.image_quality import as_eight_bit, psnr, ssim
from jtok.training.losses.lpips import LPIPS


def images(seed: int = 0, size: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).random((2, size, size, 3))


def test_psnr_of_a_constant_error_and_of_equal_images():
    a = np.full((1, 8, 8, 3), 0.5)
    np.testing.assert_allclose(psnr(a, a + 0.1), 20.0)
    assert np.isinf(psnr(a, a)).all()


@pytest.mark.parametrize("kind", ["gauss11", "uniform7", "full"])
def test_ssim_is_one_for_equal_images_and_less_for_others(kind):
    a = images()
    np.testing.assert_allclose(ssim(a, a, kind), 1.0)
    assert (ssim(a, np.clip(a + 0.2 * images(1), 0, 1), kind) < 0.99).all()


def test_eight_bits_round_and_clip():
    np.testing.assert_allclose(as_eight_bit(np.array([-0.2, 0.5, 1.4])), [0, 128 / 255, 1])


def test_frechet_distance_of_moved_features_and_statistics_from_a_file(tmp_path):
    features = np.random.default_rng(0).normal(size=(500, 4))
    a, b = Statistics.of(features), Statistics.of(features + 2.0)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, b) == pytest.approx(16.0, rel=1e-6)
    np.savez(tmp_path / "reference.npz", mu=a.mean, sigma=a.covariance)
    assert frechet_distance(Statistics.load(tmp_path / "reference.npz"), b) == pytest.approx(16.0, rel=1e-6)
    with pytest.raises(UserError, match="holds no statistics"):
        Statistics.load(tmp_path / "absent.npz")


def test_inception_score_of_sure_and_equal_classes():
    assert inception_score(np.tile(np.eye(5), (4, 1)), splits=2)[0] == pytest.approx(5.0)
    assert inception_score(np.full((20, 5), 0.2), splits=2)[0] == pytest.approx(1.0)


def test_code_usage_of_equal_use():
    usage = code_usage(np.arange(8).repeat(3), 16)
    assert usage.used == 8 and usage.share == 0.5 and usage.bits == pytest.approx(3)
    assert usage.perplexity == pytest.approx(8)
    with pytest.raises(UserError, match="leave padding out"):
        code_usage(np.array([-1, 3]), 16)


def lpips_files(tmp_path):
    rng, shapes = np.random.default_rng(0), {0: (8, 3, 11, 11), 3: (8, 8, 5, 5), 6: (8, 8, 3, 3), 8: (8, 8, 3, 3)}
    shapes[10] = (8, 8, 3, 3)
    backbone = {f"features.{i}.weight": rng.normal(size=s).astype(np.float32) * 0.1 for i, s in shapes.items()}
    backbone |= {f"features.{i}.bias": np.zeros(8, np.float32) for i in shapes}
    save_file(backbone, tmp_path / "alex.safetensors")
    linear = {f"lin{i}.model.1.weight": np.ones((1, 8, 1, 1), np.float32) for i in range(5)}
    save_file(linear, tmp_path / "linear.safetensors")
    return tmp_path / "alex.safetensors", tmp_path / "linear.safetensors"


def test_lpips_from_files(tmp_path):
    metric = LPIPS.load(*lpips_files(tmp_path))
    a, b = (images(seed, 64).astype(np.float32) for seed in (0, 1))
    np.testing.assert_allclose(metric(a, a), 0, atol=1e-7)
    near, far = metric(a, 0.9 * a + 0.1 * b), metric(a, b)
    assert (np.asarray(near) < np.asarray(far)).all()
    with pytest.raises(UserError, match="lacks features.0.weight"):
        LPIPS.load(lpips_files(tmp_path)[1], lpips_files(tmp_path)[1])
    with pytest.raises(UserError, match="there is no checkpoint"):
        LPIPS.load(tmp_path / "absent.safetensors", tmp_path / "linear.safetensors")
