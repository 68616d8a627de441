"""The first experiment, end to end: which tokens does a ViT need to read a digit among clutter?

    make demo            five methods at two keep ratios, in minutes
    make demo-all        the whole catalogue, with DynamicViT fine-tuned first

Takes the small ViT that ships with jtok, draws which patches each method keeps or merges on a few held-out scenes,
then sweeps accuracy against cost, prints the table and writes runs/demo/report.html.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LEARNED = "dynamicvit"
INTERRUPTED = 130  # what `jtok` exits with after Ctrl-C


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="the whole catalogue")
    parser.add_argument("--workdir", default="runs/demo", help="where results go")
    args = parser.parse_args()
    os.chdir(ROOT)
    begin = time.time()
    code = run(commands(args.workdir, args.all))
    if code == INTERRUPTED:
        print(f"what was finished is in {args.workdir}")
    if code == 0:
        print(f"done in {time.time() - begin:.0f} s; open {args.workdir}/report.html")
    return code


def commands(workdir: str, everything: bool) -> list[list[str]]:
    """The `jtok` commands of the demo, in order."""
    if not everything:
        return [["sweep", "--config=configs/vit/sweep.py:demo", f"--workdir={workdir}"]]
    tuned = f"{workdir}/{LEARNED}"
    return [
        ["train", f"--config=configs/vit/finetune.py:{LEARNED}", "--config.train.steps=100", f"--workdir={tuned}"],
        [
            "sweep",
            "--config=configs/vit/sweep.py:all",
            f"--config.sweep.runs.{LEARNED}={tuned}",
            f"--workdir={workdir}",
        ],
    ]


def run(steps: list[list[str]]) -> int:
    """Runs the commands up to the first that fails; its exit code."""
    from jtok import cli

    for step in steps:
        print("jtok " + " ".join(step), flush=True)
        code = cli.main(step)
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
