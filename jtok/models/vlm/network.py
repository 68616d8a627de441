"""Vision-language models: a tower, a projector and a decoder, with reducers at any site between pixels and answer.

LLaVA-1.5 (arXiv:2310.03744) is the setting built and tested; crops, newline tokens and prompts that see themselves are
carried by the same description of the sequence. Used functionally, like the towers.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jtok.errors import UserError
from jtok.layers.projector import MLPProjector, ProjectorConfig
from jtok.layers.stack import Run
from jtok.models.decoder.append import Caches
from jtok.models.decoder.decoder import Decoder, DecoderConfig
from jtok.models.decoder.generate import Stream
from jtok.models.decoder.prefill import prefill
from jtok.models.decoder.sequence import Places, Text, TokenSequence, assemble, fold
from jtok.models.towers.qwen_vision import QwenVisionConfig
from jtok.models.towers.vit import ViTConfig
from jtok.models.vlm.arrange import Inputs, arrange
from jtok.models.vlm.processing.batch import Batch
from jtok.models.vlm.resample import mix
from jtok.plan import SLOTS, Plan
from jtok.sites import PROJECTOR, Site, llm_sites
from jtok.target import Target
from jtok.tokens import Tokens


@dataclasses.dataclass(frozen=True)
class VLMConfig:
    """A vision-language model. The tower is as deep as the layer whose features are taken."""

    family: str
    tower: ViTConfig | QwenVisionConfig
    projector: ProjectorConfig
    language: DecoderConfig
    image_token: int  # id of the placeholder for a visual token
    drop_class: bool = True  # the class token is no visual token
    newline: bool = False  # a learned vector ends each row of a mosaic of crops

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of features of a crop, or of the image that plans are made for where images differ."""
        return self.tower.target().grid

    @property
    def any_size(self) -> bool:
        """Whether the number of visual tokens depends on the image size."""
        return self.tower.any_size

    def target(self, grid: tuple[int, int] | None = None) -> Target:
        """What a method needs to know to make its plan for this model, for images of `grid` tokens if any will do."""
        language = {"layers": self.language.depth, "language_width": self.language.width}
        tower = self.tower.target(grid) if self.any_size else self.tower.target()
        return dataclasses.replace(tower, **language)

    def sites(self) -> list[Site]:
        """All sites, in the order in which they are reached."""
        return [*self.tower.sites(), PROJECTOR, *llm_sites(self.language.depth)]

    def fit(self, plan: Plan) -> Plan:
        """A plan with its reducers at sites of this model."""
        return self.tower.fit(plan)

    def check(self, plan: Plan) -> None:
        """Raises UserError for a plan that does not fit."""
        self.tower.check(plan)
        plan.check(self.sites(), SLOTS)
        check_answer(plan, self.language.depth)

    def network(self, rngs: nnx.Rngs) -> VLMNetwork:
        """The model with its arrays."""
        return VLMNetwork(self, rngs)

    def decoder(self, rngs: nnx.Rngs) -> Decoder:
        """The decoder, built as it is in `network`."""
        return Decoder(self.language, rngs)

    def arrange(self, batch: Batch, step: int = 1) -> Inputs:
        """What `network` takes for a batch of prompts; see `arrange.arrange`."""
        return arrange(batch, self.grid, step=step)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PrefillOutput:
    """The result of prefill."""

    logits: Float[Array, "B V"]  # of the answer's first token, float32
    caches: Caches
    sequence: TokenSequence | Text  # outputs of the last layer, before the final norm
    memory: dict[str, Any]
    stages: dict[str, Any]
    second: Stream | None = None  # of a decoding rule that contrasts two streams


