"""Tiny decoders and vision-language models of transformers that hide nothing, and loading what they save."""

import numpy as np
import torch
import transformers

from jtok.models.vlm.arrange import Inputs, arrange
from jtok.models.vlm.processing import Prompt, Span, VisualInput, pad_batch

TEXT = {"vocab_size": 128, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 512}  # fmt: skip

VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
          "image_size": 56, "patch_size": 14}  # fmt: skip

DECODERS = {
    "llama": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**TEXT, attention_bias=True, mlp_bias=True)
    ),
    "llama3": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT, tie_word_embeddings=True,
        rope_parameters={"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 32})),
    "mistral": lambda: transformers.MistralForCausalLM(transformers.MistralConfig(**TEXT, sliding_window=None)),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**TEXT)),
    "gemma": lambda: transformers.GemmaForCausalLM(transformers.GemmaConfig(**{**TEXT, "num_key_value_heads": 1},
                                                                            head_dim=16)),
}  # fmt: skip


def randomise(model, seed: int = 0):
    """Every parameter at random and far from where it hides mistakes: attention not uniform, norms not one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if "embed" in path and p.ndim == 2:
                p.copy_(0.2 * noise)  # logits of a few units where it is the output projection too
            elif p.ndim > 1:
                p.copy_(noise * 1.5 / p[0].numel() ** 0.5)
            elif "norm" in path and path.endswith("weight"):
                p.copy_(1 + 0.3 * noise)
            else:
                p.copy_(0.3 * noise)
    return model.eval()


def decoder(name: str, seed: int = 0):
    """A randomised decoder of transformers."""
    torch.manual_seed(seed)
    return randomise(DECODERS[name](), seed)


def padded(side: str, lengths=(9, 5, 12), seed: int = 3):
    """(ids, mask) [B,L] of prompts of different lengths, padded on one side."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    mask = torch.stack([torch.arange(longest) < n for n in lengths])
    mask = mask.flip(1) if side == "left" else mask
    return torch.where(mask, torch.randint(5, 90, mask.shape, generator=generator), 0), mask


IMAGE = 99  # id of the placeholder for a visual token
GRID = (4, 4)


def llava(seed: int = 0):
    """A randomised LLaVA whose tower gives 16 tokens an image."""
    torch.manual_seed(seed)
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION),
        text_config=transformers.LlamaConfig(**TEXT),
        image_token_id=IMAGE,
        image_seq_length=16,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    model = randomise(transformers.LlavaForConditionalGeneration(config), seed)
    model.set_attn_implementation("eager")
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = None
    return model


def prompt(before: int, after: int, seed: int, side: int = 56) -> Prompt:
    """Text, an image of random pixels, text."""
    g = np.random.default_rng(seed)
    pixels = g.standard_normal((1, 3, side, side), dtype=np.float32)
    image = VisualInput("image", pixels, (side, side), (Span("image", GRID, GRID),), 16)
    ids = np.concatenate([g.integers(5, 90, before), np.full(16, IMAGE), g.integers(5, 90, after)]).astype(np.int32)
    return Prompt(ids, (image,), (before,), np.arange(len(ids), dtype=np.int32))


PROMPTS = [(3, 5, 0), (6, 9, 1)]


def prompts() -> list[Prompt]:
    """Two prompts of different length, with their images at different places."""
    return [prompt(*arguments) for arguments in PROMPTS]


def inputs(batch: list[Prompt]) -> Inputs:
    """One batch of them."""
    return arrange(pad_batch(batch, 0), GRID)


def reference(one: Prompt) -> dict[str, torch.Tensor]:
    """The inputs of transformers for one prompt."""
    ids = torch.tensor(one.ids[None]).long()
    pixels = torch.tensor(np.concatenate([visual.pixels for visual in one.visuals]))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
