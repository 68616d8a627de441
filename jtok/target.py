"""The target of a plan: a model and its inputs."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Target:
    """What a plan is made for: the shape of the model it is placed in, and of its inputs."""

    depth: int  # blocks
    grid: tuple[int, int]  # patches (rows, columns)
    width: int  # features
    heads: int = 1
    special: int = 1  # leading special tokens
    classes: int = 0  # output classes, for methods with auxiliary classifiers; 0 = none
    has_class: bool = True  # the first special token is a class token
    layers: int = 0  # layers of the language model that follows; 0 = there is none
    language_width: int = 0  # features of the language model
    crops: int = 1  # maximum number of crops per image
    frames: int = 1  # frames of a video; 1 = images
    cross: tuple[int, ...] = ()  # layers of the language model before which cross-attention reads the visual tokens
    given: int | None = None  # patches that reach the method, if others come before it

    @property
    def patches(self) -> int:
        """Patches that reach the method: those of the grid, unless another method comes before it."""
        return self.grid[0] * self.grid[1] if self.given is None else self.given

    @property
    def text(self) -> bool:
        """A question comes with the image."""
        return self.layers > 0
