"""What jtok knows of a family of vision-language models, in one record.

Each folder of `families/` has a `family.py` with its `FAMILY`; `families.all` finds them by the `model_type` of a
checkpoint's config.json, and loading, processing and presets take everything else from there.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from flax import nnx
from jaxtyping import Int
from numpy import ndarray
from PIL import Image

from jtok.checkpoints.match import Part
from jtok.models.decoder.decoder import DecoderConfig, Dtype
from jtok.models.vlm.processing.batch import Batch
from jtok.models.vlm.processing.layout import VisualInput
from jtok.models.vlm.processing.prompt import sequential_positions
from jtok.models.vlm.processing.settings import ImageSettings
from jtok.plan import Plan
from jtok.sites import Site
from jtok.target import Target


class ModelConfig(Protocol):
    """What loading, reducing and asking need of the config of a vision-language model."""

    @property
    def family(self) -> str:
        """Name of the family."""

    @property
    def language(self) -> DecoderConfig:
        """The decoder's config."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of features of a crop, or of the image that plans are made for where images differ."""

    @property
    def any_size(self) -> bool:
        """Whether the number of visual tokens depends on the image size."""

    def target(self, grid: tuple[int, int] | None = None) -> Target:
        """What a method needs to know to make its plan; `grid` counts only where images have any size."""

    def sites(self) -> list[Site]:
        """Names of all sites, in the order in which they are reached."""

    def fit(self, plan: Plan) -> Plan:
        """A plan with its reducers at sites of this model."""

    def check(self, plan: Plan) -> None:
        """Raises UserError for a plan that does not fit."""

    def network(self, rngs: nnx.Rngs) -> nnx.Module:
        """The model with its arrays; its first level are the parts that `Family.parts` names."""

    def decoder(self, rngs: nnx.Rngs) -> nnx.Module:
        """The part that answers, as it is in `network`."""

    def arrange(self, batch: Batch, step: int = 1) -> Any:
        """What `network` takes for a batch of prompts."""


@dataclasses.dataclass(frozen=True)
class Family:
    """One family: how its checkpoints are read, and how its images and prompts are made."""

    #: The `model_type` of config.json.
    name: str
    #: (directory, config.json, dtype) -> config. Raises UserError for what jtok does not have.
    config: Callable[[str | os.PathLike, Mapping[str, Any], Dtype], ModelConfig]
    #: Config -> part of the parameters -> its table of tensor names.
    parts: Callable[[Any], dict[str, Part]]
    #: Fields of preprocessor_config.json that published files leave out.
    preprocessor: Mapping[str, Any]
    #: (those fields with what a checkpoint states, config.json, video preprocessor's file) -> the fields of
    #: `ImageSettings` that are not common to all families.
    settings: Callable[[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]
    #: All images of one prompt -> pixels and visual tokens of each.
    prepare: Callable[[Sequence[Image.Image], ImageSettings], list[VisualInput]]
    #: config.json -> jinja2 source of the chat template, for checkpoints that come without one.
    template: Callable[[Mapping[str, Any]], str]
    #: (frames of one size, settings, frames a second) -> a video; None: the family takes none.
    prepare_video: Callable[[Sequence[Image.Image], ImageSettings, float], VisualInput] | None = None
    #: What `template` writes before and after the placeholder of an image or a video.
    fences: tuple[str, str] = ("", "\n")
    #: (L ids, visuals, their first slots, settings) -> positions [L], or [3,L] for multimodal RoPE.
    positions: Callable[[int, Sequence[VisualInput], Sequence[int], ImageSettings], Int[ndarray, "..."]] = (
        sequential_positions
    )
    #: Name of a shape for measuring without a checkpoint -> its config at a dtype.
    presets: Mapping[str, Callable[[Dtype], ModelConfig]] = dataclasses.field(default_factory=dict)
