"""Llama-3.2-Vision (arXiv:2407.21783): the decoder cross-attends to visual tokens, and has none in its sequence.

What is reduced are the states that the cross-attention layers read, at the sites of the tower (a tile at a time), at
`projector`, and at `cross.K`, before the K-th of these layers counted from 0 (3, 8, ..., 38 of 40 layers in the
released model). From the projector on a reducer sees the tokens of all tiles of a row, class tokens among them;
`segment` counts the tiles that show something, and no others are among them. Used functionally, like `VLMNetwork`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Int

from jtok.errors import UserError
from jtok.layers.projector import MLPProjector, ProjectorConfig
from jtok.layers.stack import Run
from jtok.models.decoder.cross import CrossDecoder
from jtok.models.decoder.cross_prefill import View, cross_prefill, fit
from jtok.models.decoder.decoder import DecoderConfig
from jtok.models.decoder.sequence import Text, fold
from jtok.models.towers.tiled_config import TiledConfig
from jtok.models.towers.tiled_vision import TiledTower
from jtok.models.vlm.families.mllama.inputs import TiledInputs, arrange_tiles
from jtok.models.vlm.network import PrefillOutput
from jtok.plan import Plan
from jtok.sites import PROJECTOR, Site, cross_sites, tower_sites
from jtok.target import Target
from jtok.tokens import Tokens


@dataclasses.dataclass(frozen=True)
class MllamaConfig:
    """A tiled tower, a linear projector, and a decoder with cross-attention layers."""

    tower: TiledConfig
    projector: ProjectorConfig
    language: DecoderConfig
    image_token: int  # id of the placeholder for an image
    family: str = "mllama"

    @property
    def any_size(self) -> bool:
        """Images are cut into tiles of one size."""
        return False

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches of a tile."""
        return self.tower.side, self.tower.side

    @property
    def layers(self) -> tuple[int, ...]:
        """Numbers of the cross-attention layers among all of the decoder's layers."""
        return tuple(before + k for k, before in enumerate(self.language.cross))

    def target(self, grid: tuple[int, int] | None = None) -> Target:
        """What a method needs to know to make its plan for this model; its patches are those of a tile."""
        del grid
        depth = self.language.depth + len(self.language.cross)
        return dataclasses.replace(
            self.tower.target(), layers=depth, language_width=self.language.width, cross=self.layers
        )

    def sites(self) -> list[Site]:
        """All sites, in the order in which they are reached."""
        return [*tower_sites(self.tower.depth), PROJECTOR, *cross_sites(len(self.language.cross))]

    def fit(self, plan: Plan) -> Plan:
        """Maps a plan for a decoder with visual tokens in its sequence to this decoder's sites."""
        return fit(plan, self.layers)

    def check(self, plan: Plan) -> None:
        """Raises UserError for a plan that does not fit."""
        if plan.projector is not None:
            raise UserError("mllama projects several layers of its tower side by side: no other projector fits.")
        if plan.inputs is not None and plan.grid is None:
            raise UserError(f"'{plan.name}' picks patches of an image, and mllama's tiles are kept whole: use another.")
        plan.check(self.sites(), ("inputs",))
        for site, before, after in plan.part("tower").counts(self.tower.target().patches):
            if after > before:
                raise UserError(f"the reducer at {site} restores tokens, whose outputs mllama's tower does not keep.")
        if plan.embed is not None:
            raise UserError("the plan compares patches with an embedding of the question by CLIP: mllama's are others.")

    def network(self, rngs: nnx.Rngs) -> MllamaNetwork:
        """The model with its arrays."""
        return MllamaNetwork(self, rngs)

    def decoder(self, rngs: nnx.Rngs) -> CrossDecoder:
        """The decoder, built as it is in `network`."""
        return CrossDecoder(self.language, rngs)

    def arrange(self, batch: Any, step: int = 1) -> TiledInputs:
        """What `network` takes for a batch of prompts."""
        return arrange_tiles(batch, step=step)


