"""Inputs of vision-language models: images to pixels, questions to ids, both to batches, as numpy arrays.

    processor = load_processor("path/to/llava-1.5-7b-hf")
    batch = processor.batch([processor.prompt("What is written on the sign?", ["sign.png"])])

Each family makes the pixels that the reference's Pillow processor makes (`families/<name>/processing.py`); `layout`
says once what the visual tokens are.
"""

from jtok.models.vlm.processing.batch import Batch, pad_batch
from jtok.models.vlm.processing.layout import Layout, Span, VisualInput, layout
from jtok.models.vlm.processing.processor import Processor, load_processor
from jtok.models.vlm.processing.prompt import Prompt, mrope_positions
from jtok.models.vlm.processing.read_settings import image_settings
from jtok.models.vlm.processing.settings import ImageSettings
from jtok.models.vlm.processing.text import TextStream, Tokenizer, load_tokenizer

__all__ = [
    "Batch",
    "ImageSettings",
    "Layout",
    "Processor",
    "Prompt",
    "Span",
    "TextStream",
    "Tokenizer",
    "VisualInput",
    "image_settings",
    "layout",
    "load_processor",
    "load_tokenizer",
    "mrope_positions",
    "pad_batch",
]
