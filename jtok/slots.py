"""What a plan holds besides reducers: each slot has its own protocol, and a paper that needs two fills both.

    inputs      pixels or frames chosen before the tower             `InputRule`
    projector   features of the tower -> tokens of the decoder       `Projector`
    attention   how a range of layers attends                        `AttentionRule`
    layers      layers at which visual tokens exit early             `LayerRule`
    cache       which keys and values are kept                       `CachePolicy`
    decoding    the logits of the next token                         `DecodingRule`
    training    losses, teacher, counts of a training step           `Training`

All of them are frozen dataclasses (or, where something is learned, `nnx.Module`s), pure, batched, with static
shapes. The result of a calibration run becomes options of a method: see `jtok.registry.Method.calibrate`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from jtok.cache import Cache
from jtok.reducer import Memory
from jtok.signals import Signals
from jtok.tokens import Tokens


class InputRule:
    """Chooses what part of an image reaches the tower: a smaller image, or some of its patches.

    A rule that resizes sets `grid`; one that selects patches defines `keep`, and `count` is the number of slots they
    take: a cap, since the number depends on the image. `fitted` adapts the rule to the images of a batch known before
    tracing, so that the cap need not be all patches.
    """

    #: Rows and columns of patches that the image is resized to; None = not resized.
    grid: tuple[int, int] | None = None
    #: Whether the number of patches depends on the image.
    adaptive: bool = False

    def count(self, patches: int) -> int:
        """Maximum number of patch slots left."""
        return patches if self.grid is None else self.grid[0] * self.grid[1]

    def keep(self, pixels: Float[Array, "B N V"], grid: tuple[int, int]) -> Bool[Array, "B N"] | None:
        """Which patches are kept, from their values (as the tower receives them); None: all."""
        return None

    def fitted(self, pixels: Float[np.ndarray, "B N V"], grid: tuple[int, int]) -> InputRule:
        """The rule with the smallest cap that holds what these images keep."""
        return self


@runtime_checkable
class Projector(Protocol):
    """From features of a tower to tokens of a language model, possibly fewer: an `nnx.Module`.

    taps: the features of the tower's layers that it names in `layers_read` ([B,N,D] each, 0 being the embedding).
    count: tokens to make of each crop (None: its own number). Its output keeps track of owners and positions.
    """

    layers_read: Sequence[int]

    def __call__(self, tokens: Tokens, taps: Sequence[Array] = (), count: int | None = None) -> Tokens: ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Attending:
    """What an attention rule sees of one layer: L queries, S keys."""

    x: Float[Array, "B L D"]  # input of the layer
    q: Float[Array, "B L H Dh"]
    k: Float[Array, "B S Hk Dh"]
    v: Float[Array, "B S Hk Dh"]
    valid: Bool[Array, "B S"]
    visual: Bool[Array, "B S"]  # keys of visual tokens
    after_image: Bool[Array, "B L"]  # queries that come after the last visual token; all of them in an answer
    marks: Mapping[str, Array] | None = None  # [B,S], from the rule's call on the prompt; None in that call


class AttentionRule:
    """Changes how a range of layers of the language model attends, in the prompt and in the answer.

    `attend(v, **masks)` is the fused attention of the layer over other values [B,S,Hk,Dh]; a rule combines such calls
    and never materialises an L x S array.
    """

    def layers(self, depth: int) -> range:
        """The layers it applies to."""
        return range(depth)

    def __call__(self, a: Attending, attend: Callable[..., Array]) -> tuple[Float[Array, "B L H Dh"], dict[str, Array]]:
        """(output of the attention, marks [B,S] to keep with the cache; in an answer those of `a.marks`)."""
        raise TypeError(f"{type(self).__name__} must define __call__(attending, attend).")


class LayerRule:
    """Lets visual tokens exit the language model before its last layer.

    exits: the layers before which they may exit, increasing. `leave` is called at each.
    """

    exits: tuple[int, ...] = ()
    #: Signals that `leave` reads (keys of `jtok.signals.SIGNALS`).
    reads: tuple[str, ...] = ()

    def leave(self, tokens: Tokens, s: Signals, memory: Memory, layer: int) -> Bool[Array, "B N"] | None:
        """Which tokens exit before `layer`; None: all of them, so later layers have no slots for visual tokens."""
        raise TypeError(f"{type(self).__name__} must define leave(tokens, signals, memory, layer).")


@dataclasses.dataclass(frozen=True)
class CacheStep:
    """The context of a cache policy's call: the cache of layers from `layer` on, of `depth` in total."""

    prefill: bool  # the prompt has just been read; no slots are free yet, and the cache may shrink
    layer: int = 0
    depth: int = 1


class CachePolicy:
    """Decides what the cache keeps: called per run of layers after the prompt, and after every block of an answer.

    It may mark slots invalid and change their contents; after the prompt it may return a smaller cache
    (`jtok.cache.compact`, `take_per_head`). Later calls keep all shapes, and invalid slots stay invalid.
    """

    #: Either () or ("last_token_attention",), which provides `Cache.attention`.
    reads: tuple[str, ...] = ()

    def count(self, patches: int) -> int:
        """Maximum number of visual slots left."""
        return patches

    def cuts(self, depth: int) -> tuple[int, ...]:
        """Layers before which a new cache begins, if the policy does not treat all layers alike."""
        return ()

    def __call__(self, cache: Cache, step: CacheStep) -> Cache:
        raise TypeError(f"{type(self).__name__} must define __call__(cache, step).")


class DecodingRule:
    """Changes the logits of the next token; may request a second stream with its own cache.

    reads: as for a cache policy; the attention of the prompt's last token is then passed to `second_stream`.
    """

    reads: tuple[str, ...] = ()
    #: Whether `second_stream` is defined.
    contrasts: bool = False

    def second_stream(self, tokens: Tokens, attention: Float[Array, "layers B N"], key: Array) -> Tokens:
        """The visual tokens that the second stream reads, in the same slots.

        attention: of the prompt's last token, mean over heads. key: one PRNG key per row [B].
        """
        raise TypeError(f"{type(self).__name__} must define second_stream(tokens, attention, key).")

    def __call__(self, logits: Float[Array, "B V"], second: Float[Array, "B V"] | None) -> Float[Array, "B V"]:
        raise TypeError(f"{type(self).__name__} must define __call__(logits, second).")


@dataclasses.dataclass(frozen=True)
class Training:
    """How a plan trains.

    objective: extra losses, `(plan, output, teacher_output, batch) -> dict of scalars`, called with the plan that holds
    the current parameters. needs_teacher: also run the unreduced model, as it was before training, for distillation
    (otherwise teacher_output is None). variants: the plans over whose losses a step takes the mean,
    `(plan, key) -> plans`.
    """

    objective: Callable[..., dict[str, Any]] | None = None
    needs_teacher: bool = False
    variants: Callable[..., Sequence[Any]] | None = None
