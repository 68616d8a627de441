"""How much accuracy does each training-free method cost a ViT, at equal compute?

    python experiments/vit_pareto.py --small --max_parallel=2                the ViT that ships with jtok, in minutes
    python experiments/vit_pareto.py --platform=tpu_vm --tpu=v5e-8 --project=PROJECT --zone=ZONE --bucket=gs://BUCKET \
        --config.data.options.path=/gcs/BUCKET/imagenet --config.weights=/gcs/BUCKET/deit-small-patch16-224

The small setting reads 400 held-out digit scenes; the full one 10,000 images of ImageNet's validation split with DeiT-S
(--config=configs/vit/imagenet.py:PRESET takes another). A unit is one method at one ratio, `jtok evaluate`. The report
shows accuracy against cost, and what the papers claim next to what was measured in the same setting, where it was.
"""

import sys

from jtok import launch

CONFIG = "configs/vit/imagenet.py:deit_s16"
COMMAND = ("jtok", "evaluate", "--json", "--split=validation", "--images=10000")
OUTPUT = "record.json"
SMALL = {
    "CONFIG": "configs/vit/sweep.py:demo",
    "COMMAND": ("jtok", "evaluate", "--json", "--split=test", "--images=400"),
}
METHODS = ("tome", "topk", "evit", "ats", "dpc-knn", "token-pooling", "random", "downsample-image")
KEEPS = (0.7, 0.5, 0.343, 0.125)  # the last two are 0.7 and 0.5 a stage, three times
SMALL_METHODS, SMALL_KEEPS = ("tome", "topk", "evit", "random", "downsample-image"), (0.7, 0.5, 0.3)
MODELS = {"deit_s16": "DeiT-S", "vit_s16": "ViT-S/16", "vit_b16": "ViT-B/16"}

# Which unit measures what a paper claims: the same weights off the shelf, so not what was trained for its tokens.
TOME = ("r=13, off the shelf", "tome_r13")


def sweep(small=False):
    """The unreduced model, and every method at every ratio."""
    yield "none", {"--method": "none"}
    if not small:
        yield "tome_r13", {"--method": "tome", "--option": "r=13"}
    for method in SMALL_METHODS if small else METHODS:
        for keep in SMALL_KEEPS if small else KEEPS:
            yield f"{method}_{keep:g}", {"--method": method, "--keep": keep}


def report(workdirs):
    """Tables of what was measured and what is claimed, and accuracy against cost."""
    from jtok.launch.pareto import TIMES, claim_rows, config_argument, measured_rows, read_outputs
    from jtok.viz.pareto import draw_pareto

    records = read_outputs(workdirs, OUTPUT)
    model, (setting, unit) = MODELS.get(config_argument(workdirs), ""), TOME
    measured = {("tome", model, setting): 100 * records[unit]["accuracy"]} if unit in records else {}
    claims = claim_rows([record["method"] for record in records.values()], measured)
    return launch.Report(
        {"measured": measured_rows(records), "claimed by the papers": claims},
        draw_pareto(list(records.values()), batch=8, title=__doc__.splitlines()[0]),
        [TIMES],
    )


if __name__ == "__main__":
    sys.exit(launch.main(globals()))
