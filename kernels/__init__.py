"""Pallas kernels, one folder an op, installed as `jtok.kernels`."""

from jtok.kernels.attention_scores import AttentionOutput, attention_scores
from jtok.kernels.gather import gather
from jtok.kernels.max_min_select import max_min_select
from jtok.kernels.merge import merge
from jtok.kernels.nearest import nearest

__all__ = ["AttentionOutput", "attention_scores", "gather", "max_min_select", "merge", "nearest"]
