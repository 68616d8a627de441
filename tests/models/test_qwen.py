"""Qwen2.5-VL: logits, answers and signals of transformers, for images and videos of any size; reducers at its sites."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import tokenizers
import torch
from flax import nnx
from safetensors.numpy import save_file
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

import jtok
from jtok.checkpoints.trees import flatten
from jtok.errors import UserError
from jtok.methods.reduce import reduce
from jtok.models.decoder.generate import State
from jtok.models.towers.qwen_vision import QwenVisionConfig
from jtok.models.vlm.load_vlm import load_vlm, vlm_config
from jtok.models.vlm.model import VLM
from jtok.plan import Plan
from tests.models import oracle, qwen
from tests.models.processing import checkpoints
from tests.models.test_vlm import Keep

pytestmark = pytest.mark.usefixtures("highest_precision")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(transformers' model, ours loaded from its files, the directory)."""
    path, model = tmp_path_factory.mktemp("qwen"), qwen.model()
    model.save_pretrained(path)
    return model, VLM(*load_vlm(path)), path


def prompts():
    """An image on 3x5 tokens (windows partly empty), two on 2x2 and 5x3, a video of three steps on 2x3, and text."""
    return [
        qwen.prompt([3, qwen.visual("image", (1, 6, 10), 0), 5], 0),
        qwen.prompt([6, qwen.visual("image", (1, 4, 4), 1), 2, qwen.visual("image", (1, 10, 6), 2), 9], 1),
        qwen.prompt([2, qwen.visual("video", (3, 4, 6), 3, seconds=1.5), 4], 2),
        qwen.prompt([7], 3),
    ]


def theirs(reference, one, **changes):
    with torch.no_grad():
        return reference(**{**qwen.reference(one), **changes}).logits[0, -1].numpy()


def test_logits_and_greedy_tokens_are_those_of_transformers(pair):
    """Sides and texts are padded further than any row needs, as where one program serves many sizes."""
    reference, model, _ = pair
    batch, parts = prompts(), []
    output = model.read(qwen.inputs(model, batch, step=16), max_new_tokens=16)
    expected = [theirs(reference, one) for one in batch]
    np.testing.assert_allclose(output.logits, expected, rtol=0, atol=1e-4)
    for row, one in enumerate(batch):
        assert output.sequence.valid[row].sum() == len(one.ids)
        np.testing.assert_array_equal(output.sequence.position[row, : len(one.ids)].T, one.positions)
        assert output.caches[0].next[row] == one.next_position
    state = State(output.caches, output.logits, np.zeros(len(batch), bool), oracle.row_keys(len(batch)))
    for ids, _ in model.answer(state, 16):
        parts.append(ids)
    ours = np.concatenate(parts, 1)
    for row, one in enumerate(batch):
        with torch.no_grad():
            out = reference.generate(**qwen.reference(one), max_new_tokens=16, do_sample=False)
        np.testing.assert_array_equal(ours[row], out[0, len(one.ids) :].numpy())
    assert len(set(ours.ravel())) > 4


