"""What a method does to one image, stage by stage, and what many methods leave of the same images."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from functools import cache

import matplotlib
import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont

from jtok.errors import UserError
from jtok.sites import LLM_INPUT, Site
from jtok.viz.paint import draw_box, enlarge, group_sizes, paint_score, paint_tokens, tokens_in_box

INK, FAINT, RIGHT, WRONG = "#1b1b1b", "#5a5a5a", "#117733", "#c0203a"
GAP = 10  # pixels between panels
LINE = 17  # pixels a line of text

Box = Float[np.ndarray, " 4"]
Stage = tuple[str, Int[np.ndarray, " N0"], Float[np.ndarray, " N0"] | None]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a method left of one image, and what the model said."""

    owner: Int[np.ndarray, " N0"]
    grid: tuple[int, int]
    prediction: str = ""
    correct: bool | None = None  # None = not known: no colour
    seen: UInt8[np.ndarray, "h w 3"] | None = None  # the image that the tower saw, where a method shrank it


def draw_stages(
    image: UInt8[np.ndarray, "H W 3"],
    stages: Sequence[Stage],
    grid: tuple[int, int],
    *,
    special: int = 1,
    box: Box | None = None,
    title: str = "",
) -> Image.Image:
    """One row: the image, then for each stage its tokens and, where the method scores patches, the score map.

    stages: (site, owner of each patch, score of each patch or None) as in `ViTOutput.stages`, one image's row of each.
    special: leading special tokens; an owner below it means that no patch token holds the patch. box: (y0, x0, y1, x1)
    in pixels of the image. In the token panels dropped patches are grey, patches that share a token have its colour and
    outline; in the score panels the patches that keep a token of their own are outlined.
    Raises UserError for an image that is not uint8 [H,W,3] and for maps that do not fit the grid.
    """
    row = _stage_row(image, stages, grid, special, box)
    return _sheet([row], title, _key(box is not None))


def draw_crops(
    crops: Sequence[tuple[UInt8[np.ndarray, "H W 3"], Sequence[Stage], tuple[int, int]]], *, title: str = ""
) -> Image.Image:
    """A row of `draw_stages` for each crop of an image (or each image of a prompt).

    crops: (what the tower saw, its stages, its grid); an owner of -1 means that no visual token holds the patch.
    Raises UserError as `draw_stages` does.
    """
    return _sheet([_stage_row(image, stages, grid, 0, None) for image, stages, grid in crops], title, _key(False))


def _stage_row(image, stages: Sequence[Stage], grid: tuple[int, int], special: int, box: Box | None):
    """Panels of one image: itself, then the tokens and the scores of every stage."""
    canvas = enlarge(image, max(256, 14 * max(grid)))
    n = grid[0] * grid[1]
    panels = [(_boxed(canvas, box, image), ["image", f"{n} patches"], INK)]
    for site, owner, score in stages:
        owner = np.asarray(owner)
        lines = [short_site(site), _count(owner, special, grid, box, image)]
        panels.append((_boxed(paint_tokens(canvas, owner, grid, special), box, image), lines, INK))
        if score is not None:
            heat = paint_score(canvas, score, owner, grid, special)
            panels.append((_boxed(heat, box, image), ["score", "white: kept as they are"], INK))
    return panels


def draw_methods(
    rows: Sequence[tuple[UInt8[np.ndarray, "H W 3"], Mapping[str, Outcome]]],
    *,
    special: int = 1,
    boxes: Sequence[Box] | None = None,
    labels: Sequence[str] | None = None,
    title: str = "",
) -> Image.Image:
    """A contact sheet: one row an image, one column a method, at the same keep ratio.

    rows: (image, method -> Outcome), all with the same methods. labels: what each image shows. Every cell is framed
    green or red for a right or wrong prediction, and says how many tokens are left, and how many of them hold patches
    of the box. Raises UserError when rows differ in their methods, or when boxes or labels are not one for each row.
    """
    methods = list(rows[0][1]) if rows else []
    for given, what in ((boxes, "boxes"), (labels, "labels")):
        if given is not None and len(given) != len(rows):
            raise UserError(f"{len(given)} {what} were given for {len(rows)} images: there must be one for each.")
    sheet = []
    for i, (image, outcomes) in enumerate(rows):
        if list(outcomes) != methods:
            raise UserError(f"image {i} has outcomes of {', '.join(outcomes)}; the first has {', '.join(methods)}.")
        box = None if boxes is None else boxes[i]
        canvas = enlarge(image, 160)
        row = [(_boxed(canvas, box, image), ["image", f"shows {labels[i]}" if labels else ""], INK)]
        row += [_cell(name, outcome, image, canvas, box, special) for name, outcome in outcomes.items()]
        sheet.append(row)
    return _sheet(sheet, title, _key(boxes is not None))


