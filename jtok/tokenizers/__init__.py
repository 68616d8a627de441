"""Adaptive image tokenizers, and the quantizers, decoders and losses that they share."""
