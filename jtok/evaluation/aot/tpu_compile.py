"""The training step of a config, compiled for TPUs that are not here.

The program is the loop's own (`jtok.training.step.make_step`), its state and batch placed by `jtok.sharding` on the
mesh of `config.mesh`.
"""

from __future__ import annotations

from typing import Any

import jax
import ml_collections

from jtok.errors import UserError
from jtok.evaluation.aot.topology import describe
from jtok.evaluation.aot.tpu_program import Compiled, compile_program, placed
from jtok.sharding import check_batch, row_parts, rows, shardings, whole
from jtok.training import optimizer as opt
from jtok.training.config import validate
from jtok.training.sharding import mesh_sizes
from jtok.training.state import TrainState, create, trainable_names
from jtok.training.step import make_step
from jtok.training.tasks.image_task import UNTRAINED
from jtok.training.tasks.registry import make_task

REMEDY = "more chips, a smaller batch, config.mesh.fsdp, config.train.remat or config.train.accumulate"


def compile_training(config: ml_collections.ConfigDict, topology: str) -> Compiled:
    """Compiles the training step of a config for `topology`, such as `v5e:16x16`.

    Raises UserError for a config that cannot run, a task without `example_batch`, a topology that does not exist, a
    mesh or batch that does not divide, and a program that does not fit a chip's memory.
    """
    validate(config)
    part = describe(topology, **mesh_sizes(config))
    size, accumulate = config.train.batch, config.train.accumulate
    check_batch(size, accumulate, part.mesh)
    task, names, optimizer, state = _abstract_state(config)
    places = shardings(state, part.mesh)
    state_in = jax.tree.map(placed, state, places)
    batch = jax.tree.map(lambda a: placed(a, rows(part.mesh)), task.example_batch(size))
    return compile_program(
        make_step(task, config.train, names, optimizer),
        (state_in, batch),
        part,
        batch=size,
        rows=size // accumulate,
        parts=row_parts(part.mesh),
        held={"parameters": state_in.params, "optimizer": state_in.opt_state},
        what="the step",
        remedy=REMEDY,
        donate_argnums=0,
        out_shardings=(places, whole(part.mesh)),
    )


def _abstract_state(config: ml_collections.ConfigDict) -> tuple[Any, tuple[str, ...], Any, TrainState]:
    """(task, names of what learns, optimizer, state without arrays) as `jtok.training.loop` makes them."""
    fresh = config.copy_and_resolve_references()
    # where the numbers come from changes no shape, and reading them would take memory
    fresh.weights = UNTRAINED if fresh.get("freeze") else ""
    if "base" in fresh:
        fresh.base.path = UNTRAINED
    task = make_task(fresh)
    if not hasattr(task, "example_batch"):
        raise UserError(f"jtok cannot compile the step of '{config.task}': its batches have no shape of their own.")
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(task.init, key)
    names = trainable_names(params, task.trainable(params))
    if not names:
        raise UserError("every parameter is frozen: leave at least one to train")
    optimizer, average = opt.build(config.train), config.train.ema > 0
    state = jax.eval_shape(lambda p, k: create(p, names, optimizer, ema=average, key=k), params, key)
    return task, names, optimizer, state
