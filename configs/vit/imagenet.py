"""ViT and DeiT on ImageNet-1k, with or without token reducers; for those who have the images.

    jtok train --config=configs/vit/imagenet.py:deit_s16 --config.data.options.path=DIR --workdir=runs/deit_s16
    jtok evaluate --config=configs/vit/imagenet.py:deit_s16 --config.data.options.path=DIR \
        --config.weights=path/to/deit-small-patch16-224 --method=tome --option=r=13

DIR holds train/<class>/*.jpg and val/<class>/*.jpg (or set config.data.name to arrayrecord, parquet or webdataset).
Cost: about 300 epochs x 1.28 M images x 3 x 4.6 GMACs for DeiT-S. Expected: the papers' numbers are in
`jtok list --json` under "claims"; none of them was measured here.
"""

from jtok.models.towers.presets import pixel_statistics
from jtok.training.tasks.classify import default_config


def get_config(arg: str = "deit_s16"):
    """`arg`: a preset of jtok/models/towers/presets.py with a classifier."""
    config = default_config()
    config.model.preset = arg
    config.data.mean, config.data.std = pixel_statistics(arg)
    config.data.name = "folder"
    config.data.options.path = ""
    config.data.options.size = 224
    config.data.eval_split = "validation"
    config.train.update({"batch": 1024, "steps": 375_000, "lr": 1e-3, "min_lr": 1e-5, "warmup": 6_250})
    config.train.update({"weight_decay": 0.05, "clip": 1.0, "ema": 0.9999, "dtype": "bfloat16"})
    config.train.update({"eval_every": 12_500, "checkpoint_every": 2_500, "log_every": 100})
    config.label_smoothing = 0.1
    return config
