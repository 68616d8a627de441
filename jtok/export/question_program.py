"""A vision-language model's reading of a prompt as a program, its files for transformers, and what its card says."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jtok.checkpoints.safetensor_files import open_weights
from jtok.checkpoints.trees import flatten
from jtok.errors import UserError
from jtok.evaluation.cost.flops import count
from jtok.evaluation.cost.memory import parameters
from jtok.export.card import plan_facts
from jtok.export.program import Program
from jtok.export.source import digests
from jtok.models.decoder.sequence import Places
from jtok.models.vlm.arrange import Inputs
from jtok.models.vlm.families.llava.family import FAMILY
from jtok.models.vlm.families.llava.save import save_llava
from jtok.models.vlm.load_vlm import load_vlm
from jtok.models.vlm.model import VLM
from jtok.models.vlm.network import VLMConfig
from jtok.plan import Plan

#: Files of a checkpoint that make a model's inputs, which are copied as they are.
_BESIDE = (
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "preprocessor_config.json",
    "processor_config.json", "generation_config.json", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
#: Fields of the config that say how it is computed.
_FREE = {"dtype", "remat", "antialias", "storage"}


def question_program(model: VLM, text: int) -> Program:
    """`prefill`: images uint8 [B,H,W,3], ids int32 [B,`text`], length int32 [B] -> logits float32 [B,V] of the answer's
    first token and, with a plan, owner [B,P], the token that holds each patch.

    Images are squares of the model's side. ids: of the prompt without its image, whose place between them is that of
    the model's template; `length` of them are meant. Raises UserError for a model of another shape than LLaVA's, for
    one without a processor, for a plan that wants the question read by another model, and for too short a text.
    """
    c = model.config
    check_llava(model)
    before = _text_before(model)
    if text <= before:
        raise UserError(f"--text={text} leaves no space for a question after the {before} tokens before the image.")
    if model.plan.embed is not None:
        raise UserError(f"the method '{model.plan.name}' reads questions by another model: it is no part of a program.")
    settings = model.described().settings
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: c.network(nnx.Rngs(0))))
    mean, std = (jnp.asarray(a, jnp.float32) for a in (settings.mean, settings.std))

    def apply(images: jax.Array, ids: jax.Array, length: jax.Array) -> dict[str, jax.Array]:
        pixels = (images.astype(jnp.float32) * settings.scale - mean) / std
        inputs = one_image_inputs(pixels, ids, length, before, c.grid)
        reading = nnx.merge(graphdef, nnx.State(model.params))(inputs, model.plan, 0)
        owners = [stage.owner for stage in reading.stages.values()]
        return {"logits": reading.logits} | ({"owner": owners[-1]} if owners else {})

    side = c.tower.image
    shapes = ((side, side, 3), jnp.uint8), ((text,), jnp.int32), ((), jnp.int32)
    return Program("prefill", apply, tuple(jax.ShapeDtypeStruct(*shape) for shape in shapes))


def one_image_inputs(
    pixels: jax.Array, ids: jax.Array, length: jax.Array, before: int, grid: tuple[int, int]
) -> Inputs:
    """What a network takes for prompts of one image each: what `arrange` makes of them, traced.

    pixels [B,H,W,3], normalised; ids [B,M] of the text, the first `length` [B] valid; `before` precede the image.
    """
    (b, m), features = ids.shape, grid[0] * grid[1]
    slot = jnp.arange(m, dtype=jnp.int32)
    question = jnp.arange(before, m, dtype=jnp.int32)

    def rows(a: jax.Array) -> jax.Array:
        return jnp.broadcast_to(a, (b, *a.shape))

    places = Places(
        position=rows(before + jnp.arange(features, dtype=jnp.int32)[:, None]),
        before=jnp.full((b, features), before, jnp.int32),
        inside=jnp.ones((b, features), bool),
        start=jnp.zeros((b, 1), jnp.int32),
        width=jnp.full((b, 1), grid[1], jnp.int32),
    )
    valid = slot < length[:, None]
    return Inputs(
        pixels=pixels[:, None],
        ids=jnp.where(valid, ids, 0),
        position=rows(jnp.where(slot < before, slot, slot + features)[:, None]),
        valid=valid,
        newline=jnp.zeros((b, m), bool),
        question=rows(question),
        question_valid=question < length[:, None],
        places=places,
        visible=features,
        images=jnp.zeros((b, 1), jnp.int32),
    )


def check_llava(model: VLM) -> None:
    """Raises UserError for a model of another shape than LLaVA-1.5's: one image of one size, a class token dropped."""
    family = model.config.family
    if family != FAMILY.name:
        raise UserError(f"vision-language models are exported in LLaVA-1.5's shape, this is a '{family}'.")


