"""Files with timm's names, made from transformers models: timm does not install beside a CPU build of torch."""

import re

import numpy as np
import torch

#: transformers' module names (in memory) to timm's; an empty name leaves the tensor out.
_SHARED = [
    (r"^(vision_model|vit|deit)\.", ""),
    (r"^(encoder\.)?layers?\.(\d+)\.", r"blocks.\2."),
    (r"mlp\.weights_in", "mlp.fc1"),
    (r"mlp\.weights_out", "mlp.fc2"),
]
_VIT = [
    *_SHARED,
    (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"^embeddings\.cls_token", "cls_token"),
    (r"^embeddings\.distillation_token", "dist_token"),
    (r"^embeddings\.register_tokens", "reg_token"),
    (r"^embeddings\.position_embeddings", "pos_embed"),
    (r"^embeddings\.mask_token", ""),
    (r"attention\.o_proj", "attn.proj"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
    (r"^layernorm\.", "norm."),
    (r"^(cls_)?classifier", "head"),
    (r"^distillation_classifier", "head_dist"),
]
_CLIP = [
    *_SHARED,
    (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^embeddings\.class_embedding", "cls_token"),
    (r"^embeddings\.position_embedding\.weight", "pos_embed"),
    (r"^embeddings\.position_ids", ""),
    (r"self_attn\.out_proj", "attn.proj"),
    (r"layer_norm(\d)", r"norm\1"),
    (r"^pre_layrnorm", "norm_pre"),
    (r"^post_layernorm", "norm"),
    (r"^head\.probe", "attn_pool.latent"),
    (r"^head\.attention\.out_proj", "attn_pool.proj"),
    (r"^head\.layernorm", "attn_pool.norm"),
    (r"^head\.mlp", "attn_pool.mlp"),
]


def timm_tensors(model: torch.nn.Module, family: str) -> dict[str, np.ndarray]:
    """A timm-named state dict; `family` is "vit" (ViT, DeiT, DINOv2) or "clip" (CLIP, SigLIP)."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        for pattern, replacement in _VIT if family == "vit" else _CLIP:
            if re.search(pattern, name):
                name = re.sub(pattern, replacement, name) if replacement or pattern.startswith(r"^(vision") else ""
        if name:
            tensors[name] = tensor.numpy()
    return _fuse(_shape_tokens(tensors))


def _shape_tokens(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tokens and tables as [1, rows, width]."""
    tables = ("cls_token", "pos_embed")
    return {k: v.reshape(1, -1, v.shape[-1]) if k in tables else v for k, v in tensors.items()}


def _fuse(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Query, key and value in one tensor; SigLIP's pooling has key and value in one."""
    fused = {}
    for name, tensor in tensors.items():
        part = re.search(r"(self_attn|attention)\.([qkv])_proj\.", name)
        if part is None:
            fused[name] = tensor
        elif part[2] == "q":
            parts = [tensors[name.replace("q_proj", f"{p}_proj")] for p in "qkv"]
            fused[name.replace(part[0], "attn.qkv.")] = np.concatenate(parts)
    for kind in ("weight", "bias"):
        joined = fused.pop(f"head.attention.in_proj_{kind}", None)
        if joined is not None:
            q, k, v = np.split(joined, 3)
            fused |= {f"attn_pool.q.{kind}": q, f"attn_pool.kv.{kind}": np.concatenate([k, v])}
    return fused
