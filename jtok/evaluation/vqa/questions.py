"""Accuracy against cost of methods in a vision-language model, on the digit-scene questions.

An answer is right when greedy decoding gives its word and then the end mark. What is counted: MACs of reading a prompt
(tower, projector, prefill) from its jaxpr, the time that takes, and visual tokens in every layer of the decoder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Int

from jtok.data.question_text import decode_question
from jtok.data.questions import KINDS, chance_levels, digit_questions
from jtok.errors import UserError
from jtok.evaluation.cost.flops import count_jaxpr
from jtok.evaluation.cost.latency import measure
from jtok.evaluation.sweeps.sweep import Cell, Record, asked_of, facts_of, percentiles, timed
from jtok.methods import catalogue
from jtok.models.decoder.append import append
from jtok.models.vlm.model import VLM
from jtok.models.vlm.network import PrefillOutput, VLMConfig
from jtok.plan import Plan
from jtok.sites import Site

#: Text of a prompt is padded to a multiple of so many tokens: all of these questions fit in one.
_TEXT = 8


@dataclasses.dataclass(frozen=True)
class Questions:
    """Held-out questions as a model takes them: batches of prompts, padded with their first row."""

    batches: Sequence[Mapping[str, Any]]  # {"inputs", "key", "answer" [b,2], "real" [b]}
    kinds: Int[np.ndarray, " n"]  # places in `KINDS`
    chance: Mapping[str, Mapping[str, float]]  # of `chance_levels`


def held_out_questions(
    model: VLM, questions: int, *, batch: int = 8, split: str = "test", size: int = 72, cut: str = "stratified"
) -> Questions:
    """The first `questions` of a split, as prompts of the model. Raises UserError for a model of another vocabulary."""
    data = digit_questions(split, size=size, cut=cut, length=questions)
    examples = [data[i] for i in range(questions)]
    texts = [decode_question(e["question"]) for e in examples]
    if model.processor is None:
        raise UserError("this model came without a tokenizer: load it from a directory that holds one.")
    prompts = [model.processor.prompt(text, [e["image"]]) for text, e in zip(texts, examples, strict=True)]
    spelled = [[*e["question"][: e["question_length"]]] for e in examples]
    if any(list(p.ids[-len(ids) :]) != ids for p, ids in zip(prompts, spelled, strict=True)):
        raise UserError(
            "the model's tokenizer does not spell digit-scene questions as they are: give one trained here."
        )
    batches = []
    for start in range(0, questions, batch):
        rows = np.arange(start, start + batch)
        real = rows < questions
        rows = np.where(real, rows, start)
        inputs = model.config.arrange(model.processor.batch([prompts[i] for i in rows]), _TEXT)
        answer = np.stack([examples[i]["answer"] for i in rows])
        batches.append({"inputs": inputs, "key": prompt_keys(rows), "answer": answer, "real": real})
    return Questions(batches, np.array([e["kind"] for e in examples]), chance_levels(examples))


def prompt_keys(rows: np.ndarray) -> Array:
    """One PRNG key per question, independent of the batch it is in."""
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.asarray(rows))


def answers_right(network, reading: PrefillOutput, answer: Int[Array, "B 2"]) -> Bool[Array, " B"]:
    """Whether greedy decoding gives exactly these two tokens, after a prompt that was prefilled with one free slot."""
    word = answer[:, :1]
    x, _ = append(network.language, reading.caches, network.language.embed(word), jnp.ones(word.shape, bool))
    end = network.language.logits(x)[:, 0]
    return (reading.logits.argmax(-1) == answer[:, 0]) & (end.argmax(-1) == answer[:, 1])


def run_cell(model: VLM, cell: Cell, questions: Questions, *, single: bool = True) -> Record:
    """Measures one cell: accuracy, in all and for every kind, and the cost of reading a prompt."""
    plan = catalogue.make_plan(cell.method, model.config.target(), cell.keep, **cell.options)
    plan = model.config.fit(plan)
    model.config.check(plan)
    params = model.params
    if cell.params is not None:
        plan, params = plan.with_params(cell.params["plan"], trained=True), cell.params["model"]
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: model.config.network(nnx.Rngs(0))))

    @jax.jit
    def judge(params, inputs, key, answer):
        network = nnx.merge(graphdef, nnx.State(params))
        reading = network(inputs, plan, 1, key)
        return answers_right(network, reading, answer), reading.sequence.visual.mask().sum(1)

    @jax.jit
    def read(params, inputs, key):
        return nnx.merge(graphdef, nnx.State(params))(inputs, plan, 1, key).logits

    first = questions.batches[0]
    batch = len(first["real"])
    compiled = judge.trace(params, first["inputs"], first["key"], first["answer"]).lower().compile()
    right, left, times = [], [], []
    for i, b in enumerate(questions.batches):
        (hits, count), seconds = timed(lambda b=b: compiled(params, b["inputs"], b["key"], b["answer"]), warm_up=i == 0)
        right.append(np.asarray(hits)[b["real"]])
        left.append(np.asarray(count)[b["real"]])
        times.append(seconds)
    right, tokens = np.concatenate(right), float(np.concatenate(left).mean())
    layers = visual_tokens(plan, model.config)
    return {
        "method": cell.method,
        **facts_of(cell.method),
        **asked_of(cell, plan),
        "trained": cell.params is not None,
        "accuracy": float(right.mean()),
        "correct": int(right.sum()),
        "total": len(right),
        "answers": "".join("01"[r] for r in right.astype(int)),  # right or not, question by question
        "kinds": {kind: float(right[questions.kinds == i].mean()) for i, kind in enumerate(KINDS)},
        "gmacs": count_jaxpr(read.trace(params, first["inputs"], first["key"]).jaxpr).gmacs / batch,
        "tokens_per_block": layers,
        "tokens_average": float(np.mean(layers)),
        "tokens_end": tokens if plan.adaptive else layers[-1],
        "tokens": tokens,
        "cap": layers[-1],
        f"latency_ms_b{batch}": percentiles(np.array(times)),
        f"throughput_b{batch}": batch / float(np.median(times)),
        **(_alone(read, params, first) if single else {}),
    }


def _alone(read, params, first) -> Record:
    """The time to the first token of one prompt."""
    one = jax.tree.map(lambda a: a[:1], first["inputs"])
    latency = measure(read, params, one, first["key"][:1], repeats=20, min_seconds=0.1)
    return {"latency_ms_b1": {name: 1e3 * getattr(latency, name) for name in ("median", "p10", "p90")}}


def visual_tokens(plan: Plan, config: VLMConfig) -> list[int]:
    """Visual tokens that every layer of the decoder attends with, known before anything is traced."""
    depth, patches = config.language.depth, config.target().patches
    layers = [patches] * depth
    for name, _, left in dataclasses.replace(plan, cache=None).counts(patches):
        start = _first_layer(name)
        layers[start:] = [int(left)] * (depth - start)
    return layers


def _first_layer(name: str) -> int:
    """The first layer of the decoder that has only what is left at a place of `Plan.counts`."""
    if name == "input":
        return 0
    site = Site.parse(name.replace("layers.", "llm.layer.") + ".input" if name.startswith("layers.") else name)
    return (site.layer or 0) + (site.where != "input") if site.stage == "llm" else 0