class VLMNetwork(nnx.Module):
    """A vision-language model: tower, projector and decoder, with their forward pass."""

    def __init__(self, config: VLMConfig, rngs: nnx.Rngs):
        c = self.config = config
        self.tower = c.tower.network(rngs)
        self.projector = MLPProjector(c.projector, c.language.compute, rngs)
        self.language = Decoder(c.language, rngs)
        self.newline = nnx.Param(jnp.zeros(c.language.width)) if c.newline else None

    def __call__(self, inputs: Inputs, plan: Plan, max_new_tokens: int, key: Array | None = None) -> PrefillOutput:
        """Reads the prompts. `max_new_tokens`: free slots that the caches get for answers and further questions.

        key: one PRNG key a row [B] (default: the same fixed key for every row). Raises UserError for a plan that does
        not fit, and for prompts longer than a sliding window.
        """
        plan = plan if self.config.any_size else plan.for_grid(self.config.grid)
        self.config.check(plan)
        b = inputs.ids.shape[0]
        keys = jnp.broadcast_to(jax.random.key(0), (b,)) if key is None else key
        tokens, places, run = self._encode_images(inputs, plan, keys)
        text = self._text(inputs)
        tokens = _pack(_within(tokens, places), inputs.visible)
        sequence = assemble(tokens, text, places, plan.placed)
        self._check_window(sequence, max_new_tokens)
        sequence, caches = prefill(self.language, sequence, run, max_new_tokens, plan.placed)
        second = None
        if plan.decoding is not None and plan.decoding.contrasts:
            second = self._second(run, caches, max_new_tokens)
        caches = _for_answer(plan, caches)
        return PrefillOutput(self._last_logits(sequence), caches, sequence, run.memory, run.stages, second)

    def _last_logits(self, sequence: TokenSequence) -> Float[Array, "B V"]:
        last = jnp.take_along_axis(sequence.x, sequence.last[:, None, None], 1)
        return self.language.logits(last)[:, 0]

    def _second(self, run: Run, caches: Caches, free: int) -> Stream:
        """The stream that a decoding rule contrasts the first with: the same prompt with other visual tokens.

        Raises UserError where layers do not all have the same visual tokens, whose attention the rule reads.
        """
        plan, entry = run.plan, run.entry
        if any(cache.visuals != entry.slots.shape[1] for cache in caches):
            raise UserError(f"'{plan.name}' reads the attention of all layers to the same tokens: reduce before.")
        rows = jnp.arange(entry.slots.shape[0])[:, None]
        attention = jnp.concatenate([cache.attention[:, rows, entry.slots] for cache in caches])
        tokens = plan.decoding.second_stream(entry.visual_tokens(), attention, run.key)
        changed = entry.replace(x=entry.x.at[rows, entry.slots].set(tokens.x.astype(entry.x.dtype)))
        alone = dataclasses.replace(plan, sites={}, layers=None, decoding=None)
        second_run = Run(alone, tokens, run.known, run.key, slots=SLOTS)
        sequence, caches = prefill(self.language, changed, second_run, free, plan.placed)
        return Stream(caches, self._last_logits(sequence))

    def _encode_images(self, inputs: Inputs, plan: Plan, keys: Array) -> tuple[Tokens, Places, Run]:
        """(projected visual tokens of each row, their places in the prompt, the run so far).

        Grids are resampled after the projector and before its site, unless a plan has reduced them in the tower: then
        the reduced tokens are used, each at the place of the resampled token nearest to its centre.
        """
        if inputs.pixels is None:
            raise UserError("no prompt of this batch has an image: give one of them an image.")
        b, crops = inputs.pixels.shape[:2]
        each = jax.vmap(lambda k: jax.vmap(lambda i: jax.random.fold_in(k, i))(jnp.arange(crops)))(keys).reshape(-1)
        projector = plan.projector or self.projector
        taps = tuple(getattr(projector, "layers_read", ()))
        images = jnp.reshape(inputs.pixels, (b * crops, *inputs.pixels.shape[2:]))
        given = {} if inputs.text_embedding is None else {"text_embedding": jnp.repeat(inputs.text_embedding, crops, 0)}
        extra = {"sizes": jnp.reshape(inputs.sizes, (b * crops, 2))} if inputs.sizes is not None else {"given": given}
        encoded = self.tower(images, plan.part("tower"), key=each, hidden=bool(taps), **extra)
        # a reducer that passes the class token on has made it an ordinary token
        tokens = encoded.tokens.split()[1] if self.config.drop_class else encoded.tokens.replace(special=0)
        patches = slice(encoded.tokens.special, None)
        tokens = projector(tokens, [encoded.hidden[i][:, patches] for i in taps], plan.projector_count)
        tokens = _on_grid(tokens, plan.grid, self.config.grid)
        whole = tokens.count == self.config.grid[0] * self.config.grid[1]
        tokens, places = fold(tokens, crops), inputs.places
        if inputs.mixture is not None and whole:
            tokens, places = mix(tokens, inputs.mixture), inputs.mixture.places
        tokens = _within(tokens, places) if inputs.ragged else tokens  # those outside the prompt get no share
        known, results = self.config.sites(), {"memory": dict(encoded.memory), "stages": dict(encoded.stages)}
        run = Run(plan, tokens, known, keys, slots=SLOTS, **results)
        if inputs.images is not None:
            run.signals = {"crop_image": jnp.take_along_axis(jnp.asarray(inputs.images), tokens.segment, 1)}
        run.reduce(PROJECTOR)
        return run.tokens, places, run

    def _text(self, inputs: Inputs) -> Text:
        x = self.language.embed(inputs.ids)
        if self.newline is not None:
            x = jnp.where(inputs.newline[..., None], self.newline[...].astype(x.dtype), x)
        return Text(x, inputs.position, inputs.valid, inputs.question, inputs.question_valid)

    def _check_window(self, sequence: TokenSequence, max_new_tokens: int) -> None:
        window, length = self.config.language.window, sequence.x.shape[1] + max_new_tokens
        if window and length > window:
            raise UserError(f"prompt and answer take {length} tokens, more than the window of {window}: shorten them.")


