"""A vision-language model as its user holds it: loaded, reduced by a plan, asked."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx

from jtok.errors import UserError
from jtok.models.arrange import Inputs, arrange
from jtok.models.decoder import Decoder, Dtype
from jtok.models.generate import State, read_text, stream
from jtok.models.load_vlm import load_vlm, vlm_config
from jtok.models.processing import Processor, load_processor
from jtok.models.processing.images import ImageLike
from jtok.models.reducer_files import load_reducer
from jtok.models.sampling import Sampling
from jtok.models.vlm import Reading, VLMConfig, VLMNetwork
from jtok.plan import Plan
from jtok.registry import find, make_plan

#: Prompts are padded to a multiple of so many tokens of text, so that few programs are compiled.
TEXT_STEP = 32


@dataclasses.dataclass(frozen=True)
class VLM:
    """A model, its parameters, the plan that stands in it, and what makes its inputs (None: arrays in, ids out)."""

    config: VLMConfig
    params: dict[str, Any]
    plan: Plan = dataclasses.field(default_factory=Plan)
    processor: Processor | None = None

    def read(self, inputs: Inputs, *, room: int = 256, key: jax.Array | None = None) -> Reading:
        """Reads prompts (jitted). room: tokens of answers and further questions that the caches can take."""
        return self._read(self.params, self._learned, inputs, room, key)

    def start(self, inputs: Inputs, *, room: int = 256, seed: int = 0) -> State:
        """Reads prompts, ready to answer."""
        keys = jax.random.split(jax.random.key(seed), inputs.ids.shape[0])
        reading = self.read(inputs, room=room, key=keys)
        done = np.zeros(inputs.ids.shape[0], bool)
        return State(reading.caches, reading.logits, done, keys)

    def answer(
        self, state: State, tokens: int, *, how: Sampling | None = None, stops: tuple[int, ...] = (), block: int = 8
    ) -> Iterator[tuple[np.ndarray, State]]:
        """Blocks of ids [B, up to `block`] (-1 = nothing) with the state behind each; see `generate.stream`."""
        language = self.params["language"]
        yield from stream(self._language, language, state, tokens, stops=stops, how=how or Sampling(), block=block)

    def add(self, state: State, ids: np.ndarray, valid: np.ndarray) -> State:
        """The conversation with more text [B,T], padded behind: the next question, over what was kept of the image.

        Raises UserError where the caches have no room for it.
        """
        room = min(cache.slots - int(cache.used) for cache in state.caches)
        if ids.shape[1] > room:
            raise UserError(f"the question has {ids.shape[1]} tokens and the cache has room for {room}: ask afresh.")
        return read_text(self._language, self.params["language"], state, ids, valid)

    def stream(
        self, image: ImageLike, question: str, *, tokens: int = 128, how: Sampling | None = None, seed: int = 0
    ) -> Iterator[str]:
        """The answer to a question about an image, piece by piece. Raises UserError for images that cannot be read."""
        processor = self._processor()
        batch = processor.batch([processor.prompt(question, [image])])
        inputs = arrange(batch, self.config.grid, step=TEXT_STEP)
        state = self.start(inputs, room=tokens, seed=seed)
        text = processor.tokenizer.stream()
        for ids, _ in self.answer(state, tokens, how=how, stops=tuple(processor.tokenizer.stops)):
            yield "".join(text.push(int(i)) for i in ids[0] if i >= 0)
        yield text.finish()

    def generate(self, image: ImageLike, question: str, **options: Any) -> str:
        """The whole answer; options as in `stream`."""
        return "".join(self.stream(image, question, **options)).strip()

    def _processor(self) -> Processor:
        if self.processor is None:
            raise UserError("this model came without a tokenizer: load it from a directory that holds one.")
        return self.processor

    @functools.cached_property
    def _read(self):
        graphdef, _ = nnx.split(nnx.eval_shape(lambda: VLMNetwork(self.config, nnx.Rngs(0))))
        plan = self.plan

        def read(params, learned, inputs, room, key):
            return nnx.merge(graphdef, nnx.State(params))(inputs, plan.with_params(learned), room, key)

        return jax.jit(read, static_argnums=3)

    @functools.cached_property
    def _learned(self):
        return self.plan.params()

    @functools.cached_property
    def _language(self):
        return nnx.split(nnx.eval_shape(lambda: Decoder(self.config.language, nnx.Rngs(0))))[0]


def load(path: str | os.PathLike, *, dtype: Dtype = "float32") -> VLM:
    """A vision-language model from a local Hugging Face directory.

    dtype: of the decoder's parameters and of all activations. Raises UserError, one sentence each, for what
    `load_vlm.load_vlm` and `processing.load_processor` refuse; no weight is read before both configs are understood.
    """
    vlm_config(path)  # before the tokenizer, so that a wrong model is called that
    processor = load_processor(path)  # before the weights, which take long
    return VLM(*load_vlm(path, dtype=dtype), processor=processor)


def reduce(
    model: VLM,
    method: str,
    *,
    tokens: int | None = None,
    keep: float = 0.5,
    weights: str | os.PathLike | None = None,
    **options: Any,
) -> VLM:
    """The model with a method standing in it; parameters are shared.

    tokens: visual tokens of a crop that shall be left (else `keep`, their share). weights: file with the parameters of
    a learned method (see `load_reducer`), which else starts at random. Raises UserError for an unknown method or
    option, for more tokens than there are, and for a file that does not fit.
    """
    target = model.config.target()
    if tokens is not None:
        if not 1 <= tokens <= target.patches:
            raise UserError(f"{tokens} tokens are asked for; the model has {target.patches}: ask for 1 to that many.")
        keep = tokens / target.patches
        if method != "none" and "tokens" in find(method).options:
            options["tokens"] = tokens
    plan = make_plan(method, target, keep, **options)
    plan.check(model.config.sites())
    if weights is not None:
        plan = plan.with_params(load_reducer(weights, plan))
    return dataclasses.replace(model, plan=plan)
