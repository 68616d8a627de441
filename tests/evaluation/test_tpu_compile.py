"""A training step compiled for TPUs that are not here, and every input that is refused before anything starts."""

import json
import textwrap

import jax
import pytest
from jax.sharding import AbstractMesh

from jtok import cli
from jtok.evaluation.aot import tpu_compile, tpu_program
from jtok.evaluation.aot.collectives import traffic
from jtok.sharding import AXES, shardings
from jtok.training.tasks.classify import default_config

CONFIG = """
from jtok.training.tasks.classify import default_config

def get_config(arg=""):
    config = default_config()
    config.model.fields = {"depth": 2, "width": 16, "heads": 2, "mlp": 32, "image": 32}
    config.train.batch = 8
    return config
"""


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG)
    return path


def run(capsys, *argv: str):
    code = cli.main(["compile", *argv])
    return code, *capsys.readouterr()


def test_a_step_on_four_chips(config_file, capsys):
    pytest.importorskip("libtpu")
    code, out, err = run(capsys, f"--config={config_file}", "--topology=v5e:2x2", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["chips"], found["batch"]) == (4, 8)
    memory = found["memory_per_chip"]
    parameters = 2 * 2128 + 3 * 64 * 16  # two blocks, and less than all the rest
    assert 3 * 4 * parameters < memory["peak"] < memory["hbm"] == 16 * 2**30
    # every gradient is summed over the chips, once
    sent = found["collective_bytes_per_chip"]["all-reduce"]
    gradients = sum(memory[part] for part in ("arguments",)) / 3  # parameters and two moments, tiles padded
    assert 4 * parameters < sent < gradients
    assert found["loops_of_unknown_length"] == 0
    assert found["estimate"]["seconds"] == max(found["estimate"]["parts"].values()) > 0
    assert found["estimate"]["bound_by"] in ("arithmetic", "memory", "links")


@pytest.mark.parametrize(
    ("topology", "change", "said"),
    [
        ("v9:2x2", "", "there is no topology 'v9:2x2'"),
        ("v5e", "", "there is no topology 'v5e'"),
        ("v5e:3x5", "", "v5e comes as 1x1, 2x2"),
        ("v5e:4x4", "", "a batch of 8 (config.train.batch) must be a multiple of the 16 parts"),
        ("v5e:2x2", "--config.train.accumulate=4", "4 parts times 4 micro-batches"),
        ("v5e:2x2", "--config.task=other", "config.task is 'other'; jtok trains 'classify'"),
    ],
)
def test_one_sentence_and_exit_2(config_file, capsys, topology, change, said):
    pytest.importorskip("libtpu")
    code, out, err = run(capsys, f"--config={config_file}", f"--topology={topology}", *([change] if change else []))
    assert (code, out) == (2, "")
    assert said in err and err.count("\n") == 1


def test_too_large_says_what_is_needed_and_the_largest_arrays():
    params = tpu_compile._abstract_state(default_config())[-1].params
    params = jax.tree.map(tpu_program.placed, params, shardings(params, AbstractMesh((1, 2, 1), AXES)))
    largest = {"parameters": tpu_program._largest(params), "activations": []}
    part = type("Part", (), {"name": "v5e:2x2", "chip": tpu_program.Slice})
    error = "the total memory required for HLO temporaries (628.49G) exceeds available HBM (15.75G). HLO module: jit"
    said = tpu_program._too_large(error, part, largest, "the step", tpu_compile.REMEDY)
    assert "needs 628.49GiB and has 15.75GiB" in said and "model.blocks.mlp.up.kernel float32[8, 96, 192]" in said
    assert largest["parameters"][0].bytes == 8 * 96 * 3 * 96 * 4 // 2  # what one chip holds


def test_loops_count_as_often_as_they_run():
    text = textwrap.dedent("""\
        HloModule m

        %body (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
          %r = f32[4,8]{1,0} all-reduce(%x), replica_groups={{0,1}}, to_apply=%add
        }

        %condition (p: (s32[], f32[4,8])) -> pred[] {
          %n = s32[]{:T(128)} constant(6)
          ROOT %lt = pred[] compare(%i, %n), direction=LT
        }

        %unknown (p: (s32[], f32[4,8])) -> pred[] {
          ROOT %lt = pred[] compare(%i, %n), direction=LT
        }

        ENTRY %main (p: f32[4,8]) -> f32[4,8] {
          %w = (s32[], f32[4,8]{1,0}) while(%t), condition=%condition, body=%body
          %v = (s32[], f32[4,8]{1,0}) while(%t), condition=%unknown, body=%body
          %s = bf16[2,8]{1,0:T(8,128)(2,1)} reduce-scatter(%y), replica_groups={{0,1},{2,3}}, dimensions={0}
          %g = (f32[2]{0}, f32[4]{0}) all-gather-start(%z), dimensions={0}
          %h = f32[4]{0} all-gather-done(%g)
        }
        """)
    found = traffic(text)
    assert found.bytes == {"all-reduce": 7 * 4 * 8 * 4, "all-gather": 16, "reduce-scatter": 2 * 2 * 8 * 2}
    assert found.calls == {"all-reduce": 7, "all-gather": 1, "reduce-scatter": 1}
    assert found.unknown_loops == 1
    assert found.seconds(4, 1.0) == 0.75 * (2 * found.bytes["all-reduce"] + 16 + 64)


@pytest.mark.slow
def test_reading_and_answering_of_a_reduced_model_on_four_chips(capsys):
    pytest.importorskip("libtpu")
    config = "--config=configs/vlm/bench.py:llava-tiny"
    options = ["--config.methods=('random',)", "--config.mesh.tensor=4", "--config.dtype=bfloat16", "--json"]
    code, out, err = run(capsys, config, "--topology=v5e:2x2", *options)
    assert code == 0, err
    found = {(one["method"], one["program"]): one for one in json.loads(out)}
    assert set(found) == {(method, program) for method in ("none", "random") for program in ("prompt", "token")}
    assert found["random", "prompt"]["flops"] < found["none", "prompt"]["flops"]
    assert found["none", "prompt"]["mesh"] == {"data": 1, "fsdp": 1, "tensor": 4}
    # two sums over the heads' and the hidden units' shares a layer
    assert found["none", "token"]["collective_bytes_per_chip"]["all-reduce"] > 0


@pytest.mark.parametrize(
    "options, said",
    [
        (["--config.model=elsewhere"], "'elsewhere' is not a preset"),
        (["--config.batch=3", "--config.mesh.tensor=1"], "a batch of 3 prompts does not divide into the 4 parts"),
    ],
)
def test_bad_inference(capsys, options, said):
    pytest.importorskip("libtpu")
    code, out, err = run(capsys, "--config=configs/vlm/bench.py:llava-tiny", "--topology=v5e:2x2", *options)
    assert (code, out) == (2, "") and said in err and err.count("\n") == 1
