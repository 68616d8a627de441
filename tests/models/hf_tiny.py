"""Tiny transformers models with parameters that hide nothing, the oracles of the parity tests."""

import torch
import transformers

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
DINO = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "mlp_ratio": 2, "image_size": 56}


def _clip(**changes):
    config = transformers.CLIPVisionConfig(**{**SIZES, "image_size": 56, "patch_size": 14, **changes})
    return transformers.CLIPVisionModel(config)


def _clip_full(**changes):
    text = {**SIZES, "vocab_size": 40, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
    vision = {**SIZES, "image_size": 56, "patch_size": 14, **changes}
    return transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))


def _siglip(**changes):
    config = transformers.SiglipVisionConfig(**{**SIZES, "image_size": 56, "patch_size": 14, **changes})
    return transformers.SiglipVisionModel(config)


def _siglip2(**changes):
    config = transformers.Siglip2VisionConfig(**{**SIZES, "patch_size": 14, "num_patches": 16, **changes})
    return transformers.Siglip2VisionModel(config)


def _dinov2(**changes):
    return transformers.Dinov2Model(transformers.Dinov2Config(**{**DINO, "patch_size": 14, **changes}))


def _dinov2_registers(**changes):
    fields = {**DINO, "patch_size": 14, "num_register_tokens": 4, **changes}
    return transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**fields))


def _vit(**changes):
    config = transformers.ViTConfig(**{**SIZES, "image_size": 64, "patch_size": 16, "num_labels": 10, **changes})
    return transformers.ViTForImageClassification(config)


def _vit_bare(**changes):
    return transformers.ViTModel(transformers.ViTConfig(**{**SIZES, "image_size": 64, "patch_size": 16, **changes}))


def _deit(**changes):
    config = transformers.DeiTConfig(**{**SIZES, "image_size": 64, "patch_size": 16, "num_labels": 10, **changes})
    return transformers.DeiTForImageClassificationWithTeacher(config)


MAKERS = {
    "clip": _clip,
    "clip_full": _clip_full,
    "siglip": _siglip,
    "siglip2": _siglip2,
    "dinov2": _dinov2,
    "dinov2_registers": _dinov2_registers,
    "vit": _vit,
    "vit_bare": _vit_bare,
    "deit": _deit,
}


def build(name: str, seed: int = 0, **changes):
    """The model in eval mode with eager attention; `changes` are fields of its (vision) config."""
    torch.manual_seed(seed)
    model = MAKERS[name](**changes)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim == 2 and "embedding" not in path or p.ndim == 4:
                # two standard deviations at the output: attention far from uniform, activations far from linear
                p.copy_(noise * 2 / p[0].numel() ** 0.5)
            elif p.ndim == 1 and path.endswith("weight") or "lambda" in path:
                p.copy_(1 + 0.3 * noise)
            else:
                p.copy_(0.5 * noise)
    model.set_attn_implementation("eager")
    return model.eval()


def images(side: int, batch: int = 2, seed: int = 1) -> torch.Tensor:
    """Normalised pixels [batch, 3, side, side]."""
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(seed))


def packed(seed: int = 1) -> dict[str, torch.Tensor]:
    """Three packed images of 16 slots: a square, a wide one, and a small one with padding."""
    generator = torch.Generator().manual_seed(seed)
    shapes = torch.tensor([[4, 4], [2, 8], [3, 4]])
    mask = (torch.arange(16)[None] < shapes.prod(1)[:, None]).long()
    pixels = torch.randn(3, 16, 588, generator=generator)
    return {"pixel_values": pixels, "pixel_attention_mask": mask, "spatial_shapes": shapes}