class MllamaNetwork(nnx.Module):
    """The arrays of the model, and the way through it."""

    def __init__(self, config: MllamaConfig, rngs: nnx.Rngs):
        c = self.config = config
        self.tower = TiledTower(c.tower, rngs)
        self.projector = MLPProjector(c.projector, c.language.compute, rngs)
        self.language = c.decoder(rngs)

    def __call__(self, inputs: TiledInputs, plan: Plan, max_new_tokens: int, key: Array | None = None) -> PrefillOutput:
        """Reads the prompts. `max_new_tokens`: free slots that the caches get for answers and further questions.

        key: one PRNG key a row [B] (default: the same fixed key for every row). Raises UserError for a plan or pixels
        that do not fit.
        """
        self.config.check(plan)
        b = inputs.ids.shape[0]
        keys = jnp.broadcast_to(jax.random.key(0), (b,)) if key is None else key
        x = self.language.embed(inputs.ids)
        text = Text(x, inputs.position, inputs.valid, inputs.question, inputs.question_valid)
        ends = jnp.maximum(text.valid.sum(1, dtype=jnp.int32) - 1, 0)[:, None, None]
        run, filling = Run(plan, None, self.config.sites(), keys), {}
        if inputs.pixels is not None:
            run, filling = self._encode_images(inputs, plan, keys)
        last = jnp.take_along_axis(jnp.asarray(inputs.visible), ends, 1)[:, 0]
        text, caches = cross_prefill(self.language, text, View(inputs.visible, last, **filling), run, max_new_tokens)
        logits = self.language.logits(jnp.take_along_axis(text.x, ends, 1))[:, 0]
        return PrefillOutput(logits, caches, text, run.memory, run.stages)

    def _encode_images(self, inputs: TiledInputs, plan: Plan, keys: Array) -> tuple[Run, dict[str, Array]]:
        """(the run with the projected visual tokens of each row, tokens of padding tiles as fields of `View`)."""
        b, tiles = inputs.pixels.shape[:2]
        each = jax.vmap(lambda k: jax.vmap(lambda i: jax.random.fold_in(k, i))(jnp.arange(tiles)))(keys).reshape(-1)
        pixels = jnp.reshape(inputs.pixels, (b * tiles, *inputs.pixels.shape[2:]))
        present, aspects = jnp.reshape(inputs.real, -1), jnp.reshape(inputs.aspects, -1)
        encoded = self.tower(pixels, aspects, present, plan.part("tower"), key=each)
        order = jnp.asarray(inputs.order)
        tokens = self._projected(encoded.tokens, order, tiles)
        tokens = tokens.replace(owner=_of_all(tokens, order, tiles))
        run = Run(plan, tokens, self.config.sites(), keys, memory=encoded.memory)
        run.stages = dict(encoded.stages)
        run.reduce(PROJECTOR)
        if not inputs.filling.shape[1]:
            return run, {}
        filling = self._projected(encoded.tokens, jnp.asarray(inputs.filling), tiles)
        return run, {"filling": filling.x, "filling_valid": filling.mask()}

    def _projected(self, tokens: Tokens, order: Int[Array, "B V"], tiles: int) -> Tokens:
        """The projected tokens of the tiles in `order`, class tokens included as ordinary ones; -1 gives padding."""
        flat = (jnp.arange(len(order))[:, None] * tiles + jnp.maximum(order, 0)).reshape(-1)
        tokens = jax.tree.map(lambda a: a[flat], tokens.replace(special=0))
        valid = tokens.mask() & (order >= 0).reshape(-1, 1)
        size, owner = jnp.where(valid, tokens.size, 0), jnp.where(order.reshape(-1, 1) >= 0, tokens.owner, -1)
        return fold(self.projector(tokens.replace(valid=valid, size=size, owner=owner)), order.shape[1])


def _of_all(tokens: Tokens, order: Int[Array, "B V"], tiles: int) -> Int[Array, "B N0"]:
    """Owners of the patches of all `tiles` tiles of a row, given those of the tiles in `order`."""
    b, v = order.shape
    owners = tokens.owner.reshape(b, v, -1)
    place = jnp.where(order >= 0, order, tiles)
    whole = jnp.full((b, tiles + 1, owners.shape[2]), -1, owners.dtype)
    return whole.at[jnp.arange(b)[:, None], place].set(owners)[:, :tiles].reshape(b, -1)
