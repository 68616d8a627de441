"""Models beside LLaVA-1.5 that the same description of a sequence carries: crops with newlines, seeing prompts."""

import dataclasses

import numpy as np
import pytest
import torch
import transformers

from jtok.models.vlm.arrange import arrange
from jtok.models.vlm.families.llava_next.processing import best_pinpoint, mosaic_spans
from jtok.models.vlm.load_vlm import load_vlm
from jtok.models.vlm.model import VLM
from jtok.models.vlm.processing import ImageSettings, Prompt, VisualInput, pad_batch
from jtok.plan import Plan
from tests.models import language
from tests.models.test_vlm import Keep

pytestmark = pytest.mark.usefixtures("highest_precision")

PINPOINTS = ((56, 112), (112, 56), (112, 112))
VISION = {**language.VISION, "num_hidden_layers": 3}


def next_prompt(size, before, after, seed):
    """(prompt, pixels, size) of an image of some size cut into crops of random pixels."""
    g = np.random.default_rng(seed)
    settings = ImageSettings("llava_next", (), (), 1.0, 3, 14, side=56, pinpoints=PINPOINTS)
    point = best_pinpoint(size, PINPOINTS)
    crops = 1 + point[0] * point[1] // 56**2
    pixels = g.standard_normal((crops, 3, 56, 56), dtype=np.float32)
    spans = mosaic_spans(size, point, settings)
    image = VisualInput("image", pixels, size, spans, sum(span.tokens for span in spans))
    text = g.integers(5, 90, before + after)
    ids = np.concatenate([text[:before], np.full(image.slots, language.IMAGE), text[before:]]).astype(np.int32)
    return Prompt(ids, (image,), (before,), np.arange(len(ids), dtype=np.int32))


TEXT = {**language.TEXT, "num_hidden_layers": 2}
MOSAIC = {"image_token_id": language.IMAGE, "image_grid_pinpoints": [list(p) for p in PINPOINTS]}


def llava_next():
    config = transformers.LlavaNextConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION),
        text_config=transformers.LlamaConfig(**TEXT),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        **MOSAIC,
    )
    return transformers.LlavaNextForConditionalGeneration(config)


def llava_onevision():
    config = transformers.LlavaOnevisionConfig(
        vision_config=transformers.SiglipVisionConfig(**VISION, vision_use_head=False),
        text_config=transformers.Qwen2Config(**TEXT),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        **MOSAIC,
    )
    return transformers.LlavaOnevisionForConditionalGeneration(config)


@pytest.mark.parametrize("make", [llava_next, llava_onevision])
def test_crops_with_newlines(make, tmp_path):
    torch.manual_seed(0)
    reference = language.randomise(make())
    reference.save_pretrained(tmp_path)
    model = VLM(*load_vlm(tmp_path))
    prompts = [next_prompt((100, 90), 3, 5, 0), next_prompt((50, 110), 6, 4, 1)]  # four crops and two, both unpadded
    inputs = arrange(pad_batch(prompts, 0), language.GRID)
    ours = model.read(inputs, max_new_tokens=1)
    for row, one in enumerate(prompts):
        given = language.reference(one)
        given |= {"pixel_values": given["pixel_values"][None], "image_sizes": torch.tensor([one.visuals[0].size])}
        with torch.no_grad():
            expected = reference(**given).logits[0, -1].numpy()
        np.testing.assert_allclose(ours.logits[row], expected, rtol=0, atol=1e-4)
        assert ours.sequence.valid[row].sum() == len(one.ids)
    reduced = dataclasses.replace(model, plan=Plan({"tower.output": Keep((1, 6, 9))}))
    output = reduced.read(inputs, max_new_tokens=1)
    assert output.sequence.slots.shape == (2, 5 * 3)
    assert np.isfinite(output.logits).all()


def test_a_prompt_that_sees_itself(tmp_path):
    torch.manual_seed(0)
    text = dict(language.TEXT, model_type="gemma", num_hidden_layers=2, num_key_value_heads=1, head_dim=16)
    vision = dict(VISION, model_type="siglip_vision_model", projection_dim=48, vision_use_head=False)
    config = transformers.PaliGemmaConfig(
        vision_config=vision, text_config=text, image_token_id=language.IMAGE, projection_dim=48
    )
    reference = language.randomise(transformers.PaliGemmaForConditionalGeneration(config))
    reference.generation_config.eos_token_id = reference.generation_config.pad_token_id = None
    reference.save_pretrained(tmp_path)
    model = VLM(*load_vlm(tmp_path))
    prompts = [language.prompt(0, 5, 0), language.prompt(0, 8, 1)]
    prompts = [dataclasses.replace(p, positions=p.positions + 1) for p in prompts]
    state, parts = model.start(arrange(pad_batch(prompts, 0), language.GRID), max_new_tokens=6), []
    first = np.asarray(state.logits)
    for ids, _ in model.answer(state, 6):
        parts.append(ids)
    for row, one in enumerate(prompts):
        given = language.reference(one) | {"token_type_ids": torch.zeros(1, len(one.ids), dtype=torch.long)}
        with torch.no_grad():
            np.testing.assert_allclose(first[row], reference(**given).logits[0, -1].numpy(), rtol=0, atol=1e-4)
            out = reference.generate(**given, max_new_tokens=6, do_sample=False)
        np.testing.assert_array_equal(np.concatenate(parts, 1)[row], out[0, len(one.ids) :].numpy())
