"""A tokenizer of small tiles, trained on the photographs that ship inside scikit-image and scikit-learn.

    jtok train --config=configs/tokenizer/photos.py --workdir=runs/photos_tokenizer

32 x 32 pixels become 1 to 32 codes of 16 bits; 1.6 M parameters.
"""

from jtok.training.tokenize_images import default_config


def get_config(arg: str = ""):
    """`arg`: "" or "quick" for a smoke run of a few minutes."""
    config = default_config()
    config.tokenizer.fields.update(
        {"image": 32, "patch": 8, "tokens": 32, "encoder": (128, 4, 4), "decoder": (128, 4, 4), "drop_tail": True}
    )
    config.tokenizer.fields.update({"bottleneck": "fsq", "levels": (8, 8, 8, 5, 5, 5), "code_width": 6})
    config.data.options.update({"size": 32})
    config.loss.update({"square": 10.0, "pyramid": 0.1})
    config.drop = "uniform"
    config.train.update(
        {"batch": 64, "steps": 12000, "lr": 1.5e-3, "warmup": 300, "weight_decay": 0.01, "clip": 1.0, "ema": 0.999}
    )
    config.train.update({"eval_every": 1000, "checkpoint_every": 250, "log_every": 50})
    config.eval_tokens = (1, 4, 16)
    if arg == "quick":
        config.train.update({"steps": 300, "warmup": 50, "eval_every": 300, "checkpoint_every": 100})
    return config
