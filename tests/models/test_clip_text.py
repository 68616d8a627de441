"""CLIP's text tower and shared space against transformers, and TRIM, which reads both, in a tiny LLaVA."""

import dataclasses

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import models, pre_tokenizers, processors

from jtok.errors import UserError
from jtok.methods.reduce import reduce
from jtok.models.towers.clip_text import load_clip_text
from tests.models import hf_tiny, language

pytestmark = pytest.mark.usefixtures("highest_precision")

WORDS = ["<start>", "<end>", *(f"w{i}" for i in range(38))]
LENGTH = 9


def tokenizer() -> tokenizers.Tokenizer:
    """Words to ids 0..39, between a start and an end."""
    made = tokenizers.Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [(w, WORDS.index(w)) for w in ("<start>", "<end>")]
    made.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=ends)
    return made


@pytest.fixture(scope="module", params=[1, 2], ids=["end id stated", "highest id"])
def clip(request, tmp_path_factory):
    """(transformers' CLIP, its directory); with the end id 2 of the first releases the highest id is the end."""
    model = hf_tiny.build("clip_full")
    path = tmp_path_factory.mktemp("clip")
    model.config.text_config.eos_token_id = model.text_model.eos_token_id = request.param
    model.config.text_config.max_position_embeddings = LENGTH
    rows = model.text_model.embeddings.position_embedding.weight[:LENGTH].detach().clone()
    model.text_model.embeddings.position_embedding = torch.nn.Embedding.from_pretrained(rows)
    model.text_model.embeddings.position_ids = torch.arange(LENGTH)[None]
    model.save_pretrained(path)
    tokenizer().save(str(path / "tokenizer.json"))
    return model, path


def test_texts_and_images_meet_where_transformers_puts_them(clip):
    reference, path = clip
    ours = load_clip_text(path)
    ids = ours.ids(["w5 w9 w11", "w7", " ".join(f"w{i}" for i in range(20))])
    assert ids.shape == (3, LENGTH) and (ids[:, 0] == 0).all()
    np.testing.assert_array_equal(ids[0], [0, 7, 11, 13, 1, 1, 1, 1, 1])
    np.testing.assert_array_equal(ids[2], [0, *range(2, 9), 1])  # cut, and still ended
    features = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        texts = reference.text_model(torch.tensor(ids).long()).pooler_output
        texts = reference.text_projection(texts)
        expected = reference.visual_projection(reference.vision_model.post_layernorm(features))
    np.testing.assert_allclose(ours.encode(ids), texts.numpy(), rtol=0, atol=1e-4)
    np.testing.assert_allclose(ours.space(features.numpy()), expected.numpy(), rtol=0, atol=1e-4)


def test_trim_keeps_what_clip_says(llava, clip):
    reference, model = llava
    ours = load_clip_text(clip[1])
    reduced = reduce(model, "trim", tokens=5, clip=ours)
    questions = ["w5 w9 w11", "w3"]
    inputs = reduced.about(language.inputs(language.prompts()), questions)
    output = reduced.read(inputs, max_new_tokens=1)
    owner, texts = np.asarray(output.sequence.visual.owner), np.asarray(ours.embed(questions))
    for row, one in enumerate(language.prompts()):
        with torch.no_grad():
            tower = reference.model.vision_tower(language.reference(one)["pixel_values"], output_hidden_states=True)
        features = tower.hidden_states[-2][0, 1:].numpy()
        related = np.asarray(ours.space(features)) @ texts[row]
        best = np.sort(np.argsort(related)[:4])  # the lowest, as in the released code
        np.testing.assert_array_equal(np.flatnonzero(owner[row] < 4), best)
        assert (owner[row] >= 0).all() and (np.asarray(output.sequence.visual.size)[row] == [1, 1, 1, 1, 12]).all()
    with pytest.raises(UserError, match="reads text_embedding"):
        reduced.read(language.inputs(language.prompts()), max_new_tokens=1)


def test_what_does_not_fit_is_refused(llava, clip, tmp_path):
    _, model = llava
    with pytest.raises(UserError, match="give clip="):
        reduce(model, "trim", tokens=4)
    ours = load_clip_text(clip[1])
    narrow = dataclasses.replace(ours, space=dataclasses.replace(ours.space, scale=ours.space.scale[:8]))
    with pytest.raises(UserError, match="width 8, the tower of 32"):
        reduce(model, "trim", tokens=4, clip=narrow)
    with pytest.raises(UserError, match="tokenizer.json"):
        dataclasses.replace(ours, tokenizer=None).embed(["w1"])
    hf_tiny.build("clip").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no CLIP with a text side"):
        load_clip_text(tmp_path)
