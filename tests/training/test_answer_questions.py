"""The small vision-language model: branches, what the tower is told, its files, and a few updates."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

import jtok
from jtok.data.question_text import PAD, decode_question, encode_question
from jtok.data.questions import KINDS, digit_questions
from jtok.errors import UserError
from jtok.models.decoder.decoder import Decoder, DecoderConfig
from jtok.training import optimizer, train
from jtok.training.state import named_leaves
from jtok.training.tasks.answer_questions import AnswerQuestions, default_config
from jtok.training.tasks.branches import Prefix, branch
from jtok.training.tasks.patch_targets import dense_targets
from jtok.training.tasks.question_model import make_tokenizer, save_model

SIZE = 64


def tiny_config():
    config = default_config()
    config.model.update({"tower_width": 32, "tower_depth": 2, "tower_mlp": 48, "tower_heads": 2})
    config.model.update({"width": 32, "depth": 2, "mlp": 40, "heads": 2})
    config.data.update({"size": SIZE, "questions": 4, "eval_questions": 14, "eval_batch": 14})
    config.train.update({"batch": 4, "steps": 4, "warmup": 1, "optimizer": "muon", "eval_every": 0})
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(task, parameters moved away from their start, directory of the model)."""
    task = AnswerQuestions(tiny_config())
    noise = np.random.default_rng(0)
    start = task.init(jax.random.key(0))
    params = jax.tree.map(lambda a: a + 0.1 * noise.normal(size=a.shape).astype(np.float32), start)
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16).astype(jnp.float32), params)  # what the file can hold
    path = tmp_path_factory.mktemp("run") / "model"
    save_model(task, params, path)
    return task, params, path


def test_a_branch_is_a_sequence_of_its_own(highest_precision):
    config = DecoderConfig(vocabulary=20, width=24, depth=2, heads=2, kv_heads=2, head_dim=12, mlp=32)
    decoder = Decoder(config, nnx.Rngs(0))
    ids = jax.random.randint(jax.random.key(1), (2, 5), 0, 20)
    more = jax.random.randint(jax.random.key(2), (2, 3, 4), 0, 20)
    prefix = Prefix(decoder.embed(ids), jnp.tile(jnp.arange(5), (2, 1)), jnp.ones((2, 5), bool), 5)
    y = branch(decoder, prefix, decoder.embed(more))
    found = decoder.logits(y.reshape(2, 12, -1)).reshape(2, 3, 4, -1)
    for q in range(3):
        alone = decoder(jnp.concatenate([ids, more[:, q]], 1))
        np.testing.assert_allclose(found[:, q], alone[:, 5:], atol=1e-5)


def test_what_patches_show():
    labels = jnp.array([[7, 3, -1, -1]])
    boxes = jnp.array([[[8, 8, 24, 20], [40, 33, 56, 48], [0, 0, 0, 0], [0, 0, 0, 0]]], jnp.float32)
    digit, certain, centre, box = (np.asarray(a)[0] for a in dense_targets(labels, boxes, 8, SIZE))
    grid = digit.reshape(8, 8)
    assert set(zip(*np.nonzero(grid == 7), strict=True)) == {(1, 1), (1, 2), (2, 1), (2, 2)}
    assert set(zip(*np.nonzero(grid == 3), strict=True)) == {(5, 4), (5, 5), (6, 4), (6, 5)}
    assert (np.delete(digit, np.flatnonzero((grid == 7) | (grid == 3))) == 10).all()
    assert certain.all()  # the second box covers 7/8 of its left patches
    assert np.flatnonzero(centre).tolist() == [2 * 8 + 1, 6 * 8 + 5]
    np.testing.assert_allclose(box[9], [8 / 64, 8 / 64, 24 / 64, 20 / 64])
    boxes = boxes.at[0, 0].set(jnp.array([7.0, 8.0, 24.0, 20.0]))  # touches the row above
    assert not np.asarray(dense_targets(labels, boxes, 8, SIZE)[1])[0].all()


