"""Tiny decoders and vision-language models of transformers that hide nothing, and loading what they save."""

import torch
import transformers

TEXT = {"vocab_size": 128, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 512}  # fmt: skip

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
