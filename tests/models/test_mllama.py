"""Llama-3.2-Vision: logits and answers of transformers, and reducers before its cross-attention layers."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch

import jtok
from jtok.errors import UserError
from jtok.methods.baselines.keep_attended import KeepAttended
from jtok.models.decoder.cross import CrossCache
from jtok.models.vlm.load_vlm import load_vlm, vlm_config
from jtok.models.vlm.processing import pad_batch
from jtok.plan import Plan
from jtok.reducer import Reducer
from tests.models import mllama
from tests.models.oracle import gentle
from tests.models.processing import checkpoints

pytestmark = pytest.mark.usefixtures("highest_precision")

FREE = 24
KEPT = (0, 2, 5, 6, 11, 14)  # of the 16 patches of a tile


@dataclasses.dataclass(frozen=True)
class Keep(Reducer):
    """Keeps the tokens of the given slots, special ones among them, or masks the others."""

    kept: tuple[int, ...]
    mask: bool = False

    def count(self, patches):
        return patches if self.mask else len(self.kept) - 8  # which are special at the tower's output

    def __call__(self, tokens, signals, memory):
        if not self.mask:
            return tokens.take(jnp.broadcast_to(jnp.asarray(self.kept), (tokens.x.shape[0], len(self.kept)))), memory
        keep = jnp.zeros(tokens.count, bool).at[jnp.asarray(self.kept)].set(True)
        return tokens.replace(valid=tokens.mask() & keep), memory


@dataclasses.dataclass(frozen=True)
class Watch(Reducer):
    """Changes nothing and remembers what it was shown."""

    reads: tuple[str, ...] = ()

    def __call__(self, tokens, signals, memory):
        values = {name: getattr(signals, name) for name in self.reads}
        return tokens, {**memory, "watch": {**values, "x": tokens.x, "segment": tokens.segment, "valid": tokens.valid}}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """(transformers' model, ours loaded from its directory)."""
    reference, path = mllama.directory(tmp_path_factory.mktemp("mllama"))
    return reference, jtok.load(path), path


def inputs(model, prompts):
    return model.config.arrange(pad_batch(prompts, 0))


def read(model, prompts, plan=None):
    return dataclasses.replace(model, plan=plan or Plan()).read(inputs(model, prompts), max_new_tokens=FREE)


@pytest.fixture(scope="module")
def whole(both):
    """The state after the prompts, nothing reduced. (Decoding consumes a state: take copies.)"""
    with jax.default_matmul_precision("highest"):
        return both[1].start(inputs(both[1], mllama.prompts()), max_new_tokens=FREE)


def theirs(reference, one, **options):
    with torch.no_grad():
        return reference(**{**mllama.reference(one), **options}, output_attentions=True)


def test_logits_of_a_batch_with_one_image_several_and_none(both, whole):
    expected = np.stack([theirs(both[0], one).logits[0, -1].numpy() for one in mllama.prompts()])
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(whole.logits, expected, rtol=0, atol=1e-4)


def test_answers_and_a_second_question_are_those_of_transformers(both, whole):
    reference, model, _ = both
    blocks, states = zip(*model.answer(jax.tree.map(jnp.copy, whole), 16, block=16), strict=True)
    answers, state = np.concatenate(blocks, 1), states[-1]
    for one, answer in zip(mllama.prompts(), answers, strict=True):
        with torch.no_grad():
            out = reference.generate(**mllama.reference(one), max_new_tokens=16, do_sample=False)
        np.testing.assert_array_equal(answer, out[0, len(one.ids) :].numpy())
    question = np.random.default_rng(7).integers(5, 90, (4, 5))
    state = model.add(state, question, np.arange(5) < np.array([5, 3, 4, 5])[:, None])
    for row, (one, count) in enumerate(zip(mllama.prompts(), (5, 3, 4, 5), strict=True)):
        extended = mllama.longer(one, [*answers[row], *question[row, :count]])
        np.testing.assert_allclose(state.logits[row], theirs(reference, extended).logits[0, -1], rtol=0, atol=1e-4)
    with pytest.raises(UserError, match="9 tokens.*3 free slots"):
        model.add(state, np.ones((4, 9), int), np.ones((4, 9), bool))


def test_the_cache_holds_what_is_left(both, whole):
    """Of 8 tiles a row, 5 of which are real in the second, 5 are kept, with 17 tokens each."""
    crossed = [cache for cache in whole.caches if isinstance(cache, CrossCache)]
    assert [cache.k.shape[1] for cache in crossed] == [5 * 17] * 2
    np.testing.assert_array_equal(crossed[0].valid.sum(1), np.array([1, 2, 4, 0]) * 17)  # of two images the last
    np.testing.assert_array_equal(crossed[0].open, [True, True, True, False])


def _slots(*tiles: int) -> tuple[int, ...]:
    """The class token and the KEPT patches of given real tiles of a row."""
    return tuple(tile * 17 + slot for tile in tiles for slot in (0, *(1 + i for i in KEPT)))


def test_dropping_is_masking(both):
    """At the tower's output and before the second cross-attention layer, where the second tile of a row goes."""
    model = gentle(both[1])
    tile = (*range(8), *(8 + i for i in KEPT))  # the class token and what fills the tile up come first
    tiles_kept = (0, 2, 3, 4)
    slots = tuple(t * 7 + slot for t in tiles_kept for slot in range(7))
    dropped = read(model, mllama.prompts(), Plan({"tower.output": Keep(tile), "cross.1": Keep(slots)}))
    plan = Plan({"tower.output": Keep(tile, mask=True), "cross.1": Keep(_slots(*tiles_kept), mask=True)})
    masked = read(model, mllama.prompts(), plan)
    np.testing.assert_allclose(dropped.logits, masked.logits, rtol=0, atol=1e-6)
    reduced, full = ([c for c in one.caches if isinstance(c, CrossCache)] for one in (dropped, masked))
    for layer, tiles in enumerate(([1, 2, 4, 0], [1, 2, 3, 0])):
        assert (reduced[layer].k.shape[1], full[layer].k.shape[1]) == ((5 - layer) * 7, 5 * 17)
        np.testing.assert_array_equal(reduced[layer].valid.sum(1), 7 * np.array(tiles))
        np.testing.assert_array_equal(full[layer].valid.sum(1), 7 * np.array(tiles))


def test_keeping_everything_changes_nothing(both, whole):
    everything = Keep(tuple(range(5 * 17)))
    logits = read(both[1], mllama.prompts(), Plan({"cross.0": everything, "cross.1": everything})).logits
    np.testing.assert_allclose(logits, whole.logits, rtol=0, atol=1e-6)


SIGNALS = ("text_attention", "last_token_attention", "attention_received", "keys", "text_features", "text_valid",
           "next_last_token_attention")  # fmt: skip


def test_reduced_states_in_transformers_give_our_logits_and_signals(both):
    """Two prompts that begin with their image of four tiles, so that all text sees all of them."""
    reference, model, _ = both
    batch = [mllama.prompt(0, (6,), 5, 4), mllama.prompt(0, (6,), 8, 5)]
    output = read(model, batch, Plan({"cross.0": Keep(_slots(0, 1, 3)), "cross.1": Watch(SIGNALS)}))
    watched = jax.tree.map(np.asarray, output.memory["watch"])
    assert watched["segment"][0].tolist() == [0] * 7 + [1] * 7 + [3] * 7 and watched["valid"].all()
    for row, one in enumerate(batch):
        count = len(one.ids) - 1  # of the question, after the placeholder
        states = torch.tensor(watched["x"][row : row + 1])
        plain = {"pixel_values": None, "cross_attention_mask": None, "cross_attention_states": states}
        out = theirs(reference, one, **plain)
        np.testing.assert_allclose(output.logits[row], out.logits[0, -1], rtol=0, atol=1e-4)
        first, second = out.attentions[1][0], out.attentions[3][0]  # [H, text, states]
        np.testing.assert_allclose(watched["text_attention"][row][:, :count], first[:, 1:], atol=1e-5)
        np.testing.assert_allclose(watched["last_token_attention"][row], first[:, -1], atol=1e-5)
        np.testing.assert_allclose(watched["next_last_token_attention"][row], second[:, -1], atol=1e-5)
        np.testing.assert_allclose(watched["attention_received"][row], first.mean(0).sum(0), atol=1e-5)
        assert watched["text_valid"][row].sum() == count and watched["keys"][row].shape == (21, 2, 12)


def test_methods_of_towers_stand_in_every_tile(both, whole):
    _, model, _ = both
    reduced = jtok.reduce(model, "random", tokens=4, stages=1)
    output = reduced.read(inputs(reduced, mllama.prompts()), max_new_tokens=FREE)
    crossed = [cache for cache in output.caches if isinstance(cache, CrossCache)]
    np.testing.assert_array_equal(crossed[0].valid.sum(1), np.array([1, 2, 4, 0]) * 5)  # with each tile's class token
    assert np.isfinite(output.logits).all() and np.abs(output.logits - whole.logits)[:3].max() > 1e-2
    other = reduced.read(inputs(reduced, mllama.prompts()[::-1]), max_new_tokens=FREE)
    np.testing.assert_allclose(other.logits[::-1], output.logits, rtol=0, atol=1e-5)


def test_a_directory_a_picture_and_a_question(both):
    reference, model, _ = both
    image, question = checkpoints.picture(70, 150), "What is written on the sign?"
    prompt = model.processor.prompt(question, [image])
    assert prompt.visuals[0].real == 3
    with torch.no_grad():
        out = reference.generate(**mllama.reference(prompt), max_new_tokens=8, do_sample=False)
    expected = model.processor.tokenizer.decode(out[0, len(prompt.ids) :].tolist()).strip()
    assert len(expected) > 3 and model.generate(image, question, tokens=8) == expected


def test_every_spelling_of_tensors(both, tmp_path):
    _, model, path = both
    tensors = safetensors.torch.load_file(path / "model.safetensors")
    assert "language_model.model.layers.1.cross_attn_attn_gate" in tensors
    modules = {}
    for name, tensor in tensors.items():
        name = name.replace("language_model.model.", "language_model.").replace("language_model.lm_head", "lm_head")
        modules[name if name.startswith("lm_head") else f"model.{name}"] = tensor
    (tmp_path / "config.json").write_text((path / "config.json").read_text())
    safetensors.torch.save_file(modules, tmp_path / "model.safetensors")
    for ours, reloaded in zip(*map(jax.tree.leaves, (model.params, load_vlm(tmp_path)[1])), strict=True):
        np.testing.assert_array_equal(ours, reloaded)
    del modules["model.language_model.layers.3.cross_attn_mlp_gate"]
    safetensors.torch.save_file(modules, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="lacks language.cross: layers.1.cross_attn_mlp_gate"):
        load_vlm(tmp_path)


@pytest.mark.parametrize(
    ("part", "change", "sentence"),
    [
        ("text_config", {"cross_attention_layers": [3, 9]}, "name some of its 5 layers"),
        ("text_config", {"cross_attention_layers": []}, "name some of its 5 layers"),
        ("text_config", {"hidden_act": "relu"}, "'relu'"),
        ("vision_config", {"hidden_act": "relu"}, "'relu'"),
        ("vision_config", {"intermediate_layers_indices": [2]}, "its 2 local layers"),
        ("vision_config", {"supported_aspect_ratios": [[1, 1], [2, 1]]}, "at most 4 tiles"),
        ("vision_config", {"vision_output_dim": 7680}, "give 96 features"),
    ],
)
def test_configs_that_do_not_fit_are_refused(both, tmp_path, part, change, sentence):
    stated = json.loads((both[2] / "config.json").read_text())
    stated[part] |= change
    (tmp_path / "config.json").write_text(json.dumps(stated))
    with pytest.raises(UserError, match=sentence):
        vlm_config(tmp_path)


def test_plans_for_a_decoder_with_visual_tokens_find_their_site(both):
    config = both[1].config
    assert config.layers == (1, 3) and [str(site) for site in config.sites()[-3:]] == [
        "projector",
        "cross.0",
        "cross.1",
    ]
    moved = config.fit(Plan({"tower.output": Watch(), "llm.input": Watch(), "llm.layer.2.input": Watch()}))
    assert list(map(str, moved.sites)) == ["tower.output", "cross.0", "cross.1"]
    with pytest.raises(UserError, match="layers \\[1, 3\\].*llm.layer.3.input is too late"):
        config.fit(Plan({"llm.layer.3.input": Watch()}))
    with pytest.raises(UserError, match="no site 'cross.2'"):
        config.check(Plan({"cross.2": Watch()}))
    expedit = jtok.make_plan("expedit", config.target(), 0.25)
    for plan in (expedit, Plan(projector=print), Plan(embed=print), Plan({"cross.0": KeepAttended(4)})):
        with pytest.raises(UserError):
            config.check(plan)
    with pytest.raises(UserError, match="17 tokens.*16"):
        jtok.reduce(both[1], "random", tokens=17)