def _text_before(model: VLM) -> int:
    """Tokens of text before the image in the model's prompts."""
    side = model.config.tower.image
    image = np.zeros((side, side, 3), np.uint8)
    return int(model.inputs("?", image).places.before[0, 0])


def save_question_model(directory: Path, model: VLM, source: Path, storage: str) -> str:
    """Writes the model as transformers' LlavaForConditionalGeneration, with the files that make its inputs.

    The files are read back and must give the same model. Raises UserError for one that transformers does not have.
    """
    check_llava(model)
    beside = {name: (source / name).read_text(encoding="utf-8") for name in _BESIDE if (source / name).is_file()}
    facts = {name: text for name, text in open_weights(source).metadata.items() if name.startswith("jtok.")}
    save_llava(directory, model.config, model.params, files=beside, metadata=facts, storage=storage)
    config, params = load_vlm(directory)
    other = [where for where, a, b in _differences(model.config, config) if a != b]
    if other:
        raise UserError(f"transformers' LLaVA has no place for this model's {', '.join(other)}: export as stablehlo.")
    before, after = (flatten(p) for p in (model.params, params))
    for path, a in before.items():
        kept = np.asarray(a, np.float32).astype(jnp.dtype(storage)).astype(np.float32)
        if not np.array_equal(kept, np.asarray(after[path], np.float32)):
            raise RuntimeError(f"{path} is read back as something else than was written")
    return "LlavaForConditionalGeneration"


def _differences(a: VLMConfig, b: VLMConfig):
    """(field, ours, read back) of everything that is not about how it is computed."""
    for part in ("tower", "projector", "language"):
        mine, theirs = (dataclasses.asdict(getattr(c, part)) for c in (a, b))
        for name in mine.keys() - _FREE:
            yield f"{part}.{name}", mine[name], theirs[name]
    for name in ("family", "image_token", "drop_class", "newline"):
        yield name, getattr(a, name), getattr(b, name)


def question_facts(model: VLM, name: str, source: Path, how: Mapping[str, Any], text: int) -> dict[str, Any]:
    """What the card says of it. how: method, keep and options of its plan."""
    c, target = model.config, model.config.target()
    whole = dataclasses.replace(model, plan=Plan())
    programs = [question_program(m, text) for m in (model, whole)]
    with_plan, without = (count(p.apply, *p.arguments(1)).gmacs for p in programs)
    checkpoint = open_weights(source)
    return {
        "about": {
            "tower": f"{c.tower.depth} blocks, width {c.tower.width}, {c.tower.heads} heads, {target.patches} patches",
            "decoder": f"{c.language.depth} layers, width {c.language.width}, {c.language.vocabulary} ids",
        },
        "model": dataclasses.asdict(c),
        "parameters": parameters(model.params).count,
        "plan": plan_facts(model.plan, how, target.patches),
        "cost_of_an_image": {"gmacs": with_plan, "gmacs_without_plan": without, "of": f"a prompt of {text} tokens"},
        "data": json.loads(checkpoint.metadata["jtok.data"]) if "jtok.data" in checkpoint.metadata else None,
        "weights": {"path": Path(name).name, "sha256": digests(checkpoint.files.values())},
    }
