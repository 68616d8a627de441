"""What a vision-language model does with a prompt, compiled for TPUs that are not here: reading it, and a token of its
answer, unreduced and under every method of a benchmark's config."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from jtok.errors import UserError
from jtok.evaluation.aot.topology import Slice, describe
from jtok.evaluation.aot.tpu_program import Compiled, compile_program, placed
from jtok.evaluation.bench.vlm import UNREDUCED, synthetic
from jtok.methods.reduce import reduce
from jtok.models.decoder.append import Caches
from jtok.models.decoder.generate import Sampling, State, answering, decode_block
from jtok.models.vlm.model import VLM
from jtok.models.vlm.vlm_presets import make_vlm_config, presets
from jtok.sharding import leaf_name, row_parts, rows, shardings, spec
from jtok.training.sharding import mesh_sizes

#: Logical axes of those fields of a cache that do not begin with the batch.
_AXES = {
    "k": ("layers", "batch", "slots", "heads"),
    "v": ("layers", "batch", "slots", "heads"),
    "attention": ("layers", "batch"),
}

REMEDY = "more chips, a smaller config.batch, config.mesh.tensor or config.mesh.fsdp"


def compile_inference(config: ml_collections.ConfigDict, topology: str) -> Iterator[tuple[str, str, Compiled]]:
    """(method, "prompt" or "token", the program) of `config.batch` prompts at the shape of the preset `config.model`.

    prompt: from pixels to the logits of the answer's first token. token: the next token of all answers, at the length
    of caches that reading leaves. Raises UserError for a model that is not a preset, a batch that the mesh does not
    divide, a topology that does not exist, and a program that does not fit a chip's memory.
    """
    if config.model not in presets():
        raise UserError(f"'{config.model}' is not a preset: compile one of {', '.join(presets())}.")
    part = describe(topology, **mesh_sizes(config))
    parts = row_parts(part.mesh)
    if config.batch % parts:
        raise UserError(f"a batch of {config.batch} prompts does not divide into the {parts} parts of the mesh.")
    full = VLM(make_vlm_config(config.model, dtype=config.dtype), {})
    inputs = _like(synthetic(full.config, config.batch, config.text), part.mesh)
    for method in (UNREDUCED, *(name for name in config.methods if name != UNREDUCED)):
        model = full if method == UNREDUCED else reduce(full, method, tokens=config.tokens)
        yield from ((method, name, program) for name, program in _programs(model, inputs, config, part))


def _programs(
    model: VLM, inputs: Any, config: ml_collections.ConfigDict, part: Slice
) -> Iterator[tuple[str, Compiled]]:
    shapes = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: model.config.network(nnx.Rngs(0))), nnx.Param))
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), shapes)
    params = jax.tree.map(placed, shapes, shardings(shapes, part.mesh))
    keys = _like(jax.eval_shape(lambda: jax.random.split(jax.random.key(0), config.batch)), part.mesh)
    common = {
        "batch": config.batch,
        "rows": config.batch,
        "parts": row_parts(part.mesh),
        "remedy": REMEDY,
        "trains": False,
    }

    def read(params, inputs, keys):
        return dataclasses.replace(model, params=params).read(inputs, max_new_tokens=config.answer, key=keys)

    held = {"parameters": params}
    what = "reading the prompts"
    yield "prompt", compile_program(read, (params, inputs, keys), part, held=held, what=what, **common)
    with jax.sharding.use_abstract_mesh(part.abstract()):
        reading = jax.eval_shape(read, params, inputs, keys)
    caches = _caches(reading.caches, part.mesh)
    done = _like(jax.ShapeDtypeStruct((config.batch,), jnp.bool_), part.mesh)
    state = State(caches, _like(reading.logits, part.mesh), done, keys)

    def token(params, state):
        return decode_block(model._language, params, state, 1, 1, (), Sampling(), answering(model.plan))

    given = (params["language"], state)
    held = {"parameters": params["language"], "caches": caches}
    what = "the next token"
    yield "token", compile_program(token, given, part, held=held, what=what, donate_argnums=1, **common)


def _like(tree: Any, mesh: Mesh) -> Any:
    """Shapes of arrays whose first axis is the batch."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=rows(mesh)), tree)


def _caches(caches: Caches, mesh: Mesh) -> Caches:
    """Shapes of caches: `data` and `fsdp` share the rows, `tensor` the heads where it divides them."""

    def place(path: tuple, a: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        axes = _AXES.get(leaf_name(path).rsplit(".", 1)[-1], ("batch",))[: a.ndim]
        axes += ("",) * (a.ndim - len(axes))
        return placed(a, NamedSharding(mesh, spec(axes, a.shape, mesh)))

    return jax.tree_util.tree_map_with_path(place, caches)
