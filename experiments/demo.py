"""The first experiment, end to end: which tokens does a ViT need to read a digit among clutter?

    make demo            eight methods and the baselines, in minutes
    make demo-all        the whole catalogue

Takes the small ViT that ships with jtok, fine-tunes DynamicViT's predictors on it for about a minute, sweeps methods
over four keep ratios on held-out scenes, prints the table and writes runs/demo/report.html.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LEARNED = "dynamicvit"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="the whole catalogue")
    parser.add_argument("--workdir", default="runs/demo", help="where results go")
    args = parser.parse_args()
    os.chdir(ROOT)
    from jtok import cli

    begin = time.time()
    tuned = f"{args.workdir}/{LEARNED}"
    steps = [
        ["train", f"--config=configs/vit/finetune.py:{LEARNED}", "--config.train.steps=100", f"--workdir={tuned}"],
        [
            "sweep",
            f"--config=configs/vit/sweep.py:{'all' if args.all else 'demo'}",
            f"--config.sweep.runs.{LEARNED}={tuned}",
            f"--workdir={args.workdir}",
        ],
    ]
    for step in steps:
        print("jtok " + " ".join(step), flush=True)
        code = cli.main(step)
        if code:
            return code
    print(f"all in {time.time() - begin:.0f} s; open {args.workdir}/report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
