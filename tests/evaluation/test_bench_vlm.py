"""The cost of an answer: what is counted, on a tiny shape with random weights."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jtok import cli
from jtok.evaluation.bench import vlm as bench_vlm
from jtok.methods.reduce import reduce
from jtok.models.vlm.model import VLM
from jtok.models.vlm.vlm_presets import make_vlm_config, presets, random_params

ANSWER, TEXT, LAYERS, WIDTH = 3, 8, 4, 48


@pytest.fixture(scope="module")
def model():
    config = make_vlm_config("llava-tiny")
    return VLM(config, random_params(config))


def test_every_answer_starts_from_the_same_place(model):
    inputs, keys = bench_vlm.synthetic(model.config, 2, TEXT), jax.random.split(jax.random.key(0), 2)
    reduced = reduce(model, "uniform-grid", tokens=4)
    reading = reduced.read(inputs, max_new_tokens=ANSWER, key=keys)
    slots = TEXT + 4
    assert bench_vlm.cache_bytes(reading.caches, ANSWER) == 2 * LAYERS * 2 * slots * WIDTH * 4
    answer = bench_vlm._Answer(reduced, reading, keys, ANSWER)
    first, second = answer(), answer()
    assert first.shape == (2, ANSWER)
    np.testing.assert_array_equal(first[:, 0], reading.logits.argmax(-1))
    np.testing.assert_array_equal(second, first)
    assert {int(cache.used) for cache in answer.state.caches} == {slots}


def test_the_command_compares_methods_with_the_unreduced_model(capsys):
    argv = ["--model=llava-tiny", "--methods=uniform-grid", "--tokens=4", "--repeats=2", "--answer=2", "--json"]
    config = "--config=configs/vlm/bench.py:llava-tiny"
    assert cli.main(["bench", "vlm", config, "--config.seconds=0.01", *argv]) == 0
    result = json.loads(capsys.readouterr().out)
    whole, reduced = result["rows"]
    assert (whole["method"], reduced["method"]) == ("none", "uniform-grid")
    assert (whole["visual_tokens"], reduced["visual_tokens"]) == (16, 4)
    assert whole["ttft_speedup"] == whole["ideal_speedup"] == whole["share_of_ideal"] == whole["kv_share"] == 1
    assert reduced["kv_share"] == (64 + 4) / (64 + 16)
    assert reduced["ideal_speedup"] == pytest.approx(whole["prefill_gflops"] / reduced["prefill_gflops"])
    assert reduced["share_of_ideal"] == pytest.approx(reduced["ttft_speedup"] / reduced["ideal_speedup"])
    assert 0 < reduced["tower_gflops"] < whole["tower_gflops"] < whole["prefill_gflops"]
    for row in result["rows"]:
        for what in ("ttft", "tpot"):
            assert 0 < row[f"{what}_ms_p10"] <= row[f"{what}_ms_median"] <= row[f"{what}_ms_p90"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--model=llava-7b"], ["llava-7b", "llava-1.5-7b"]),
        (["--methods=visionzap"], ["visionzap"]),
        (["--tokens=577"], ["577", "576"]),
        (["--dtype=float8"], ["float8", "bfloat16"]),
    ],
)
def test_bad_input_gets_one_sentence_before_anything_is_drawn(argv, words, capsys, monkeypatch):
    monkeypatch.setattr(bench_vlm, "random_params", lambda *args: pytest.fail("parameters are drawn"))
    assert cli.main(["bench", "vlm", *argv]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and all(word in err for word in words), err


@pytest.mark.parametrize("preset", presets())
def test_parameters_have_their_dtype_without_a_detour(preset):
    config = make_vlm_config(preset, dtype="bfloat16")
    like = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: config.network(nnx.Rngs(0))), nnx.Param))
    drawn = jax.eval_shape(lambda: random_params(config))
    assert jax.tree.map(lambda a: (a.shape, a.dtype), drawn) == jax.tree.map(lambda a: (a.shape, a.dtype), like)
    assert {leaf.dtype for leaf in jax.tree.leaves(drawn["language"])} == {jnp.dtype("bfloat16")}
    if preset == "llava-1.5-7b":
        assert sum(leaf.size for leaf in jax.tree.leaves(drawn["language"])) == 6_738_939_904
