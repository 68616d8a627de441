"""Prompts and batches: ids as the reference's processors expand them, positions, padding, and what is refused."""

import types

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

from jtok.errors import UserError
from jtok.models.vlm.processing import load_processor
from jtok.models.vlm.processing.batch import pad_batch
from tests.models.processing.checkpoints import FAMILIES, picture, write

SIZES = [(100, 90), (60, 200), (130, 70)]


@pytest.fixture(scope="module")
def processors(tmp_path_factory):
    made = tmp_path_factory.mktemp("checkpoints")
    return {family: load_processor(write(made / family, family)) for family in FAMILIES}


@pytest.fixture(scope="module")
def images():
    return [Image.fromarray(picture(*size, seed)) for seed, size in enumerate(SIZES)]


def reference(family, directory):
    """The reference's processor around its Pillow image processor; the two with videos need torchvision."""
    _, stated, (image, _), bos, eos = FAMILIES[family]
    tokens = dict(bos_token=bos, eos_token=eos, pad_token="<pad>", extra_special_tokens={"image_token": image})
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(directory / "tokenizer.json"), **tokens)
    clip = dict(patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1)
    if family == "llava":
        return transformers.LlavaProcessor(transformers.CLIPImageProcessorPil(**stated), tokenizer, **clip)
    if family == "llava_next":
        return transformers.LlavaNextProcessor(transformers.LlavaNextImageProcessorPil(**stated), tokenizer, **clip)
    if family == "mllama":
        return transformers.MllamaProcessor(transformers.MllamaImageProcessorPil(**stated), tokenizer)
    siglip = transformers.SiglipImageProcessorPil(**stated)
    siglip.image_seq_length = 16
    return transformers.PaliGemmaProcessor(siglip, tokenizer)


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_ids_equal_the_reference(family, images, tmp_path):
    directory = write(tmp_path, family)
    ours = load_processor(directory)
    text = "USER: <image>\nWhat is on <image> and\n<image>? ASSISTANT:"
    prompt = ours.place(ours.tokenizer.encode(text), ours.images(images))
    theirs = reference(family, directory)(text=[text], images=images, return_tensors="np")
    assert prompt.ids.tolist() == theirs["input_ids"][0].tolist()
    for visual, offset in zip(prompt.visuals, prompt.offsets, strict=True):
        assert (prompt.ids[offset : offset + visual.slots] == ours.tokenizer.image).all()
    assert sum(v.slots for v in prompt.visuals) == (prompt.ids == ours.tokenizer.image).sum()


def test_ids_of_paligemma_equal_the_reference(images, tmp_path):
    directory = write(tmp_path, "paligemma")
    ours = load_processor(directory).prompt("How many cats?", images[:1])
    theirs = reference("paligemma", directory)(text=["<image>How many cats?"], images=images[:1], return_tensors="np")
    assert ours.ids.tolist() == theirs["input_ids"][0].tolist()
    assert ours.positions.tolist() == list(range(1, 1 + len(ours.ids)))


@pytest.mark.parametrize(
    "text", ["{i}What is it?", "Look: {i}What{i}is it?", "{i}{i}What is{i}it?", "a{i}b{i}{i}", "a{i}b{i}"]
)
def test_cross_attention_masks_equal_the_reference(text, images, tmp_path):
    directory = write(tmp_path, "mllama")
    ours = load_processor(directory)
    text = "<|begin|>" + text.replace("{i}", "<|image|>")
    given = images[: text.count("<|image|>")]
    batch = ours.batch([ours.place(ours.tokenizer.encode(text), ours.images(given))])
    options = dict(add_special_tokens=False, return_tensors="np")
    theirs = reference("mllama", directory)(text=[text], images=[given], **options)
    assert batch.ids.tolist() == theirs["input_ids"].tolist()
    assert np.array_equal(batch.cross, theirs["cross_attention_mask"].astype(bool))
    assert np.array_equal(batch.aspects, theirs["aspect_ratio_ids"])
    assert np.array_equal(batch.real.reshape(1, len(given), 4), theirs["aspect_ratio_mask"].astype(bool))
    assert np.array_equal(batch.pixels.reshape(theirs["pixel_values"].shape), theirs["pixel_values"])
    assert (batch.visual == -1).all() and batch.tokens.sum() == batch.real.sum() * 17