@pytest.mark.parametrize("method", ["none", "mlp-projector", "m3", "mqt", "tokenpacker"])
def test_training_reads_prompts_as_the_loaded_model_does(trained, highest_precision, method):
    _, params, path = trained
    config = tiny_config()
    config.plan.method, config.plan.keep, config.weights = method, 0.25, str(path)
    task = AnswerQuestions(config)
    if method != "none":
        params = {**params, **{name: a for name, a in task.init(jax.random.key(4)).items() if name == "plan"}}
    plan = task.plan.with_params(params.get("plan", {}))
    model = dataclasses.replace(jtok.load(path), plan=plan)
    data = digit_questions("validation", size=SIZE)
    examples = [data[i] for i in range(7)]
    batch = {name: np.stack([e[name] for e in examples]) for name in examples[0]}
    network = task._network(params)
    sets = {name: batch[name][:, None] for name in ("question", "question_length", "answer")}
    seen = task._look(network, batch, hidden=True)
    expected = task._answer(network, seen, plan, sets)[:, 0, 0]
    prompts = [model.processor.prompt(decode_question(e["question"]), [e["image"]]) for e in examples]
    reading = model.read(model.config.arrange(model.processor.batch(prompts)))
    np.testing.assert_allclose(reading.logits, expected, atol=2e-4)
    assert np.abs(expected - expected[:1]).max() > 0.01


def test_what_stands_in_the_decoder_is_not_trained_here():
    config = tiny_config()
    config.plan.method = "fastv"
    with pytest.raises(UserError, match="llm.layer"):
        AnswerQuestions(config)


@pytest.mark.slow
def test_a_frozen_tower_stays_and_a_projector_learns(trained, tmp_path):
    config = tiny_config()
    config.plan.method, config.plan.keep, config.weights = "mqt", 0.25, str(trained[2])
    config.freeze_tower, config.dense, config.train.steps = True, 0.0, 2
    task = AnswerQuestions(config)
    state = train(config, tmp_path, task, progress=False)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), state.params, task.init(jax.random.key(0)))
    assert not any(jax.tree.leaves(moved["model"]["tower"])) and not any(jax.tree.leaves(moved["dense"]))
    assert any(jax.tree.leaves(moved["plan"])) and moved["model"]["language"]["head"]


def test_transformers_reads_the_files_alike(trained, highest_precision):
    _, _, path = trained
    model = jtok.load(path)
    reference, report = transformers.LlavaForConditionalGeneration.from_pretrained(
        path, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    example = digit_questions("test", size=SIZE)[2]
    processor = transformers.AutoProcessor.from_pretrained(path)
    said = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is there an 8?"}]}]
    text = processor.apply_chat_template(said, add_generation_prompt=True)
    inputs = processor(text=text, images=example["image"], return_tensors="pt")
    prompt = model.processor.prompt("Is there an 8?", [example["image"]])
    assert inputs["input_ids"][0].tolist() == prompt.ids.tolist()
    with torch.no_grad():
        expected = reference(**inputs).logits[0, -1].numpy()
    found = model.read(model.config.arrange(model.processor.batch([prompt]))).logits[0]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_tokenizer_spells_as_the_data_do():
    inner = make_tokenizer()
    for text in ("Is there an 8?", "which digit is top left", "What is left of the THREE?"):
        ids = encode_question(text)
        assert inner.encode(text).ids == ids[ids != PAD].tolist()
    assert inner.encode("<bos><image>is").ids == [1, 3, *encode_question("is")[:1]]


@pytest.mark.slow
def test_the_decoder_is_trained_once_the_tower_has_begun(tmp_path):
    config = tiny_config()
    config.tower_steps, config.train.log_every = 2, 1
    state = train(config, tmp_path, AnswerQuestions(config), progress=False)
    rows = [line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines()[1:]]
    answer = [float(value) for _, name, value in rows if name == "train/answer"]
    assert answer[:2] == [0, 0] and min(answer[2:]) > 1
    assert {f"eval/accuracy_{kind}" for kind in KINDS} <= {name for _, name, _ in rows}
    start = AnswerQuestions(config).init(jax.random.split(jax.random.key(config.seed))[0])
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), state.params, start)
    assert moved["model"]["language"]["embedding"] and moved["model"]["tower"]["patch"]["kernel"]


def test_muon_turns_hidden_kernels_only():
    params = AnswerQuestions(tiny_config()).init(jax.random.key(0))
    found = optimizer.matrices(named_leaves(params))
    turned = {name for name, axes in found.items() if axes is not None}
    assert "model.tower.blocks.attention.qkv.kernel" in turned and "model.projector.layers.0.kernel" in turned
    assert not any("embedding" in name or "head" in name or name.startswith("dense") for name in turned)
    out = found["model.language.blocks.out.kernel"]
    assert out.reduction_axis == (1, 2) and out.output_axis == (3,)
