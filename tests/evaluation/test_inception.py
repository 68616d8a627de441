"""Inception-v3 in the names of pytorch-fid's file against a narrow network in PyTorch; other files are refused."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file, save_file

from jtok.errors import UserError
from jtok.evaluation.metrics.image_features import in_batches, random_convolutions
from jtok.evaluation.metrics.inception import Inception, convolutions

WIDTH = 3  # channels of every convolution


class Reference:
    """The network as Szegedy et al. draw it, with means without the border and a last maximum, as FID's has them."""

    def __init__(self):
        self.draw, self.tensors = torch.Generator().manual_seed(0), {}

    def random(self, name, shape, scale=1.0, mean=0.0):
        if name not in self.tensors:
            self.tensors[name] = mean + scale * torch.randn(shape, generator=self.draw)
        return self.tensors[name]

    def conv(self, name, x, size, stride=1, pad=0):
        size = size if isinstance(size, tuple) else (size, size)
        fan = x.shape[1] * size[0] * size[1]
        x = F.conv2d(x, self.random(f"{name}.conv.weight", (WIDTH, x.shape[1], *size), fan**-0.5), None, stride, pad)
        mean, scale, bias = (
            self.random(f"{name}.bn.{part}", (WIDTH,), 0.1, start)
            for part, start in (("running_mean", 0.0), ("weight", 1.5), ("bias", 0.1))
        )
        variance = self.random(f"{name}.bn.running_var", (WIDTH,), 0.02, 0.4)
        return F.relu(F.batch_norm(x, mean, variance, scale, bias, False, 0, 0.001))

    def chain(self, block, x, *layers):
        for name, size, pad in layers:
            x = self.conv(f"{block}.{name}", x, size, 1, pad)
        return x

    def pooled(self, block, x, maximum=False):
        y = F.max_pool2d(x, 3, 1, 1) if maximum else F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return self.conv(f"{block}.branch_pool", y, 1)

    def a(self, b, x):
        five = self.chain(b, x, ("branch5x5_1", 1, 0), ("branch5x5_2", 5, 2))
        return torch.cat([self.conv(f"{b}.branch1x1", x, 1), five, self.double(b, x), self.pooled(b, x)], 1)

    def double(self, b, x):
        return self.chain(b, x, ("branch3x3dbl_1", 1, 0), ("branch3x3dbl_2", 3, 1), ("branch3x3dbl_3", 3, 1))

    def reduce_a(self, b, x):
        y = self.chain(b, x, ("branch3x3dbl_1", 1, 0), ("branch3x3dbl_2", 3, 1))
        y = self.conv(f"{b}.branch3x3dbl_3", y, 3, 2)
        return torch.cat([self.conv(f"{b}.branch3x3", x, 3, 2), y, F.max_pool2d(x, 3, 2)], 1)

    def c(self, b, x):
        row, column = ((1, 7), (0, 3)), ((7, 1), (3, 0))
        y = self.chain(b, x, ("branch7x7_1", 1, 0), ("branch7x7_2", *row), ("branch7x7_3", *column))
        steps = [(f"branch7x7dbl_{i}", *(column if i % 2 == 0 else row)) for i in range(2, 6)]
        z = self.chain(b, x, ("branch7x7dbl_1", 1, 0), *steps)
        return torch.cat([self.conv(f"{b}.branch1x1", x, 1), y, z, self.pooled(b, x)], 1)

    def reduce_b(self, b, x):
        y = self.conv(f"{b}.branch3x3_2", self.conv(f"{b}.branch3x3_1", x, 1), 3, 2)
        steps = (("branch7x7x3_1", 1, 0), ("branch7x7x3_2", (1, 7), (0, 3)), ("branch7x7x3_3", (7, 1), (3, 0)))
        z = self.conv(f"{b}.branch7x7x3_4", self.chain(b, x, *steps), 3, 2)
        return torch.cat([y, z, F.max_pool2d(x, 3, 2)], 1)

    def e(self, b, x, maximum):
        y = self.conv(f"{b}.branch3x3_1", x, 1)
        z = self.chain(b, x, ("branch3x3dbl_1", 1, 0), ("branch3x3dbl_2", 3, 1))
        sides = [
            self.conv(f"{b}.{name}", q, size, 1, pad)
            for q, names in ((y, ("branch3x3_2a", "branch3x3_2b")), (z, ("branch3x3dbl_3a", "branch3x3dbl_3b")))
            for name, size, pad in zip(names, ((1, 3), (3, 1)), ((0, 1), (1, 0)), strict=True)
        ]
        return torch.cat([self.conv(f"{b}.branch1x1", x, 1), *sides, self.pooled(b, x, maximum)], 1)

    def __call__(self, images):
        x = 2 * F.interpolate(images, (299, 299), mode="bilinear", align_corners=False) - 1
        x = self.conv("Conv2d_2a_3x3", self.conv("Conv2d_1a_3x3", x, 3, 2), 3)
        x = F.max_pool2d(self.conv("Conv2d_2b_3x3", x, 3, 1, 1), 3, 2)
        x = F.max_pool2d(self.conv("Conv2d_4a_3x3", self.conv("Conv2d_3b_1x1", x, 1), 3), 3, 2)
        for i in "bcd":
            x = self.a(f"Mixed_5{i}", x)
        x = self.reduce_a("Mixed_6a", x)
        for i in "bcde":
            x = self.c(f"Mixed_6{i}", x)
        x = self.reduce_b("Mixed_7a", x)
        return self.e("Mixed_7c", self.e("Mixed_7b", x, False), True).mean((2, 3))