def test_mrope_positions_equal_the_reference(processors, images):
    """Text, images, videos of odd rates, mixed in all orders, in one padded batch."""
    ours = processors["qwen2_5_vl"]
    frames = [picture(60, 90, seed) for seed in range(5)]
    videos = [ours.video(frames, fps=fps) for fps in (2.0, 3.7)]
    image, video = (ours.tokenizer.token(i) for i in (ours.tokenizer.image, ours.tokenizer.video))
    texts = [f"{image}What? {video}And{image} this", f"a{video}b{video}", f"{image}", "No picture at all here"]
    prompts = []
    for text in texts:
        visuals = ours.images(images[: text.count(image)])
        prompts.append(ours.place(ours.tokenizer.encode(text), visuals, videos[: text.count(video)]))
    batch = ours.batch(prompts)

    vision = types.SimpleNamespace(spatial_merge_size=2, tokens_per_second=4)
    self = types.SimpleNamespace(config=types.SimpleNamespace(vision_config=vision))
    self.get_vision_position_ids = types.MethodType(Qwen2_5_VLModel.get_vision_position_ids, self)
    kinds = np.where(batch.ids == ours.tokenizer.image, 1, np.where(batch.ids == ours.tokenizer.video, 2, 0))
    inputs = [visual for prompt in prompts for visual in prompt.visuals]
    grids = {kind: torch.tensor([v.grid for v in inputs if v.kind == kind]) for kind in ("image", "video")}
    theirs, deltas = Qwen2_5_VLModel.get_rope_index(
        self,
        torch.tensor(batch.ids).long(),
        torch.tensor(kinds),
        grids["image"],
        grids["video"],
        torch.tensor([v.seconds for v in inputs if v.kind == "video"]),
        torch.tensor(batch.valid.astype(int)),
    )
    assert np.array_equal(np.where(batch.valid, batch.positions, 0), theirs.numpy())
    assert np.array_equal(batch.next_position - batch.length, deltas[:, 0].numpy())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_question_becomes_a_prompt(family, processors, images):
    ours = processors[family]
    prompt = ours.prompt("What is written on the sign?", images[:1])
    assert "What is written on the sign?" in ours.tokenizer.decode(prompt.ids)
    (visual,), (offset,) = prompt.visuals, prompt.offsets
    expected = np.zeros(len(prompt.ids), bool)
    expected[offset : offset + visual.slots] = True
    assert np.array_equal(prompt.ids == ours.tokenizer.image, expected)
    assert (prompt.ids == ours.tokenizer.bos).sum() == (ours.tokenizer.bos is not None)
    assert prompt.next_position == prompt.positions.max() + 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_holds_every_row_as_it_is_alone(family, processors, images):
    ours = processors[family]
    prompts = [
        ours.prompt("How many cats are there in the picture?", images[:1]),
        ours.prompt("What?", images[1:]),
        ours.prompt("No picture"),
    ]
    batch = ours.batch(prompts)
    for row, prompt in enumerate(prompts):
        alone = ours.batch([prompt])
        length, tokens, crops = len(prompt.ids), alone.tokens.sum(), 0 if alone.real is None else alone.real.shape[1]
        assert np.array_equal(batch.ids[row, :length], prompt.ids)
        assert (batch.ids[row, length:] == ours.tokenizer.pad).all()
        assert np.array_equal(batch.valid[row], np.arange(batch.ids.shape[1]) < length)
        assert np.array_equal(batch.positions[..., row, :length], prompt.positions)
        assert batch.length[row] == length and batch.next_position[row] == prompt.next_position
        for name in ("visual", "image", "source", "crop", "span"):
            whole, part = getattr(batch, name)[row], getattr(alone, name)[0]
            assert np.array_equal(
                whole[: len(part)][..., : part.shape[-1]] if part.ndim == 2 else whole[: len(part)], part
            )
            assert (whole[len(part) :] == -1).all()
        assert batch.tokens[row].sum() == tokens and not batch.tokens[row, tokens:].any()
        if crops:
            assert np.array_equal(batch.pixels[row, :crops], alone.pixels[0])
            assert np.array_equal(batch.real[row, :crops], alone.real[0])
        assert not batch.real[row, crops:].any() and not batch.pixels[row, crops:].any()


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "mllama"])
def test_visual_slots_are_the_placeholders_and_sources_stay_within_their_image(family, processors, images):
    ours = processors[family]
    prompt = ours.prompt("Compare them.", images)
    batch = ours.batch([prompt])
    assert np.array_equal(batch.visual[0], np.flatnonzero(prompt.ids == ours.tokenizer.image))
    edges = np.cumsum([0] + [visual.features for visual in prompt.visuals])
    for index in range(len(images)):
        source = batch.source[0, (batch.image[0] == index) & ~batch.newline[0]]
        assert source.min() == edges[index] and source.max() < edges[index + 1]
    assert len(set(batch.span[0])) == sum(len(visual.spans) for visual in prompt.visuals)


