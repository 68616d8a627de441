"""Fine-tunes one learned reducer inside the small ViT that ships with jtok, with the method's own objective.

    jtok train --config configs/vit/finetune.py:dynamicvit --workdir runs/dynamicvit

About a minute on 2 cores. Writes model.safetensors and model.reducer.safetensors into the run directory.
"""

from jtok.commands.options import shipped_config

# Learning rates differ because some train a handful of vectors and others a network beside a frozen tower.
SETTINGS = {
    "dynamicvit": {"lr": 1e-3},
    "token-cropr": {"lr": 3e-3},
    "sit": {"lr": 1e-3},
    "patchmerger": {"lr": 1e-3},
    "sinkhorn": {"lr": 1e-3},
}


def get_config(arg: str = "dynamicvit"):
    """`arg`: the method."""
    config = shipped_config()
    config.plan.method = arg
    config.plan.keep = 0.5
    config.train.update({"batch": 32, "steps": 150, "warmup": 15, "weight_decay": 0.0, "min_lr": 0.0})
    config.train.update(SETTINGS.get(arg, {"lr": 1e-3}))
    config.train.update({"eval_every": 0, "checkpoint_every": 100, "log_every": 20})
    config.data.eval_split = "validation"
    return config
