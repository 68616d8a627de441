"""Checkpoint directories without weights: tiny settings, a tokenizer trained on a few sentences, no network."""

import json
import pathlib

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

SENTENCES = [
    "What is written on the sign? The sign says stop.",
    "How many cats are there in the picture, and which is on the left?",
    "Ein Bär läuft über die Straße. 犬が好きです。 Привет, мир! 👩‍🚀🎉",
]
PINPOINTS = [[56, 112], [112, 56], [112, 112]]
TOWER = dict(image_size=56, patch_size=14)
CLIP = dict(TOWER, model_type="clip_vision_model")
SIGLIP = dict(TOWER, model_type="siglip_vision_model")
QWEN = dict(patch_size=14, spatial_merge_size=2, temporal_patch_size=2, tokens_per_second=4)
SQUARE, SHORTEST = {"height": 56, "width": 56}, {"shortest_edge": 56}

#: config.json, preprocessor_config.json, the placeholders, the beginning and the end of sequences.
FAMILIES = {
    "llava": (dict(vision_config=CLIP), dict(size=SHORTEST, crop_size=SQUARE), ("<image>", None), "<s>", "</s>"),
    "llava_next": (
        dict(vision_config=CLIP, image_grid_pinpoints=PINPOINTS),
        dict(size=SHORTEST, crop_size=SQUARE, image_grid_pinpoints=PINPOINTS),
        ("<image>", None),
        "<s>",
        "</s>",
    ),
    "llava_onevision": (
        dict(vision_config=SIGLIP, image_grid_pinpoints=PINPOINTS, vision_feature_select_strategy="full"),
        dict(size=SQUARE, image_grid_pinpoints=PINPOINTS, image_mean=[0.5] * 3, image_std=[0.5] * 3),
        ("<image>", "<video>"),
        None,
        "<|im_end|>",
    ),
    "qwen2_5_vl": (
        dict(vision_config=QWEN),
        dict(min_pixels=56 * 56, max_pixels=112 * 112, patch_size=14, temporal_patch_size=2, merge_size=2),
        ("<|image_pad|>", "<|video_pad|>"),
        None,
        "<|im_end|>",
    ),
    "paligemma": (dict(vision_config=SIGLIP), dict(size=SQUARE), ("<image>", None), "<bos>", "<eos>"),
    "mllama": (
        dict(vision_config=TOWER),
        dict(size=SQUARE, max_image_tiles=4),
        ("<|image|>", None),
        "<|begin|>",
        "<|eot_id|>",
    ),
}
DECODERS = {
    "llava_onevision": "qwen2",
    "qwen2_5_vl": "qwen2_5_vl_text",
    "paligemma": "gemma",
    "mllama": "mllama_text_model",
}
CONTROL = ["<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|start_header_id|>", "<|end_header_id|>"]


def byte_level(special: list[str], bos: str | None = None) -> tokenizers.Tokenizer:
    """A byte-level BPE that writes any text; `bos` is put in front by its post-processor."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320 + len(special), special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if bos:
        pair = [(bos, tokenizer.token_to_id(bos))]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=pair)
    return tokenizer


def write(directory: pathlib.Path, family: str, *, decoder: str | None = None, **files) -> pathlib.Path:
    """A directory of one family. files: further JSON files by stem; a value of None leaves a file out."""
    config, preprocessor, (image, video), bos, eos = FAMILIES[family]
    special = [token for token in ("<pad>", bos, eos, image, video, *CONTROL) if token]
    tokenizer = byte_level(special, bos if family in ("llava", "llava_next", "mllama") else None)
    ids = {f"{kind}_token_id": tokenizer.token_to_id(t) for kind, t in (("image", image), ("video", video)) if t}
    text = decoder or DECODERS.get(family, "llama")
    contents = {
        "config": dict(config, model_type=family, text_config={"model_type": text}, **ids),
        "preprocessor_config": preprocessor,
        "tokenizer_config": {"bos_token": bos, "eos_token": {"content": eos}, "pad_token": "<pad>"},
        "generation_config": {"eos_token_id": tokenizer.token_to_id(eos)},
        **files,
    }
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    for name, content in contents.items():
        if content is not None:
            (directory / f"{name}.json").write_text(json.dumps(content))
    return directory


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth random picture with some noise, uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width][..., None] / 20
    waves = np.sin(x * rng.uniform(0.2, 2, 3) + y * rng.uniform(0.2, 2, 3))
    return np.clip(128 + 90 * waves + rng.normal(0, 20, (height, width, 3)), 0, 255).astype(np.uint8)
