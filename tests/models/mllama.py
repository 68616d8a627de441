"""A tiny Llama-3.2-Vision of transformers that hides nothing, and prompts with one image, several or none."""

import numpy as np
import tokenizers
import torch
import transformers

from jtok.models.vlm.families.mllama.processing import arrangements
from jtok.models.vlm.processing import Prompt, Span, VisualInput
from jtok.models.vlm.processing.cross_mask import cross_mask
from tests.models import language
from tests.models.processing import checkpoints

TILES, SIDE, IMAGE = 4, 56, 99
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_global_layers": 1,
          "attention_heads": 4, "vision_output_dim": 96, "image_size": SIDE, "patch_size": 14, "max_num_tiles": TILES,
          "intermediate_layers_indices": [1, 0]}  # fmt: skip
TEXT = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 5, "num_attention_heads": 4,
        "num_key_value_heads": 2, "cross_attention_layers": [1, 3], "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
                            "high_freq_factor": 4.0, "original_max_position_embeddings": 32}}  # fmt: skip


def model(seed: int = 0, image: int = IMAGE, **text):
    """A randomised model, its gates far from closed. image: id of the placeholder; text: fields of the decoder."""
    torch.manual_seed(seed)
    fields = {**TEXT, "vocab_size": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **text}
    config = transformers.MllamaConfig(vision_config=VISION, text_config=fields, image_token_index=image)
    made = language.randomise(transformers.MllamaForConditionalGeneration(config), seed)
    with torch.no_grad():
        for path, p in made.named_parameters():
            if "gate" in path and p.numel() == 1:
                p.copy_(0.4 + p.abs())
    made.set_attn_implementation("eager")
    made.generation_config.eos_token_id = made.generation_config.pad_token_id = None
    return made


def directory(path, seed: int = 0):
    """(the model, a directory with its weights, a tokenizer and a preprocessor's settings)."""
    checkpoints.write(path, "mllama", config=None, generation_config=None)
    tokenizer = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    special = {"bos_token_id": "<|begin|>", "eos_token_id": "<|eot_id|>", "pad_token_id": "<pad>", "image": "<|image|>"}
    ids = {name: tokenizer.token_to_id(token) for name, token in special.items()}
    made = model(seed, vocab_size=tokenizer.get_vocab_size(), **ids)
    made.save_pretrained(path)
    return made, path


def image(aspect: int, generator: np.random.Generator) -> VisualInput:
    """Random pixels in an arrangement of tiles; the other tiles are zeros."""
    down, across = arrangements(TILES)[aspect - 1]
    pixels = np.zeros((TILES, 3, SIDE, SIDE), np.float32)
    pixels[: down * across] = generator.standard_normal((down * across, 3, SIDE, SIDE))
    spans = tuple(Span("image", (4, 4), (4, 4), crop=tile, special=1) for tile in range(down * across))
    return VisualInput("image", pixels, (SIDE, SIDE), spans, slots=1, aspect=aspect, real=down * across)


def prompt(before: int, aspects: tuple[int, ...], after: int, seed: int) -> Prompt:
    """Text, then for each image its placeholder and `after` ids."""
    g = np.random.default_rng(seed)
    visuals = tuple(image(aspect, g) for aspect in aspects)
    ids = list(g.integers(5, 90, before))
    offsets = []
    for _ in visuals:
        offsets.append(len(ids))
        ids += [IMAGE, *g.integers(5, 90, after)]
    return Prompt(np.asarray(ids, np.int32), visuals, tuple(offsets), np.arange(len(ids), dtype=np.int32))


def prompts() -> list[Prompt]:
    """One tile, three and two of them, four, and no image at all; ids 5 (1x3), 2 (1x2), 6 (2x2)."""
    return [prompt(1, (1,), 5, 0), prompt(2, (3, 2), 4, 1), prompt(3, (6,), 9, 2), prompt(8, (), 0, 3)]


def longer(one: Prompt, ids) -> Prompt:
    """The prompt with more ids appended."""
    ids = np.concatenate([one.ids, np.asarray(ids, np.int32)])
    return Prompt(ids, one.visuals, one.offsets, np.arange(len(ids), dtype=np.int32))


def reference(one: Prompt) -> dict[str, torch.Tensor]:
    """The inputs of transformers for one prompt."""
    ids = torch.tensor(one.ids[None]).long()
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if not one.visuals:
        return inputs
    mask = cross_mask(one.offsets, one.visuals, TILES, len(one.ids))
    return inputs | {
        "pixel_values": torch.tensor(np.stack([visual.pixels for visual in one.visuals])[None]),
        "aspect_ratio_ids": torch.tensor([[visual.aspect for visual in one.visuals]]),
        "aspect_ratio_mask": torch.tensor([[[tile < v.real for tile in range(TILES)] for v in one.visuals]]).long(),
        "cross_attention_mask": torch.tensor(mask[None]).long(),
    }
