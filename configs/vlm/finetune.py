"""Trains a learned projector in place of the shipped model's own, tower frozen, on digit-scene questions.

    jtok train --config configs/vlm/finetune.py:m3 --workdir runs/vlm_m3
    jtok sweep --config configs/vlm/digit_scenes.py --config.sweep.runs.m3=runs/vlm_m3 --workdir runs/vlm_sweep

Writes the model to the run's directory, and where the method has parameters of its own, reducer.safetensors beside it.
mqt and m3 learn all token counts at once; tokenpacker learns the one given by --config.plan.keep.
"""

from jtok.training.tasks.answer_questions import default_config


def get_config(arg: str = "m3"):
    """`arg`: the method."""
    config = default_config()
    config.weights = "shipped"
    config.plan.method = arg
    config.plan.keep = 1 / 9
    if arg == "mqt":
        config.plan.options.queries = 81
    config.freeze_tower = True
    config.dense = 0.0
    config.data.size = 72
    config.train.update(
        {"batch": 24, "steps": 300, "lr": 1e-3, "warmup": 20, "weight_decay": 0.02, "optimizer": "muon"}
    )
    config.train.update({"eval_every": 0, "checkpoint_every": 100, "log_every": 20})
    return config
