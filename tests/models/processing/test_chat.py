"""Chat templates: the checkpoint's own as transformers renders it, the built-in ones, and what is refused."""

import json

import pytest
import transformers

from jtok.errors import UserError
from jtok.models.vlm.families.all import find
from jtok.models.vlm.families.mllama.family import TEMPLATE as LLAMA3
from jtok.models.vlm.families.paligemma.family import TEMPLATE as PALIGEMMA
from jtok.models.vlm.processing import chat, load_processor
from tests.models.processing.checkpoints import FAMILIES, write

TOKENS = {"image": "<image>", "video": ""}
VARIABLES = dict(bos_token="<s>", eos_token="</s>", image_token="<image>", video_token="<video>", before="", after="\n")
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "<image>\nWhat is it?"},
    {"role": "assistant", "content": "A cat."},
    {"role": "user", "content": "Which colour?"},
]
BUILT_IN = {
    "vicuna": chat.VICUNA,
    "mistral": chat.MISTRAL,
    "chatml": chat.CHATML,
    "llama3": LLAMA3,
    "paligemma": PALIGEMMA,
}

#: Uses what published templates use: loop controls, namespaces, filters, tests, a tag around what is trained on.
PUBLISHED = """\
{%- set count = namespace(images=0) %}
{{- bos_token }}
{%- if strftime_now is defined %}{% set day = "today" %}{% else %}{% set day = "26 Jul 2024" %}{% endif %}
{% for message in messages %}
    {%- if message['role'] not in ['system', 'user', 'assistant'] %}{{ raise_exception('unknown role') }}{% endif %}
    {% if message['role'] == 'system' %}{% continue %}{% endif %}
{{ message['role'].upper() + ': ' }}
    {%- for part in message['content'] | selectattr('type', 'equalto', 'image') %}
        {%- set count.images = count.images + 1 %}{{ 'Picture ' ~ count.images ~ ': <image>\\n' }}
    {%- endfor %}
    {%- for part in message['content'] | selectattr('type', 'equalto', 'text') %}
        {%- generation %}{{ part['text'] | trim }}{{ {'é': 1} | tojson }}{% endgeneration %}
    {%- endfor %}
{% endfor %}
{%- if add_generation_prompt %}ASSISTANT:{% endif %}
"""


def rendered(name, talk=TALK, images=1):
    return chat.render(BUILT_IN[name], chat.conversation(talk, images, 0, TOKENS), VARIABLES)


def test_a_published_template_renders_as_in_transformers(tmp_path):
    directory = write(tmp_path, "llava", chat_template={"chat_template": PUBLISHED})
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(directory / "tokenizer.json"), bos_token="<s>")
    talk = chat.conversation(TALK, 1, 0, TOKENS)
    template = chat.load_template(directory)
    ours = chat.render(template, talk, VARIABLES)
    options = dict(chat_template=PUBLISHED, tokenize=False, add_generation_prompt=True)
    assert ours == theirs.apply_chat_template(talk, **options).replace("today", "26 Jul 2024")
    assert "Picture 1: <image>\nWhat is it?" in ours


def test_which_file_a_template_comes_from(tmp_path):
    assert chat.load_template(write(tmp_path, "llava")) is None
    several = [{"name": "tools", "template": "T"}, {"name": "default", "template": "D"}]
    write(tmp_path, "llava", tokenizer_config={"chat_template": several})
    assert chat.load_template(tmp_path) == "D"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "J"}))
    assert chat.load_template(tmp_path) == "J"
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}Ask: <image>{{ messages[0].content[1].text }}")
    processor = load_processor(tmp_path)
    assert processor.template.startswith("{{ bos_token }}Ask")


def test_the_built_in_templates():
    assert rendered("vicuna") == (
        "Be brief. USER: <image>\nWhat is it? ASSISTANT: A cat.</s>USER: Which colour? ASSISTANT:"
    )
    assert rendered("mistral", TALK[1:]) == "[INST] <image>\nWhat is it? [/INST] A cat.</s>[INST] Which colour? [/INST]"
    assert rendered("chatml") == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<image>\nWhat is it?<|im_end|>\n"
        "<|im_start|>assistant\nA cat.<|im_end|>\n<|im_start|>user\nWhich colour?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert rendered("chatml", "Hi", 0).startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n")
    assert rendered("llama3", TALK[1:2]) == (
        "<s><|start_header_id|>user<|end_header_id|>\n\n<image>What is it?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert rendered("paligemma", "What is it?", 2) == "<image><image><s>What is it?\n"


@pytest.mark.parametrize(
    "family, decoder, name",
    [
        ("llava", "llama", "vicuna"),
        ("llava_next", "mistral", "mistral"),
        ("llava_next", "qwen2", "chatml"),
        ("llava_onevision", "qwen2", "chatml"),
        ("qwen2_5_vl", None, "chatml"),
        ("paligemma", "gemma2", "paligemma"),
        ("mllama", "mllama_text_model", "llama3"),
    ],
)
def test_which_built_in_template_a_checkpoint_gets(family, decoder, name, tmp_path):
    assert load_processor(write(tmp_path, family, decoder=decoder)).template == BUILT_IN[name]


def test_qwen_fences_its_images(tmp_path):
    processor = load_processor(write(tmp_path, "qwen2_5_vl"))
    talk = chat.conversation("What?", 1, 0, {"image": "<|image_pad|>", "video": "<|video_pad|>"})
    text = chat.render(
        processor.template, talk, processor._variables({"image": "<|image_pad|>", "video": "<|video_pad|>"})
    )
    assert "<|vision_start|><|image_pad|><|vision_end|>What?" in text


def test_where_images_go():
    parts = chat.conversation("See <image>\nand <image>!", 2, 0, TOKENS)[0]["content"]
    assert [part.get("text", "*") for part in parts] == ["See ", "*", "and ", "*", "!"]
    front = chat.conversation([{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}], 2, 1, TOKENS)
    assert [part["type"] for part in front[1]["content"]] == ["image", "image", "video", "text"]
    given = [{"role": "user", "content": [{"type": "text", "text": "Q"}, {"type": "image"}]}]
    assert chat.conversation(given, 1, 0, TOKENS) == given


def test_a_template_may_neither_reach_out_nor_fail_silently():
    talk = chat.conversation("Q", 0, 0, TOKENS)
    for template, says in {
        "{{ ''.__class__.__mro__ }}{{ messages.__class__.x }}": "unsafe",
        "{{ raise_exception('roles must alternate') }}": "roles must alternate",
        "{% for %}": "chat template",
        "{{ messages.append(1) }}": "unsafe",
        "{{ 1 + 'a' }}": "chat template",
    }.items():
        with pytest.raises(UserError, match=says):
            chat.render(template, talk, VARIABLES)


def test_conversations_that_are_refused():
    with pytest.raises(UserError, match="'role' and a 'content'"):
        chat.conversation([{"role": "user"}], 0, 0, TOKENS)
    with pytest.raises(UserError, match="message with role 'user'"):
        chat.conversation([{"role": "system", "content": "S"}], 1, 0, TOKENS)


def test_every_family_has_a_built_in_template():
    assert all(find(family).template({"model_type": family}) in BUILT_IN.values() for family in FAMILIES)
