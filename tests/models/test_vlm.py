"""Vision-language models: logits of transformers, and reducers at every kind of site."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from jtok.errors import UserError
from jtok.methods.reduce import reduce
from jtok.models.vlm.processing import Prompt
from jtok.plan import Plan
from jtok.reducer import Reducer
from tests.models import language
from tests.models.oracle import Watch, gentle

pytestmark = pytest.mark.usefixtures("highest_precision")

KEPT = (0, 2, 5, 6, 11, 14)  # of 16 patches


@dataclasses.dataclass(frozen=True)
class Keep(Reducer):
    """Keeps the given patches, or masks the others."""

    kept: tuple[int, ...] = KEPT
    mask: bool = False

    def count(self, patches):
        return patches if self.mask else len(self.kept)

    def __call__(self, tokens, signals, memory):
        index = jnp.asarray([*range(tokens.special), *(tokens.special + i for i in self.kept)])
        if self.mask:
            keep = jnp.zeros(tokens.count, bool).at[index].set(True)
            return tokens.replace(valid=tokens.mask() & keep), memory
        return tokens.take(jnp.broadcast_to(index, (tokens.x.shape[0], len(index)))), memory


def logits(model, plan=None, prompts=None):
    """Logits of the first token of each answer."""
    model = dataclasses.replace(model, plan=plan or Plan())
    return np.asarray(model.read(language.inputs(prompts or language.prompts()), max_new_tokens=1).logits)


def theirs(reference, one, **changes):
    """What transformers computes for one prompt."""
    with torch.no_grad():
        return reference(**language.reference(one) | changes, output_attentions=True, output_hidden_states=True)


def test_logits_of_a_batch_of_different_lengths(llava):
    reference, model = llava
    expected = [theirs(reference, one).logits[0, -1].numpy() for one in language.prompts()]
    np.testing.assert_allclose(logits(model), expected, rtol=0, atol=1e-4)


def test_rows_with_two_images_one_and_none(llava):
    reference, model = llava
    one, other = language.prompts()
    ids = np.concatenate([one.ids, other.ids])
    both = Prompt(ids, one.visuals + other.visuals, (3, len(one.ids) + 6), np.arange(len(ids), dtype=np.int32))
    none = Prompt(np.arange(20, 32, dtype=np.int32), (), (), np.arange(12, dtype=np.int32))
    given = [language.reference(p) for p in (both, one)]
    given.append({"input_ids": torch.tensor(none.ids[None]).long(), "attention_mask": torch.ones(1, 12).long()})
    with torch.no_grad():
        expected = [reference(**inputs).logits[0, -1].numpy() for inputs in given]
    np.testing.assert_allclose(logits(model, prompts=[both, one, none]), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("site", ["tower.output", "projector", "llm.input"])
def test_dropping_and_keeping_positions_is_masking(llava, site):
    model = gentle(llava[1])
    dropped, masked = (logits(model, Plan({site: Keep(mask=mask)})) for mask in (False, True))
    np.testing.assert_allclose(dropped, masked, rtol=0, atol=1e-6)
    assert np.abs(dropped - logits(model)).max() > 1e-2


def test_reduced_features_in_transformers_give_our_logits(llava):
    reference, model = llava
    plan = Plan({"tower.output": Keep()}, positions="renumber")
    for ours, one in zip(logits(model, plan), language.prompts(), strict=True):
        features = reference.get_image_features(language.reference(one)["pixel_values"]).pooler_output[0][list(KEPT)]
        shorter = np.delete(one.ids, np.flatnonzero(one.ids == language.IMAGE)[len(KEPT) :])
        ids = torch.tensor(shorter[None]).long()
        outputs = {"image": BaseModelOutputWithPooling(pooler_output=[features])}
        inputs = dict(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=None, mm_encoder_outputs=outputs)
        expected = theirs(reference, one, **inputs).logits[0, -1]
        np.testing.assert_allclose(ours, expected.numpy(), rtol=0, atol=1e-4)


LAYER_SIGNALS = ("last_token_attention", "text_attention", "keys", "attention_received", "text_keys")
SITE_SIGNALS = ("text_features", "text_valid", "text_position", "rotary_position", "normed", "text_normed")
SITE_SIGNALS += ("next_last_token_attention",)


def test_signals_are_those_of_transformers(llava):
    reference, model = llava
    plan = Plan({"llm.layer.2.input": Watch(LAYER_SIGNALS + SITE_SIGNALS)})
    watched = (
        dataclasses.replace(model, plan=plan)
        .read(language.inputs(language.prompts()), max_new_tokens=1)
        .memory["watch"]
    )
    np.testing.assert_allclose(logits(model, plan), logits(model), atol=1e-5)
    for row, (one, (before, after, _)) in enumerate(zip(language.prompts(), language.PROMPTS, strict=True)):
        out = theirs(reference, one)
        values = {name: np.asarray(value[row]) for name, value in watched.items()}
        image, text = slice(before, before + 16), slice(before + 16, before + 16 + after)
        attention, following = out.attentions[1][0], out.attentions[2][0]
        hidden = out.hidden_states[2][0]
        normed = reference.model.language_model.norm(hidden)
        expected = {
            "last_token_attention": attention[:, -1, image],
            "next_last_token_attention": following[:, -1, image],
            "attention_received": attention.mean(0).sum(0)[image],
            "x": hidden[image],
            "normed": normed[image],
        }
        for name, value in expected.items():
            np.testing.assert_allclose(values[name], value.detach().numpy(), atol=1e-4, err_msg=name)
        assert values["text_valid"].sum() == after and values["text_valid"][:after].all()
        np.testing.assert_allclose(values["text_attention"][:, :after], attention[:, text, image], atol=1e-5)
        np.testing.assert_allclose(values["text_features"][:after], hidden[text], atol=1e-4)
        np.testing.assert_allclose(values["text_normed"][:after], normed.detach()[text], atol=1e-4)
        np.testing.assert_array_equal(values["rotary_position"][:, 0], np.arange(before, before + 16))
        np.testing.assert_array_equal(values["text_position"][:after, 0], np.arange(before + 16, len(one.ids)))
        grid = np.stack(np.meshgrid(range(4), range(4), indexing="ij"), -1).reshape(16, 2)
        np.testing.assert_array_equal(values["position"], grid)


def test_a_reducer_between_layers_drops_what_transformers_drops(llava):
    """Slices hidden states, positions and mask by hand at layer 2 of transformers' decoder."""
    reference, model = llava
    ours = logits(model, Plan({"llm.layer.2.input": Keep()}))
    decoder = reference.model.language_model
    for row, (one, (before, _, _)) in enumerate(zip(language.prompts(), language.PROMPTS, strict=True)):
        x = theirs(reference, one).hidden_states[2]
        kept = [*range(before), *(before + i for i in KEPT), *range(before + 16, len(one.ids))]
        position = torch.tensor([kept])
        x, turn = x[:, kept], decoder.rotary_emb(x, position)
        mask = torch.full((len(kept), len(kept)), -1e9).triu(1)[None, None]
        with torch.no_grad():
            for layer in decoder.layers[2:]:
                x = layer(x, attention_mask=mask, position_ids=position, position_embeddings=turn)
            expected = reference.lm_head(decoder.norm(x))[0, -1]
        np.testing.assert_allclose(ours[row], expected.numpy(), rtol=0, atol=1e-4)


