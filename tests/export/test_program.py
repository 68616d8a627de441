"""Programs: the same outputs in a process that has no jtok, for any batch; and what is refused."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from jtok import cli
from jtok.commands.options import shipped_config
from jtok.export import program, source
from jtok.models.towers.load import save_params
from tests.export.test_hugging_face import tower

LOADER = """
import sys
for name in ("jtok", "flax", "optax", "torch", "transformers", "safetensors"):
    sys.modules[name] = None  # importing it fails
import jax
import numpy as np
from jax import export

with open("model.stablehlo", "rb") as file:
    model = export.deserialize(bytearray(file.read()))
outputs = model.call(np.load("images.npy"))
np.savez("outputs.npz", **outputs)
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("weights")
    config, params = tower(classes=5)
    data = {"name": "digit_scenes", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2]}
    save_params(tmp_path / "tiny.safetensors", params, config, {"jtok.data": json.dumps(data)})
    return tmp_path / "tiny.safetensors"


def run(capsys, *argv):
    code = cli.main(["export", *map(str, argv)])
    return code, capsys.readouterr().err


@pytest.mark.slow
def test_runs_without_jtok(weights, tmp_path, capsys):
    out = tmp_path / "out"
    code, err = run(capsys, f"--weights={weights}", "--format=stablehlo", "--method=tome", "--keep=0.5", f"--out={out}")
    assert code == 0, err
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    np.save(out / "images.npy", images)
    subprocess.run([sys.executable, "-c", LOADER], cwd=out, check=True, capture_output=True)
    found = np.load(out / "outputs.npz")
    expected = jax.jit(program.tower_program(source.read(str(weights), "tome", 0.5)).apply)(images)
    assert found["tokens"].shape == (3, 9, 32)
    assert set(found) == {"tokens", "owner", "pooled", "logits"}
    for name, a in expected.items():
        np.testing.assert_allclose(found[name], a, atol=1e-5, err_msg=name)
    card = json.loads((out / "model_card.json").read_text())
    assert card["format"]["platforms"] == {"model.stablehlo": ["cpu", "tpu", "cuda"]}
    assert card["format"]["model"].startswith("uint8[batch, 32, 32, 3] -> logits float32[batch, 5]")
    assert card["plan"]["method"] == "tome" and card["plan"]["counts"][-1]["out"] == 8
    assert card["cost_of_an_image"]["gmacs"] < card["cost_of_an_image"]["gmacs_without_plan"]
    assert card["data"]["name"] == "digit_scenes" and card["versions"]["jax"] == jax.__version__
    assert "| tome, keep 0.5" in (out / "MODEL_CARD.md").read_text().replace("plan | ", "| ")


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_kernels_are_in_the_program_of_an_accelerator(weights, platform):
    given = program.tower_program(source.read(str(weights), "tome", 0.5))
    text = program.with_kernels(given, platform, 2).mlir_module()
    assert {"tpu": "tpu_custom_call", "cuda": "__gpu$xla.gpu.triton"}[platform] in text
    assert "custom_call @tpu" not in program.portable(given).mlir_module()


def test_refused_in_one_sentence_and_nothing_left(weights, tmp_path, capsys):
    out = tmp_path / "out"
    whole = weights.read_bytes()
    half = tmp_path / "half.safetensors"
    half.write_bytes(whole[: len(whole) // 2])
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text('{"task": "other"}')
    fresh = tmp_path / "fresh"
    (fresh / "checkpoints" / "8.orbax-checkpoint-tmp-1").mkdir(parents=True)  # a run killed in its first save
    config = shipped_config()
    config.model.fields.update({"depth": 1, "width": 8, "heads": 1, "mlp": 8})
    (fresh / "config.json").write_text(config.to_json())
    full = tmp_path / "full"
    full.mkdir()
    (full / "something").touch()
    for argv, said in (
        ([f"--weights={half}", f"--out={out}"], "not a whole safetensors file"),
        ([f"--weights={tmp_path / 'none'}", f"--out={out}"], "there is no checkpoint"),
        ([f"--weights={tmp_path / 'run'}", f"--out={out}"], "task 'other'"),
        ([f"--weights={fresh}", f"--out={out}"], "holds no finished checkpoint"),
        ([f"--weights={weights}", f"--out={full}"], "exists already"),
        ([f"--out={out}"], "give one of --weights"),
        ([f"--weights={weights}", f"--tokenizer={half}", f"--out={out}"], "give one of --weights"),
        ([f"--tokenizer={half}", f"--out={out}"], "not a whole safetensors file"),
        ([f"--model={tmp_path / 'none'}", f"--out={out}"], "config.json"),
        ([f"--model={fresh}", f"--out={out}"], "is the directory of a run"),
        ([f"--tokenizer={fresh}", f"--out={out}"], "holds no safetensors file"),
        ([f"--weights={weights}", f"--out={out}", "--batch=2"], "carry no kernels and no batch"),
        ([f"--weights={weights}", f"--out={out}", "--method=tome"], "carry no plan"),
        ([f"--weights={weights}", f"--out={out}", "--format=stablehlo", "--method=dynamicvit"], "--reducer=FILE"),
    ):
        code, err = run(capsys, *argv)
        assert code == 2 and said in err and err.count("\n") == 1, err
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "fresh", "full", "half.safetensors", "run",
    ]  # fmt: skip
