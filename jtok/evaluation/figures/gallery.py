"""Runs a model with plans on single images and draws what became of their patches."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from jtok.errors import UserError
from jtok.evaluation.sweeps.sweep import Cell
from jtok.plan import Plan
from jtok.sites import Site
from jtok.training.tasks.classify import Classify, example_keys
from jtok.viz.tokens import Outcome, draw_methods, draw_stages

Picture = UInt8[np.ndarray, "H W 3"]


def read_image(path: str, side: int) -> Picture:
    """An image file as the tower takes it: the central square, resized. Raises UserError if it cannot be read."""
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot read the image '{path}' ({error}): give a PNG or JPEG file.") from error
    square = min(image.size)
    left, top = (image.width - square) // 2, (image.height - square) // 2
    image = image.crop((left, top, left + square, top + square))
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))


def predict(task: Classify, params: Mapping[str, Any], plan: Plan, images: UInt8[np.ndarray, "B H W 3"]):
    """The tower's output for a few images, on the host."""
    batch = jnp.asarray(images)

    @jax.jit
    def run(params, batch):
        out = task.apply(params, batch, plan, key=example_keys({"image": batch}))
        return out.logits.argmax(-1), out.tokens.owner, out.stages

    return jax.device_get(run({"model": params["model"]}, batch))


def show_stages(
    task: Classify, params: Mapping[str, Any], plan: Plan, image: Picture, box: Float[np.ndarray, " 4"] | None = None
) -> tuple[Image.Image, str]:
    """(the picture of every stage of a plan on one image, a sentence with the prediction)."""
    prediction, _, stages = predict(task, params, plan, image[None])
    target = task.model.target()
    grid = plan.grid or target.grid
    seen = _seen(image, plan, task.model.patch)
    chosen = {str(site): stages[str(site)] for site in few(list(plan.sites))}  # jit returns the stages sorted by name
    rows = [(site, s.owner[0], None if s.score is None else s.score[0]) for site, s in chosen.items()]
    asked = f" ({plan.asked})" if plan.asked else ""
    said = f"{plan.name}{asked}: the model reads class {int(prediction[0])}"
    return draw_stages(seen, rows, grid, special=target.special, box=box, title=said), said


def compare_methods(
    task: Classify, params: Mapping[str, Any], cells: Sequence[Cell], images: int, split: str
) -> list[tuple[str, Image.Image]]:
    """(caption, contact sheet) for every keep ratio: held-out images in rows, methods in columns."""
    from jtok.methods import catalogue

    data = task.dataset(split)
    examples = [data[i] for i in range(images)]
    batch = np.stack([e["image"] for e in examples])
    boxes = [e["box"] for e in examples] if all("box" in e for e in examples) else None
    labels = [str(e["label"]) for e in examples]
    target, sheets = task.model.target(), []
    for keep in sorted({cell.keep for cell in cells}, key=lambda keep: -(keep or 0)):
        rows: list[dict[str, Outcome]] = [{} for _ in examples]
        for cell in (c for c in cells if c.keep == keep):
            plan = catalogue.make_plan(cell.method, target, keep, **cell.options)
            plan = plan if cell.params is None else plan.with_params(cell.params["plan"])
            predictions, owners, _ = predict(task, params if cell.params is None else cell.params, plan, batch)
            for row, image, label, prediction, owner in zip(rows, batch, labels, predictions, owners, strict=True):
                seen = _seen(image, plan, task.model.patch) if plan.grid else None
                right = str(prediction) == label
                row[cell.method] = Outcome(owner, plan.grid or target.grid, str(prediction), right, seen)
        sheet = draw_methods(list(zip(batch, rows, strict=True)), special=target.special, boxes=boxes, labels=labels)
        asked = "" if keep is None else f" at keep {keep:g}"
        sheets.append((f"what is left of held-out images{asked}", sheet))
    return sheets


def picture_bytes(picture: Image.Image) -> bytes:
    """A picture as PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def few(sites: list[Site], most: int = 4) -> list[Site]:
    """At most `most` of the sites, evenly spread, the last among them."""
    if len(sites) <= most:
        return sites
    return [sites[round((i + 1) * len(sites) / most) - 1] for i in range(most)]


def _seen(image: Picture, plan: Plan, patch: int) -> Picture:
    """The image as the tower gets it: smaller, where the plan resizes it."""
    if plan.grid is None:
        return image
    rows, columns = plan.grid
    return np.asarray(Image.fromarray(image).resize((columns * patch, rows * patch), Image.Resampling.BILINEAR))