def short_site(site: str) -> str:
    """A site's name as a caption: `tower.block.3.after_attention` -> `block 3, after attention`."""
    try:
        place = Site.parse(site)
    except UserError:  # a caption that names no site
        return site.replace("_", " ")
    if place.layer is None or place == LLM_INPUT or place.stage == "cross":
        return site.replace("_", " ")
    return f"{'LLM layer' if place.stage == 'llm' else 'block'} {place.layer}, {place.where.replace('_', ' ')}"


def _cell(name, outcome: Outcome, image, canvas, box, special):
    if outcome.seen is not None:
        small = Image.fromarray(outcome.seen).resize(canvas.shape[1::-1], Image.Resampling.NEAREST)
        canvas = np.asarray(small)
    owner = np.asarray(outcome.owner)
    colour = {True: RIGHT, False: WRONG, None: INK}[outcome.correct]
    mark = {True: " ✓", False: " ✗", None: ""}[outcome.correct]
    said = f": {outcome.prediction}{mark}" if outcome.prediction else ""
    drawn = _boxed(paint_tokens(canvas, owner, outcome.grid, special), box, image)
    if outcome.correct is not None:
        ImageDraw.Draw(drawn).rectangle((0, 0, drawn.width - 1, drawn.height - 1), outline=colour, width=4)
    return drawn, [name + said, _count(owner, special, outcome.grid, box, image)], colour


def _count(owner, special, grid, box, image) -> str:
    tokens = len(np.unique(owner[group_sizes(owner, special) > 0]))
    text = f"{tokens} token{'s' * (tokens != 1)}"
    if box is None:
        return text
    held, patches = tokens_in_box(owner, grid, special, box, image.shape[:2])
    return f"{text}, box {held}/{patches}"


def _key(boxed: bool) -> str:
    text = "grey: dropped   ·   one colour and outline: one token   ·   plain: a token of its own"
    return text + ("   ·   box a/b: a tokens hold the b patches that the box touches" if boxed else "")


def _boxed(canvas, box, image) -> Image.Image:
    return Image.fromarray(canvas) if box is None else draw_box(canvas, box, image.shape[:2])


@cache
def _font(bold: bool) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(os.path.join(matplotlib.get_data_path(), "fonts", "ttf", name), 13)


def _sheet(rows: list[list[tuple[Image.Image, list[str], str]]], title: str, key: str) -> Image.Image:
    """Panels in rows and columns on white, each under its two lines of text; the key is at the bottom."""
    columns = max(map(len, rows), default=0)
    texts = [
        max([_font(True).getlength(t) for row in rows if c < len(row) for t in row[c][1]] + [0]) for c in range(columns)
    ]
    images = [max(row[c][0].width for row in rows if c < len(row)) for c in range(columns)]
    widths = [int(max(pair)) + 1 for pair in zip(texts, images, strict=True)]
    heights = [max(panel[0].height for panel in row) + 2 * LINE + 4 for row in rows]
    head = LINE + GAP if title else 0
    text = max(_font(True).getlength(title), _font(False).getlength(key))
    width = max(sum(widths) + GAP * (columns + 1), int(text) + 2 * GAP)
    sheet = Image.new("RGB", (width, head + sum(heights) + GAP * (len(rows) + 2) + LINE), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP, GAP), title, INK, _font(True))
    y = head + GAP
    for row, height in zip(rows, heights, strict=True):
        x = GAP
        for (picture, (name, detail), colour), w in zip(row, widths, strict=False):
            pen.text((x, y), name, colour, _font(True))
            pen.text((x, y + LINE), detail, FAINT, _font(False))
            sheet.paste(picture, (x, y + 2 * LINE + 4))
            x += w + GAP
        y += height + GAP
    pen.text((GAP, y), key, FAINT, _font(False))
    return sheet