def test_a_row_does_not_depend_on_its_batch(llava):
    _, model = llava
    plan = Plan({"tower.block.1.output": Keep(tuple(range(12))), "llm.layer.1.input": Keep()})
    both = logits(model, plan)
    for row, one in enumerate(language.prompts()):
        np.testing.assert_allclose(logits(model, plan, [one])[0], both[row], rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["uniform-grid", "downsample-image"])
def test_methods_of_the_tower_stand_in_the_model(llava, method):
    _, model = llava
    output = reduce(model, method, tokens=4).read(language.inputs(language.prompts()), max_new_tokens=1)
    assert np.isfinite(output.logits).all()
    slots = np.asarray(output.sequence.slots)
    for row, (before, _, _) in enumerate(language.PROMPTS):
        np.testing.assert_array_equal(slots[row], before + np.arange(4))
        where = np.asarray(output.sequence.position)[row, slots[row], 0] - before
        assert (np.diff(where) > 0).all() and where.min() >= 0 and where.max() < 16
        if method == "downsample-image":  # the middles of the quarters, of two patches at equal distance the even one
            np.testing.assert_array_equal(where, [0, 2, 8, 10])


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda m: reduce(m, "uniform-grid", tokens=17), "17 tokens.*16"),
        (lambda m: reduce(m, "visionzap", tokens=4), "no method called"),
        (lambda m: logits(m, Plan({"llm.layer.9.input": Keep()})), "no site 'llm.layer.9.input'"),
        (lambda m: logits(m, Plan({"llm.layer.1.input": Watch(("class_attention",))})), "reads class_attention"),
    ],
)
def test_what_does_not_fit_is_refused(llava, call, sentence):
    with pytest.raises(UserError, match=sentence):
        call(llava[1])
