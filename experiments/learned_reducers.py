"""Do learned reducers learn? Each is fine-tuned by its own objective and compared with itself as initialised.

    python experiments/learned_reducers.py [--methods dynamicvit,sit] [--keep 0.5]

Fine-tunes every learned method in the small ViT that ships with jtok (configs/vit/finetune.py), evaluates it before and
after on held-out scenes, prints the table and writes runs/learned/results.json. About ten minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
METHODS = "dynamicvit,token-cropr,sit,patchmerger,sinkhorn"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--images", type=int, default=1000, help="held-out images")
    parser.add_argument("--workdir", default="runs/learned")
    args = parser.parse_args()
    os.chdir(ROOT)
    from rich.console import Console

    from jtok import cli
    from jtok.commands.options import make_task
    from jtok.config_file import load_config
    from jtok.evaluation.sweeps.pareto import table, write_json
    from jtok.evaluation.sweeps.study import SceneReader, make_cells
    from jtok.evaluation.sweeps.sweep import Cell, held_out, run_cell

    rows = []
    for method in args.methods.split(","):
        run = f"{args.workdir}/{method}_{args.keep:g}"
        code = cli.main(
            [
                "train",
                f"--config=configs/vit/finetune.py:{method}",
                f"--config.plan.keep={args.keep}",
                f"--workdir={run}",
            ]
        )
        if code:
            return code
        config = load_config("configs/vit/sweep.py:all")
        with config.unlocked():
            config.sweep.methods, config.sweep.keeps, config.sweep.runs = (method,), (args.keep,), {method: run}
        task, params = make_task(config)
        images = held_out(task, "test", args.images)
        before = run_cell(task, params, Cell(method, args.keep), images, single=False)
        after = run_cell(
            task, params, make_cells(SceneReader(task, params, config), config.sweep)[0], images, single=False
        )
        row = {"method": method, "keep": args.keep, "images": before["total"]}
        rows.append(row | {"untrained": before["accuracy"], "fine-tuned": after["accuracy"], "gmacs": after["gmacs"]})
        write_json(f"{args.workdir}/results.json", rows)
    Console().print(table(rows, title="accuracy on held-out digit scenes (toy scale)"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
