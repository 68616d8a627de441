"""A tokenizer of small tiles, trained on the photographs that ship inside scikit-image and scikit-learn.

    jtok train --config=configs/tokenizer/photos.py --workdir=runs/photos_tokenizer
    jtok train --config=configs/tokenizer/photos.py:lengths --workdir=runs/photos_lengths \
        --config.weights=runs/photos_tokenizer/model.safetensors

32 x 32 pixels become 1 to 32 codes of 16 bits; 1.6 M parameters. The first command trains all lengths alike; the second
continues with short codes as often as long ones, and with a loss on the seams between tiles. They took 86 and 33
minutes on one busy CPU core. PSNR of crops of validation photographs at 1, 4, 16 and 32 tokens, dB: 22.6, 26.0, 31.4
and 32.0 after the first; 24.2, 26.9, 30.9 and 31.6 after the second, which made
jtok/assets/photos_tokenizer.safetensors.
"""

from jtok.training.tasks.tokenize_images import default_config


def get_config(arg: str = ""):
    """`arg`: "", "lengths" for the second part, or "quick" for a smoke run of a few minutes."""
    config = default_config()
    config.tokenizer.fields.update(
        {"image": 32, "patch": 8, "tokens": 32, "encoder": (128, 4, 4), "decoder": (128, 4, 4), "drop_tail": True}
    )
    config.tokenizer.fields.update({"bottleneck": "fsq", "levels": (8, 8, 8, 5, 5, 5), "code_width": 6})
    config.data.options.update({"size": 32, "shorter": 384, "vary": True})
    config.loss.update({"square": 0.0, "log": 1.0})
    config.drop = "uniform"
    config.train.update({"batch": 32, "steps": 10000, "lr": 2.5e-3, "warmup": 100, "weight_decay": 0.01, "clip": 1.0})
    config.train.update(
        {"ema": 0.999, "optimizer": "muon", "eval_every": 500, "checkpoint_every": 250, "log_every": 50}
    )
    config.eval_tokens = (1, 4, 16)
    if arg == "lengths":
        config.drop = "log_uniform"
        config.loss.coarse = 0.3
        config.train.update({"steps": 4000, "lr": 1.5e-3, "warmup": 50})
    if arg == "quick":
        config.train.update({"steps": 300, "warmup": 50, "eval_every": 300, "checkpoint_every": 100})
    return config
