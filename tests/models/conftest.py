"""One tiny LLaVA for all tests of vision-language models: what transformers has, and what is loaded here."""

import pytest
import tokenizers
import torch
import transformers

from jtok.models.vlm.load_vlm import load_vlm
from jtok.models.vlm.model import VLM
from tests.models import language
from tests.models.processing import checkpoints


@pytest.fixture(scope="session")
def llava(tmp_path_factory):
    """(transformers' model, ours loaded from its files)."""
    path, model = tmp_path_factory.mktemp("llava"), language.llava()
    model.save_pretrained(path)
    return model, VLM(*load_vlm(path))


@pytest.fixture(scope="session")
def directory(tmp_path_factory):
    """(transformers' model, the directory with its weights and a tokenizer)."""
    path = checkpoints.write(tmp_path_factory.mktemp("model"), "llava", config=None, generation_config=None)
    tokenizer = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    special = {"bos": "<s>", "eos": "</s>", "pad": "<pad>"}
    special = {name: tokenizer.token_to_id(token) for name, token in special.items()}
    torch.manual_seed(0)
    text = {**language.TEXT, "vocab_size": tokenizer.get_vocab_size(), "num_hidden_layers": 2}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**language.VISION),
        text_config=transformers.LlamaConfig(**text, **{f"{name}_token_id": i for name, i in special.items()}),
        image_token_id=tokenizer.token_to_id("<image>"),
        image_seq_length=16,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    model = language.randomise(transformers.LlavaForConditionalGeneration(config))
    model.save_pretrained(path)
    return model, path
