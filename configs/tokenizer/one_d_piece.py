"""One-D-Piece on ImageNet at 256 pixels: TiTok with 256 tokens whose tail may be cut; for those who have the images.

"One-D-Piece: Image Tokenizer Meets Quality-Controllable Compression", arXiv:2501.10064.

    jtok train --config=configs/tokenizer/one_d_piece.py:s_stage1 --config.data.options.path=DIR \
        --config.base.path=maskgit-vqgan.safetensors --workdir=runs/s_stage1
    jtok train --config=configs/tokenizer/one_d_piece.py:s_stage2 --config.data.options.path=DIR \
        --config.weights=runs/s_stage1/model.safetensors --config.pixel_decoder=maskgit-vqgan.safetensors \
        --workdir=runs/s_stage2
    jtok train --config=configs/tokenizer/one_d_piece.py:quick --workdir=runs/one_d_piece_quick    minutes on a CPU

Both stages of TiTok (its batches, rates and steps), with a random tail of the codes dropped: one length for all images
of a batch, uniform in 1 to 256. LPIPS as in configs/tokenizer/titok.py. Expected (reported, not measured here), rFID on
ImageNet with 256 tokens: L 1.08, B 1.11, S 1.48. Without a stage suffix (`:s`) it trains in one stage, which is ours.
"""

from jtok.tokenizers.titok import SIZES
from jtok.training.losses.adversary import switch_on
from jtok.training.tasks import predict_codes, tokenize_images

NAMES = {"s": "small", "b": "base", "l": "large"}


def get_config(arg: str = "s_stage1"):
    """`arg`: s, b or l, alone or with _stage1 or _stage2; quick."""
    if arg == "quick":
        return quick()
    size, _, stage = arg.partition("_")
    config = (predict_codes if stage == "stage1" else tokenize_images).default_config()
    shape = SIZES[NAMES[size]]
    config.tokenizer.fields.update({"tokens": 256, "encoder": shape, "decoder": shape, "drop_tail": True})
    config.drop = "one_for_all"
    config.data.update({"name": "folder", "eval_batch": 256})
    config.data.options.update({"path": "", "size": 256})
    config.eval_tokens = (32, 128)
    config.train.update({"batch": 256, "steps": 1_000_000, "lr": 1e-4, "min_lr": 1e-5, "warmup": 10_000})
    config.train.update({"weight_decay": 1e-4, "clip": 1.0, "ema": 0.999, "dtype": "bfloat16"})
    config.train.update({"eval_every": 25_000, "checkpoint_every": 5_000, "log_every": 100})
    if stage == "stage1":
        config.train.b2 = 0.99
        return config
    config.loss.update({"square": 1.0, "pyramid": 0.1})
    if stage == "stage2":
        config.tokenizer.fields.update({"legacy": True, "pixels": True})
        config.freeze = ("encoder", "latent_tokens", "quantizer")
        config.train.update({"steps": 500_000, "warmup": 5_000})
    switch_on(config, lr=1e-4, start=20_000, weight=0.01, lecam=0.001)
    return config


def quick():
    """A tiny one of one stage on the embedded photographs, without an adversary."""
    config = tokenize_images.default_config()
    config.tokenizer.fields.update(
        {"image": 32, "patch": 8, "tokens": 16, "encoder": (96, 3, 3), "decoder": (96, 3, 3)}
    )
    config.tokenizer.fields.update({"codebook": 256, "code_width": 8, "drop_tail": True})
    config.drop = "one_for_all"
    config.data.options.update({"size": 32})
    config.loss.update({"square": 10.0, "pyramid": 0.1})
    config.eval_tokens = (1, 4)
    config.train.update({"batch": 32, "steps": 600, "lr": 1e-3, "warmup": 50, "weight_decay": 0.01, "ema": 0.99})
    config.train.update({"eval_every": 200, "checkpoint_every": 100, "log_every": 20})
    return config
