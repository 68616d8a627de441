"""A vision-language model as its user holds it: loaded, reduced by a plan, asked."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from jtok.errors import UserError
from jtok.models.decoder.append import free_slots
from jtok.models.decoder.decoder import Dtype
from jtok.models.decoder.generate import State, answering, read_text, stream
from jtok.models.decoder.sampling import Sampling
from jtok.models.towers.vit import patchify
from jtok.models.vlm.arrange import Inputs
from jtok.models.vlm.family import ModelConfig
from jtok.models.vlm.load_vlm import load_vlm, vlm_config
from jtok.models.vlm.network import PrefillOutput
from jtok.models.vlm.processing import Processor, VisualInput, load_processor
from jtok.models.vlm.processing.images import ImageLike
from jtok.models.vlm.processing.processor import FPS
from jtok.plan import Plan
from jtok.sharding import on_mesh_of

#: Prompts are padded to a multiple of this many tokens of text, so that few programs are compiled.
TEXT_STEP = 32


@dataclasses.dataclass(frozen=True)
class VLM:
    """A model, its parameters, the plan it runs under, and what makes its inputs (None: arrays in, ids out)."""

    config: ModelConfig
    params: dict[str, Any]
    plan: Plan = dataclasses.field(default_factory=Plan)
    processor: Processor | None = None

    def read(self, inputs: Inputs, *, max_new_tokens: int = 256, key: jax.Array | None = None) -> PrefillOutput:
        """Reads prompts (jitted). max_new_tokens: tokens of answers and further questions that the caches can take.

        Raises UserError where prompt and answer take more positions than the model was made for.
        """
        free = self.positions_left(inputs)
        if free is not None and max_new_tokens > free:
            context = self.config.language.context
            raise UserError(
                f"the prompt takes {context - free} positions of the {context} that the model has, which leaves "
                f"none for {max_new_tokens} more tokens: ask for a shorter answer, or give fewer or smaller images."
            )
        model = self.fitted(inputs)
        with on_mesh_of(model.params):
            return model._read(model.params, model.plan, inputs, max_new_tokens, key)

    def positions_left(self, inputs: Inputs) -> int | None:
        """Positions left after the longest prompt of a batch; None where they are not known before prefill."""
        context = self.config.language.context
        if not context or self.plan.placed in ("renumber", "order") or isinstance(inputs.position, jax.core.Tracer):
            return None
        return context - 1 - int(np.where(np.asarray(inputs.valid)[..., None], inputs.position, -1).max())

    def fitted(self, inputs: Inputs) -> VLM:
        """The model with its plan made for the largest image of a batch, if image sizes may vary.

        A plan that picks patches by their pixels gets slots for as many as these images keep.
        """
        if not self.config.any_size and self.plan.inputs is not None and isinstance(inputs.pixels, np.ndarray):
            side, pixels = self.config.tower.patch, inputs.pixels
            patches = patchify(pixels.reshape(-1, *pixels.shape[2:]), side)
            grid = pixels.shape[2] // side, pixels.shape[3] // side
            return dataclasses.replace(self, plan=self.plan.for_pixels(patches, grid))
        if self.plan.make is None or not self.config.any_size:
            return self
        sizes = np.asarray(inputs.sizes).reshape(-1, 2)
        rows, columns = (int(side) for side in sizes[sizes.prod(1).argmax()])
        if (rows, columns) not in self._fitted:
            plan = self.config.fit(self.plan.for_grid((rows, columns)))
            self._fitted[rows, columns] = dataclasses.replace(self, plan=dataclasses.replace(plan, make=None))
        return self._fitted[rows, columns]

    def about(self, inputs: Inputs, questions: Sequence[str]) -> Inputs:
        """The inputs with the embeddings of their questions that the plan reads, if any (`Plan.embed`)."""
        if self.plan.embed is None:
            return inputs
        return dataclasses.replace(inputs, text_embedding=np.asarray(self.plan.embed(questions)))

    def start(self, inputs: Inputs, *, max_new_tokens: int = 256, seed: int = 0) -> State:
        """Runs prefill; the state is ready for decoding."""
        keys = jax.random.split(jax.random.key(seed), inputs.ids.shape[0])
        output = self.read(inputs, max_new_tokens=max_new_tokens, key=keys)
        done = np.zeros(inputs.ids.shape[0], bool)
        return State(output.caches, output.logits, done, keys, output.second)

    def answer(
        self,
        state: State,
        tokens: int,
        *,
        sampling: Sampling | None = None,
        stops: tuple[int, ...] = (),
        block: int = 8,
    ) -> Iterator[tuple[np.ndarray, State]]:
        """Blocks of ids [B, up to `block`] (-1 = nothing) with the state after each; see `generate.stream`."""
        language = self.params["language"]
        options = {"stops": stops, "sampling": sampling or Sampling(), "block": block, "plan": answering(self.plan)}
        blocks = stream(self._language, language, state, tokens, **options)
        while True:
            with on_mesh_of(language):  # not while the caller holds a block
                ids_and_state = next(blocks, None)
            if ids_and_state is None:
                return
            yield ids_and_state

    def add(self, state: State, ids: np.ndarray, valid: np.ndarray) -> State:
        """Appends right-padded text [B,T], such as the next question, to a state, on top of the kept visual tokens.

        Raises UserError where the caches have too few free slots for it.
        """
        free = free_slots(state.caches)
        if ids.shape[1] > free:
            raise UserError(f"the question has {ids.shape[1]} tokens and the cache {free} free slots: ask afresh.")
        with on_mesh_of(self.params):
            return read_text(self._language, self.params["language"], state, ids, valid, answering(self.plan))

    def stream(
        self,
        image: ImageLike | Sequence[ImageLike] | None,
        question: str,
        *,
        video: Sequence[ImageLike] | None = None,
        fps: float = FPS,
        tokens: int = 128,
        sampling: Sampling | None = None,
        seed: int = 0,
    ) -> Iterator[str]:
        """The answer to a question, piece by piece.

        image: one, several, or None beside a video. video: frames of one size at `fps` frames per second.
        Raises UserError for images that cannot be read and for models that take no videos.
        """
        inputs = self.inputs(question, image, video=video, fps=fps)
        yield from self.speak(self.start(inputs, max_new_tokens=tokens, seed=seed), tokens, sampling=sampling)

    def inputs(
        self,
        question: str,
        image: ImageLike | Sequence[ImageLike] | None,
        *,
        video: Sequence[ImageLike] | None = None,
        fps: float = FPS,
    ) -> Any:
        """A batch of one prompt, as `read` and `start` take it; arguments and errors as in `stream`."""
        processor = self.described()
        ids, images, videos = self.begin(question, image, video, fps)
        batch = processor.batch([processor.place(ids, images, videos)])
        return self.about(self.config.arrange(batch, TEXT_STEP), [question])

    def speak(self, state: State, tokens: int, *, sampling: Sampling | None = None) -> Iterator[str]:
        """The answer of a batch of one, piece by piece, until its stop token or `tokens` tokens; consumes the state."""
        tokenizer = self.described().tokenizer
        text = tokenizer.stream()
        for ids, _ in self.answer(state, tokens, sampling=sampling, stops=tuple(tokenizer.stops)):
            yield "".join(text.push(int(i)) for i in ids[0] if i >= 0)
        yield text.finish()

    def begin(
        self,
        question: str,
        image: ImageLike | Sequence[ImageLike] | None,
        video: Sequence[ImageLike] | None,
        fps: float,
    ) -> tuple[list[int], list[VisualInput], list[VisualInput]]:
        """(ids with placeholders, images, videos) of a first question; arguments and errors as in `stream`."""
        processor = self.described()
        images = [] if image is None else list(image) if isinstance(image, list | tuple) else [image]
        if not images and video is None:
            raise UserError("there is no image to read: pass an image, several, or the frames of a video.")
        videos = [] if video is None else [processor.video(list(video), fps)]
        return processor.encode(question, len(images), len(videos)), processor.images(images), videos

    def generate(self, image: ImageLike | Sequence[ImageLike] | None, question: str, **options: Any) -> str:
        """The whole answer; options as in `stream`."""
        return "".join(self.stream(image, question, **options)).strip()

    def described(self) -> Processor:
        """What makes the model's inputs. Raises UserError for a model that came without."""
        if self.processor is None:
            raise UserError("this model came without a tokenizer: load it from a directory that holds one.")
        return self.processor

    @property
    def _read(self):
        return _reader(self.config)

    @functools.cached_property
    def _fitted(self) -> dict[tuple[int, int], VLM]:
        return {}

    @functools.cached_property
    def _language(self):
        return nnx.split(nnx.eval_shape(lambda: self.config.decoder(nnx.Rngs(0))))[0]


@functools.lru_cache(maxsize=8)
def _reader(config: ModelConfig):
    """The jitted `(params, plan, inputs, max_new_tokens, key) -> PrefillOutput` of all models of one config.

    Models that differ in their plan or parameters share it, so that a search over plans compiles each once.
    """
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: config.network(nnx.Rngs(0))))

    def read(params, plan, inputs, max_new_tokens, key):
        return nnx.merge(graphdef, nnx.State(params))(inputs, plan, max_new_tokens, key)

    return jax.jit(read, static_argnums=3)


def load(path: str | os.PathLike, *, dtype: Dtype = "float32", mesh: Mesh | None = None) -> VLM:
    """A vision-language model from a local Hugging Face directory.

    dtype: of the decoder's parameters and of all activations. mesh: the devices that share it, such as
    `jtok.make_mesh(tensor=8)`; None: the first device alone. Raises UserError, one sentence each, for what
    `load_vlm.load_vlm` and `processing.load_processor` refuse; no weight is read before both configs are understood.
    """
    vlm_config(path)  # before the tokenizer, so that the error names a wrong model first
    processor = load_processor(path)  # before the weights, which take long
    return VLM(*load_vlm(path, dtype=dtype, mesh=mesh), processor=processor)
