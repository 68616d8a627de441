"""Towers loaded from transformers' own files compute what transformers computes."""

import dataclasses

import pytest
import torch

from jtok.models.towers.load import load_vit
from jtok.plan import Plan
from jtok.reducer import Reducer
from tests.models import hf_tiny
from tests.models.towers import assert_close, run

pytestmark = pytest.mark.usefixtures("highest_precision")

CASES = {
    "clip": {},
    "clip_full": {},
    "siglip": {},
    "siglip-headless": {"vision_use_head": False},
    "siglip-cropped": {"image_size": 60},
    "dinov2": {},
    "dinov2-swiglu": {"use_swiglu_ffn": True},
    "dinov2_registers": {},
    "vit": {},
    "vit-no_qkv_bias": {"qkv_bias": False},
    "vit_bare": {},
    "deit": {},
}


def saved(tmp_path, case: str):
    """(transformers' model, directory it was saved in)."""
    model = hf_tiny.build(case.split("-")[0], **CASES.get(case, {}))
    model.save_pretrained(tmp_path)
    return model, tmp_path


def reference(model, **inputs):
    """What transformers computes, hidden states and attentions included; of a two-tower model the vision side."""
    with torch.no_grad():
        return getattr(model, "vision_model", model)(**inputs, output_hidden_states=True, output_attentions=True)


@pytest.mark.parametrize("case", CASES)
def test_every_hidden_state(case, tmp_path):
    model, path = saved(tmp_path, case)
    config, params = load_vit(path)
    pixels = hf_tiny.images(config.image)
    ours, theirs = run(config, params, pixels), reference(model, pixel_values=pixels)
    assert len(ours.hidden) == len(theirs.hidden_states) == config.depth + 1
    for mine, other in zip(ours.hidden, theirs.hidden_states, strict=True):
        assert_close(mine, other)
    compared = 0
    for mine, name in ((ours.tokens.x, "last_hidden_state"), (ours.pooled, "pooler_output"), (ours.logits, "logits")):
        other = getattr(theirs, name, None)
        if other is not None and not (case == "vit_bare" and name == "pooler_output"):  # its pooler is a tanh layer
            assert_close(mine, other)
            compared += 1
    assert compared
    if case == "deit":
        assert_close(ours.distill_logits, theirs.distillation_logits)


def test_packed_patches_with_masks_and_shapes(tmp_path):
    model, path = saved(tmp_path, "siglip2")
    config, params = load_vit(path)
    inputs = hf_tiny.packed()
    theirs = reference(model, **inputs)
    mask = inputs["pixel_attention_mask"] > 0
    ours = run(config, params, inputs["pixel_values"], mask=mask, shapes=inputs["spatial_shapes"])
    for mine, other in zip(ours.hidden, theirs.hidden_states, strict=True):
        assert_close(mine, other, where=mask.numpy())
    assert_close(ours.tokens.x, theirs.last_hidden_state, where=mask.numpy())
    assert_close(ours.pooled, theirs.pooler_output)


@pytest.mark.parametrize("case", ["clip", "siglip", "dinov2", "dinov2_registers", "vit", "deit"])
def test_positions_are_interpolated_for_other_image_sizes(case, tmp_path):
    model, path = saved(tmp_path, case)
    config, params = load_vit(path)
    smaller, larger = config.image - config.patch, config.image + 2 * config.patch
    at_load = load_vit(path, image=larger)
    assert at_load[0].image == larger
    for side, (c, p) in {smaller: (config, params), larger: at_load}.items():
        pixels = hf_tiny.images(side)
        always = case.startswith("dinov2")
        theirs = reference(model, pixel_values=pixels, **({} if always else {"interpolate_pos_encoding": True}))
        for mine, other in zip(run(c, p, pixels).hidden, theirs.hidden_states, strict=True):
            assert_close(mine, other)


@dataclasses.dataclass(frozen=True)
class Watch(Reducer):
    """Changes nothing and remembers what it was shown."""

    reads: tuple[str, ...] = ("attention_received", "class_attention", "keys", "queries", "values")

    def __call__(self, tokens, signals, memory):
        return tokens, {**memory, "watch": {name: getattr(signals, name) for name in self.reads}}


@pytest.mark.parametrize(
    ("case", "reads"), [("clip", ("class_attention",)), ("dinov2_registers", Watch.reads), ("deit", Watch.reads)]
)
def test_signals_are_the_attentions_of_transformers(case, reads, tmp_path):
    model, path = saved(tmp_path, case)
    config, params = load_vit(path)
    pixels, hooked = hf_tiny.images(config.image), {}
    for name, module in model.named_modules():
        for ending, part in (("1.q_proj", "queries"), ("1.k_proj", "keys"), ("1.v_proj", "values")):
            if name.replace("self_attn.", "").replace("attention.", "").endswith(ending):
                module.register_forward_hook(lambda module, inputs, y, part=part: hooked.update({part: y}))
    theirs = reference(model, pixel_values=pixels)
    plan = Plan({"tower.block.1.after_attention": Watch(reads)})
    ours = run(config, params, pixels, plan)
    attention = theirs.attentions[1]
    expected = {"class_attention": attention[:, :, 0], "attention_received": attention.mean(1).sum(1)}
    expected |= {part: y.unflatten(-1, (config.heads, -1)) for part, y in hooked.items()}
    assert set(ours.memory["watch"]) == set(reads) and set(expected) == set(Watch.reads)
    for name in reads:
        assert_close(ours.memory["watch"][name], expected[name], tolerance=2e-5)
    assert_close(ours.hidden[-1], theirs.hidden_states[-1])
