"""A tiny Qwen2.5-VL of transformers that hides nothing, and prompts with images and videos of any size."""

import numpy as np
import torch
import transformers

from jtok.models.vlm.arrange import Inputs, arrange
from jtok.models.vlm.processing import Prompt, Span, VisualInput, mrope_positions, pad_batch
from tests.models.language import TEXT, randomise

IMAGE, VIDEO = 99, 98
TICKS = 2

VISION = {"depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "patch_size": 14,
          "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 56, "fullatt_block_indexes": [0, 2],
          "out_hidden_size": 64, "in_channels": 3, "tokens_per_second": TICKS}  # fmt: skip


def model(seed: int = 0, *, vocabulary: int = 128, ids: tuple[int, ...] = (IMAGE, VIDEO, 97, 96), **changes):
    """A randomised Qwen2.5-VL with windows of 2x2 tokens in every other block.

    ids: of images, of videos, and of the tokens before and after them. changes: fields of the tower.
    """
    torch.manual_seed(seed)
    text = {"hidden_size": 64, "bos_token_id": None, "eos_token_id": None}
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    config = transformers.Qwen2_5_VLConfig(
        vision_config={**VISION, **changes},
        text_config={**TEXT, **text, "vocab_size": vocabulary, "rope_parameters": rope},
        image_token_id=ids[0],
        video_token_id=ids[1],
        vision_start_token_id=ids[2],
        vision_end_token_id=ids[3],
    )
    model = randomise(transformers.Qwen2_5_VLForConditionalGeneration(config), seed)
    model.set_attn_implementation("eager")
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = None
    return model


def visual(kind: str, grid: tuple[int, int, int], seed: int, seconds: float = 1.0) -> VisualInput:
    """Random patches of an image or video with (time, rows, columns) of them."""
    t, h, w = grid
    pixels = np.random.default_rng(seed).standard_normal((t * h * w, 3 * 2 * 14 * 14), dtype=np.float32)
    merged = h // 2, w // 2
    span = Span(kind, merged, merged, frames=t)
    return VisualInput(kind, pixels, (14 * h, 14 * w), (span,), span.tokens, grid=grid, seconds=seconds)


def prompt(parts: list, seed: int) -> Prompt:
    """Text (numbers of tokens) and visuals in any order."""
    g, ids, visuals, offsets = np.random.default_rng(seed), [], [], []
    for part in parts:
        if isinstance(part, VisualInput):
            visuals.append(part)
            offsets.append(len(ids) + 1)
            ids += [97, *[IMAGE if part.kind == "image" else VIDEO] * part.slots, 96]
        else:
            ids += g.integers(5, 90, part).tolist()
    positions = mrope_positions(len(ids), visuals, offsets, TICKS)
    return Prompt(np.asarray(ids, np.int32), tuple(visuals), tuple(offsets), positions)


def inputs(model, batch: list[Prompt], step: int = 1) -> Inputs:
    """One batch of them."""
    return arrange(pad_batch(batch, 0), model.config.grid, step=step)


def reference(one: Prompt, image: int = IMAGE, video: int = VIDEO) -> dict[str, torch.Tensor]:
    """The inputs of transformers for one prompt."""
    ids = torch.tensor(one.ids[None]).long()
    kinds = (ids == image).int() + 2 * (ids == video).int()
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": kinds}
    for kind, pixels, grid in (
        ("image", "pixel_values", "image_grid_thw"),
        ("video", "pixel_values_videos", "video_grid_thw"),
    ):
        visuals = [v for v in one.visuals if v.kind == kind]
        if visuals:
            given[pixels] = torch.tensor(np.concatenate([v.pixels for v in visuals]))
            given[grid] = torch.tensor([v.grid for v in visuals])
            if kind == "video":
                given["second_per_grid_ts"] = [v.seconds for v in visuals]
    return given
