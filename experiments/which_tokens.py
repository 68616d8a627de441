"""Which tokens do methods agree on, and does agreeing mean performing alike?

    python experiments/which_tokens.py --small --max_parallel=2            the models that ship with jtok, in minutes
    python experiments/which_tokens.py --platform=tpu_vm --project=PROJECT --zone=ZONE --bucket=gs://BUCKET \
        --config.data.options.path=/gcs/BUCKET/imagenet --config.weights=/gcs/BUCKET/deit-small-patch16-224

After "Which Tokens to Use? Investigating Token Reduction in Vision Transformers" (arXiv:2308.04657), which compares
models fine-tuned with each method; here nothing is fine-tuned. The small setting reads 400 held-out digit scenes with
the shipped ViT, and 280 digit-scene questions with the shipped vision-language model. The full one reads 10,000 images
of ImageNet's validation split with DeiT-S, and 1,000 questions of POPE with the LLaVA-1.5 checkpoint of `LLAVA`, whose
answers are not judged. A unit is one method at all ratios, `jtok patterns`.
"""

import sys

from jtok import launch

CONFIG = "configs/vit/imagenet.py:deit_s16"
COMMAND = ("jtok", "patterns")
SMALL = {"CONFIG": "configs/vit/sweep.py:demo"}
LLAVA = {
    "--model": "data/llava-1.5-7b-hf",
    "--questions": "pope,data/pope/coco_pope_random.json,data/coco/val2014",
    "--images": 1000,
    "--dtype": "bfloat16",
}
METHODS = ("topk", "evit", "ats", "random", "tome", "dpc-knn", "kmedoids", "token-pooling")
VLM_METHODS = ("visionzip", "divprune", "fastv", "sparsevlm", "random")
KEEPS, SMALL_KEEPS, VLM_KEEPS = "0.729,0.343,0.125", "0.7,0.5,0.3", "0.5,0.25"  # full: 0.9, 0.7, 0.5 a stage
MIDDLE = {False: {"ViT": 0.343, "VLM": 0.25}, True: {"ViT": 0.5, "VLM": 0.25}}  # the ratios of tables and maps


def sweep(small=False):
    """Every method on the ViT and on the vision-language model, at all ratios, and both unreduced."""
    images = 400 if small else 10_000
    yield "vit_none", {"--method": "none", "--images": images}
    for method in METHODS:
        yield f"vit_{method}", {"--method": method, "--keeps": SMALL_KEEPS if small else KEEPS, "--images": images}
    asked = {"--model": "shipped", "--images": 280} if small else LLAVA
    yield "vlm_none", {"--method": "none", **asked}
    for method in VLM_METHODS:
        yield f"vlm_{method}", {"--method": method, "--keeps": VLM_KEEPS, **asked}


def report(workdirs):
    """Similarity of kept sets, merge maps and features, its relation to accuracy, and a figure of it."""
    from jtok.evaluation.patterns import pattern_study as study
    from jtok.evaluation.patterns.record_patterns import read_patterns
    from jtok.viz.patterns import draw_patterns

    groups = {"ViT": [], "VLM": []}
    for name, workdir in workdirs.items():
        groups[name[:3].replace("vit", "ViT").replace("vlm", "VLM")] += read_patterns(workdir / "patterns.npz")
    small = any(p.keep == MIDDLE[True]["ViT"] for p in groups["ViT"])
    tables = {}
    for model, patterns in groups.items():
        keep = MIDDLE[small][model]
        sets, merges = (study.at(patterns, keep, merged) for merged in (False, True))
        tables[f"{model}: accuracy (%) by share of patches left"] = study.accuracy_rows(patterns)
        tables[f"{model}: kept sets at keep {keep:g}, intersection over union"] = study.matrix_rows(sets, study.iou)
        tables[f"{model}: merge maps at keep {keep:g}, v-measure"] = study.matrix_rows(merges, study.v_measure)
        tables[f"{model}: lower ratios inside higher ones, intersection over area"] = study.ratio_rows(patterns)
        tables[f"{model}: kept sets against fixed radial ones at keep {keep:g}"] = study.radial_rows(patterns, keep)
        tables[f"{model}: mean depth maps at keep {keep:g}"] = study.depth_rows(patterns, keep)
        tables[f"{model}: do pairs that are alike perform alike?"] = study.proxy_rows(patterns)
    tables["claimed by the paper"] = claims(study, groups, MIDDLE[small])
    maps, alike = study.pictures(groups["ViT"], MIDDLE[small]["ViT"])
    figure = draw_patterns(maps, alike, title=__doc__.splitlines()[0]) if maps else None
    return launch.Report({title: rows for title, rows in tables.items() if rows}, figure)


def claims(study, groups, middle):
    """What the paper's abstract says (it gives no numbers), next to what was measured on the ViT; empty where not."""
    patterns, keep = groups["ViT"], middle["ViT"]
    ranked = [p.method for p in sorted(study.at(patterns, keep), key=lambda p: -(p.accuracy or 0))]
    radial = [
        row[norm] for row in study.radial_rows(patterns, keep) if row["method"] != "random" for norm in study.NORMS
    ]
    pooled = {row["measure"]: row["Spearman"] for row in study.proxy_rows(patterns) if row["keep"] == "all"}
    alike = "similar patterns go with similar performance"
    rows = [
        ("Top-K is a surprisingly strong baseline", f"rank of topk by accuracy, of {len(ranked)} methods", None),
        (
            "patterns differ from fixed radial ones",
            "highest mean IoU of kept sets with a radial set",
            max(radial, default=None),
        ),
        (alike, "Spearman of gap and IoU of kept sets (negative: they do)", pooled["kept sets, IoU"]),
        (alike, "Spearman of gap and v-measure (negative: they do)", pooled["merge maps, v-measure"]),
        (alike, "Spearman of gap and CKA distance (positive: they do)", pooled["features, CKA distance"]),
        ("patterns differ with the capacity of the backbone", "needs a second backbone", None),
        ("patterns correlate across data sets", "needs a second data set", None),
    ]
    if "topk" in ranked:
        rows[0] = (*rows[0][:2], ranked.index("topk") + 1)
    return [{"claim": claim, "measured as": how, "measured": value} for claim, how, value in rows]


if __name__ == "__main__":
    sys.exit(launch.main(globals()))
