"""TiTok on ImageNet at 256 pixels, in one stage or in two; for those who have the images.

"An Image is Worth 32 Tokens for Reconstruction and Generation", arXiv:2406.07550.

    jtok train --config=configs/tokenizer/titok.py:b --config.data.options.path=DIR --workdir=runs/titok_b
    jtok train --config=configs/tokenizer/titok.py:l_stage1 --config.data.options.path=DIR \
        --config.base.path=maskgit-vqgan.safetensors --workdir=runs/l_stage1
    jtok train --config=configs/tokenizer/titok.py:l_stage2 --config.data.options.path=DIR \
        --config.weights=runs/l_stage1/model.safetensors --config.pixel_decoder=maskgit-vqgan.safetensors \
        --workdir=runs/l_stage2
    jtok train --config=configs/tokenizer/titok.py:quick --workdir=runs/titok_quick      minutes on a CPU

One stage: pixels out, losses from the start. Two stages, the paper's: the decoder predicts the codes of MaskGIT's VQGAN
(a safetensors file of it is needed), then encoder and codes are frozen and a pixel decoder is trained after them.
The perceptual loss is the weight-free pyramid unless LPIPS's files are given:

    --config.loss.lpips=1.0 --config.loss.pyramid=0 --config.loss.lpips_backbone=vgg16.safetensors \
        --config.loss.lpips_linear=lpips_vgg.safetensors

Batches, rates and steps are those of the authors' training configs (1 M steps of 256 images, then 500 k; one stage: the
losses of TA-TiTok's, 650 k steps, the adversary from step 200 k), with LPIPS or the pyramid in place of their ConvNeXt.
Cost: memory and FLOPs of a step are in docs/compile.md. Expected (reported, not measured here), rFID on ImageNet: two
stages L-32 2.21, B-64 1.70, S-128 1.71; one stage with 8192 codes bl64 2.06, bl128 1.49, sl256 1.03.
"""

from jtok.tokenizers.titok import SIZES
from jtok.training.losses.adversary import switch_on
from jtok.training.tasks import predict_codes, tokenize_images

#: encoder, decoder, tokens, codebook, code width, cosine
VARIANTS = {
    "s": ("small", "small", 128, 4096, 12, True),
    "b": ("base", "base", 64, 4096, 12, True),
    "l": ("large", "large", 32, 4096, 12, True),
    "bl64": ("base", "large", 64, 8192, 64, False),
    "bl128": ("base", "large", 128, 8192, 64, False),
    "sl256": ("small", "large", 256, 8192, 64, False),
}


def get_config(arg: str = "b"):
    """`arg`: s, b, l (or bl64, bl128, sl256), alone or with _stage1 or _stage2; quick."""
    if arg == "quick":
        return quick()
    size, _, stage = arg.partition("_")
    encoder, decoder, tokens, codes, width, cosine = VARIANTS[size]
    config = (predict_codes if stage == "stage1" else tokenize_images).default_config()
    config.tokenizer.fields.update({"tokens": tokens, "encoder": SIZES[encoder], "decoder": SIZES[decoder]})
    config.tokenizer.fields.update({"codebook": codes, "code_width": width, "cosine": cosine})
    config.data.update({"name": "folder", "eval_batch": 256})
    config.data.options.update({"path": "", "size": 256})
    config.eval_tokens = ()
    config.train.update({"batch": 256, "steps": 650_000, "lr": 1e-4, "min_lr": 1e-5, "warmup": 10_000})
    config.train.update({"weight_decay": 1e-4, "clip": 1.0, "ema": 0.999, "dtype": "bfloat16"})
    config.train.update({"eval_every": 25_000, "checkpoint_every": 5_000, "log_every": 100})
    if stage == "stage1":
        config.train.update({"steps": 1_000_000, "b2": 0.99})
    elif stage == "stage2":
        config.tokenizer.fields.update({"legacy": True, "pixels": True})
        config.freeze = ("encoder", "latent_tokens", "quantizer")
        config.train.update({"steps": 500_000, "warmup": 5_000})
        config.loss.update({"square": 1.0, "pyramid": 0.1})
        switch_on(config, lr=1e-4, start=20_000, weight=0.01, lecam=0.001)
    else:
        config.loss.update({"square": 1.0, "pyramid": 0.1})
        switch_on(config, lr=1e-4, start=200_000, weight=0.1, lecam=0.001)
    return config


def quick():
    """A tiny TiTok of one stage, adversary and all, on the embedded photographs."""
    config = tokenize_images.default_config()
    config.tokenizer.fields.update(
        {"image": 32, "patch": 8, "tokens": 16, "encoder": (96, 3, 3), "decoder": (96, 3, 3)}
    )
    config.tokenizer.fields.update({"codebook": 256, "code_width": 8})
    config.data.options.update({"size": 32})
    config.loss.update({"square": 10.0, "pyramid": 0.1})
    config.eval_tokens = ()
    config.train.update({"batch": 32, "steps": 600, "lr": 1e-3, "warmup": 50, "weight_decay": 0.01, "ema": 0.99})
    config.train.update({"eval_every": 200, "checkpoint_every": 100, "log_every": 20})
    switch_on(config, lr=1e-4, start=200, weight=0.02, lecam=0.001, width=16, layers=2)
    return config
