"""Convolutional autoencoders in PyTorch by their published names; parameters are drawn when they are first used."""

from __future__ import annotations

import re

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file


class Network:
    """Layers by their released names. maskgit: MaskGIT's details instead of latent diffusion's."""

    def __init__(self, widths=(32, 64), blocks=1, attention=(), decoder_attention=(), maskgit=False, seed=0):
        self.widths, self.blocks, self.maskgit = widths, blocks, maskgit
        self.attended = {"encoder": attention, "decoder": decoder_attention}
        self.draw, self.tensors = torch.Generator().manual_seed(seed), {}

    def tensor(self, name, shape, scale=1.0, mean=0.0):
        if name not in self.tensors:
            self.tensors[name] = mean + scale * torch.randn(shape, generator=self.draw)
        return self.tensors[name]

    def conv(self, name, x, outputs, size=3, bias=True, stride=1, pad=None):
        scale = (x.shape[1] * size**2) ** -0.5
        kernel = self.tensor(f"{name}.weight", (outputs, x.shape[1], size, size), scale)
        b = self.tensor(f"{name}.bias", (outputs,), 0.1) if bias else None
        return F.conv2d(x, kernel, b, stride, size // 2 if pad is None else pad)

    def norm(self, name, x):
        scale, shift = (self.tensor(f"{name}.{p}", (x.shape[1],), 0.1, m) for p, m in (("weight", 1.0), ("bias", 0.0)))
        return F.group_norm(x, 32, scale, shift, 1e-6)

    def block(self, name, x, outputs):
        bias = not self.maskgit
        h = self.conv(f"{name}.conv1", F.silu(self.norm(f"{name}.norm1", x)), outputs, bias=bias)
        h = self.conv(f"{name}.conv2", F.silu(self.norm(f"{name}.norm2", h)), outputs, bias=bias)
        if x.shape[1] != outputs:
            x = self.conv(f"{name}.nin_shortcut", h if self.maskgit else x, outputs, 1, bias)
        return x + h

    def attention(self, name, x):
        b, c, rows, columns = x.shape
        y = self.norm(f"{name}.norm", x)
        q, k, v = (self.conv(f"{name}.{p}", y, c, 1).reshape(b, c, -1) for p in "qkv")
        y = v @ torch.softmax(q.transpose(1, 2) @ k / c**0.5, -1).transpose(1, 2)
        return x + self.conv(f"{name}.proj_out", y.reshape(b, c, rows, columns), c, 1)

    def middle(self, side, x):
        x = self.block(f"{side}.mid.block_1", x, x.shape[1])
        x = x if self.maskgit else self.attention(f"{side}.mid.attn_1", x)
        return self.block(f"{side}.mid.block_2", x, x.shape[1])

    def level(self, side, name, level, x, blocks):
        for i in range(blocks):
            x = self.block(f"{side}.{name}.{level}.block.{i}", x, self.widths[level])
            if level in self.attended[side]:
                x = self.attention(f"{side}.{name}.{level}.attn.{i}", x)
        return x

    def encoder(self, x, outputs):
        x = self.conv("encoder.conv_in", x, self.widths[0], bias=not self.maskgit)
        for i in range(len(self.widths)):
            x = self.level("encoder", "down", i, x, self.blocks)
            if i < len(self.widths) - 1 and self.maskgit:
                x = F.avg_pool2d(x, 2)
            elif i < len(self.widths) - 1:
                x = self.conv(f"encoder.down.{i}.downsample.conv", F.pad(x, (0, 1, 0, 1)), x.shape[1], stride=2, pad=0)
        x = F.silu(self.norm("encoder.norm_out", self.middle("encoder", x)))
        return self.conv("encoder.conv_out", x, outputs, 1 if self.maskgit else 3)

    def decoder(self, z):
        x = self.middle("decoder", self.conv("decoder.conv_in", z, self.widths[-1]))
        for i in reversed(range(len(self.widths))):
            x = self.level("decoder", "up", i, x, self.blocks + (not self.maskgit))
            if i:
                x = F.interpolate(x, scale_factor=2.0, mode="nearest")
                x = self.conv(f"decoder.up.{i}.upsample.conv", x, x.shape[1])
        return self.conv("decoder.conv_out", F.silu(self.norm("decoder.norm_out", x)), 3)

    def save(self, path, prefix="", rename=lambda name: name, **more):
        tensors = {rename(k): v for k, v in self.tensors.items()} | more
        save_file({prefix + k: np.ascontiguousarray(v) for k, v in tensors.items()}, path)


def diffusers_name(name: str, levels: int = 2, old: bool = False) -> str:
    """A name of latent diffusion's as diffusers has it, whose decoder counts its levels from the deepest one."""
    name = re.sub(r"down\.(\d)\.block", r"down_blocks.\1.resnets", name)
    name = re.sub(r"down\.(\d)\.downsample", r"down_blocks.\1.downsamplers.0", name)
    name = re.sub(r"up\.(\d)\.block", lambda m: f"up_blocks.{levels - 1 - int(m[1])}.resnets", name)
    name = re.sub(r"up\.(\d)\.upsample", lambda m: f"up_blocks.{levels - 1 - int(m[1])}.upsamplers.0", name)
    name = re.sub(r"mid\.block_(\d)", lambda m: f"mid_block.resnets.{int(m[1]) - 1}", name)
    new = ["group_norm", "to_q", "to_k", "to_v", "to_out.0"]
    parts = ["group_norm", "query", "key", "value", "proj_attn"] if old else new
    for was, now in zip(["norm", "q", "k", "v", "proj_out"], parts, strict=True):
        name = name.replace(f"mid.attn_1.{was}.", f"mid_block.attentions.0.{now}.")
    return name.replace("nin_shortcut", "conv_shortcut").replace("norm_out", "conv_norm_out")
