"""FlexTok on ImageNet at 256 pixels, on a frozen VAE; for those who have the images.

"FlexTok: Resampling Images into 1D Token Sequences of Flexible Length", arXiv:2502.13967.

    jtok train --config=configs/tokenizer/flextok.py:d18 --config.data.options.path=DIR \
        --config.base.path=flextok_vae_c16/diffusion_pytorch_model.safetensors --workdir=runs/flextok_d18
    jtok train --config=configs/tokenizer/flextok.py:quick --workdir=runs/flextok_quick      minutes on a CPU

256 registers of 64,000 codes; a rectified flow generates latents of 32 x 32 x 16 from the prefix that nested dropout
leaves. Batch, rate and steps are ours (the paper's training code is not released); the paper's alignment with DINOv2
is left out. The state of d18 is sharded over groups of eight chips (config.mesh.fsdp; on fewer, set it to 1).

Cost: memory and FLOPs of a step are in docs/compile.md. Expected (reported, not measured here): gFID below 2 on
ImageNet with 8 to 128 tokens; rFID 4.02 and PSNR 17.7 dB of the released d18-d28 with 256 tokens, as GPSToken's authors
measured it.
"""

from jtok.training.tasks import flow_tokenizer
from jtok.training.tasks.frozen_base import base_config


def get_config(arg: str = "d18"):
    """`arg`: d12 or d18 (width 64 x depth, encoder and decoder alike); quick."""
    if arg == "quick":
        return quick()
    depth = int(arg.removeprefix("d"))
    config = flow_tokenizer.default_config()
    config.tokenizer.fields.update({"encoder_depth": depth, "encoder_width": 64 * depth})
    config.tokenizer.fields.update({"decoder_depth": depth, "decoder_width": 64 * depth})
    config.mesh.fsdp = 8 if depth > 12 else 1  # d18's parameters and moments do not fit on one v5e chip
    config.data.update({"name": "folder", "eval_batch": 256})
    config.data.options.update({"path": "", "size": 256})
    config.eval_tokens, config.eval_steps = (1, 16, 64), 20
    config.train.update({"batch": 1024, "steps": 400_000, "lr": 3e-4, "min_lr": 1e-5, "warmup": 10_000})
    config.train.update({"weight_decay": 0.05, "clip": 1.0, "ema": 0.9998, "dtype": "bfloat16", "remat": True})
    config.train.update({"eval_every": 25_000, "checkpoint_every": 5_000, "log_every": 100})
    return config


def quick():
    """A tiny one that makes the pixels themselves, on the embedded photographs."""
    config = flow_tokenizer.default_config()
    config.base = base_config("pixels")
    config.base.stride = 1
    small = {"encoder_depth": 3, "encoder_width": 96, "decoder_depth": 3, "decoder_width": 96, "head_size": 32}
    config.tokenizer.fields.update({**small, "channels": 3, "patch": 4, "grid": 4, "registers": 16})
    config.tokenizer.fields.update({"levels": (8, 5, 5), "frequencies": 64})
    config.data.options.update({"size": 16})
    config.eval_tokens, config.eval_steps = (1, 4), 10
    config.train.update({"batch": 32, "steps": 1000, "lr": 2e-3, "warmup": 50, "weight_decay": 0.01, "ema": 0.99})
    config.train.update({"eval_every": 250, "checkpoint_every": 100, "log_every": 20})
    return config
