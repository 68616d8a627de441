"""Records which patches a model drops, keeps or merges at every site of a plan, image by image."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float, Int

from jtok.errors import UserError
from jtok.evaluation.sweeps.sweep import facts_of
from jtok.evaluation.vqa.questions import answers_right
from jtok.methods import catalogue
from jtok.methods.reduce import warn_if_untrained
from jtok.models.vlm.model import VLM
from jtok.plan import Plan
from jtok.target import Target
from jtok.training.tasks.classify import Classify, example_keys
from jtok.viz.files import write_whole

_ARRAYS = ("owner", "feature", "right")


@dataclasses.dataclass(frozen=True)
class Pattern:
    """What a method did to B images (or prompts) at one keep ratio.

    family: the method's in the catalogue. owner: token that holds each of N patches after each of S sites, -1 =
    dropped. feature: what is read off at the end, a tower's class token or mean token, or of a language model the last
    token's features.
    """

    method: str
    family: str
    keep: float | None
    sites: tuple[str, ...]
    grid: tuple[int, int]
    depth: int  # blocks of the tower
    owner: Int[np.ndarray, "S B N"]
    feature: Float[np.ndarray, "B D"]
    right: Bool[np.ndarray, " B"] | None  # None: it was not asked what has a right answer
    asked: str = ""  # the requested budget, as text
    tokens: float = 0.0  # patch (or visual) tokens left at the end, mean over images

    @property
    def merges(self) -> bool:
        """Whether merge maps tell what it does; else kept sets do."""
        return self.family == "vit-merge"

    @property
    def accuracy(self) -> float | None:
        return None if self.right is None else float(self.right.mean())


def tower_pattern(
    task: Classify,
    params: Mapping[str, Any],
    method: str,
    keep: float | None,
    images: Mapping[str, np.ndarray],
    options: Mapping[str, Any] | None = None,
    batch: int = 8,
) -> Pattern:
    """A classifier's pattern on images {"image" [B,H,W,3], "label" [B]}. Raises UserError for a plan that resizes."""
    target = task.model.target()
    plan = _whole_grid(catalogue.make_plan(method, target, keep, **(options or {})))
    warn_if_untrained(plan)

    @jax.jit
    def read(params, images):
        out = task.apply({"model": params}, images, plan, key=example_keys({"image": images}))
        x = out.tokens.x.astype(jnp.float32)
        feature = x[:, 0] if target.has_class else x.mean(1)
        return (
            {s: stage.owner for s, stage in out.stages.items()},
            feature,
            out.logits.argmax(-1),
            out.tokens.split()[1].mask(),
        )

    parts = []
    count = len(images["label"])
    for start in range(0, count, batch):
        rows = np.minimum(np.arange(start, start + batch), count - 1)
        owners, feature, said, live = jax.device_get(read(params["model"], jnp.asarray(images["image"][rows])))
        parts.append((owners, feature, said == images["label"][rows], live.sum(1)))
    return _joined(plan, method, keep, target, parts, count)


def question_pattern(
    model: VLM,
    method: str,
    keep: float | None,
    batches: Iterable[Mapping[str, Any]],
    count: int,
    options: Mapping[str, Any] | None = None,
) -> Pattern:
    """A vision-language model's pattern on `count` prompts.

    batches: as in `questions.Questions`, or without "answer", where nothing is right or wrong. Raises UserError for a
    plan that resizes the image.
    """
    target = model.config.target()
    plan = model.config.fit(_whole_grid(catalogue.make_plan(method, target, keep, **(options or {}))))
    warn_if_untrained(plan)
    model.config.check(plan)
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: model.config.network(nnx.Rngs(0))))

    @jax.jit
    def read(params, inputs, key, answer):
        network = nnx.merge(graphdef, nnx.State(params))
        reading = network(inputs, plan, 1, key)
        last = jnp.take_along_axis(reading.sequence.x, reading.sequence.last[:, None, None], 1)[:, 0]
        owners = {s: stage.owner for s, stage in reading.stages.items()}
        right = None if answer is None else answers_right(network, reading, answer)
        return owners, last.astype(jnp.float32), right, reading.sequence.visual.mask().sum(1)

    parts = [jax.device_get(read(model.params, b["inputs"], b["key"], b.get("answer"))) for b in batches]
    return _joined(plan, method, keep, target, parts, count)


def _whole_grid(plan: Plan) -> Plan:
    if plan.grid is not None:
        raise UserError(f"the method '{plan.name}' resizes the image, so that its patches are not those of others.")
    return plan


def _joined(plan: Plan, method: str, keep: float | None, target: Target, parts: list, count: int) -> Pattern:
    """Concatenates batches, without the padding of the last."""
    # jit gives them sorted by name
    sites = tuple(site for site in map(str, plan.sites) if site in parts[0][0])

    def rows(batches: list) -> np.ndarray:
        return np.concatenate(batches)[:count]

    owner = [rows([part[0][site] for part in parts]) for site in sites]
    shape = (0, count, target.patches)
    stacked = np.stack(owner).astype(np.int16) if owner else np.zeros(shape, np.int16)
    family = facts_of(method)["family"]
    feature = rows([part[1] for part in parts])
    right = None if parts[0][2] is None else rows([part[2] for part in parts])
    tokens = float(rows([part[3] for part in parts]).mean())
    grid = target.grid
    return Pattern(method, family, keep, sites, grid, target.depth, stacked, feature, right, plan.asked, tokens)


def save_patterns(path: str | os.PathLike, patterns: Sequence[Pattern]) -> None:
    """Writes a file (.npz), whole or not at all."""
    arrays: dict[str, np.ndarray] = {}
    for i, p in enumerate(patterns):
        arrays |= {f"{i}.{name}": a for name in _ARRAYS if (a := getattr(p, name)) is not None}
    fields = ("method", "family", "keep", "sites", "grid", "depth", "asked", "tokens")
    stated = [{name: getattr(p, name) for name in fields} for p in patterns]
    buffer = io.BytesIO()
    np.savez_compressed(buffer, stated=json.dumps(stated), **arrays)
    write_whole(path, buffer.getvalue())


def read_patterns(path: str | os.PathLike) -> list[Pattern]:
    """What `save_patterns` wrote. Raises UserError where there is nothing, or half of it."""
    try:
        with np.load(path, allow_pickle=False) as file:
            stated = json.loads(str(file["stated"]))
            return [
                Pattern(
                    **{name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()},
                    **{name: file[f"{i}.{name}"] if f"{i}.{name}" in file else None for name in _ARRAYS},
                )
                for i, fields in enumerate(stated)
            ]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"'{path}' holds no patterns as jtok patterns writes them ({error}).") from None
