"""Image data as Grain pipelines."""

from jtok.data.scenes import digit_scenes

__all__ = ["digit_scenes"]
