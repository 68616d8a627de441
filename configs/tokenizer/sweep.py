"""Quality against bits per pixel of a tokenizer, at fixed and adaptive lengths, against JPEG and WebP.

jtok sweep --config configs/tokenizer/sweep.py --workdir runs/rate_distortion       the shipped tokenizer
jtok sweep --config configs/tokenizer/sweep.py --config.sweep.tokenizer=FILE --workdir runs/mine
"""

from jtok.evaluation.sweeps.rate_distortion import default_config


def get_config(arg: str = ""):
    """`arg`: "" or "quick" for fewer points of smaller photographs."""
    config = default_config()
    config.sweep.title = "Rate and distortion of the small tokenizer, JPEG and WebP on held-out photographs"
    if arg == "quick":
        config.sweep.update({"shorter": 96, "tokens": (1, 4, 32), "qualities": (20.0, 26.0), "crops": 60})
        config.sweep.update({"jpeg": (5, 50), "webp": (5, 50)})
    return config
