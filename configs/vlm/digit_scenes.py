"""A small vision-language model that answers questions about digit scenes; the one that ships with jtok.

    jtok train --config configs/vlm/digit_scenes.py --workdir runs/digit_questions
    jtok sweep --config configs/vlm/digit_scenes.py --workdir runs/vlm_sweep

LLaVA-1.5's shape: a CLIP tower (6 layers, 128 wide, 144 patches of 8 x 8 pixels and a class token), a perceptron and a
Llama decoder (4 layers, 128 wide); 1.7 M parameters.
"""

from jtok.training.answer_questions import default_config


def get_config(arg: str = ""):
    """`arg`: "" for the shipped model, "quick" for a few minutes (a smoke run)."""
    config = default_config()
    config.train.update({"batch": 16, "steps": 5000, "lr": 2e-3, "warmup": 100, "weight_decay": 0.02, "clip": 1.0})
    config.train.update({"ema": 0.998, "optimizer": "muon", "eval_every": 500, "checkpoint_every": 100})
    config.train.log_every = 20
    config.tower_steps = 1500
    if arg == "quick":
        config.train.update({"steps": 200, "warmup": 20, "eval_every": 200})
        config.tower_steps = 100
    return config
