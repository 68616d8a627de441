"""Softmax attention that also returns the attention each key received."""

from jtok.kernels.attention_scores.api import AttentionOutput, attention_scores

__all__ = ["AttentionOutput", "attention_scores"]