def test_videos_have_their_own_placeholders(processors, images):
    for family in ("llava_onevision", "qwen2_5_vl"):
        ours = processors[family]
        video = ours.video([picture(60, 90, seed) for seed in range(4)])
        prompt = ours.prompt("What moves?", images[:1], [video])
        assert [visual.kind for visual in prompt.visuals] == ["image", "video"]
        assert (prompt.ids == ours.tokenizer.video).sum() == video.tokens
    assert ours.batch([prompt]).grids == ((prompt.visuals[0].grid, video.grid),)


def test_sizes_are_as_asked(processors, images):
    ours = processors["llava"]
    prompt = ours.prompt("What?", images[:1])
    batch = ours.batch([prompt], length=64, tokens=32, crops=3)
    assert batch.ids.shape == (1, 64) and batch.visual.shape == (1, 32) and batch.pixels.shape[:2] == (1, 3)
    for size, says in (("length", "ids"), ("tokens", "visual tokens")):
        with pytest.raises(UserError, match=f"{says} and the batch was given 8"):
            ours.batch([prompt], **{size: 8})
    with pytest.raises(UserError, match="2 crops or patches and the batch was given 1"):
        ours.batch([ours.prompt("What?", images[:2])], crops=1)
    with pytest.raises(UserError, match="at least one prompt"):
        pad_batch([], 0)


def test_a_batch_of_text_alone(processors):
    for ours in processors.values():
        batch = ours.batch([ours.prompt("Hello"), ours.prompt("Hello there")])
        assert batch.pixels is None and batch.visual.shape == (2, 0) and batch.aspects is None


@pytest.mark.parametrize("family", FAMILIES)
def test_placeholders_and_images_must_agree(family, processors, images):
    ours = processors[family]
    token = ours.tokenizer.token(ours.tokenizer.image)
    with pytest.raises(UserError, match="the prompt has 2 image placeholders .* for 1 images"):
        ours.prompt(f"{token}and{token}", images[:1])
    with pytest.raises(UserError, match="1 image placeholders .* for 2 images"):
        ours.prompt(f"What is {token}?", images[:2])
    with pytest.raises(UserError, match="1 image placeholders .* for 0 images"):
        ours.prompt([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}])


def test_videos_that_are_refused(processors):
    with pytest.raises(UserError, match="llava takes no videos"):
        processors["llava"].video([picture(60, 60)])
    ours = processors["qwen2_5_vl"]
    for frames, fps in (([], 1.0), ([picture(60, 60), picture(60, 61)], 1.0), ([picture(60, 60)], 0.0)):
        with pytest.raises(UserError, match="at least one frame"):
            ours.video(frames, fps)
    with pytest.raises(UserError, match="names no video token"):
        processors["llava"].prompt("What?", (), [ours.video([picture(60, 60)])])


def test_directories_that_are_refused(tmp_path):
    with pytest.raises(UserError, match="is not a directory"):
        load_processor(tmp_path / "none")
    with pytest.raises(UserError, match="names no image token"):
        load_processor(write(tmp_path, "llava", config={"model_type": "llava"}))