def _for_answer(plan: Plan, caches: Caches) -> Caches:
    """The caches without the attention of the latest token, unless a cache policy reads it while decoding."""
    if plan.cache is not None and "last_token_attention" in plan.cache.reads:
        return caches
    return tuple(dataclasses.replace(cache, attention=None) for cache in caches)


def check_answer(plan: Plan, depth: int) -> None:
    """Raises UserError for a cache policy or decoding rule that reads what it cannot, or exits that are not layers."""
    for part in (plan.cache, plan.decoding):
        unknown = sorted(set(part.reads) - {"last_token_attention"}) if part is not None else []
        if unknown:
            name = type(part).__name__
            raise UserError(f"{name} reads {', '.join(unknown)}; what acts on an answer may read last_token_attention.")
    exits = plan.layers.exits if plan.layers is not None else ()
    if any(a >= b for a, b in itertools.pairwise((0, *exits, depth))):
        raise UserError(f"visual tokens cannot leave before layers {exits}: give rising ones from 1 to {depth - 1}.")


def _on_grid(tokens: Tokens, small: tuple[int, int] | None, grid: tuple[int, int]) -> Tokens:
    """Maps positions of a downsampled image's patches to the prompt's grid, which is that of the full image."""
    if small is None:
        return tokens
    ratio = jnp.asarray([g / s for g, s in zip(grid, small, strict=True)])
    return tokens.replace(position=jnp.where(tokens.position < 0, -1.0, (tokens.position + 0.5) * ratio - 0.5))


def _within(tokens: Tokens, places: Places) -> Tokens:
    """Masks the tokens whose place is outside the prompt."""
    inside = jnp.take_along_axis(jnp.asarray(places.inside), places.of(tokens), 1)
    return tokens.replace(valid=tokens.mask() & inside)


def _pack(tokens: Tokens, visible: int) -> Tokens:
    """Drops slots that no row uses: features outside the prompt (the padding of mosaics)."""
    if tokens.count <= visible:
        return tokens
    index = jnp.argsort(~tokens.mask(), 1, stable=True)[:, :visible].astype(jnp.int32)
    return tokens.take(index, jnp.take_along_axis(tokens.mask(), index, 1))
