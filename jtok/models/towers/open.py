"""A vision tower ready to be called, from a checkpoint or from the package itself."""

from __future__ import annotations

import os
from typing import Any

from flax import nnx

from jtok.checkpoints.shipped import SHIPPED, resolve
from jtok.models.towers.load import load_vit
from jtok.models.towers.vit import ViT


def load_tower(path: str | os.PathLike = SHIPPED, **options: Any) -> ViT:
    """The tower of a checkpoint (see `jtok.models.towers.load.load_vit` for formats, `options` and errors).

    Without a path: the small ViT that comes with jtok and reads digit scenes. The result is called as
    `tower(images, plan)`; `tower.config.target()` is what `jtok.make_plan` wants to know of it.
    """
    config, params = load_vit(resolve(os.fspath(path)), **options)
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: ViT(config, nnx.Rngs(0))), nnx.Param)
    return nnx.merge(graphdef, nnx.State(params))
