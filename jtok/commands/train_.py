"""`jtok train`: trains what a config says; the same command again goes on where it stopped."""

from __future__ import annotations

import sys
from pathlib import Path

from absl import flags as absl_flags

from jtok.errors import UserError
from jtok.flags import Command


def _flags(values: absl_flags.FlagValues) -> None:
    absl_flags.DEFINE_string("workdir", None, "directory of the run", flag_values=values, required=True)
    absl_flags.DEFINE_string("export", "", "write the final model to this safetensors file", flag_values=values)


def _run(args, config) -> int:
    from jtok import compile_cache
    from jtok.training.classify import Classify
    from jtok.training.loop import train
    from jtok.training.stop import Stopped
    from jtok.training.weights import export

    if config.get("task") != "classify":
        raise UserError(f"config.task is '{config.get('task')}'; jtok trains 'classify'.")
    compile_cache.enable()
    task = Classify(config)
    try:
        state = train(config, args.workdir, task)
    except Stopped as stop:
        print(f"jtok train: {stop}", file=sys.stderr)
        return stop.exit_code
    path = args.export or str(Path(args.workdir) / "model.safetensors")
    export(task, state.eval_params, path)
    print(f"wrote {path}")
    return 0


COMMAND = Command("train", "Train a model or a learned reducer from a config.", _flags, _run, config="required")
