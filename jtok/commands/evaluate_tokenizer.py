"""The part of `jtok evaluate` that measures a tokenizer: reconstruction quality at given numbers of tokens."""

from __future__ import annotations

import json
from typing import Any

from absl import flags as absl_flags

from jtok.errors import UserError

#: Columns of the table; JSON has the full names.
SHORT = {
    "mean_tokens": "mean",
    "frechet_random_conv": "random conv",
    "bits_per_pixel": "bpp",
    "coded_bits_per_pixel": "coded bpp",
}


def tokenizer_evaluation_flags(values: absl_flags.FlagValues) -> None:
    """--tokenizer and the flags of its evaluation."""
    text = "measure this tokenizer instead: its file or released directory, or 'shipped'"
    absl_flags.DEFINE_string("tokenizer", None, text, flag_values=values)
    base_flag(values)
    text = "numbers of tokens (default: 1, 2, 4, ... and all)"
    absl_flags.DEFINE_list("tokens", None, text, flag_values=values)
    text = "Inception weights of FID (safetensors), for rFID; without them another Fréchet distance is reported"
    absl_flags.DEFINE_string("inception", None, text, flag_values=values)
    text = "LPIPS weights (safetensors): a backbone's file and that of its linear layers, FILE,FILE, or both in one"
    absl_flags.DEFINE_list("lpips", None, text, flag_values=values)
    text = "data set of a tokenizer's images: photos, faces, digit_scenes, folder, parquet, webdataset or arrayrecord"
    absl_flags.DEFINE_string("data", "photos", text, flag_values=values)
    absl_flags.DEFINE_string("path", None, "directory of the images, for data in files", flag_values=values)


def base_flag(values: absl_flags.FlagValues) -> None:
    """--base, shared by all commands that open tokenizers."""
    text = "file of the base tokenizer (ALIT, KARL) or VAE (FlexTok), where the tokenizer's own holds none"
    absl_flags.DEFINE_string("base", None, text, flag_values=values)


def parse_counts(texts: list[str] | None) -> tuple[int, ...] | None:
    """["1", "4"] as numbers. Raises UserError for anything that is not a number of tokens."""
    if not texts:
        return None
    if not all(text.strip().isdecimal() and int(text) for text in texts):
        raise UserError(f"--tokens={','.join(texts)} is not a list of numbers, such as --tokens=1,4,16.")
    return tuple(int(text) for text in texts)


def evaluate(args: Any) -> int:
    """Prints a table, or JSON, of the reconstruction quality on held-out images."""
    counts = parse_counts(args.tokens)
    from jtok import compile_cache
    from jtok.evaluation.metrics.inception import Inception
    from jtok.evaluation.sweeps.reconstruction import Networks, evaluate_tokenizer, usual_counts
    from jtok.tokenizers.shipped import open_tokenizer

    compile_cache.enable()
    inception = Inception.load(args.inception) if args.inception else None
    networks = Networks(inception, _lpips(args.lpips) if args.lpips else None)
    tokenizer = open_tokenizer(args.tokenizer, args.base)
    images = held_out_images(args.data, args.split, tokenizer.image_side, args.images or 128, args.path)
    rows = evaluate_tokenizer(tokenizer, images, counts or usual_counts(tokenizer), networks)
    facts = {"tokenizer": args.tokenizer, "data": args.data, "split": args.split, "images": len(images)}
    facts |= {"side": images.shape[1], "inception": inception.digest if inception else None}
    if args.json:
        print(json.dumps(facts | {"rows": rows}, indent=1))
        return 0
    from rich.console import Console

    from jtok.evaluation.sweeps.pareto import table

    title = f"{len(images)} {args.split} images of {args.data}, {images.shape[1]} pixels a side"
    short = [{SHORT.get(name, name): value for name, value in row.items() if name != "codes"} for row in rows]
    Console().print(table(short, title=title))
    if inception is None:
        print("random conv: Fréchet distance of random convolutions' features, not FID; --inception=FILE gives rFID")
    return 0


def held_out_images(name: str, split: str, side: int, count: int, path: str | None = None):
    """uint8 [N,side,side,3] of a data set; N is `count`, or as many as there are."""
    import numpy as np

    from jtok.data import FORMATS, make_dataset

    files = name in FORMATS
    options = {"path": path, "augment": False} if files else {"length": count} if name != "faces" else {"others": True}
    if path and not files:
        raise UserError(f"the data set {name} comes with its packages and takes no --path.")
    data = make_dataset(name, split, size=side, **options)
    return np.stack([data[i]["image"] for i in range(min(count, len(data)))])


def _lpips(files: list[str]):
    from jtok.checkpoints.safetensor_files import open_weights
    from jtok.training.losses.lpips import LPIPS

    if len(files) > 2:
        raise UserError("--lpips takes one file, or two: FILE,FILE.")
    net = "vgg" if "features.28.weight" in open_weights(files[0]).shapes else "alex"
    return LPIPS.load(files[0], files[-1], net)
