"""LLaVA-OneVision in full: mosaics that are resampled, several images, video frames, all in one batch."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

import jtok
from jtok.models.vlm.arrange import arrange
from jtok.models.vlm.families.llava_next.processing import best_pinpoint, mosaic_spans
from jtok.models.vlm.processing import ImageSettings, Prompt, Span, VisualInput, load_tokenizer, pad_batch
from jtok.plan import Plan
from tests.models import language
from tests.models.processing import checkpoints
from tests.models.test_vlm import Keep, Watch

pytestmark = pytest.mark.usefixtures("highest_precision")

SIDE, PATCHES = 70, (5, 5)  # an odd number of patches, as in the real ones
PINPOINTS = tuple((SIDE * i, SIDE * j) for i in range(1, 4) for j in range(1, 4))
IMAGE, VIDEO = 2, 3  # ids of the tokenizer that is written beside the model
MOST = 2  # crops' worth of features


@pytest.fixture(scope="module")
def onevision(tmp_path_factory):
    """(transformers' model, ours)."""
    size = {"height": SIDE, "width": SIDE}
    pixels = dict(size=size, image_grid_pinpoints=PINPOINTS, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    files = dict(config=None, generation_config=None, preprocessor_config=pixels)
    path = checkpoints.write(tmp_path_factory.mktemp("onevision"), "llava_onevision", **files)
    tokenizer = load_tokenizer(path)
    assert [tokenizer.token(i) for i in (IMAGE, VIDEO)] == ["<image>", "<video>"]
    torch.manual_seed(0)
    small = {"num_hidden_layers": 2}
    config = transformers.LlavaOnevisionConfig(
        vision_config=transformers.SiglipVisionConfig(
            **{**language.VISION, **small, "image_size": SIDE}, vision_use_head=False
        ),
        text_config=transformers.Qwen2Config(
            **{**language.TEXT, "num_hidden_layers": 3, "vocab_size": tokenizer.inner.get_vocab_size()}
        ),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=f"anyres_max_{MOST}",
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        image_grid_pinpoints=[list(p) for p in PINPOINTS],
    )
    reference = language.randomise(transformers.LlavaOnevisionForConditionalGeneration(config))
    reference.generation_config.eos_token_id = reference.generation_config.pad_token_id = None
    reference.save_pretrained(path)
    return reference, jtok.load(path)


def crops(g, count):
    return g.standard_normal((count, 3, SIDE, SIDE), dtype=np.float32)


def mosaic(g, size):
    """A single image of some size."""
    common = dict(mean=(0,) * 3, std=(1,) * 3, scale=1, resample=3, patch=14)
    settings = ImageSettings("llava_onevision", **common, side=SIDE, pinpoints=PINPOINTS, max_crops=MOST)
    spans = mosaic_spans(size, best_pinpoint(size, PINPOINTS), settings)
    count = 1 + spans[1].tiles[0] * spans[1].tiles[1]
    return VisualInput("image", crops(g, count), size, spans, sum(span.tokens for span in spans))


def single(g):
    """One of several images."""
    span = Span("image", PATCHES, PATCHES, newline="end")
    return VisualInput("image", crops(g, 1), (SIDE, SIDE), (span,), span.tokens)


def video(g, frames):
    span = Span("video", (3, 3), PATCHES, frames=frames, newline="end")
    return VisualInput("video", crops(g, frames), (SIDE, SIDE), (span,), span.tokens)


def prompt(make, seed):
    """Text, then each visual input with some text after it."""
    g = np.random.default_rng(seed)
    visuals, ids, offsets = make(g), list(g.integers(5, 90, 3 + seed)), []
    for visual in visuals:
        offsets.append(len(ids))
        ids += [VIDEO if visual.kind == "video" else IMAGE] * visual.slots
        ids += list(g.integers(5, 90, 4))
    return Prompt(np.asarray(ids, np.int32), visuals, tuple(offsets), np.arange(len(ids), dtype=np.int32))


def prompts():
    """A mosaic that is resampled, one that is not, two images, a video, and a video beside images."""
    makers = [
        lambda g: (mosaic(g, (200, 180)),),
        lambda g: (mosaic(g, (66, 130)),),
        lambda g: (single(g), single(g)),
        lambda g: (video(g, 3),),
        lambda g: (single(g), video(g, 2), single(g)),
    ]
    return [prompt(make, seed) for seed, make in enumerate(makers)]


def reference_inputs(one):
    """What transformers takes for one prompt."""
    ids = torch.tensor(one.ids[None]).long()
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    images = [v for v in one.visuals if v.kind == "image"]
    videos = [v for v in one.visuals if v.kind == "video"]
    if images:
        given |= {
            "pixel_values": torch.tensor(np.stack([v.pixels for v in images])),
            "image_sizes": torch.tensor([v.size for v in images]),
            "batch_num_images": torch.tensor([len(images)]),
        }
    if videos:
        given["pixel_values_videos"] = torch.tensor(np.stack([v.pixels for v in videos]))
    return given


def read(model, batch, plan=None, max_new_tokens=1):
    model = dataclasses.replace(model, plan=plan or Plan())
    return model.read(arrange(pad_batch(batch, 0), PATCHES), max_new_tokens=max_new_tokens)


def test_logits_and_answers_of_a_mixed_batch(onevision):
    reference, model = onevision
    batch = prompts()
    assert {v.spans[-1].resampled for one in batch for v in one.visuals} == {True, False}
    state, parts = model.start(arrange(pad_batch(batch, 0), PATCHES), max_new_tokens=16), []
    first = np.asarray(state.logits)
    for ids, _ in model.answer(state, 16):
        parts.append(ids)
    ours = np.concatenate(parts, 1)
    for row, one in enumerate(batch):
        given = reference_inputs(one)
        with torch.no_grad():
            np.testing.assert_allclose(first[row], reference(**given).logits[0, -1].numpy(), rtol=0, atol=1e-4)
            out = reference.generate(**given, max_new_tokens=16, do_sample=False)
        np.testing.assert_array_equal(ours[row], out[0, len(one.ids) :].numpy())


def test_a_row_does_not_depend_on_its_batch(onevision):
    """Rows without a resampled grid take another way through the model when they are alone."""
    _, model = onevision
    plan = Plan({"projector": Keep((0, 3, 7, 12, 13, 20)), "llm.layer.1.input": Keep((0, 2, 3))})
    batch = [prompts()[i] for i in (1, 3)]
    both = read(model, batch, plan).logits
    for row, one in enumerate(batch):
        np.testing.assert_allclose(read(model, [one], plan).logits[0], both[row], rtol=1e-5, atol=1e-5)


def test_dropping_resampled_tokens_is_masking_them(onevision):
    _, model = onevision
    batch, kept = [prompts()[0], prompts()[3]], (0, 3, 7, 12, 13, 20, 26)
    dropped, masked = (read(model, batch, Plan({"projector": Keep(kept, mask=mask)})) for mask in (False, True))
    np.testing.assert_allclose(dropped.logits, masked.logits, rtol=0, atol=1e-4)
    assert dropped.sequence.slots.shape == (2, len(kept))


def test_what_a_reducer_sees(onevision):
    """Behind the projector a resampled grid is one segment, a frame is one, and newline tokens are text."""
    _, model = onevision
    batch = prompts()
    output = read(model, batch, Plan({"projector": Watch()}))
    tokens = output.sequence.visual
    counts = [sum((v.tokens - (v.kind == "video" or len(one.visuals) > 1)) for v in one.visuals) for one in batch]
    for row in (0, 1):  # a newline token a row of the mosaic
        counts[row] -= batch[row].visuals[0].spans[1].grid[0]
    np.testing.assert_array_equal(tokens.mask().sum(1), counts)
    grid = batch[0].visuals[0].spans[1].grid
    segment, position = np.asarray(tokens.segment), np.asarray(output.memory["watch"]["position"])
    assert (segment[0, 25 : counts[0]] == 1).all() and grid[0] * grid[1] == counts[0] - 25
    np.testing.assert_array_equal(position[0, 25 : counts[0], 0], np.repeat(np.arange(grid[0]), grid[1]))
    np.testing.assert_array_equal(segment[3, :27], np.repeat(np.arange(3), 9))
    np.testing.assert_array_equal(segment[4, : 25 + 18 + 25], np.repeat(np.arange(4), [25, 9, 9, 25]))
    slots = np.asarray(output.sequence.slots)
    for row, one in enumerate(batch):  # every visual token at its slot of the prompt
        expected = np.flatnonzero(np.isin(one.ids, (IMAGE, VIDEO)))
        order = np.sort(slots[row, : counts[row]])
        assert set(order) <= set(expected)
        where = np.asarray(output.sequence.position)[row, order, 0]
        np.testing.assert_array_equal(where, order)


def test_tokens_reduced_in_the_tower_are_not_resampled(onevision):
    """Four features of each frame go on as they are, at the place of the pooled token nearest to them."""
    _, model = onevision
    one = prompts()[3]
    output = read(model, [one], Plan({"tower.output": Keep((0, 4, 12, 24))}))
    slots = np.asarray(output.sequence.slots)[0]
    where = np.asarray(output.sequence.position)[0, slots, 0] - one.offsets[0]
    np.testing.assert_array_equal(where, [9 * frame + i for frame in range(3) for i in (0, 2, 4, 8)])


def test_masked_features_leave_the_mean_of_the_rest(onevision):
    _, model = onevision
    one = prompts()[3]
    kept = tuple(i for i in range(25) if i not in (0, 24))
    plan = Plan({"tower.output": Keep(kept, mask=True), "projector": Watch()})
    x = np.asarray(read(model, [one], plan).memory["watch"]["x"])[0].reshape(3, 9, -1)
    full = np.asarray(read(model, [one], Plan({"projector": Watch()})).memory["watch"]["x"])[0].reshape(3, 9, -1)
    np.testing.assert_allclose(x[:, 1:8], full[:, 1:8], atol=1e-6)
    assert np.abs(x[:, 0] - full[:, 0]).max() > 1e-3 and jnp.isfinite(x).all()


def test_a_question_about_a_video(onevision):
    """From frames and a question to text, and with four tokens a frame."""
    reference, model = onevision
    frames, question = [checkpoints.picture(90, 70, seed) for seed in range(3)], "What is written on the sign?"
    one = model.processor.prompt(question, videos=[model.processor.video(frames)])
    assert (one.ids == VIDEO).sum() == 3 * 9 + 1
    with torch.no_grad():
        out = reference.generate(**reference_inputs(one), max_new_tokens=8, do_sample=False)
    expected = model.processor.tokenizer.decode(out[0, len(one.ids) :].tolist()).strip()
    assert model.generate(None, question, video=frames, tokens=8) == expected != ""
    assert jtok.reduce(model, "uniform-grid", tokens=4).generate(None, question, video=frames, tokens=8) != expected
