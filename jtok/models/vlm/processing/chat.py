"""Chat templates: a checkpoint's own, or the family's, rendered with jinja2 in its sandbox.

A template is somebody else's program; the sandbox lets it neither reach attributes with an underscore nor change what
it is given. `strftime_now` is not offered, so that templates that print the date print their default one, and the same
question gives the same ids tomorrow.
"""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.sandbox

from jtok.errors import UserError
from jtok.models.vlm.processing.settings import read_json

Message = Mapping[str, Any]

#: Macro `parts(message, before, after)`: a message's text and placeholders, these between `before` and `after`.
PARTS = """\
{%- macro parts(message, before, after) -%}
{%- for part in message.content -%}
{%- if part.type == 'text' -%}{{ part.text }}
{%- elif part.type == 'image' -%}{{ before + image_token + after }}
{%- else -%}{{ before + video_token + after }}
{%- endif -%}
{%- endfor -%}
{%- endmacro -%}
"""

#: Formats that decoders were trained on, for checkpoints without a template.
VICUNA = (
    PARTS
    + """\
{%- for message in messages -%}
{%- if message.role == 'user' -%}{{ 'USER: ' + parts(message, '', '\\n') + ' ' }}
{%- elif message.role == 'assistant' -%}{{ 'ASSISTANT: ' + parts(message, '', '\\n') + eos_token }}
{%- else -%}{{ parts(message, '', '\\n') + ' ' }}
{%- endif -%}
{%- endfor -%}
{{- 'ASSISTANT:' -}}
"""
)
MISTRAL = (
    PARTS
    + """\
{%- for message in messages -%}
{%- if message.role == 'assistant' -%}{{ ' ' + parts(message, '', '\\n') + eos_token }}
{%- else -%}{{ '[INST] ' + parts(message, '', '\\n') + ' [/INST]' }}
{%- endif -%}
{%- endfor -%}
"""
)
CHATML = (
    PARTS
    + """\
{%- if messages[0].role != 'system' -%}
{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif -%}
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' + parts(message, before, after) + '<|im_end|>\\n' }}
{%- endfor -%}
{{- '<|im_start|>assistant\\n' -}}
"""
)


def by_decoder(config: Mapping[str, Any]) -> str:
    """The template that a checkpoint's decoder was trained on, of a family whose decoders differ."""
    decoder = (config.get("text_config") or {}).get("model_type", "llama")
    if decoder.startswith("qwen2"):
        return CHATML
    return MISTRAL if decoder == "mistral" else VICUNA


def load_template(directory: str | pathlib.Path) -> str | None:
    """The checkpoint's own chat template, None if it has none. Raises UserError for a broken file."""
    path = pathlib.Path(directory) / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        template = read_json(directory, name).get("chat_template")
        if isinstance(template, list):  # several, each with a name
            template = next((entry["template"] for entry in template if entry["name"] == "default"), None)
        if template:
            return template
    return None


def render(template: str, messages: Sequence[Message], variables: Mapping[str, str]) -> str:
    """The prompt of a conversation, ending where the answer starts. Raises UserError if the template fails."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = _refuse
    # a tag that marks training targets: it renders as its contents
    template = re.sub(r"{%(-?)\s*generation\s*(-?)%}", r"{%\1 if true \2%}", template)
    template = re.sub(r"{%(-?)\s*endgeneration\s*(-?)%}", r"{%\1 endif \2%}", template)
    try:
        return environment.from_string(template).render(messages=messages, add_generation_prompt=True, **variables)
    except (jinja2.TemplateError, TypeError, KeyError) as error:
        raise UserError(f"the chat template does not take this conversation: {error}.") from None


def conversation(
    question: str | Sequence[Message], images: int, videos: int, tokens: Mapping[str, str]
) -> list[Message]:
    """Messages whose content is a list of parts: {"type": "text", "text": ...}, {"type": "image"}, {"type": "video"}.

    A question becomes one user message, with the images and videos in front unless it places them itself by writing
    their tokens (`tokens`: kind -> how it is written). A message's content may be a string, with the same rule for
    the tokens; a conversation without any placeholder gets them in front of its first user message.
    """
    messages = [{"role": "user", "content": question}] if isinstance(question, str) else [dict(m) for m in question]
    for message in messages:
        if not {"role", "content"} <= message.keys():
            raise UserError("a message has a 'role' and a 'content', which is a string or a list of parts.")
        if isinstance(message["content"], str):
            message["content"] = _split(message["content"], tokens)
    if not any(part.get("type") in tokens for message in messages for part in message["content"]):
        media = [{"type": "image"}] * images + [{"type": "video"}] * videos
        first = next((message for message in messages if message["role"] == "user"), None)
        if first is None:
            raise UserError("a conversation needs a message with role 'user'.")
        first["content"] = [*media, *first["content"]]
    return messages


def _split(text: str, tokens: Mapping[str, str]) -> list[dict[str, str]]:
    """Text and placeholders in order; a line break after a placeholder is the template's to write."""
    kinds = {token: kind for kind, token in tokens.items() if token}
    if not kinds:
        return [{"type": "text", "text": text}]
    pieces = re.split("(" + "|".join(map(re.escape, kinds)) + r")\n?", text)
    return [{"type": kinds[p]} if p in kinds else {"type": "text", "text": p} for p in pieces if p]


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)