def test_names_in_memory_and_a_flat_config(pair, tmp_path):
    reference, model, path = pair
    save_file({k: v.contiguous().numpy() for k, v in reference.state_dict().items()}, tmp_path / "model.safetensors")
    stated = json.loads((path / "config.json").read_text())
    text, rope = stated.pop("text_config"), None
    rope = text.pop("rope_parameters")
    old = {"rope_theta": rope["rope_theta"], "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]}}
    (tmp_path / "config.json").write_text(json.dumps({**text, **old, **stated}))
    config, params = load_vlm(tmp_path)
    assert config == model.config
    ours, expected = flatten(params), flatten(model.params)
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


def received(reference, one, number=-1):
    """(attention that each token's patches received in a block, their keys), averaged over the patches."""
    captured = {}
    block = reference.model.visual.blocks[number].attn
    hook = block.register_forward_pre_hook(lambda _, args, kwargs: captured.update(kwargs, x=args[0]), with_kwargs=True)
    theirs(reference, one)
    hook.remove()
    with torch.no_grad():
        qkv = block.qkv(captured["x"]).unflatten(1, (3, block.num_heads, -1))
        q, k = apply_rotary_pos_emb_vision(qkv[:, 0], qkv[:, 1], *captured["position_embeddings"])
        attention = (torch.einsum("nhd,mhd->hnm", q, k) * block.scaling).softmax(-1)
    t, h, w = one.visuals[0].grid
    assert t == 1 and len(captured["cu_seqlens"]) == 2  # the whole image
    order = np.arange(h * w // 4).reshape(h // 2, w // 2)  # undo the cut into windows of 2 x 2 tokens
    order = np.concatenate(
        [order[y : y + 2, x : x + 2].ravel() for y in range(0, h // 2, 2) for x in range(0, w // 2, 2)]
    )
    quads = [a.unflatten(0, (-1, 4)).mean(1).numpy()[np.argsort(order)] for a in (attention.mean(0).sum(0), k)]
    return quads


@pytest.mark.parametrize("where", ["tower.output", "after_attention", "output", "input of the next"])
def test_signals_of_the_tower_are_means_over_the_patches_of_a_token(pair, where):
    """After the last block, and wherever an observer is placed in or after an earlier one that sees the whole image."""
    reference, model, _ = pair
    number = model.config.tower.full[0]
    assert number < model.config.tower.depth - 1
    site = {"tower.output": where, "input of the next": f"tower.block.{number + 1}.input"}
    site = site.get(where, f"tower.block.{number}.{where}")
    number = -1 if where == "tower.output" else number
    batch = [qwen.prompt([3, qwen.visual("image", (1, h, w), 7), 5], 0) for h, w in ((6, 10), (4, 6))]
    plan = Plan({site: oracle.Watch(("attention_received", "keys"))})
    watched = dataclasses.replace(model, plan=plan).read(qwen.inputs(model, batch), max_new_tokens=1).memory["watch"]
    for row, one in enumerate(batch):
        _, h, w = one.visuals[0].grid
        place = np.s_[: h // 2, : w // 2]
        for name, expected in zip(("attention_received", "keys"), received(reference, one, number), strict=True):
            whole = np.asarray(watched[name][row])
            ours = whole.reshape(3, 5, *whole.shape[1:])[place].reshape(expected.shape)
            np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-5, err_msg=name)


KEPT = (0, 2, 3, 7, 11, 14)  # of 3 x 5 tokens


def two():
    """Prompts with an image of 3 x 5 tokens and one of 2 x 4."""
    return [qwen.prompt([3, qwen.visual("image", (1, h, w), h), n], n) for h, w, n in ((6, 10, 5), (4, 8, 7))]


@pytest.mark.parametrize("site", ["tower.output", "projector"])
def test_dropping_and_keeping_positions_is_masking(pair, site):
    model = oracle.gentle(pair[1])
    reduced = dataclasses.replace(model, plan=Plan({site: Keep(KEPT)}))
    given = qwen.inputs(model, two())
    dropped, hidden = oracle.dropped_and_hidden(model, reduced, given, oracle.row_keys(2))
    np.testing.assert_allclose(dropped, hidden, rtol=0, atol=1e-6)
    assert np.abs(dropped - np.asarray(model.read(given, max_new_tokens=1).logits)).max() > 1e-2


def test_reduced_features_in_transformers_give_our_logits(pair):
    reference, model, _ = pair
    model = dataclasses.replace(model, plan=Plan({"projector": Keep(KEPT)}))
    ours = np.asarray(model.read(qwen.inputs(model, two()), max_new_tokens=1).logits)
    for row, one in enumerate(two()):
        given, (h, w) = qwen.reference(one), one.visuals[0].spans[0].grid
        kept = [i // 5 * w + i % 5 for i in KEPT if i // 5 < h and i % 5 < w]  # in its own grid
        with torch.no_grad():
            features = reference.model.get_image_features(given["pixel_values"], given["image_grid_thw"])
        where = np.flatnonzero(one.ids == qwen.IMAGE)
        remaining = np.delete(np.arange(len(one.ids)), np.delete(where, kept))
        changes = {name: given[name][:, remaining] for name in ("input_ids", "attention_mask", "mm_token_type_ids")}
        changes |= dict(pixel_values=None, image_grid_thw=None)
        changes["position_ids"] = torch.tensor(one.positions[:, None, remaining]).long()
        outputs = BaseModelOutputWithPooling(pooler_output=[features.pooler_output[0][kept]])
        expected = theirs(reference, one, **changes, mm_encoder_outputs={"image": outputs})
        np.testing.assert_allclose(ours[row], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("positions", ["keep", "renumber"])
def test_decoding_after_a_reduction_in_the_decoder(pair, positions):
    """Reading the answer's first tokens as part of the prompt gives the logits that decoding them gave."""
    _, model, _ = pair
    model = dataclasses.replace(model, plan=Plan({"llm.layer.2.input": Keep(KEPT)}, positions=positions))
    one = prompts()[0]
    state = model.start(qwen.inputs(model, [one], step=16), max_new_tokens=3)
    ids, state = next(model.answer(state, 3))
    longer = np.concatenate([one.ids, ids[0]])
    places = np.concatenate([one.positions, one.next_position + np.tile(np.arange(3, dtype=np.int32), (3, 1))], 1)
    whole = model.read(
        qwen.inputs(model, [dataclasses.replace(one, ids=longer, positions=places)], step=16), max_new_tokens=3
    )
    np.testing.assert_allclose(state.logits, whole.logits, rtol=0, atol=1e-4)
    for cache, other in zip(state.caches, whole.caches, strict=True):
        np.testing.assert_array_equal(cache.next, other.next)


QUESTION = "What is written on the sign?"


def test_from_a_directory_a_picture_and_a_question_to_text(tmp_path):
    path = checkpoints.write(tmp_path, "qwen2_5_vl", config=None, generation_config=None)
    tokenizer = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    names = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    ids = tuple(tokenizer.token_to_id(name) for name in names)
    reference = qwen.model(vocabulary=tokenizer.get_vocab_size(), ids=ids)
    reference.generation_config.eos_token_id = tokenizer.token_to_id("<|im_end|>")
    reference.save_pretrained(path)
    model, picture = jtok.load(path), checkpoints.picture(70, 110)
    one = model.processor.prompt(QUESTION, [picture])
    with torch.no_grad():
        out = reference.generate(**qwen.reference(one, *ids[:2]), max_new_tokens=12, do_sample=False)
    expected = model.processor.tokenizer.decode(out[0, len(one.ids) :].tolist()).strip()
    assert len(expected) > 5
    assert model.generate(picture, QUESTION, tokens=12) == expected
    reduced = jtok.reduce(model, "uniform-grid", tokens=4)
    given = model.config.arrange(model.processor.batch([one]), 32)
    assert one.visuals[0].tokens == 8 and reduced.fitted(given).plan.counts(8) == [("tower.output", 8, 4)]
    output = reduced.read(given, max_new_tokens=12)
    assert output.sequence.visual.mask().sum() == 4 and output.sequence.valid.sum() == len(one.ids) - 4


#: What Qwen2.5-VL-7B-Instruct states: the decoder's fields on top, differences from the defaults only.
PUBLISHED = {
    "model_type": "qwen2_5_vl", "hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28,
    "num_hidden_layers": 28, "num_key_value_heads": 4, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "vocab_size": 152064,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "tie_word_embeddings": False,
    "sliding_window": 32768, "use_sliding_window": False, "image_token_id": 151655,
    "vision_config": {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "in_chans": 3,
                      "out_hidden_size": 3584, "patch_size": 14, "spatial_merge_size": 2, "window_size": 112,
                      "fullatt_block_indexes": [7, 15, 23, 31], "temporal_patch_size": 2, "hidden_act": "silu"},
}  # fmt: skip


def test_the_published_model_has_as_many_parameters(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    config = vlm_config(tmp_path)
    state = nnx.state(nnx.eval_shape(lambda: config.network(nnx.Rngs(0))), nnx.Param)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == 8_292_166_656
    assert config.language.rotary.sections == (16, 24, 24) and config.tower.window == 4


def test_blocks_of_one_kind_run_together():
    assert QwenVisionConfig(depth=10, full=(7,)).runs() == [(0, 7, False), (7, 8, True), (8, 10, False)]
    assert QwenVisionConfig(depth=3, full=(0, 1, 2)).runs() == [(0, 3, True)]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda m: reduce(m, "tome", keep=0.9), "ToMe cannot reduce at 'tower.block.0.*in windows and quads"),
        (lambda m: reduce(m, "downsample-image", tokens=4), "as patches: set max_pixels"),
        (lambda m: reduce(m, "fastervlm", tokens=4), "no class token"),
        (
            lambda m: m.read(qwen.inputs(m, [qwen.prompt([7], 0)]), max_new_tokens=1),
            "no prompt of this batch has an image",
        ),
        (lambda m: m.config.check(Plan({"llm.layer.9.input": Keep()})), "no site 'llm.layer.9.input'"),
    ],
)
def test_plans_that_do_not_fit_are_refused(pair, call, sentence):
    with pytest.raises(UserError, match=sentence):
        call(pair[1])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"hidden_act": "relu"}, "activation 'relu'"),
        ({"window_size": 14}, "windows of 14 pixels"),
        ({"out_hidden_size": 48}, "gives 48 features to a decoder of 64"),
    ],
)
def test_configs_that_do_not_fit_are_refused(pair, tmp_path, change, sentence):
    stated = json.loads((pair[2] / "config.json").read_text())
    stated["vision_config"] |= change
    (tmp_path / "config.json").write_text(json.dumps(stated))
    with pytest.raises(UserError, match=sentence):
        vlm_config(tmp_path)
