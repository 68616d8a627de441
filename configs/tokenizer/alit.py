"""ALIT on ImageNet at 256 pixels, on a frozen VQGAN; for those who have the images.

"Adaptive Length Image Tokenization via Recurrent Allocation", arXiv:2411.02393, ICLR 2025.

    jtok train --config=configs/tokenizer/alit.py:small --config.data.options.path=DIR \
        --config.base.path=vqgan.safetensors --workdir=runs/alit
    jtok train --config=configs/tokenizer/alit.py:small_pixels --config.data.options.path=DIR \
        --config.base.path=vqgan.safetensors --config.weights=runs/alit/model.safetensors --workdir=runs/alit_pixels
    jtok train --config=configs/tokenizer/alit.py:quick --workdir=runs/alit_quick      minutes on a CPU

First all eight rounds predict the VQGAN's codes, then the loss is on the pixels of one sampled round, with an adversary
per round. Batches and rates are the authors' (blr 1.5e-4 and 1e-4 per batch of 256, 200 epochs each, 20 of warm-up);
the base stays frozen in both stages, and the weight-free pyramid replaces LPIPS unless its files are given (see
configs/tokenizer/titok.py). No number of the paper's is claimed here.
"""

from jtok.training.losses.adversary import switch_on
from jtok.training.tasks import recurrent_tokenizer
from jtok.training.tasks.frozen_base import base_config

SIZES = {"tiny": (512, 8, 8), "small": (1024, 8, 8), "base": (768, 12, 12), "semilarge": (1024, 16, 16)}


def get_config(arg: str = "small"):
    """`arg`: tiny, small, base or semilarge, alone or with _pixels for the second stage; quick."""
    if arg == "quick":
        return quick()
    size, _, stage = arg.partition("_")
    config = recurrent_tokenizer.default_config()
    config.tokenizer.fields.update({"encoder": SIZES[size], "decoder": SIZES[size]})
    config.data.update({"name": "folder", "eval_batch": 256})
    config.data.options.update({"path": "", "size": 256})
    config.train.update({"batch": 256, "steps": 1_000_000, "lr": 1.5e-4, "warmup": 100_000, "b2": 0.95})
    config.train.update({"weight_decay": 0.05, "clip": 1.0, "ema": 0.9999, "dtype": "bfloat16", "remat": True})
    config.train.update({"eval_every": 25_000, "checkpoint_every": 5_000, "log_every": 100})
    if stage == "pixels":
        config.stage = "pixels"
        config.train.update({"lr": 1e-4})
        config.loss.update({"absolute": 1.0, "pyramid": 0.1})
        switch_on(config, lr=1e-4, weight=0.2, adaptive=True)
    return config


def quick():
    """A tiny one on the pixels of patches, which need no file, on the embedded photographs."""
    config = recurrent_tokenizer.default_config()
    config.base = base_config("pixels")
    config.base.stride = 4
    small = {"image": 16, "patch": 4, "encoder": (96, 2, 3), "decoder": (96, 2, 3), "tokens": 4, "rounds": 3}
    config.tokenizer.fields.update({**small, "most": 12, "codebook": 128, "code_width": 8})
    config.data.options.update({"size": 16})
    config.train.update({"batch": 32, "steps": 1000, "lr": 1e-3, "warmup": 50, "weight_decay": 0.01, "ema": 0.99})
    config.train.update({"eval_every": 250, "checkpoint_every": 100, "log_every": 20})
    return config
