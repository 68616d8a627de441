"""One tiny LLaVA for all tests of vision-language models: what transformers has, and what is loaded here."""

import pytest

from jtok.models.answer import VLM
from jtok.models.load_vlm import load_vlm
from tests.models import language


@pytest.fixture(scope="session")
def llava(tmp_path_factory):
    """(transformers' model, ours loaded from its files)."""
    path, model = tmp_path_factory.mktemp("llava"), language.llava()
    model.save_pretrained(path)
    return model, VLM(*load_vlm(path))
