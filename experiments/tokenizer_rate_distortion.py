"""How many bits does an adaptive tokenizer need for an image of given quality, compared with JPEG and WebP?

    python experiments/tokenizer_rate_distortion.py --small                      the tokenizer that ships with jtok
    python experiments/tokenizer_rate_distortion.py --small --config.sweep.tokenizer=FILE          one trained here
    python experiments/tokenizer_rate_distortion.py                              released checkpoints, see `RELEASED`

Every unit is one tokenizer, `jtok sweep` with configs/tokenizer/sweep.py: held-out photographs at fixed numbers of
tokens and at adaptive ones, and the same photographs as JPEG and WebP. The small setting is the first of these units,
in a minute; --config=configs/tokenizer/sweep.py:quick takes fewer points of smaller photographs. The papers' numbers
are rFID on ImageNet, which this does not measure: those cells stay empty.
"""

import sys

from jtok import launch

CONFIG = "configs/tokenizer/sweep.py"
COMMAND = ("jtok", "sweep")
SMALL = {}

#: Directories of released checkpoints (config.json next to model.safetensors) and the numbers of tokens to code with.
#: A TiTok has one; a One-D-Piece any. FlexTok codes latents of a VAE, for which there are no containers: no unit.
RELEASED = {
    "titok_l32": ("data/titok-l32", (32,)),
    "titok_b64": ("data/titok-b64", (64,)),
    "titok_s128": ("data/titok-s128", (128,)),
    "one_d_piece_s256": ("data/one-d-piece-s256", (8, 16, 32, 64, 128, 256)),
    "one_d_piece_b256": ("data/one-d-piece-b256", (8, 16, 32, 64, 128, 256)),
    "one_d_piece_l256": ("data/one-d-piece-l256", (8, 16, 32, 64, 128, 256)),
}
#: (paper, model, rFID on ImageNet at 256 x 256 pixels), from the authors' READMEs.
CLAIMS = (
    ("arXiv:2406.07550", "TiTok-L-32", 2.21),
    ("arXiv:2406.07550", "TiTok-B-64", 1.70),
    ("arXiv:2406.07550", "TiTok-S-128", 1.71),
    ("arXiv:2501.10064", "One-D-Piece-S-256", 1.48),
    ("arXiv:2501.10064", "One-D-Piece-B-256", 1.11),
    ("arXiv:2501.10064", "One-D-Piece-L-256", 1.08),
)


def sweep(small=False):
    """The shipped tokenizer (or that of --config.sweep.tokenizer); in the full setting every released one too."""
    yield "photos", {"sweep.tokenizer": "shipped"}
    for name, (path, tokens) in {} if small else RELEASED.items():
        lengths = {"qualities": (20.0,)} if len(tokens) == 1 else {}
        yield name, {"sweep": {"tokenizer": path, "tokens": tokens, **lengths}}


def report(workdirs):
    """Means over photographs, what a PSNR costs each codec, and the curves."""
    from jtok.evaluation.sweeps.rate_distortion import bits_at, read_units
    from jtok.viz.rate_distortion import draw_curves

    points, counts = read_units(workdirs)
    tables = {
        "means over held-out photographs": points,
        "bits per pixel for a PSNR, between measured points": bits_at(points, (20.0, 22.0, 24.0, 26.0, 28.0)),
        "tokens that held-out crops of one tile take": counts,
        "claimed by the papers": [
            {"paper": paper, "model": model, "metric": "rFID, ImageNet 256", "claimed": value, "measured": None}
            for paper, model, value in CLAIMS
        ],
    }
    return launch.Report(tables, draw_curves(points))


if __name__ == "__main__":
    sys.exit(launch.main(globals()))
