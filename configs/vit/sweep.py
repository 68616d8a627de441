"""Accuracy against cost on held-out digit scenes, with the small ViT that ships with jtok (a toy-scale experiment).

jtok sweep --config configs/vit/sweep.py --workdir runs/sweep          the whole catalogue
jtok sweep --config configs/vit/sweep.py:table --workdir runs/table    eight methods and the baselines
jtok sweep --config configs/vit/sweep.py:demo --workdir runs/demo      five methods at two ratios, in minutes
"""

import ml_collections

from jtok.commands.options import shipped_config

BASELINES = ("random", "uniform-grid", "average-pool", "downsample-image")
DEMO = ("tome", "topk", "kmedoids", "random", "downsample-image")
TABLE = ("tome", "topk", "evit", "ats", "dpc-knn", "kmedoids", "token-pooling", "dynamicvit")
TRAINING_FREE = ("tome", "topk", "evit", "ats", "kmedoids", "dpc-knn", "atc", "token-pooling", "expedit")
LEARNED = ("dynamicvit", "token-cropr", "sit", "patchmerger", "sinkhorn")


def get_config(arg: str = "all"):
    """`arg`: all, table or demo."""
    config = shipped_config()
    config.sweep = ml_collections.ConfigDict()
    config.sweep.methods = {"demo": DEMO, "table": TABLE + BASELINES}.get(arg, TRAINING_FREE + LEARNED + BASELINES)
    config.sweep.keeps = (0.5, 0.2) if arg == "demo" else (0.7, 0.5, 0.3, 0.15)
    config.sweep.single_keeps = {"demo": (), "table": (0.5,)}.get(arg, config.sweep.keeps)
    config.sweep.picture_keeps = {"demo": (0.2,), "table": (0.3,)}.get(arg, config.sweep.keeps)
    config.sweep.pictures_first = arg == "demo"
    config.sweep.images = {"demo": 200, "table": 400}.get(arg, 2000)
    config.sweep.batch = 8
    # directories of the runs that trained them (experiments/learned_reducers.py); "" = as initialised
    config.sweep.runs = ml_collections.ConfigDict({name: "" for name in LEARNED if name in config.sweep.methods})
    config.sweep.pictures = 4 if arg == "demo" else 6
    config.sweep.title = "Token reduction on digit scenes"
    config.sweep.scale = "Toy scale: a 0.6 M parameter ViT on 64 x 64 pixel scenes; rankings need not carry over."
    config.sweep.notes = (
        "keep is the share of patches left after the last site of a method; methods that reduce earlier cost less.",
    )
    return config
