"""KARL on ImageNet at 256 pixels, on a frozen VQGAN; for those who have the images.

"Single-pass Adaptive Image Tokenization for Minimum Program Search", Duggal et al., 2025.

    jtok train --config=configs/tokenizer/karl.py:small --config.data.options.path=DIR \
        --config.base.path=vqgan.safetensors --workdir=runs/karl
    jtok train --config=configs/tokenizer/karl.py:small_pixels --config.data.options.path=DIR \
        --config.base.path=vqgan.safetensors --config.weights=runs/karl/model.safetensors --workdir=runs/karl_pixels
    jtok train --config=configs/tokenizer/karl.py:quick --workdir=runs/karl_quick      minutes on a CPU

Every step encodes its images twice: with few tokens, to find the error they reach, and with all of them, to learn which
tokens that error does not need. Batches and rates are the authors' (512 and 144 images, blr 1e-4 per batch of 256, 200
and 400 epochs, 20 of warm-up; the second batch is 256 here, so that a slice of 64 chips divides it). Otherwise as
configs/tokenizer/alit.py. No number of the paper's is claimed here.
"""

from jtok.training.losses.adversary import switch_on
from jtok.training.tasks import single_pass_tokenizer
from jtok.training.tasks.frozen_base import base_config

SIZES = {"small": (1024, 8, 8), "base": (768, 12, 12), "semilarge": (1024, 16, 16)}


def get_config(arg: str = "small"):
    """`arg`: small, base or semilarge, alone or with _pixels for the second stage; quick."""
    if arg == "quick":
        return quick()
    size, _, stage = arg.partition("_")
    config = single_pass_tokenizer.default_config()
    config.tokenizer.fields.update({"encoder": SIZES[size], "decoder": SIZES[size]})
    config.data.update({"name": "folder", "eval_batch": 256})
    config.data.options.update({"path": "", "size": 256})
    config.train.update({"batch": 512, "steps": 500_000, "lr": 2e-4, "warmup": 50_000, "b2": 0.95})
    config.train.update({"weight_decay": 0.05, "clip": 1.0, "ema": 0.9999, "dtype": "bfloat16", "remat": True})
    config.train.update({"eval_every": 25_000, "checkpoint_every": 5_000, "log_every": 100})
    if stage == "pixels":
        config.stage = "pixels"
        config.train.update({"batch": 256, "steps": 2_000_000, "lr": 1e-4, "warmup": 100_000})
        config.loss.update({"absolute": 1.0, "pyramid": 0.1})
        switch_on(config, lr=1e-4, weight=0.2, adaptive=True)
    return config


def quick():
    """A tiny one on the pixels of patches, which need no file, on the embedded photographs."""
    config = single_pass_tokenizer.default_config()
    config.base = base_config("pixels")
    config.base.stride = 4
    small = {"patch": 4, "encoder": (96, 2, 3), "decoder": (96, 2, 3), "tokens": 16, "most": 24, "table": 16}
    config.tokenizer.fields.update({**small, "codebook": 128, "code_width": 8, "halting_width": 64})
    config.budgets = (2, 4, 6, 8, 12, 16, 20)
    config.data.options.update({"size": 16})
    config.train.update({"batch": 32, "steps": 1000, "lr": 1e-3, "warmup": 50, "weight_decay": 0.01, "ema": 0.99})
    config.train.update({"eval_every": 250, "checkpoint_every": 100, "log_every": 20})
    return config
