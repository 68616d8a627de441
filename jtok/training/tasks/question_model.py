"""The files of a trained digit-question model: a Hugging Face directory with weights, tokenizer and image settings."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers

from jtok.data.question_text import BOS, EOS, IMAGE, NUMBERS, PAD, VOCABULARY
from jtok.models.vlm.families.llava.save import save_llava

if TYPE_CHECKING:
    from jtok.training.tasks.answer_questions import AnswerQuestions

_SPECIAL = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}

#: A prompt is the BOS token, the image, and the words of the question.
TEMPLATE = """\
{{- '<bos>' -}}
{%- for message in messages -%}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}{{ '<image>' }}{%- else -%}{{ part.text }}{%- endif -%}
{%- endfor -%}
{%- if message.role == 'assistant' -%}{{ '<eos>' }}{%- endif -%}
{%- endfor -%}
"""


def make_tokenizer() -> tokenizers.Tokenizer:
    """Words to their places in `VOCABULARY`: lower case, no punctuation, numerals below ten as words."""
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}))
    special = [tokenizers.AddedToken(VOCABULARY[i], special=True, normalized=False) for i in (PAD, BOS, EOS, IMAGE)]
    inner.add_special_tokens(special)
    plain = [tokenizers.normalizers.Lowercase(), _replace(r"[^\w\s]", " ")]
    numerals = [_replace(rf"\b{number}\b", word) for number, word in enumerate(NUMBERS)]
    inner.normalizer = tokenizers.normalizers.Sequence(plain + numerals)
    inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return inner


def _replace(pattern: str, by: str) -> tokenizers.normalizers.Replace:
    return tokenizers.normalizers.Replace(tokenizers.Regex(pattern), by)


def save_model(task: AnswerQuestions, params: Mapping[str, Any], directory: str | os.PathLike) -> Path:
    """Writes the model without the tower's heads, in bfloat16. Returns the path of the weights."""
    c = task.config
    side = c.data.size
    images = {
        "image_processor_type": "CLIPImageProcessor",
        **{f"do_{step}": True for step in ("resize", "center_crop", "rescale", "normalize", "convert_rgb")},
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
        "resample": 3,
        "rescale_factor": 1 / 255,
        "image_mean": list(c.data.mean),
        "image_std": list(c.data.std),
    }
    special = {name: VOCABULARY[i] for name, i in _SPECIAL.items()}
    files: dict[str, Mapping[str, Any] | str] = {
        "tokenizer.json": make_tokenizer().to_str(pretty=True) + "\n",
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "image_token": "<image>", **special},
        "chat_template.jinja": TEMPLATE,
        "preprocessor_config.json": images,
        "processor_config.json": {
            "processor_class": "LlavaProcessor",
            "patch_size": c.model.patch,
            "num_additional_image_tokens": 1,
            "vision_feature_select_strategy": "default",
            "image_token": VOCABULARY[IMAGE],
        },
        "generation_config.json": {f"{name}_id": i for name, i in _SPECIAL.items()},
    }
    facts = {"jtok.data": json.dumps(c.data.to_dict()), "jtok.model": json.dumps(c.model.to_dict())}
    return save_llava(directory, task.model, params["model"], files=files, metadata=facts)
