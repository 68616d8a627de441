"""What an answer costs: time to first token, time per output token, FLOPs and cache, with and without reduction.

The unreduced model and all methods are timed in alternation, in one process. Time to first token is that of reading
the prompt, from pixels on the device to the logits of the answer's first token; making pixels of an image file is not
part of it. Time per output token is that of a greedy answer of fixed length, divided by its tokens.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx

from jtok.cache import Cache
from jtok.errors import UserError
from jtok.evaluation.cost.flops import FlopCount, count
from jtok.evaluation.cost.latency import Comparison, compare
from jtok.evaluation.cost.memory import parameters
from jtok.methods.catalogue import takes_share
from jtok.methods.reduce import reduce
from jtok.models.decoder.append import Caches
from jtok.models.decoder.generate import State
from jtok.models.vlm.model import VLM, load
from jtok.models.vlm.network import PrefillOutput, VLMConfig
from jtok.models.vlm.processing import Prompt, Span, VisualInput, pad_batch
from jtok.models.vlm.vlm_presets import make_vlm_config, random_params

UNREDUCED = "none"


def default_config() -> ml_collections.ConfigDict:
    """Every field of a benchmark, with defaults; configs change what they need."""
    config = ml_collections.ConfigDict()
    config.model = "llava-cpu"  # a preset with random parameters, or the directory of a checkpoint
    config.dtype = "float32"
    config.methods = ("random", "visionzip", "fastv")
    config.tokens = 64  # visual tokens of a crop that are left
    config.batch = 1
    config.text = 64  # tokens of text around the image (presets)
    config.question = "Describe this picture."  # about a picture of noise (checkpoints)
    config.answer = 32  # tokens
    config.repeats = 10
    config.seconds = 0.5  # least time spent on each method
    config.seed = 0
    config.mesh = ml_collections.ConfigDict({"fsdp": 1, "tensor": 1})  # of devices; `data` takes what is left
    return config


def bench_vlm(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """One row for the unreduced model and one for each method. Raises UserError for fields that do not fit."""
    full, inputs = _model_and_inputs(config)
    methods = [UNREDUCED, *(name for name in config.methods if name != UNREDUCED)]
    models = {name: full if name == UNREDUCED else _reduced(full, name, config) for name in methods}
    keys = jax.random.split(jax.random.key(config.seed), config.batch)
    repeats = {"repeats": config.repeats, "min_seconds": config.seconds}

    def reading(model: VLM) -> PrefillOutput:
        return model.read(inputs, max_new_tokens=config.answer, key=keys)

    first = compare({name: (reading, (model,)) for name, model in models.items()}, UNREDUCED, **repeats)
    readings = {name: reading(model) for name, model in models.items()}
    costs = {name: _flops(model, inputs, keys, config.answer) for name, model in models.items()}
    caches = {name: cache_bytes(one.caches, config.answer) for name, one in readings.items()}
    answers = {name: (_Answer(models[name], readings[name], keys, config.answer), ()) for name in methods}
    each = compare(answers, UNREDUCED, **repeats)
    whole = costs[UNREDUCED].flops
    rows = []
    for name in methods:
        plan = models[name].plan
        row = {"method": name, "asked": plan.asked, "visual_tokens": _visual(models[name])}
        row |= {"adaptive": plan.adaptive, "trained": not plan.untrained} | _times("ttft", first, name, 1)
        row |= _times("tpot", each, name, config.answer)
        row |= {"prefill_gflops": costs[name].gflops, "tower_gflops": _part(costs[name], "tower") / 1e9}
        row |= {"kv_bytes": caches[name], "kv_share": caches[name] / caches[UNREDUCED]}
        ideal = whole / costs[name].flops
        rows.append(row | {"ideal_speedup": ideal, "share_of_ideal": row["ttft_speedup"] / ideal})
    facts = {"platform": jax.default_backend(), "device": jax.devices()[0].device_kind}
    sizes = dataclasses.asdict(parameters(full.params))
    return {"config": config.to_dict(), **facts, "parameters": sizes, "prompt": _prompt(inputs), "rows": rows}


def _reduced(model: VLM, name: str, config: ml_collections.ConfigDict) -> VLM:
    """The model with a method; those that keep no share are not asked for a number of tokens."""
    return reduce(model, name, **({"tokens": config.tokens} if takes_share(name) else {}))


def synthetic(config: VLMConfig, batch: int, text: int, seed: int = 0) -> Any:
    """Prompts of `text` random tokens with an image of random pixels in their middle, as the model takes them."""
    g, (rows, columns), side = np.random.default_rng(seed), config.grid, config.tower.image
    visual, prompts = rows * columns, []
    for _ in range(batch):
        pixels = g.standard_normal((1, 3, side, side), dtype=np.float32)
        image = VisualInput("image", pixels, (side, side), (Span("image", config.grid, config.grid),), visual)
        words = g.integers(0, config.image_token, text)
        ids = np.concatenate([words[: text // 2], np.full(visual, config.image_token), words[text // 2 :]])
        positions = np.arange(len(ids), dtype=np.int32)
        prompts.append(Prompt(ids.astype(np.int32), (image,), (text // 2,), positions))
    return config.arrange(pad_batch(prompts, 0))


def cache_bytes(caches: Caches, max_new_tokens: int) -> int:
    """Bytes of keys and values that a prompt leaves, without the `max_new_tokens` slots free for its answer."""
    return sum(c.bytes * (c.slots - max_new_tokens) // c.slots if isinstance(c, Cache) else c.bytes for c in caches)


class _Answer:
    """Gives the same number of tokens at every call, from the same place in the caches, whose arrays are used again."""

    def __init__(self, model: VLM, reading: PrefillOutput, keys: jax.Array, tokens: int):
        self.model, self.tokens = model, tokens
        self.start = [self._place(cache) for cache in reading.caches]
        caches = jax.tree.map(jnp.copy, reading.caches)  # decoding takes its state over
        self.logits = np.asarray(reading.logits)
        self.state = State(caches, jnp.copy(reading.logits), np.zeros(len(keys), bool), jnp.copy(keys))

    def __call__(self) -> np.ndarray:
        ((ids, state),) = self.model.answer(self.state, self.tokens, block=self.tokens)
        caches = tuple(self._rewound(c, at) for c, at in zip(state.caches, self.start, strict=True))
        self.state = dataclasses.replace(state, caches=caches, logits=jnp.asarray(self.logits))
        return ids

    @staticmethod
    def _place(cache: Any) -> dict[str, np.ndarray]:
        """All of a cache but its keys and values."""
        names = ("position", "valid", "next", "used") if isinstance(cache, Cache) else ()
        return {name: np.asarray(getattr(cache, name)) for name in names}

    @staticmethod
    def _rewound(cache: Any, place: dict[str, np.ndarray]) -> Any:
        return dataclasses.replace(cache, **{name: jnp.asarray(a) for name, a in place.items()})


def _model_and_inputs(config: ml_collections.ConfigDict) -> tuple[VLM, Any]:
    if Path(config.model).is_dir():
        model = load(config.model, dtype=config.dtype)
        picture = np.random.default_rng(config.seed).integers(0, 256, (336, 336, 3), dtype=np.uint8)
        prompts = [model.processor.prompt(config.question, [picture])] * config.batch
        return model, jax.device_put(model.config.arrange(model.processor.batch(prompts)))
    if config.text < 2:
        raise UserError(f"a prompt of {config.text} tokens of text is too short: give at least 2.")
    shape = make_vlm_config(config.model, dtype=config.dtype)
    for name in config.methods:  # before the parameters, which may take long
        _reduced(VLM(shape, {}), name, config)
    inputs = synthetic(shape, config.batch, config.text, config.seed)
    return VLM(shape, random_params(shape, config.seed)), jax.device_put(inputs)


def _flops(model: VLM, inputs: Any, keys: jax.Array, max_new_tokens: int) -> FlopCount:
    """Of reading the prompts, all of them together."""
    graph = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: model.config.network(nnx.Rngs(0))), nnx.Param))
    return count(
        lambda p: dataclasses.replace(model, params=p).read(inputs, max_new_tokens=max_new_tokens, key=keys), graph
    )


def _part(cost: FlopCount, prefix: str) -> int:
    return sum(c.flops for scope, c in cost.by_scope.items() if scope.startswith(prefix))


def _visual(model: VLM) -> int:
    """Visual tokens of a crop that the decoder's last layer sees; a cap where the number depends on the image."""
    counts = dataclasses.replace(model.plan, cache=None).counts(model.config.target().patches)
    return counts[-1][2] if counts else model.config.target().patches


def _times(what: str, timed: Comparison, name: str, share: int) -> dict[str, float]:
    """Milliseconds and speed-ups over the unreduced model, with its 95 % interval."""
    latency, ratio = timed.latencies[name], timed.ratios[name]
    times = {f"{what}_ms_{q}": 1e3 * getattr(latency, q) / share for q in ("median", "p10", "p90")}
    speed = {"speedup": 1 / ratio.ratio, "speedup_low": 1 / ratio.high, "speedup_high": 1 / ratio.low}
    return times | {f"{what}_{key}": value for key, value in speed.items()} | {f"{what}_n": latency.n}


def _prompt(inputs: Any) -> dict[str, int]:
    text = np.asarray(inputs.valid).sum(1).max()
    return {"text_tokens": int(text), "visual_tokens": int(inputs.visible)}