@pytest.mark.slow
def test_features_are_those_of_a_reference(tmp_path):
    images = torch.rand((2, 3, 40, 56), generator=torch.Generator().manual_seed(1))
    net = Reference()
    want = net(images)
    assert set(convolutions()) == {name.removesuffix(".conv.weight") for name in net.tensors if name.endswith("weight")
                                   and ".conv." in name}  # fmt: skip
    path = tmp_path / "inception.safetensors"
    save_file({k: v.numpy() for k, v in net.tensors.items()}, path)
    found = in_batches(Inception.load(path), np.moveaxis(images.numpy(), 1, -1), 2)
    assert found.shape == (2, 6 * WIDTH) and want.std() > 0.05
    np.testing.assert_allclose(found, want, rtol=1e-3, atol=1e-4)
    tensors = load_file(path)
    save_file(tensors | {"fc.weight": np.zeros((1000, 18), np.float32)}, path)
    with pytest.raises(UserError, match="of 1000 classes; FID's has 1008"):
        Inception.load(path)
    save_file(tensors | {"Mixed_7a.branch3x3_1.conv.weight": np.zeros((WIDTH, 5, 1, 1), np.float32)}, path)
    with pytest.raises(UserError, match="layers that do not fit each other"):
        Inception.load(path)


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"x": np.zeros(3, np.float32)}, path)
    with pytest.raises(UserError, match="not the Inception network of FID: it lacks Conv2d_1a_3x3.conv.weight"):
        Inception.load(path)


def test_random_convolutions_see_structure_and_no_flat_colour():
    rng = np.random.default_rng(0)
    flat = np.full((3, 16, 16, 3), 0.5, np.float32)
    noise = rng.random((3, 16, 16, 3), np.float32)
    features = jax.tree_util.Partial(random_convolutions)
    quiet, loud = in_batches(features, flat, 2), in_batches(features, noise, 2)
    assert quiet.shape == loud.shape == (3, 48)
    # beyond the border there is zero, which is the one structure that a flat image has
    assert quiet[:, :8].mean() < 0.5 * loud[:, :8].mean()
    # a convolution's last bit depends on the batch and on the processor
    np.testing.assert_allclose(loud, in_batches(features, noise, 3), rtol=1e-5, atol=1e-6)
