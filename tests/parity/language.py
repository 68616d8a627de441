"""A decoder with recorded weights, and `prefill` over recorded embeddings: shared by the adapters of in-LLM methods."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jtok.layers.stack import Run
from jtok.models.decoder.append import Caches, append
from jtok.models.decoder.decoder import Decoder, DecoderConfig
from jtok.models.decoder.prefill import prefill
from jtok.models.decoder.sequence import Places, Text, assemble
from jtok.models.decoder.sequence import TokenSequence as Prompt
from jtok.plan import SLOTS, Plan
from jtok.reducer import Memory, Reducer
from jtok.signals import Signals
from jtok.sites import llm_sites
from jtok.target import Target
from jtok.tokens import Tokens, from_features
from tests.parity import timm_weights


@dataclasses.dataclass(frozen=True)
class Watched(Reducer):
    """A reducer whose result and signals are recorded, as `memory["watched"][number]`; None only records."""

    number: int
    reducer: Reducer | None = None
    more: tuple[str, ...] = ()

    @property
    def reads(self) -> tuple[str, ...]:
        """What the reducer reads, and the recorded signals."""
        return tuple(dict.fromkeys((*(self.reducer.reads if self.reducer else ()), *self.more)))

    def __call__(self, tokens: Tokens, s: Signals, memory: Memory) -> tuple[Tokens, Memory]:
        before = memory
        out, memory = (tokens, memory) if self.reducer is None else self.reducer(tokens, s, memory)
        score = self.reducer.score(tokens, s, before) if hasattr(self.reducer, "score") else None
        record = {"tokens": out, "before": tokens, "score": score, "signals": s.replace(key=None)}
        return out, {**memory, "watched": {**memory.get("watched", {}), self.number: record}}


def decoder(weights: Mapping[str, np.ndarray], heads: int, eps: float, theta: float = 10000.0) -> Decoder:
    """A Llama with the recorded layers, in their order; MLPs and final norm may be missing (zeros and ones)."""
    numbers = sorted({int(name.split(".")[1]) for name in weights if name.startswith("layers.")})
    width = weights[f"layers.{numbers[0]}.input_layernorm.weight"].shape[0]
    layers = [_layer({k.split(".", 2)[2]: v for k, v in weights.items() if k.startswith(f"layers.{i}.")}, heads)
              for i in numbers]  # fmt: skip
    config = DecoderConfig(
        vocabulary=1, width=width, depth=len(numbers), heads=heads, kv_heads=heads, head_dim=width // heads,
        mlp=layers[0]["down"]["kernel"].shape[0], eps=eps, tied=True,
    )  # fmt: skip
    assert config.rotary.theta == theta
    params = {
        "embedding": np.zeros((1, width), np.float32),
        "blocks": jax.tree.map(lambda *arrays: np.stack(arrays), *layers),
        "norm": {"scale": weights.get("norm.weight", np.ones(width, np.float32))},
    }
    return timm_weights.fill(lambda: Decoder(config, nnx.Rngs(0)), params)


def _layer(w: Mapping[str, np.ndarray], heads: int) -> dict:
    width = w["input_layernorm.weight"].shape[0]
    nothing = np.zeros((1, width), np.float32)

    def linear(name: str, like: np.ndarray) -> np.ndarray:
        return w.get(f"{name}.weight", like).T

    def per_head(name: str) -> np.ndarray:
        return linear(f"self_attn.{name}_proj", np.zeros((width, width), np.float32)).reshape(width, heads, -1)

    gate_up = [linear(f"mlp.{name}_proj", nothing) for name in ("gate", "up")]
    out = linear("self_attn.o_proj", np.zeros((width, width), np.float32))
    return {
        "norm1": {"scale": w["input_layernorm.weight"]},
        "qkv": {"kernel": np.concatenate([per_head(name) for name in "qkv"], 1)},
        "out": {"kernel": out.reshape(heads, -1, width)},
        "norm2": {"scale": w.get("post_attention_layernorm.weight", np.ones(width, np.float32))},
        "up": {"kernel": np.stack(gate_up, 1)},
        "down": {"kernel": linear("mlp.down_proj", nothing.T)},
    }


def prompt(
    x: np.ndarray, starts: Sequence[int], image: int, plan: Plan, valid: np.ndarray | None = None,
    asks: np.ndarray | None = None,
) -> tuple[Prompt, Tokens]:  # fmt: skip
    """The sequence of embeddings x [B,L,D] in which row b has `image` visual tokens from slot starts[b] on.

    valid [B,L]: which slots are real. asks [B,R]: slots that an answer follows, -1 for none.
    """
    b, length, _ = x.shape
    m = length - image
    visual = np.asarray(starts)[:, None] + np.arange(image)
    text = np.stack([np.delete(np.arange(length), row) for row in visual])

    def rows(array, index):
        return np.take_along_axis(array, index.reshape(*index.shape, *[1] * (array.ndim - 2)), 1)

    before = np.asarray(starts, np.int32)[:, None]
    places = Places(
        jnp.asarray(visual[..., None], jnp.int32), jnp.broadcast_to(before, (b, image)), jnp.ones((b, image), bool),
        jnp.zeros((b, 1), jnp.int32), jnp.full((b, 1), image, jnp.int32),
    )  # fmt: skip
    question = before + np.arange(m - min(starts))
    valid = np.ones((b, length), bool) if valid is None else valid
    real = rows(valid, text)
    index = np.minimum(question, m - 1).astype(np.int32)
    if asks is not None:  # slots of the prompt -> numbers among the text
        asks = jnp.asarray(np.where(asks >= 0, asks - image * (asks > before), -1), jnp.int32)
    is_text = (question < m) & rows(real, index)
    words = Text(
        rows(x, text), jnp.asarray(text[..., None], jnp.int32), real, jnp.asarray(index), jnp.asarray(is_text), asks
    )
    tokens = from_features(rows(x, visual), (1, image))
    return assemble(tokens, words, places, plan.placed), tokens


def run(model: Decoder, x: np.ndarray, starts: Sequence[int], image: int, plan: Plan, **more) -> tuple[Prompt, dict]:
    """(the last layer's outputs as a sequence, memory) of `prefill` with a plan."""

    @jax.jit
    def read():
        sequence, tokens = prompt(x, starts, image, plan, **more)
        keys = jax.random.split(jax.random.key(0), x.shape[0])
        state = Run(plan, tokens, llm_sites(model.config.depth), keys, slots=SLOTS)
        return prefill(model, sequence, state, 0, plan.placed)[0], state.memory

    return read()


def answered(
    model: Decoder, x: np.ndarray, starts: Sequence[int], image: int, plan: Plan, after: np.ndarray
) -> tuple[Prompt, Caches, np.ndarray]:
    """(outputs and caches of `prefill` with a plan, outputs [B,A,D] for embeddings `after` appended one by one)."""

    @jax.jit
    def read():
        sequence, tokens = prompt(x, starts, image, plan)
        keys = jax.random.split(jax.random.key(0), x.shape[0])
        state = Run(plan, tokens, llm_sites(model.config.depth), keys, slots=SLOTS)
        sequence, caches = prefill(model, sequence, state, after.shape[1], plan.placed)
        outputs, written = [], caches
        for i in range(after.shape[1]):
            one = jnp.asarray(after[:, i : i + 1])
            out, written = append(model, written, one, jnp.ones(one.shape[:2], bool))
            outputs.append(out)
        return sequence, caches, jnp.concatenate(outputs, 1)

    return read()


def entering(layer: int, weights: Mapping[str, np.ndarray], plan: Plan) -> tuple[dict[str, np.ndarray], Plan]:
    """Weights and plan of a model whose output is what enters `layer`: that one is made to add nothing, and is last."""
    kept = {k: v for k, v in weights.items() if not k.startswith("layers.") or int(k.split(".")[1]) <= layer}
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        kept[f"layers.{layer}.{name}.weight"] = np.zeros_like(kept[f"layers.{layer}.{name}.weight"])
    sites = {site: reducer for site, reducer in plan.sites.items() if site.layer <= layer}
    return kept, dataclasses.replace(plan, sites=sites)


def watched(plan: Plan, *more: str) -> Plan:
    """The plan with every reducer watched, numbered in order."""
    sites = {site: Watched(i, reducer, more) for i, (site, reducer) in enumerate(plan.sites.items())}
    return dataclasses.replace(plan, sites=sites)


def target(image: int, layers: int, heads: int = 1) -> Target:
    """The target that a recorded model is."""
    return Target(depth=0, grid=(1, image), width=0, heads=heads, special=0, has_class=False, layers=layers)


def taken(before: Tokens, after: Tokens) -> np.ndarray:
    """For the kept tokens [B,K] of a pruner their numbers among the tokens `before`, in the order `after` it."""
    rows = []
    for old, new in zip(np.asarray(before.owner), np.asarray(after.owner), strict=True):
        patches = np.flatnonzero(new >= 0)
        rows.append(old[patches][np.argsort(new[patches])])
    return np.stack(rows)


def cache_lengths(caches: Caches, free: int) -> np.ndarray:
    """Slots of the prompt in every layer's cache, of caches with `free` more."""
    return np.concatenate([np.full(cache.layers, cache.slots - free) for cache in caches])
