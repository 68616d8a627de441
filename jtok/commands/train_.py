"""`jtok train`: trains what a config describes; the same command resumes a stopped run."""

from __future__ import annotations

import sys
from pathlib import Path

from absl import flags as absl_flags

from jtok.flags import Command


def _flags(values: absl_flags.FlagValues) -> None:
    absl_flags.DEFINE_string("workdir", None, "directory of the run", flag_values=values, required=True)
    absl_flags.DEFINE_string("export", "", "where to write the final model (file or directory)", flag_values=values)


def _run(args, config) -> int:
    import jax

    from jtok import compile_cache, distributed
    from jtok.sharding import gather
    from jtok.training.loop import train
    from jtok.training.stop import Stopped
    from jtok.training.tasks.registry import make_task

    distributed.initialize()
    compile_cache.enable()
    task = make_task(config)
    try:
        state = train(config, args.workdir, task)
    except Stopped as stop:
        print(f"jtok train: {stop}", file=sys.stderr)
        return stop.exit_code
    params = gather(state.eval_params) if jax.process_count() > 1 else state.eval_params
    if jax.process_index() == 0:
        print(f"wrote {_export(task, params, args.export, args.workdir)}")
    return 0


def _export(task, params, path: str, workdir: str) -> str:
    """Writes the trained model: a safetensors file, or a Hugging Face directory for a vision-language model."""
    from jtok.tokenizers.files import save_tokenizer
    from jtok.training.tasks.question_model import save_model
    from jtok.training.tasks.registry import TOKENIZERS
    from jtok.training.tasks.save_tower import export
    from jtok.training.weights import save_reducer

    if task.config.task == "answer_questions":
        directory = save_model(task, params, path or Path(workdir) / "model").parent
        if params.get("plan"):
            save_reducer(directory.parent / "reducer.safetensors", params["plan"])
        return str(directory)
    path = path or str(Path(workdir) / "model.safetensors")
    if task.config.task in TOKENIZERS:
        save_tokenizer(path, task.tokenizer(params), storage="bfloat16")
        return path
    export(task, params, path)
    return path


COMMAND = Command("train", "Train a model or a learned reducer from a config.", _flags, _run, config="required")
